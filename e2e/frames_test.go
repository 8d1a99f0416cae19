package e2e

import (
	wire "encoding/binary"
	"net"
	"net/netip"

	"golang.org/x/sys/unix"

	"github.com/vmsan/vmsan/internal/network"
	"github.com/vmsan/vmsan/internal/testenv/probe"
)

// frame is what a guest sends at the level of its link, to its gateway unless
// told otherwise.
func frame(from net.HardwareAddr, kind uint16, packet []byte) []byte {
	f := append(append([]byte{}, network.GatewayMAC...), from...)
	return append(wire.BigEndian.AppendUint16(f, kind), packet...)
}

// packet is of IPv4.
type packet struct {
	from, to netip.Addr
	protocol byte
	payload  []byte
	id       uint16
	offset   int  // of a fragment, in bytes
	more     bool // fragments follow
}

func (p packet) bytes() []byte {
	const version, timeToLive, headerLength, moreFragments = 0x45, 64, 20, 0x2000
	h := make([]byte, headerLength)
	h[0], h[8], h[9] = version, timeToLive, p.protocol
	wire.BigEndian.PutUint16(h[2:], uint16(headerLength+len(p.payload)))
	wire.BigEndian.PutUint16(h[4:], p.id)
	fragment := uint16(p.offset / 8)
	if p.more {
		fragment |= moreFragments
	}
	wire.BigEndian.PutUint16(h[6:], fragment)
	from, to := p.from.As4(), p.to.As4()
	copy(h[12:], from[:])
	copy(h[16:], to[:])
	wire.BigEndian.PutUint16(h[10:], probe.Checksum(h))
	return append(h, p.payload...)
}

// fragments cuts the packet's payload before each of the offsets, which are
// multiples of eight.
func (p packet) fragments(offsets ...int) (frames [][]byte) {
	begin := 0
	for _, end := range append(offsets, len(p.payload)) {
		part := p
		part.payload, part.offset, part.more = p.payload[begin:end], begin, end < len(p.payload)
		frames = append(frames, frame(network.GuestMAC, unix.ETH_P_IP, part.bytes()))
		begin = end
	}
	return frames
}

// udp has a checksum for the packet it is in.
func udp(from, to netip.AddrPort, text string) []byte {
	const headerLength = 8
	d := make([]byte, headerLength, headerLength+len(text))
	wire.BigEndian.PutUint16(d, from.Port())
	wire.BigEndian.PutUint16(d[2:], to.Port())
	wire.BigEndian.PutUint16(d[4:], uint16(headerLength+len(text)))
	d = append(d, text...)
	wire.BigEndian.PutUint16(d[6:], checksum(from.Addr(), to.Addr(), unix.IPPROTO_UDP, d))
	return d
}

// syn opens a TCP connection, with as many bytes of options, a multiple of
// four, as are to be in a later fragment.
func syn(from, to netip.AddrPort, options int) []byte {
	const headerLength, window, flagSYN, noOperation = 20, 64240, 2, 1
	s := make([]byte, headerLength+options)
	wire.BigEndian.PutUint16(s, from.Port())
	wire.BigEndian.PutUint16(s[2:], to.Port())
	wire.BigEndian.PutUint32(s[4:], 1) // the sequence number
	s[12], s[13] = byte(len(s)/4)<<4, flagSYN
	wire.BigEndian.PutUint16(s[14:], window)
	for i := headerLength; i < len(s); i++ {
		s[i] = noOperation
	}
	wire.BigEndian.PutUint16(s[16:], checksum(from.Addr(), to.Addr(), unix.IPPROTO_TCP, s))
	return s
}

// checksum covers addresses and the protocol as well.
func checksum(from, to netip.Addr, protocol byte, data []byte) uint16 {
	pseudo := append(from.AsSlice(), to.AsSlice()...)
	pseudo = append(pseudo, 0, protocol)
	pseudo = wire.BigEndian.AppendUint16(pseudo, uint16(len(data)))
	return probe.Checksum(append(pseudo, data...))
}

// packet6 is of IPv6.
func packet6(from, to netip.Addr, protocol byte, payload []byte) []byte {
	h := make([]byte, 40)
	h[0], h[6], h[7] = 0x60, protocol, 255
	wire.BigEndian.PutUint16(h[4:], uint16(len(payload)))
	copy(h[8:], from.AsSlice())
	copy(h[24:], to.AsSlice())
	return append(h, payload...)
}
