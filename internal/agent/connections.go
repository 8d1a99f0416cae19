package agent

import (
	"encoding/binary"
	"errors"
	"fmt"
	"net/netip"
	"strconv"
	"strings"
	"unsafe"

	"golang.org/x/sys/unix"
)

// Of include/uapi/linux/sock_diag.h and inet_diag.h, which package unix lacks.
const (
	sockDiagByFamily = 20
	sockDestroy      = 21
	// liveStates are those of TCP but ended and listening: a bit for each number of
	// include/net/tcp_states.h, which begin at 1.
	liveStates = ^uint32(1<<0 | 1<<7 | 1<<10)
)

// socketID is struct inet_diag_sockid.
type socketID struct {
	sourcePort, destinationPort [2]byte
	source, destination         [16]byte
	device                      uint32
	cookie                      [2]uint32
}

// socketRequest is struct inet_diag_req_v2 behind a netlink header.
type socketRequest struct {
	header                         unix.NlMsghdr
	family, protocol, extension, _ uint8
	states                         uint32
	id                             socketID
}

// socketInfo is the beginning of struct inet_diag_msg.
type socketInfo struct {
	family, state, timer, retransmits uint8
	id                                socketID
}

// maxConnections bounds what one restore ends; a guest that has more keeps the rest.
const maxConnections = 1 << 16

// ResetConnections uses sock_diag(7), as ss -K does.
func (linux) ResetConnections() error {
	if onlyOurs("/proc/thread-self/net/sockstat", "TCP: inuse ", 1) && onlyOurs("/proc/thread-self/net/sockstat6", "TCP6: inuse ", 0) {
		return nil
	}
	fd, err := unix.Socket(unix.AF_NETLINK, unix.SOCK_RAW|unix.SOCK_CLOEXEC, unix.NETLINK_SOCK_DIAG)
	if err != nil {
		return fmt.Errorf("open sock_diag: %w", err)
	}
	defer unix.Close(fd)
	for _, family := range []uint8{unix.AF_INET, unix.AF_INET6} {
		found, err := connections(fd, family)
		if err != nil {
			return fmt.Errorf("list connections: %w", err)
		}
		for _, id := range found {
			if err := destroy(fd, family, id); err != nil {
				return fmt.Errorf("reset connection to %s: %w", address(family, id.destination), err)
			}
		}
	}
	return nil
}

// onlyOurs tells whether a file of the kernel's counts no more sockets than the agent itself has, which listens on one.
func onlyOurs(path, field string, ours int) bool {
	text, err := readPlain(path)
	if err != nil {
		return false
	}
	_, count, found := strings.Cut(text, field)
	if !found {
		return false
	}
	if end := strings.IndexAny(count, " \n"); end >= 0 {
		count = count[:end]
	}
	n, err := strconv.Atoi(count)
	return err == nil && n <= ours
}

// connections lists those to other machines.
func connections(fd int, family uint8) (found []socketID, err error) {
	request := newSocketRequest(sockDiagByFamily, unix.NLM_F_DUMP, family)
	if err := send(fd, request); err != nil {
		return nil, err
	}
	buf := make([]byte, 32<<10)
	for {
		n, err := unix.Read(fd, buf)
		if err != nil {
			return nil, err
		}
		done, err := eachMessage(buf[:n], func(body []byte) {
			if len(body) < int(unsafe.Sizeof(socketInfo{})) || len(found) >= maxConnections {
				return
			}
			info := (*socketInfo)(unsafe.Pointer(&body[0]))
			if !address(family, info.id.destination).IsLoopback() {
				found = append(found, info.id)
			}
		})
		if done || err != nil {
			return found, err
		}
	}
}

func address(family uint8, raw [16]byte) netip.Addr {
	if family == unix.AF_INET {
		return netip.AddrFrom4([4]byte(raw[:4]))
	}
	return netip.AddrFrom16(raw).Unmap()
}

// destroy waits for the kernel's answer. A connection that has ended meanwhile is no error.
func destroy(fd int, family uint8, id socketID) error {
	request := newSocketRequest(sockDestroy, unix.NLM_F_ACK, family)
	request.id = id
	if err := send(fd, request); err != nil {
		return err
	}
	buf := make([]byte, 4<<10)
	n, err := unix.Read(fd, buf)
	if err != nil {
		return err
	}
	_, err = eachMessage(buf[:n], func([]byte) {})
	if errors.Is(err, unix.ENOENT) {
		return nil
	}
	return err
}

func newSocketRequest(kind, flags uint16, family uint8) *socketRequest {
	return &socketRequest{
		header: unix.NlMsghdr{Len: uint32(unsafe.Sizeof(socketRequest{})), Type: kind, Flags: unix.NLM_F_REQUEST | flags},
		family: family, protocol: unix.IPPROTO_TCP, states: liveStates,
	}
}

func send(fd int, request *socketRequest) error {
	raw := unsafe.Slice((*byte)(unsafe.Pointer(request)), unsafe.Sizeof(*request))
	return unix.Sendto(fd, raw, 0, &unix.SockaddrNetlink{Family: unix.AF_NETLINK})
}

// eachMessage calls got for the body of each message, and tells whether the last one was there. An error
// that the kernel reports is returned.
func eachMessage(raw []byte, got func(body []byte)) (done bool, err error) {
	for len(raw) >= unix.NLMSG_HDRLEN {
		length := int(binary.NativeEndian.Uint32(raw))
		if length < unix.NLMSG_HDRLEN || length > len(raw) {
			return true, errors.New("malformed netlink message")
		}
		body := raw[unix.NLMSG_HDRLEN:length]
		switch binary.NativeEndian.Uint16(raw[4:]) {
		case unix.NLMSG_DONE:
			return true, nil
		case unix.NLMSG_ERROR:
			if len(body) >= 4 {
				if errno := int32(binary.NativeEndian.Uint32(body)); errno != 0 {
					return true, unix.Errno(-errno)
				}
			}
			return true, nil
		default:
			got(body)
		}
		raw = raw[min((length+3)&^3, len(raw)):]
	}
	return false, nil
}
