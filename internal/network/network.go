// Package network gives a sandbox its network: a network namespace of its
// own with a tap in it for the VMM, a link to the host's namespace, and
// firewalls on both sides that hold its policy.
//
// The host's namespace is the one this process is in. What stays there is
// named after the sandbox's id alone, so that CleanUp finds it; all else is in
// the sandbox's namespace, which has no name, and is gone when nobody holds it
// any more.
package network

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"sync"
	"time"

	nfnetlink "github.com/mdlayher/netlink"
	"golang.org/x/sys/unix"

	"github.com/vmsan/vmsan/internal/fault"
	"github.com/vmsan/vmsan/internal/network/firewall"
	"github.com/vmsan/vmsan/internal/network/netns"
	"github.com/vmsan/vmsan/internal/policy"
	"github.com/vmsan/vmsan/internal/undo"
)

// Config says what network to make.
type Config struct {
	// ID is the sandbox's: vm and ten letters or digits.
	ID string
	// Slot is which /30 of Pool is the sandbox's, from 0.
	Slot int
	Pool netip.Prefix
	// Policy is what the guest may reach.
	Policy policy.Policy
	// Bandwidth is optional.
	Bandwidth policy.Bandwidth
	// Owner is a word of at most 255 bytes that Find tells the sandboxes of
	// different owners by. Optional.
	Owner string
}

// Network is a sandbox's network. Its methods may be called from any
// goroutine; Close ends it.
type Network struct {
	id      string
	pool    netip.Prefix
	ns      *netns.Namespace
	tap     *os.File
	sockets Sockets
	rules   *firewall.Sandbox
	losses  *firewall.Losses
	uplink  netip.Addr // what the host sees the guest come from

	mu     sync.Mutex // held while the host's rules change
	policy policy.Policy
	opened []string // devices; see noteOpened
	closed bool
}

// Create makes a sandbox's network. On error nothing is left behind.
func Create(ctx context.Context, c Config) (n *Network, err error) {
	if err := checkID(c.ID); err != nil {
		return nil, err
	}
	lease, err := leaseOf(c.Pool, c.Slot)
	if err != nil {
		return nil, err
	}
	n = &Network{id: c.ID, pool: c.Pool, policy: c.Policy, uplink: lease.uplink.Addr()}
	var taken undo.Stack
	defer func() {
		if err != nil {
			n, err = nil, errors.Join(err, taken.Run())
		}
	}()
	if n.ns, err = netns.New(); err != nil {
		return nil, namespaceRemedies.explain(err)
	}
	taken.Add(n.close)
	if err := fault.After("network: namespace made", nil); err != nil {
		return nil, err
	}
	host, err := openHost()
	if err != nil {
		return nil, err
	}
	defer host.close()
	var in inside
	defer in.close()
	if err := fault.After("network: furnished", n.ns.Do(func() error { return n.open(c, &in) })); err != nil {
		return nil, err
	}
	if err := ctx.Err(); err != nil {
		return nil, err
	}
	if err := n.rules.Install(c.Policy); err != nil {
		return nil, explainFirewall(err)
	}
	if n.sockets.Denials, err = listenForDenials(in.log); err != nil {
		return nil, explainFirewall(err)
	}
	if n.losses, err = firewall.WatchLosses(); err != nil {
		return nil, explainFirewall(err)
	}
	if err := fault.After("network: host's rules made", host.rules.Install()); err != nil {
		return nil, explainFirewall(err)
	}
	if err := host.addLink(Device(c.ID), n.ns.File()); err != nil {
		return nil, linkRemedies.explain(err)
	}
	taken.Add(func() error { return CleanUp(c.ID) }) // host is closed by then
	if err := fault.After("network: linked", nil); err != nil {
		return nil, err
	}
	if err := in.connect(lease, c.Bandwidth); err != nil {
		return nil, err
	}
	if err := fault.After("network: connected", host.connect(c, lease)); err != nil {
		return nil, err
	}
	return n, ctx.Err()
}

// inside is what is needed of a sandbox's namespace while it is furnished.
type inside struct {
	links *links
	log   *nfnetlink.Conn
}

func (in *inside) close() {
	if in.links != nil {
		in.links.close()
	}
	if in.log != nil {
		in.log.Close()
	}
}

// open opens what has to be opened in the sandbox's namespace, which the
// calling thread is in, and makes the tap, whose address sockets are bound to.
func (n *Network) open(c Config, in *inside) (err error) {
	if n.tap, err = openTap(tapName); err != nil {
		return tunRemedies.explain(err)
	}
	if in.links, err = openLinks(); err != nil {
		return err
	}
	tap, err := configure(in.links, device{name: tapName, mac: GatewayMAC, address: Gateway})
	if err != nil {
		return err
	}
	if err := shape(in.links, tap, c.Bandwidth.Down); err != nil {
		return linkRemedies.explain(err)
	}
	if n.rules, err = firewall.OpenSandbox(firewall.Layout{
		Tap: tapName, Uplink: uplinkName,
		Guest: Guest.Addr(), GuestMAC: GuestMAC,
		Gateway: Gateway.Addr(), DNSPort: DNSPort, ProxyPort: ProxyPort,
		Pool: c.Pool,
	}); err != nil {
		return explainFirewall(err)
	}
	if n.sockets, err = openSockets(); err != nil {
		return err
	}
	if in.log, err = nfnetlink.Dial(unix.NETLINK_NETFILTER, nil); err != nil {
		return explainFirewall(fmt.Errorf("open netfilter's netlink: %w", err))
	}
	return nil
}

// connect makes the sandbox's end of the link work.
func (in *inside) connect(l lease, b policy.Bandwidth) error {
	uplink, err := configure(in.links, device{name: uplinkName, address: l.uplink})
	if err != nil {
		return err
	}
	if err := addDefaultRoute(in.links, uplink, l.host.Addr()); err != nil {
		return err
	}
	return shape(in.links, uplink, b.Up)
}

// Tap is for the VMM: a tap device with virtio-net headers (IFF_VNET_HDR). It
// is the network's: who needs it longer duplicates it.
func (n *Network) Tap() *os.File { return n.tap }

// LendTap lets go of the tap, so that a VMM which runs as that user of the
// host's can open it by name, and nobody else.
func (n *Network) LendTap(owner uint32) (name string, err error) {
	err = lendTap(n.tap, owner)
	n.tap = nil
	return tapName, err
}

// Namespace is the sandbox's, for the gate. It is the network's too.
func (n *Network) Namespace() *os.File { return n.ns.File() }

// Sockets are for the gate. They are the network's too.
func (n *Network) Sockets() Sockets { return n.sockets }

// SetPolicy replaces the policy, at once for new flows; those under way go on.
// There is no moment at which anything else holds than one or the other.
func (n *Network) SetPolicy(p policy.Policy) error {
	return n.onHost(func(host *host) error {
		// They may be lost just now.
		if err := host.rules.Install(); err != nil {
			return err
		}
		if err := n.rules.Set(p); err != nil {
			return err
		}
		n.policy = p
		return errors.Join(host.admit(n.id, p), n.noteOpened(host))
	})
}

// onHost does something to the host's part while nobody else does.
func (n *Network) onHost(do func(*host) error) error {
	n.mu.Lock()
	defer n.mu.Unlock()
	host, err := openHost()
	if err != nil {
		return err
	}
	defer host.close()
	return do(host)
}

// SetBandwidth replaces the limits.
func (n *Network) SetBandwidth(b policy.Bandwidth) error {
	return n.ns.Do(func() error {
		links, err := openLinks()
		if err != nil {
			return err
		}
		defer links.close()
		for name, bits := range map[string]uint64{tapName: b.Down, uplinkName: b.Up} {
			link, err := links.LinkByName(name)
			if err != nil {
				return fmt.Errorf("find %s: %w", name, err)
			}
			if err := errors.Join(unshape(links, link), shape(links, link, bits)); err != nil {
				return err
			}
		}
		return nil
	})
}

// Bytes is how much has passed between the guest and its network, in both
// directions.
func (n *Network) Bytes() (total uint64, err error) {
	err = n.ns.Do(func() error {
		links, err := openLinks()
		if err != nil {
			return err
		}
		defer links.close()
		tap, err := links.LinkByName(tapName)
		if err != nil {
			return fmt.Errorf("find %s: %w", tapName, err)
		}
		if s := tap.Attrs().Statistics; s != nil {
			total = s.RxBytes + s.TxBytes
		}
		return nil
	})
	return total, err
}

// Open lets the guest reach addresses of an allowed domain, through the
// proxy, for ttl from now on. More than 65,536 at a time is an error.
func (n *Network) Open(addresses []netip.Addr, ttl time.Duration) error {
	return n.rules.Open(addresses, ttl)
}

// Shut takes back Open.
func (n *Network) Shut(addresses []netip.Addr) error { return n.rules.Shut(addresses) }

// Close gives the network up. The kernel takes it apart behind, when the VMM
// and the gate have ended as well: see Gone.
func (n *Network) Close() error {
	n.mu.Lock()
	n.closed = true
	n.mu.Unlock()
	return errors.Join(n.close(), forget(n.id))
}

// close lets go of all files: the last ones that hold the namespace, if
// nobody else does.
func (n *Network) close() error {
	var errs []error
	if n.rules != nil {
		errs = append(errs, n.rules.Close())
	}
	if n.losses != nil {
		errs = append(errs, n.losses.Close())
	}
	errs = append(errs, n.sockets.close())
	if n.tap != nil {
		errs = append(errs, n.tap.Close())
	}
	return errors.Join(append(errs, n.ns.Close())...)
}
