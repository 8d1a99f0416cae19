package network

import (
	"github.com/vmsan/vmsan/internal/network/firewall"
	"github.com/vmsan/vmsan/internal/network/netns"
)

// Chain is a chain of a sandbox's firewall that packets come to.
type Chain = firewall.Chain

// Chains returns the firewall of the network namespace that a process is in, as
// the kernel has it: none if it has no sandbox's.
func Chains(pid int) (chains []Chain, err error) {
	ns, err := netns.Of(pid)
	if err != nil {
		return nil, err
	}
	defer ns.Close()
	err = ns.Do(func() (err error) {
		chains, err = firewall.Chains()
		return err
	})
	return chains, err
}
