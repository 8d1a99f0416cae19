package network

import (
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"time"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// restorePause is before another look, after one that failed.
const restorePause = time.Second

// KeepRules puts the host's part of the rules back whenever it is deleted, until
// Close: the rules of many hosts begin with a flush of all that there are.
// Without that part sandboxes reach no network, and more of the host than they
// may. tell hears of each time, with an error for each try that failed.
func (n *Network) KeepRules(tell func(error)) {
	if err := n.begin(); err != nil {
		tell(err)
	}
	for {
		err := n.losses.Next()
		if n.ended() {
			return
		}
		if err != nil {
			// Something may have been missed.
			tell(err)
			time.Sleep(restorePause)
		}
		for {
			lost, err := n.restoreRules()
			if lost || err != nil {
				tell(err)
			}
			if err == nil {
				break
			}
			time.Sleep(restorePause)
		}
	}
}

// begin notes what only the rules know. That takes a moment, for which the start
// of a sandbox does not wait.
func (n *Network) begin() error { return n.onHost(n.noteOpened) }

func (n *Network) ended() bool {
	n.mu.Lock()
	defer n.mu.Unlock()
	return n.closed
}

// restoreRules puts back what is lost, and tells whether something was. A
// network that was closed has lost nothing.
func (n *Network) restoreRules() (lost bool, err error) {
	n.mu.Lock()
	defer n.mu.Unlock()
	if n.closed {
		return false, nil
	}
	host, err := openHost()
	if err != nil {
		return false, err
	}
	defer host.close()
	if host.rules.Intact(Device(n.id), n.policy) {
		// Another has put back what is everybody's.
		return false, host.reopen(n.opened)
	}
	if err := host.rules.Install(); err != nil {
		return true, err
	}
	if err := host.admit(n.id, n.policy); err != nil {
		return true, err
	}
	return true, errors.Join(host.reopen(n.opened), host.forgetFlows(n.uplink))
}

// reopen says again which devices forward for sandboxes alone: they still do,
// and nothing else keeps them from doing so for all.
func (h *host) reopen(devices []string) error {
	all, err := h.links.forwards(netconfAll)
	if err != nil || all {
		return err
	}
	have, err := h.rules.Opened()
	if err != nil {
		return err
	}
	for _, device := range devices {
		if slices.Contains(have, device) {
			continue
		}
		if err := h.rules.AddOpened(device); err != nil {
			return err
		}
	}
	return nil
}

// noteOpened notes those devices, of which only the rules know. The caller holds
// the lock.
func (n *Network) noteOpened(h *host) error {
	devices, err := h.rules.Opened()
	for _, d := range devices {
		if !slices.Contains(n.opened, d) {
			n.opened = append(n.opened, d)
		}
	}
	return err
}

// forgetFlows has the host take the flows from an address that have their own
// address on the way back for new ones, which the rules are about: they may have
// begun while there were none.
func (h *host) forgetFlows(from netip.Addr) error {
	flows, err := netlink.NewHandle(unix.NETLINK_NETFILTER)
	if err != nil {
		return fmt.Errorf("open conntrack: %w", err)
	}
	defer flows.Close()
	if _, err := endFlows(flows, unmasked{from}); err != nil {
		return fmt.Errorf("end flows that no rule has seen: %w", err)
	}
	return nil
}

// unmasked matches the flows from an address that has not been replaced.
type unmasked struct{ from netip.Addr }

// MatchConntrackFlow implements netlink.CustomConntrackFilter.
func (u unmasked) MatchConntrackFlow(flow *netlink.ConntrackFlow) bool {
	from, _ := netip.AddrFromSlice(flow.Forward.SrcIP)
	back, _ := netip.AddrFromSlice(flow.Reverse.DstIP)
	return from == u.from && back == u.from
}
