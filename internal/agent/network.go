package agent

import (
	"encoding/binary"
	"fmt"
	"net/netip"
	"unsafe"

	"golang.org/x/sys/unix"
)

// device is the guest's network device: the first that the kernel finds.
const device = "eth0"

// SetNetwork uses the old ioctls (netdevice(7)), which take the least code:
// under emulation a netlink library costs a boot 20 ms.
func (linux) SetNetwork(address netip.Prefix, gateway netip.Addr) error {
	fd, err := unix.Socket(unix.AF_INET, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return fmt.Errorf("open socket: %w", err)
	}
	defer unix.Close(fd)
	if hasAddress(fd, address.Addr()) {
		// A copy of a guest that has been here before.
		return nil
	}
	mask := netip.AddrFrom4(netmask(address.Bits()))
	for _, set := range []struct {
		what    string
		request uint
		address netip.Addr
	}{{"address", unix.SIOCSIFADDR, address.Addr()}, {"netmask", unix.SIOCSIFNETMASK, mask}} {
		if err := setAddress(fd, set.request, set.address); err != nil {
			return fmt.Errorf("set %s of %s to %s: %w", set.what, device, set.address, err)
		}
	}
	if err := linkUp(fd, device); err != nil {
		return err
	}
	if err := addDefaultRoute(fd, gateway); err != nil {
		return fmt.Errorf("add default route via %s: %w", gateway, err)
	}
	return nil
}

func netmask(bits int) (mask [4]byte) {
	binary.BigEndian.PutUint32(mask[:], ^uint32(0)<<(32-bits))
	return mask
}

func setAddress(fd int, request uint, address netip.Addr) error {
	r, err := unix.NewIfreq(device)
	if err != nil {
		return err
	}
	ip := address.As4()
	if err := r.SetInet4Addr(ip[:]); err != nil {
		return err
	}
	return unix.IoctlIfreq(fd, request, r)
}

func hasAddress(fd int, wanted netip.Addr) bool {
	r, err := unix.NewIfreq(device)
	if err != nil || unix.IoctlIfreq(fd, unix.SIOCGIFADDR, r) != nil {
		return false
	}
	ip, err := r.Inet4Addr()
	return err == nil && netip.AddrFrom4([4]byte(ip)) == wanted
}

func linkUp(fd int, name string) error {
	r, err := unix.NewIfreq(name)
	if err != nil {
		return err
	}
	r.SetUint16(unix.IFF_UP | unix.IFF_RUNNING)
	if err := unix.IoctlIfreq(fd, unix.SIOCSIFFLAGS, r); err != nil {
		return fmt.Errorf("set %s up: %w", name, err)
	}
	return nil
}

// routeEntry is struct rtentry of include/uapi/linux/route.h on 64-bit
// machines.
type routeEntry struct {
	_                    uint64
	destination, gateway unix.RawSockaddrInet4
	mask                 unix.RawSockaddrInet4
	flags                uint16
	_                    [22]byte
	metric               int16
	device               *byte
	_                    [3]uint64
}

func addDefaultRoute(fd int, gateway netip.Addr) error {
	name, err := unix.BytePtrFromString(device)
	if err != nil {
		return err
	}
	everywhere := unix.RawSockaddrInet4{Family: unix.AF_INET}
	route := routeEntry{destination: everywhere, mask: everywhere, gateway: everywhere, flags: unix.RTF_UP | unix.RTF_GATEWAY, device: name}
	route.gateway.Addr = gateway.As4()
	_, _, errno := unix.Syscall(unix.SYS_IOCTL, uintptr(fd), unix.SIOCADDRT, uintptr(unsafe.Pointer(&route)))
	if errno != 0 && errno != unix.EEXIST {
		return errno
	}
	return nil
}
