package network

import (
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"slices"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"github.com/vmsan/vmsan/internal/network/firewall"
	"github.com/vmsan/vmsan/internal/policy"
)

// host is the namespace this process is in.
type host struct {
	links *links
	rules *firewall.Host
}

func openHost() (*host, error) {
	rules, err := firewall.OpenHost()
	if err != nil {
		return nil, explainFirewall(err)
	}
	links, err := openLinks()
	if err != nil {
		return nil, errors.Join(err, rules.Close())
	}
	return &host{links: links, rules: rules}, nil
}

func (h *host) close() {
	h.links.close()
	h.rules.Close()
}

// addLink makes the pair of devices that leads to another namespace. It may be
// called from a thread in any.
func (h *host) addLink(name string, other *os.File) error {
	err := h.links.LinkAdd(&netlink.Veth{
		LinkAttrs: netlink.LinkAttrs{Name: name, TxQLen: -1},
		PeerName:  uplinkName, PeerNamespace: netlink.NsFd(other.Fd()), PeerTxQLen: -1,
	})
	if err != nil {
		return fmt.Errorf("make link %s: %w", name, err)
	}
	return nil
}

// connect makes the host's end of a link work.
func (h *host) connect(c Config, l lease) error {
	name, p := Device(c.ID), c.Policy
	if len(p.AllowedCIDRs) > 0 {
		if err := h.rules.Admit(name, p); err != nil {
			return err
		}
	}
	if _, err := configure(h.links, device{name: name, address: l.host, alias: c.Owner}); err != nil {
		return err
	}
	return h.forwardReplies(p)
}

// admit replaces what a sandbox may reach of the host.
func (h *host) admit(id string, p policy.Policy) error {
	if len(p.AllowedCIDRs) == 0 {
		return h.rules.Forget(Device(id))
	}
	if err := h.rules.Admit(Device(id), p); err != nil {
		return err
	}
	return h.forwardReplies(p)
}

// forwardReplies makes the devices that a policy leads to forward, if the host
// does not do so anyway, or else no reply would get to a sandbox; the firewall
// keeps them from forwarding anything else. It is looked at afresh for each
// sandbox, for routes and settings change.
func (h *host) forwardReplies(p policy.Policy) error {
	all, err := h.links.forwards(netconfAll)
	if err != nil {
		return err
	}
	if all {
		return h.rules.ForgetOpened()
	}
	for _, uplink := range h.links.uplinks(p) {
		on, err := h.links.forwards(uplink.Index)
		if err != nil {
			return err
		}
		if on {
			continue // by us, or by somebody for their own ends
		}
		if err := h.rules.AddOpened(uplink.Name); err != nil {
			return err
		}
		if err := os.WriteFile("/proc/sys/net/ipv4/conf/"+uplink.Name+"/forwarding", []byte("1"), 0); err != nil {
			return fmt.Errorf("let %s forward replies: %w", uplink.Name, err)
		}
	}
	return nil
}

// far are addresses of the internet, to ask for the route to. Nothing is sent
// there. VPNs like to route two halves of all addresses instead of the whole,
// so there is one in each.
var far = []netip.Addr{netip.AddrFrom4([4]byte{1, 1, 1, 1}), netip.AddrFrom4([4]byte{198, 51, 100, 1})}

// uplinks are the devices that lead to the internet and to the ranges that p
// allows, which are none on a host without network.
func (l *links) uplinks(p policy.Policy) (devices []*netlink.LinkAttrs) {
	addresses := slices.Clone(far)
	for _, c := range p.AllowedCIDRs {
		a := c.Prefix.Addr()
		if c.Prefix.Bits() < 31 {
			a = a.Next() // the first is the network's own
		}
		addresses = append(addresses, a)
	}
	for _, a := range addresses {
		routes, err := l.RouteGet(a.AsSlice())
		if err != nil || len(routes) == 0 {
			continue
		}
		link, err := l.LinkByIndex(routes[0].LinkIndex)
		if err != nil || link.Attrs().Flags&net.FlagLoopback != 0 {
			continue // the host's own addresses are reached without forwarding
		}
		known := func(d *netlink.LinkAttrs) bool { return d.Index == link.Attrs().Index }
		if !slices.ContainsFunc(devices, known) {
			devices = append(devices, link.Attrs())
		}
	}
	return devices
}

// ErrNoRoute is what DefaultRoute returns on a host without one.
var ErrNoRoute = errors.New("the host has no default route")

// DefaultRoute names the device through which the host reaches the internet
// just now: the one that the kernel would take, if there are several.
func DefaultRoute() (string, error) {
	links, err := openLinks()
	if err != nil {
		return "", err
	}
	defer links.close()
	if devices := links.uplinks(policy.Policy{}); len(devices) > 0 {
		return devices[0].Name, nil
	}
	return "", ErrNoRoute
}

// remove removes a sandbox's link and rules, if there are any.
func (h *host) remove(id string) error {
	link, err := h.links.LinkByName(Device(id))
	if err == nil {
		err = h.links.LinkDel(link)
	}
	// The kernel may be at it itself.
	if errors.As(err, &netlink.LinkNotFoundError{}) || errors.Is(err, unix.ENODEV) {
		err = nil
	}
	if err != nil {
		err = fmt.Errorf("remove link %s: %w", Device(id), err)
	}
	return errors.Join(err, h.rules.Forget(Device(id)))
}

// CleanUp removes what a process that died has left on the host of the
// sandbox's network. The VMM and gate have to be dead. It is no error if
// nothing is left.
func CleanUp(id string) error {
	if err := checkID(id); err != nil {
		return err
	}
	h, err := openHost()
	if err != nil {
		return err
	}
	defer h.close()
	return h.remove(id)
}

// forget removes a sandbox's rules alone.
func forget(id string) error {
	rules, err := firewall.OpenHost()
	if err != nil {
		return err
	}
	return errors.Join(rules.Forget(Device(id)), rules.Close())
}

// Gone tells whether the host has nothing of the slot's network any more, so
// that another sandbox can have the slot.
func Gone(slot int, pool netip.Prefix) (bool, error) {
	l, err := leaseOf(pool, slot)
	if err != nil {
		return false, err
	}
	routes, err := netlink.RouteGetWithOptions(l.uplink.Addr().AsSlice(), &netlink.RouteGetOptions{FIBMatch: true})
	if errors.Is(err, unix.ENETUNREACH) || errors.Is(err, unix.EHOSTUNREACH) {
		return true, nil
	}
	if err != nil {
		return false, fmt.Errorf("look up route to %s: %w", l.uplink.Addr(), err)
	}
	for _, r := range routes {
		if r.Dst != nil && r.Dst.String() == l.host.Masked().String() {
			return false, nil
		}
	}
	return true, nil
}

// Forwarded tells how many packets of sandboxes our rules have let through in
// the host's namespace, and how many of these were seen by the last rule of
// all. A difference that grows means that somebody else's rules drop them.
func Forwarded() (accepted, passed uint64, err error) {
	rules, err := firewall.OpenHost()
	if err != nil {
		return 0, 0, err
	}
	defer rules.Close()
	return rules.Counters()
}

// Reaches fails if the host has no route to an address. Nothing is sent there.
func Reaches(a netip.Addr) error {
	if _, err := netlink.RouteGet(a.AsSlice()); err != nil {
		return fmt.Errorf("there is no route to %s: %w", a, err)
	}
	return nil
}
