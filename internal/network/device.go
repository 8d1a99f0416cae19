package network

import (
	"errors"
	"fmt"
	"io/fs"
	"net"
	"net/netip"
	"os"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// setSysctl writes a setting of the network namespace that the calling thread
// is in.
func setSysctl(name, value string) error {
	// O_CREATE has no meaning there, and os.WriteFile sets it.
	f, err := os.OpenFile("/proc/sys/net/"+name, os.O_WRONLY, 0)
	if err == nil {
		_, err = f.WriteString(value)
		err = errors.Join(err, f.Close())
	}
	if err != nil {
		return fmt.Errorf("set %s: %w", name, err)
	}
	return nil
}

// withoutIPv6 turns it off for a device, or for all that are to come; a kernel
// may have none.
func withoutIPv6(device string) error {
	err := setSysctl("ipv6/conf/"+device+"/disable_ipv6", "1")
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	return err
}

// forwardIPv4Alone is for a namespace that has no devices yet.
func forwardIPv4Alone() error {
	return errors.Join(withoutIPv6("all"), withoutIPv6("default"), setSysctl("ipv4/ip_forward", "1"))
}

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

// configure gives a device its addresses and brings it up. mac is optional.
func configure(links *netlink.Handle, name string, mac net.HardwareAddr, address netip.Prefix) (netlink.Link, error) {
	link, err := links.LinkByName(name)
	if err != nil {
		return nil, fmt.Errorf("find %s: %w", name, err)
	}
	if mac != nil {
		if err := links.LinkSetHardwareAddr(link, mac); err != nil {
			return nil, fmt.Errorf("give %s the address %s: %w", name, mac, err)
		}
	}
	if err := links.AddrAdd(link, &netlink.Addr{IPNet: ipNet(address)}); err != nil {
		return nil, fmt.Errorf("give %s the address %s: %w", name, address, err)
	}
	if err := links.LinkSetUp(link); err != nil {
		return nil, fmt.Errorf("bring %s up: %w", name, err)
	}
	return link, nil
}

func addDefaultRoute(links *netlink.Handle, link netlink.Link, gateway netip.Addr) error {
	err := links.RouteAdd(&netlink.Route{LinkIndex: link.Attrs().Index, Gw: gateway.AsSlice()})
	if err != nil {
		return fmt.Errorf("add default route through %s: %w", gateway, err)
	}
	return nil
}

func ipNet(p netip.Prefix) *net.IPNet {
	return &net.IPNet{IP: p.Addr().AsSlice(), Mask: net.CIDRMask(p.Bits(), 32)}
}
