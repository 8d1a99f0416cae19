package probe

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"math/rand/v2"
	"net"
	"net/netip"
	"os"
	"time"

	"golang.org/x/sys/unix"
)

// Types of ICMP messages.
const (
	echoReply        = 0
	echoRequest      = 8
	timestampRequest = 13
	timestampReply   = 14
)

// askICMP sends a message and waits for the one that answers it.
func askICMP(ctx context.Context, to netip.Addr, kind, want byte) (string, error) {
	conn, err := new(net.Dialer).DialContext(ctx, "ip4:icmp", to.String())
	if err != nil {
		return "", err
	}
	defer conn.Close()
	message := make([]byte, 20) // as long as a timestamp's
	message[0] = kind
	binary.BigEndian.PutUint32(message[4:], rand.Uint32()) // id and number
	binary.BigEndian.PutUint16(message[2:], Checksum(message))
	buffer := make([]byte, 1500)
	for ctx.Err() == nil {
		if _, err := conn.Write(message); err != nil {
			return "", err
		}
		conn.SetReadDeadline(time.Now().Add(patience))
		for {
			n, _, err := conn.(*net.IPConn).ReadFrom(buffer) // Read leaves the header
			if errors.Is(err, os.ErrDeadlineExceeded) {
				break
			}
			if err != nil {
				return "", err
			}
			if n >= 8 && buffer[0] == want && string(buffer[4:8]) == string(message[4:8]) {
				return "reply", nil
			}
		}
	}
	return "", ctx.Err()
}

// Checksum is the Internet's (RFC 1071).
func Checksum(data []byte) uint16 {
	var sum uint32
	for i, b := range data {
		if i%2 == 0 {
			sum += uint32(b) << 8
		} else {
			sum += uint32(b)
		}
	}
	for sum > 0xffff {
		sum = sum>>16 + sum&0xffff
	}
	return ^uint16(sum)
}

// sendFrames sends frames by the guest's network device, and waits for a
// datagram if it is to.
func sendFrames(ctx context.Context, one Probe) (string, error) {
	link, err := device()
	if err != nil {
		return "", err
	}
	var receiver *net.UDPConn
	if one.Port != 0 {
		if receiver, err = net.ListenUDP("udp4", &net.UDPAddr{Port: int(one.Port)}); err != nil {
			return "", err
		}
		defer receiver.Close()
	}
	fd, err := unix.Socket(unix.AF_PACKET, unix.SOCK_RAW|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return "", err
	}
	defer unix.Close(fd)
	for _, frame := range one.Frames {
		if err := unix.Sendto(fd, frame, 0, &unix.SockaddrLinklayer{Ifindex: link.Index, Halen: 6}); err != nil {
			return "", fmt.Errorf("send frame: %w", err)
		}
	}
	if receiver == nil {
		return "", errors.New("sent")
	}
	end, _ := ctx.Deadline()
	receiver.SetReadDeadline(end)
	if _, _, err = receiver.ReadFrom(make([]byte, 2048)); err != nil {
		return "", err
	}
	return "datagram", nil
}

func device() (net.Interface, error) {
	links, err := net.Interfaces()
	if err != nil {
		return net.Interface{}, err
	}
	for _, link := range links {
		if link.Flags&net.FlagLoopback == 0 && link.Flags&net.FlagUp != 0 {
			return link, nil
		}
	}
	return net.Interface{}, errors.New("no network device is up")
}
