package network

import (
	"errors"
	"fmt"
	"net/netip"
	"slices"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"github.com/vmsan/vmsan/internal/policy"
)

// killTries bounds how often the flows are gone through when others begin and
// end meanwhile.
const killTries = 5

// Kill ends the guest's flows that p, which has to be the policy by now, does
// not allow, and returns how many they were. Those that the gate has taken
// over are the gate's to end.
func (n *Network) Kill(p policy.Policy) (killed int, err error) {
	var flows *netlink.Handle
	err = n.ns.Do(func() (err error) {
		flows, err = netlink.NewHandle(unix.NETLINK_NETFILTER)
		return err
	})
	if err != nil {
		return 0, fmt.Errorf("open conntrack: %w", err)
	}
	defer flows.Close()
	killed, err = endFlows(flows, forbidden{p, n.pool})
	if err != nil {
		return killed, fmt.Errorf("end flows that are not allowed any more: %w", err)
	}
	return killed, nil
}

// endFlows ends those that match, and returns how many they were.
func endFlows(flows *netlink.Handle, match netlink.CustomConntrackFilter) (n int, err error) {
	for range killTries {
		var ended uint
		ended, err = flows.ConntrackDeleteFilters(netlink.ConntrackTable, unix.AF_INET, match)
		n += int(ended)
		if !errors.Is(err, netlink.ErrDumpInterrupted) {
			break
		}
	}
	return n, err
}

// forbidden matches the flows that a policy does not allow.
type forbidden struct {
	policy policy.Policy
	pool   netip.Prefix
}

var protocols = map[uint8]policy.Protocol{
	unix.IPPROTO_TCP: policy.TCP, unix.IPPROTO_UDP: policy.UDP, unix.IPPROTO_ICMP: "icmp", // only CIDRs without protocol are about
}

// MatchConntrackFlow implements netlink.CustomConntrackFilter.
func (f forbidden) MatchConntrackFlow(flow *netlink.ConntrackFlow) bool {
	from, _ := netip.AddrFromSlice(flow.Forward.SrcIP)
	to, _ := netip.AddrFromSlice(flow.Forward.DstIP)
	answers, _ := netip.AddrFromSlice(flow.Reverse.SrcIP)
	if from != Guest.Addr() || answers == Gateway.Addr() {
		return false
	}
	protocol, known := protocols[flow.Forward.Protocol]
	return !known || !f.allows(to, flow.Forward.DstPort, protocol)
}

// allows is in the order of the firewall's rules. By a domain alone nothing is
// allowed that does not go through the gate, but ICMP echo, of which the next
// packet begins a flow anew.
func (f forbidden) allows(to netip.Addr, port uint16, protocol policy.Protocol) bool {
	names := func(c policy.CIDR) bool { return c.Matches(to, port, protocol) }
	switch {
	case slices.ContainsFunc(f.policy.DeniedCIDRs, names):
		return false
	case slices.ContainsFunc(f.policy.AllowedCIDRs, names):
		return true
	}
	return f.policy.Public() && policy.IsPublic(to) && !f.pool.Contains(to)
}
