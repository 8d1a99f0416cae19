package lab

import (
	"context"
	"fmt"
	"net"
	"net/netip"
	"os"
	"runtime"

	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netns"
	"golang.org/x/sys/unix"
)

// Namespace is a network namespace, which is there as long as something holds
// it: this process, or a socket that was opened in it.
type Namespace struct {
	file  *os.File
	links *netlink.Handle
}

// current is the namespace this process is in.
func current() (*Namespace, error) { return hold() }

// newNamespace makes one, with its loopback interface up.
func newNamespace() (*Namespace, error) {
	var ns *Namespace
	err := onThread(func() (err error) {
		if err := unix.Unshare(unix.CLONE_NEWNET); err != nil {
			return fmt.Errorf("make network namespace: %w", err)
		}
		ns, err = hold()
		return err
	})
	return ns, err
}

// hold is the namespace of the calling thread.
func hold() (*Namespace, error) {
	file, err := os.Open("/proc/thread-self/ns/net")
	if err != nil {
		return nil, err
	}
	links, err := netlink.NewHandleAt(netns.NsHandle(file.Fd()))
	if err != nil {
		file.Close()
		return nil, fmt.Errorf("open netlink: %w", err)
	}
	ns := &Namespace{file, links}
	lo, err := links.LinkByName("lo")
	if err == nil {
		err = links.LinkSetUp(lo)
	}
	if err != nil {
		ns.close()
		return nil, fmt.Errorf("set loopback up: %w", err)
	}
	return ns, nil
}

func (n *Namespace) close() error {
	n.links.Close()
	return n.file.Close()
}

// onThread calls f on a thread that ends with it, whatever f does to it.
func onThread(f func() error) error {
	result := make(chan error)
	go func() {
		runtime.LockOSThread()
		if unix.Gettid() == unix.Getpid() {
			// This one does not end before the process, and is what /proc
			// shows as the process: try another.
			defer runtime.UnlockOSThread()
			result <- onThread(f)
			return
		}
		result <- f()
	}()
	return <-result
}

// Do calls f on a thread in the namespace. Sockets that f opens stay in it.
func (n *Namespace) Do(f func() error) error {
	return onThread(func() error {
		if err := unix.Setns(int(n.file.Fd()), unix.CLONE_NEWNET); err != nil {
			return fmt.Errorf("enter network namespace: %w", err)
		}
		return f()
	})
}

// Listen is net.Listen in the namespace.
func (n *Namespace) Listen(network, address string) (listener net.Listener, err error) {
	err = n.Do(func() (err error) {
		listener, err = net.Listen(network, address)
		return err
	})
	return listener, err
}

// ListenPacket is net.ListenPacket in the namespace.
func (n *Namespace) ListenPacket(network, address string) (conn net.PacketConn, err error) {
	err = n.Do(func() (err error) {
		conn, err = net.ListenPacket(network, address)
		return err
	})
	return conn, err
}

// Dial connects from the namespace to an address, not a name: a socket made
// on another thread would be in another namespace.
func (n *Namespace) Dial(ctx context.Context, network string, to netip.AddrPort) (conn net.Conn, err error) {
	err = n.Do(func() (err error) {
		conn, err = new(net.Dialer).DialContext(ctx, network, to.String())
		return err
	})
	return conn, err
}

// Sysctl sets what /proc/sys/net says in the namespace.
func (n *Namespace) Sysctl(name, value string) error {
	return n.Do(func() error {
		return os.WriteFile("/proc/sys/net/"+name, []byte(value), 0o644)
	})
}

// end is one end of a pair of links.
type end struct {
	namespace *Namespace
	name      string
	addresses []string // with the length of their prefix
}

// connect joins two namespaces by a pair of links.
func connect(a, b end) error {
	pair := &netlink.Veth{LinkAttrs: netlink.LinkAttrs{Name: a.name}, PeerName: b.name,
		PeerNamespace: netlink.NsFd(int(b.namespace.file.Fd()))}
	if err := a.namespace.links.LinkAdd(pair); err != nil {
		return fmt.Errorf("make links %s and %s: %w", a.name, b.name, err)
	}
	for _, e := range []end{a, b} {
		if err := e.namespace.setUp(e.name, e.addresses...); err != nil {
			return err
		}
	}
	return nil
}

// setUp gives a link addresses, which it may use at once.
func (n *Namespace) setUp(name string, addresses ...string) error {
	link, err := n.links.LinkByName(name)
	if err != nil {
		return fmt.Errorf("find link %s: %w", name, err)
	}
	for _, text := range addresses {
		address, err := netlink.ParseAddr(text)
		if err != nil {
			return fmt.Errorf("read address %s: %w", text, err)
		}
		address.Flags |= unix.IFA_F_NODAD
		if err := n.links.AddrAdd(link, address); err != nil {
			return fmt.Errorf("give %s the address %s: %w", name, text, err)
		}
	}
	if err := n.links.LinkSetUp(link); err != nil {
		return fmt.Errorf("set link %s up: %w", name, err)
	}
	return nil
}

// route leads to a range by a link: by way of a neighbour if via is not
// empty.
type route struct {
	to, via, link string
	local         bool // what goes there is for this namespace itself
}

func (n *Namespace) addRoute(r route) error {
	entry, err := n.entry(r)
	if err != nil {
		return err
	}
	if err := n.links.RouteAdd(entry); err != nil {
		return fmt.Errorf("add route to %s: %w", r.to, err)
	}
	return nil
}

func (n *Namespace) removeRoute(r route) error {
	entry, err := n.entry(r)
	if err != nil {
		return err
	}
	if err := n.links.RouteDel(entry); err != nil {
		return fmt.Errorf("remove route to %s: %w", r.to, err)
	}
	return nil
}

// Route has the namespace send what is for a range to a neighbour behind a
// link.
func (n *Namespace) Route(to netip.Prefix, via netip.Addr, link string) error {
	return n.addRoute(route{to: to.String(), via: via.String(), link: link})
}

// entry is what the kernel calls the route.
func (n *Namespace) entry(r route) (*netlink.Route, error) {
	link, err := n.links.LinkByName(r.link)
	if err != nil {
		return nil, fmt.Errorf("find link %s: %w", r.link, err)
	}
	_, to, err := net.ParseCIDR(r.to)
	if err != nil {
		return nil, fmt.Errorf("read range %s: %w", r.to, err)
	}
	entry := &netlink.Route{LinkIndex: link.Attrs().Index, Dst: to, Gw: net.ParseIP(r.via)}
	if r.via == "" {
		// In the table where the kernel looks for addresses that are its own.
		entry.Table, entry.Scope = unix.RT_TABLE_LOCAL, netlink.SCOPE_LINK
	}
	if r.local {
		entry.Type, entry.Scope = unix.RTN_LOCAL, netlink.SCOPE_HOST
	}
	return entry, nil
}

func (n *Namespace) removeLink(name string) error {
	link, err := n.links.LinkByName(name)
	if err == nil {
		err = n.links.LinkDel(link)
	}
	if err != nil {
		return fmt.Errorf("remove link %s: %w", name, err)
	}
	return nil
}

// cutOff fails if anything could leave the namespace.
func (n *Namespace) cutOff() error {
	links, err := n.links.LinkList()
	if err != nil {
		return fmt.Errorf("list links: %w", err)
	}
	for _, link := range links {
		attrs := link.Attrs()
		if attrs.Flags&net.FlagLoopback == 0 && attrs.Flags&net.FlagUp != 0 {
			return fmt.Errorf("link %s leads out of this namespace", attrs.Name)
		}
	}
	return nil
}
