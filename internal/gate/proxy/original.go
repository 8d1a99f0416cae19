package proxy

import (
	"encoding/binary"
	"fmt"
	"net"
	"net/netip"
	"os"
	"syscall"

	"golang.org/x/sys/unix"
)

// original asks the kernel where a connection went before it was redirected
// to us.
func original(client net.Conn) (netip.AddrPort, error) {
	socket, ok := client.(syscall.Conn)
	if !ok {
		return netip.AddrPort{}, fmt.Errorf("%T is no socket", client)
	}
	raw, err := socket.SyscallConn()
	if err != nil {
		return netip.AddrPort{}, err
	}
	var to netip.AddrPort
	var failed error
	err = raw.Control(func(fd uintptr) { to, failed = originalOf(int(fd)) })
	if err != nil {
		return netip.AddrPort{}, err
	}
	return to, failed
}

// originalOf takes a struct ipv6_mreq as 20 bytes for a struct sockaddr_in,
// for which package unix has no function.
func originalOf(fd int) (netip.AddrPort, error) {
	got, err := unix.GetsockoptIPv6Mreq(fd, unix.SOL_IP, unix.SO_ORIGINAL_DST)
	if err != nil {
		return netip.AddrPort{}, os.NewSyscallError("getsockopt SO_ORIGINAL_DST", err)
	}
	sockaddr := got.Multiaddr
	port := binary.BigEndian.Uint16(sockaddr[2:])
	return netip.AddrPortFrom(netip.AddrFrom4([4]byte(sockaddr[4:8])), port), nil
}
