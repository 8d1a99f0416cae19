package network

import (
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"

	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netlink/nl"
	"golang.org/x/sys/unix"
)

// openTap makes a tap device in the namespace of the calling thread. It stays
// when the file is closed, until its namespace goes: that the kernel does on
// its own time, while a closing process would have to wait for it.
//
// Nobody can open it a second time without rights over the namespace, since it
// has no owner: the VMM is handed the file.
func openTap(name string) (*os.File, error) {
	file, err := os.OpenFile("/dev/net/tun", os.O_RDWR, 0)
	if err != nil {
		return nil, err
	}
	request, err := unix.NewIfreq(name)
	if err == nil {
		request.SetUint16(unix.IFF_TAP | unix.IFF_NO_PI | unix.IFF_VNET_HDR)
		err = unix.IoctlIfreq(int(file.Fd()), unix.TUNSETIFF, request)
	}
	if err == nil {
		err = unix.IoctlSetInt(int(file.Fd()), unix.TUNSETPERSIST, 1)
	}
	if err != nil {
		return nil, errors.Join(fmt.Errorf("make tap %s: %w", name, err), file.Close())
	}
	return file, nil
}

// lendTap closes a tap after it has given it to a user.
func lendTap(tap *os.File, owner uint32) error {
	err := unix.IoctlSetInt(int(tap.Fd()), unix.TUNSETOWNER, int(owner))
	if err = errors.Join(err, tap.Close()); err != nil {
		return fmt.Errorf("lend tap to user %d: %w", owner, err)
	}
	return nil
}

// device is how a device of ours is to be.
type device struct {
	name    string
	mac     net.HardwareAddr // optional
	address netip.Prefix
	alias   string // whose it is, for people and for Find; optional
}

// configure gives a device its addresses, makes it forward and brings it up.
//
// It forwards by a setting of its own, and has no IPv6 because it gets no
// address for it. Both could be had from /proc/sys too, but finding a name
// there takes longer the more namespaces there are: a third of a millisecond
// for 500.
func configure(links *links, d device) (netlink.Link, error) {
	link, err := links.LinkByName(d.name)
	if err != nil {
		return nil, fmt.Errorf("find %s: %w", d.name, err)
	}
	err = links.LinkSetIP6AddrGenMode(link, nl.IN6_ADDR_GEN_MODE_NONE)
	if err != nil && !errors.Is(err, unix.EAFNOSUPPORT) { // a kernel without
		return nil, fmt.Errorf("keep %s from having IPv6: %w", d.name, err)
	}
	if err := links.AddrAdd(link, &netlink.Addr{IPNet: ipNet(d.address)}); err != nil {
		return nil, fmt.Errorf("give %s the address %s: %w", d.name, d.address, err)
	}
	if err := links.bringUp(link, d.mac, d.alias); err != nil {
		return nil, fmt.Errorf("bring %s up: %w", d.name, err)
	}
	return link, nil
}

func addDefaultRoute(links *links, link netlink.Link, gateway netip.Addr) error {
	err := links.RouteAdd(&netlink.Route{LinkIndex: link.Attrs().Index, Gw: gateway.AsSlice()})
	if err != nil {
		return fmt.Errorf("add default route through %s: %w", gateway, err)
	}
	return nil
}

func ipNet(p netip.Prefix) *net.IPNet {
	return &net.IPNet{IP: p.Addr().AsSlice(), Mask: net.CIDRMask(p.Bits(), 32)}
}
