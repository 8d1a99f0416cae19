package firewall

import (
	"encoding/binary"
	"net/netip"

	"github.com/google/nftables/binaryutil"
	"github.com/google/nftables/expr"
	"golang.org/x/sys/unix"
)

// Packet is what a packet of TCP looks like to the rules of the host's
// namespace while it is forwarded.
type Packet struct {
	In, Out  string // names of devices
	From, To netip.AddrPort
	// Established is for one that belongs to a flow which was let through.
	Established bool
}

// The states of a flow, as rules have them (linux/nf_conntrack_common.h).
const (
	stateEstablished = 1 << 1
	stateNew         = 1 << 3
)

func (p Packet) state() uint32 {
	if p.Established {
		return stateEstablished
	}
	return stateNew
}

// What has become of a flow, as rules have it (linux/nf_conntrack_common.h). No
// flow of a sandbox's is led elsewhere than it was sent.
const (
	statusSeenReply = 1 << 1
	statusConfirmed = 1 << 3
	statusSrcNAT    = 1 << 4
	statusNATDone   = 1<<7 | 1<<8
)

func (p Packet) status() uint32 {
	if p.Established {
		return statusSeenReply | statusConfirmed | statusSrcNAT | statusNATDone
	}
	return 0
}

// flow is what is known of a packet's flow; nil if it is not.
func (p Packet) flow(key expr.CtKey) []byte {
	switch key {
	case expr.CtKeySTATE:
		return binaryutil.NativeEndian.PutUint32(p.state())
	case expr.CtKeySTATUS:
		return binaryutil.NativeEndian.PutUint32(p.status())
	}
	return nil
}

// The lengths of headers without options.
const (
	ipv4Length = 20
	tcpLength  = 20
)

// network is the IPv4 header.
func (p Packet) network() []byte {
	h := make([]byte, ipv4Length)
	h[0] = 4<<4 | ipv4Length/4
	binary.BigEndian.PutUint16(h[2:], ipv4Length+tcpLength)
	h[8], h[9] = 63, unix.IPPROTO_TCP
	copy(h[12:], p.From.Addr().AsSlice())
	copy(h[16:], p.To.Addr().AsSlice())
	return h
}

// TCP's flags.
const (
	tcpSYN = 1 << 1
	tcpACK = 1 << 4
)

// transport is the TCP header of a first packet, or of the first answer.
func (p Packet) transport() []byte {
	h := make([]byte, tcpLength)
	binary.BigEndian.PutUint16(h, p.From.Port())
	binary.BigEndian.PutUint16(h[2:], p.To.Port())
	h[12], h[13] = tcpLength/4<<4, tcpSYN
	if p.Established {
		h[13] |= tcpACK
	}
	return h
}

// load is what a payload expression loads; nil if that is not known.
func (p Packet) load(e *expr.Payload) []byte {
	var header []byte
	switch e.Base {
	case expr.PayloadBaseNetworkHeader:
		header = p.network()
	case expr.PayloadBaseTransportHeader:
		header = p.transport()
	}
	if end := uint64(e.Offset) + uint64(e.Len); end <= uint64(len(header)) {
		return header[e.Offset:end]
	}
	return nil
}

// meta is what is known of a packet besides its bytes; nil if it is not.
func (p Packet) meta(key expr.MetaKey) []byte {
	switch key {
	case expr.MetaKeyIIFNAME:
		return ifname(p.In)
	case expr.MetaKeyOIFNAME:
		return ifname(p.Out)
	case expr.MetaKeyNFPROTO:
		return []byte{unix.NFPROTO_IPV4}
	case expr.MetaKeyL4PROTO:
		return []byte{unix.IPPROTO_TCP}
	case expr.MetaKeyPROTOCOL:
		return binaryutil.BigEndian.PutUint16(unix.ETH_P_IP)
	case expr.MetaKeyMARK:
		return make([]byte, 4)
	}
	return nil
}
