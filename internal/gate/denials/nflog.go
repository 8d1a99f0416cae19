package denials

import (
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"net/netip"
	"os"
	"strconv"
	"strings"
	"syscall"

	"golang.org/x/sys/unix"

	"github.com/vmsan/vmsan/api"
)

// Of linux/netfilter/nfnetlink_log.h.
const (
	nfulnlMsgPacket = 0

	nfulaPayload = 9
	nfulaPrefix  = 10
)

// nfgenmsgSize is the size of struct nfgenmsg, and rtAttrSize of an
// attribute's header.
const (
	nfgenmsgSize = 4
	rtAttrSize   = 4
)

// Watch logs the packets that the firewall tells of, until socket is closed.
// It is a netlink socket bound to an NFLOG group, in non-blocking mode, that
// the caller made an os.File of: one Read is one datagram. The rules' log
// prefixes are the reasons. Names returns what the resolver knows of an
// address.
func (l *Log) Watch(socket io.Reader, names func(netip.Addr) []string) error {
	buffer := make([]byte, 64<<10)
	for {
		n, err := socket.Read(buffer)
		switch {
		case errors.Is(err, unix.ENOBUFS):
			continue // the kernel had more to tell than we have read
		case errors.Is(err, os.ErrClosed) || errors.Is(err, io.EOF):
			return nil
		case err != nil:
			return fmt.Errorf("read the firewall's log: %w", err)
		}
		// What comes after something malformed cannot be found.
		packets, _ := parseDatagram(buffer[:n])
		for _, p := range packets {
			l.Log(p.event(names))
		}
	}
}

var errShort = errors.New("a message ends too early")

// packet is what is known of a packet that the firewall tells of.
type packet struct {
	prefix   string
	protocol uint8
	to       netip.Addr // invalid if it is not of IPv4
	port     uint16
}

// parseDatagram reads the packets in netlink messages.
func parseDatagram(b []byte) (packets []packet, err error) {
	for len(b) > 0 {
		if len(b) < unix.SizeofNlMsghdr {
			return packets, errShort
		}
		length, kind := int(binary.NativeEndian.Uint32(b)), binary.NativeEndian.Uint16(b[4:])
		if length < unix.SizeofNlMsghdr || length > len(b) {
			return packets, errShort
		}
		if kind == unix.NFNL_SUBSYS_ULOG<<8|nfulnlMsgPacket {
			p, err := parseMessage(b[unix.SizeofNlMsghdr:length])
			if err != nil {
				return packets, err
			}
			packets = append(packets, p)
		}
		b = b[min(align(length), len(b)):]
	}
	return packets, nil
}

// align is how far messages and attributes are padded.
func align(n int) int { return (n + unix.NLMSG_ALIGNTO - 1) &^ (unix.NLMSG_ALIGNTO - 1) }

func parseMessage(b []byte) (p packet, err error) {
	if len(b) < nfgenmsgSize {
		return p, errShort
	}
	b = b[nfgenmsgSize:]
	for len(b) > 0 {
		if len(b) < rtAttrSize {
			return p, errShort
		}
		length, kind := int(binary.NativeEndian.Uint16(b)), binary.NativeEndian.Uint16(b[2:])
		if length < rtAttrSize || length > len(b) {
			return p, errShort
		}
		switch value := b[rtAttrSize:length]; kind {
		case nfulaPrefix:
			prefix, _, _ := strings.Cut(string(value), "\x00")
			p.prefix = strings.TrimSpace(prefix)
		case nfulaPayload:
			p.parsePayload(value)
		}
		b = b[min(align(length), len(b)):]
	}
	return p, nil
}

// parsePayload reads the beginning of an IPv4 packet (RFC 791, section 3.1),
// as much of it as there is.
func (p *packet) parsePayload(b []byte) {
	const minHeader = 20
	if len(b) < minHeader || b[0]>>4 != 4 {
		return
	}
	p.protocol = b[9]
	p.to = netip.AddrFrom4([4]byte(b[16:20]))
	header := int(b[0]&0xf) * 4
	offset := binary.BigEndian.Uint16(b[6:]) & 0x1fff
	ported := p.protocol == syscall.IPPROTO_TCP || p.protocol == syscall.IPPROTO_UDP
	if ported && offset == 0 && header >= minHeader && len(b) >= header+4 {
		p.port = binary.BigEndian.Uint16(b[header+2:])
	}
}

var protocols = map[uint8]string{
	syscall.IPPROTO_ICMP: "icmp", syscall.IPPROTO_TCP: "tcp", syscall.IPPROTO_UDP: "udp",
}

func (p packet) event(names func(netip.Addr) []string) api.NetworkEvent {
	e := api.NetworkEvent{
		Verdict: api.VerdictDenied, Kind: api.EventFlow,
		Destination: p.to, Port: p.port, Rule: p.prefix, Hint: p.hint(),
	}
	if p.to.IsValid() {
		e.Protocol = protocols[p.protocol]
		if e.Protocol == "" {
			e.Protocol = strconv.Itoa(int(p.protocol))
		}
		if known := names(p.to); len(known) > 0 {
			e.Name = known[0]
		}
	}
	return e
}

// hintedRules are those of the firewall that an allowed CIDR overrides.
var hintedRules = map[string]bool{"policy": true, "private": true, "udp": true}

// hint is the flag that allows such packets, if there is one.
func (p packet) hint() string {
	if !hintedRules[p.prefix] || !p.to.IsValid() || p.to.IsMulticast() || p.to.IsLoopback() || p.to.As4()[0] >= 240 {
		return ""
	}
	hint := "--allowed-cidr " + p.to.String() + "/32"
	switch {
	case p.port != 0:
		return hint + ":" + strconv.Itoa(int(p.port)) + "/" + protocols[p.protocol]
	case p.protocol == syscall.IPPROTO_ICMP:
		return hint
	}
	return ""
}
