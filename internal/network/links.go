package network

import (
	"errors"
	"fmt"
	"net"

	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netlink/nl"
	"github.com/vishvananda/netns"
	"golang.org/x/sys/unix"
)

// links are the devices and routes of a namespace: that of the thread which
// opened it, whichever uses it. It adds to the library what it lacks.
type links struct {
	*netlink.Handle
	own map[int]*nl.SocketHandle
}

func openLinks() (*links, error) {
	handle, err := netlink.NewHandle(unix.NETLINK_ROUTE)
	if err != nil {
		return nil, fmt.Errorf("open rtnetlink: %w", err)
	}
	socket, err := nl.GetNetlinkSocketAt(netns.None(), netns.None(), unix.NETLINK_ROUTE)
	if err != nil {
		handle.Close()
		return nil, fmt.Errorf("open rtnetlink: %w", err)
	}
	return &links{handle, map[int]*nl.SocketHandle{unix.NETLINK_ROUTE: {Socket: socket}}}, nil
}

func (l *links) close() {
	l.Handle.Close()
	for _, s := range l.own {
		s.Close()
	}
}

// dumpTries bounds how often a listing begins anew.
const dumpTries = 20

// whole repeats a listing that was interrupted, as the kernel says when things
// come or go meanwhile.
func whole[T any](list func() ([]T, error)) (all []T, err error) {
	for range dumpTries {
		if all, err = list(); !errors.Is(err, netlink.ErrDumpInterrupted) {
			break
		}
	}
	return all, err
}

// request makes a request of a kind that the library does not know.
func (l *links) request(kind, flags int) *nl.NetlinkRequest {
	return &nl.NetlinkRequest{
		NlMsghdr: unix.NlMsghdr{Len: unix.SizeofNlMsghdr, Type: uint16(kind), Flags: unix.NLM_F_REQUEST | uint16(flags)},
		Sockets:  l.own,
	}
}

// devconfForwarding is IPV4_DEVCONF_FORWARDING (linux/ip.h).
const devconfForwarding = 1

// bringUp makes a device forward IPv4, brings it up, and gives it its hardware
// address and its alias unless they are empty, all in one request.
func (l *links) bringUp(link netlink.Link, mac net.HardwareAddr, alias string) error {
	up := nl.NewIfInfomsg(unix.AF_UNSPEC)
	up.Index = int32(link.Attrs().Index)
	up.Flags, up.Change = unix.IFF_UP, unix.IFF_UP
	request := l.request(unix.RTM_SETLINK, unix.NLM_F_ACK)
	request.AddData(up)
	if mac != nil {
		request.AddData(nl.NewRtAttr(unix.IFLA_ADDRESS, mac))
	}
	if alias != "" {
		request.AddData(nl.NewRtAttr(unix.IFLA_IFALIAS, []byte(alias)))
	}
	families := nl.NewRtAttr(unix.IFLA_AF_SPEC, nil)
	families.AddRtAttr(unix.AF_INET, nil).
		AddRtAttr(unix.IFLA_INET_CONF, nil).
		AddRtAttr(devconfForwarding, nl.Uint32Attr(1))
	request.AddData(families)
	_, err := request.Execute(unix.NETLINK_ROUTE, 0)
	return err
}

// What is asked about a device's settings (linux/netconf.h).
const (
	netconfIfindex    = 1
	netconfForwarding = 2
	netconfAll        = -1
)

// forwards tells whether a device forwards IPv4, or whether all do as far as
// the setting for all goes.
func (l *links) forwards(index int) (bool, error) {
	request := l.request(unix.RTM_GETNETCONF, unix.NLM_F_ACK)
	which := nl.NewRtAttr(netconfIfindex, nl.Uint32Attr(uint32(int32(index))))
	request.AddRawData(append([]byte{unix.AF_INET, 0, 0, 0}, which.Serialize()...))
	answers, err := request.Execute(unix.NETLINK_ROUTE, unix.RTM_NEWNETCONF)
	if err != nil {
		return false, fmt.Errorf("ask whether device %d forwards: %w", index, err)
	}
	for _, answer := range answers {
		attributes, err := nl.ParseRouteAttr(answer[4:])
		if err != nil {
			return false, err
		}
		for _, a := range attributes {
			if a.Attr.Type == netconfForwarding {
				return nl.NativeEndian().Uint32(a.Value) != 0, nil
			}
		}
	}
	return false, errors.New("the kernel does not say whether devices forward")
}
