package firewall

import (
	"encoding/binary"
	"net"

	"github.com/google/nftables"
	"github.com/google/nftables/binaryutil"
	"github.com/google/nftables/expr"
	"golang.org/x/sys/unix"
)

// A rule is made of parts. Each is named for how nft(8) writes it; those that
// load something use the first register.
type part []expr.Any

// reg is the register that parts load into.
const reg = unix.NFT_REG_1

func verdict(kind expr.VerdictKind, chain string) part {
	return part{&expr.Verdict{Kind: kind, Chain: chain}}
}

// The verdicts.
var (
	accept = verdict(expr.VerdictAccept, "")
	drop   = verdict(expr.VerdictDrop, "")
	count  = part{&expr.Counter{}}
)

func jump(c *nftables.Chain) part { return verdict(expr.VerdictJump, c.Name) }
func gotoChain(c *nftables.Chain) part {
	return verdict(expr.VerdictGoto, c.Name)
}

func meta(key expr.MetaKey, op expr.CmpOp, data []byte) part {
	return part{&expr.Meta{Key: key, Register: reg}, &expr.Cmp{Op: op, Register: reg, Data: data}}
}

// ifname is a device's name as the kernel compares it.
func ifname(name string) []byte {
	padded := make([]byte, unix.IFNAMSIZ)
	copy(padded, name)
	return padded
}

func iifname(name string) part    { return meta(expr.MetaKeyIIFNAME, expr.CmpOpEq, ifname(name)) }
func notIifname(name string) part { return meta(expr.MetaKeyIIFNAME, expr.CmpOpNeq, ifname(name)) }
func oifname(name string) part    { return meta(expr.MetaKeyOIFNAME, expr.CmpOpEq, ifname(name)) }

// The names that begin so: iifname "vmsan*".
func iifPrefix(prefix string) part { return meta(expr.MetaKeyIIFNAME, expr.CmpOpEq, []byte(prefix)) }
func oifPrefix(prefix string) part { return meta(expr.MetaKeyOIFNAME, expr.CmpOpEq, []byte(prefix)) }
func notOifPrefix(prefix string) part {
	return meta(expr.MetaKeyOIFNAME, expr.CmpOpNeq, []byte(prefix))
}

var (
	ipv4    = meta(expr.MetaKeyNFPROTO, expr.CmpOpEq, []byte{unix.NFPROTO_IPV4})
	notIPv4 = meta(expr.MetaKeyNFPROTO, expr.CmpOpNeq, []byte{unix.NFPROTO_IPV4})
	tcp     = meta(expr.MetaKeyL4PROTO, expr.CmpOpEq, []byte{unix.IPPROTO_TCP})
	udp     = meta(expr.MetaKeyL4PROTO, expr.CmpOpEq, []byte{unix.IPPROTO_UDP})
	icmp    = meta(expr.MetaKeyL4PROTO, expr.CmpOpEq, []byte{unix.IPPROTO_ICMP})
)

// loadDaddr is the IPv4 destination.
var loadDaddr = &expr.Payload{DestRegister: reg, Base: expr.PayloadBaseNetworkHeader, Offset: 16, Len: 4}

// daddrInSet is ip daddr @set.
func daddrInSet(s *nftables.Set) part { return join(ipv4, part{loadDaddr, lookup(s)}) }

func lookup(s *nftables.Set) expr.Any {
	return &expr.Lookup{SourceRegister: reg, SetName: s.Name, SetID: s.ID}
}

// dport is the destination port of TCP and UDP, which have it at one place.
func dport(first, last uint16) part {
	load := &expr.Payload{DestRegister: reg, Base: expr.PayloadBaseTransportHeader, Offset: 2, Len: 2}
	from, to := binaryutil.BigEndian.PutUint16(first), binaryutil.BigEndian.PutUint16(last)
	if first == last {
		return part{load, &expr.Cmp{Op: expr.CmpOpEq, Register: reg, Data: from}}
	}
	return part{load, &expr.Range{Op: expr.CmpOpEq, Register: reg, FromData: from, ToData: to}}
}

// echoRequest is icmp type echo-request.
var echoRequest = join(icmp, part{
	&expr.Payload{DestRegister: reg, Base: expr.PayloadBaseTransportHeader, Offset: 0, Len: 1},
	&expr.Cmp{Op: expr.CmpOpEq, Register: reg, Data: []byte{8}},
})

// ctBits tests a bit mask of connection tracking.
func ctBits(key expr.CtKey, bits uint32) part { return ctMask(key, bits, expr.CmpOpNeq) }

func ctMask(key expr.CtKey, bits uint32, zero expr.CmpOp) part {
	return part{
		&expr.Ct{Key: key, Register: reg},
		&expr.Bitwise{
			SourceRegister: reg, DestRegister: reg, Len: 4,
			Mask: binaryutil.NativeEndian.PutUint32(bits), Xor: make([]byte, 4),
		},
		&expr.Cmp{Op: zero, Register: reg, Data: make([]byte, 4)},
	}
}

var (
	established = ctBits(expr.CtKeySTATE, expr.CtStateBitESTABLISHED|expr.CtStateBitRELATED)
	invalid     = ctBits(expr.CtKeySTATE, expr.CtStateBitINVALID)
	// redirected is ct status dnat (IPS_DST_NAT).
	redirected = ctBits(expr.CtKeySTATUS, 1<<5)
	// fresh is the first packet of a flow, which the kernel does not know yet
	// (IPS_CONFIRMED). The state "new" lasts for as long as nobody answers.
	fresh = ctMask(expr.CtKeySTATUS, 1<<3, expr.CmpOpEq)
)

// redirectTo leads to a port of the device that the packet came in by.
func redirectTo(port uint16) part {
	return part{
		&expr.Immediate{Register: reg, Data: binaryutil.BigEndian.PutUint16(port)},
		&expr.Redir{RegisterProtoMin: reg},
	}
}

var masquerade = part{&expr.Masq{}}

// The ways to refuse: a reset, and ICMP's administratively prohibited.
var (
	reset      = part{&expr.Reject{Type: unix.NFT_REJECT_TCP_RST}}
	prohibited = part{&expr.Reject{Type: unix.NFT_REJECT_ICMPX_UNREACH, Code: unix.NFT_REJECT_ICMPX_ADMIN_PROHIBITED}}
)

// LogLength is how much of a packet goes into a log: the headers, and what a
// first packet may have to say.
const LogLength = 128

// log tells the listener of a group, with a reason, some of the packets.
func log(group uint16, reason string) part {
	return part{
		&expr.Limit{Type: expr.LimitTypePkts, Rate: 20, Unit: expr.LimitTimeSecond, Burst: 100},
		&expr.Log{
			Key:   1<<unix.NFTA_LOG_GROUP | 1<<unix.NFTA_LOG_PREFIX | 1<<unix.NFTA_LOG_SNAPLEN,
			Group: group, Snaplen: LogLength, Data: []byte(reason),
		},
	}
}

// fasterThan is limit rate over so many packets a second.
func fasterThan(rate uint64, burst uint32) part {
	return part{&expr.Limit{Type: expr.LimitTypePkts, Rate: rate, Unit: expr.LimitTimeSecond, Burst: burst, Over: true}}
}

// moreFlowsThan is ct count over n: the flows that have come this way and are
// still known.
func moreFlowsThan(n uint32) part {
	return part{&expr.Connlimit{Count: n, Flags: expr.NFT_CONNLIMIT_F_INV}}
}

// ethernet is said before looking at frames: meta iiftype ether.
var ethernet = meta(expr.MetaKeyIIFTYPE, expr.CmpOpEq, binaryutil.NativeEndian.PutUint16(unix.ARPHRD_ETHER))

func notEtherSaddr(mac net.HardwareAddr) part {
	return join(ethernet, part{
		&expr.Payload{DestRegister: reg, Base: expr.PayloadBaseLLHeader, Offset: 6, Len: 6},
		&expr.Cmp{Op: expr.CmpOpNeq, Register: reg, Data: mac},
	})
}

func etherType(t uint16) part {
	return join(ethernet, part{
		&expr.Payload{DestRegister: reg, Base: expr.PayloadBaseLLHeader, Offset: 12, Len: 2},
		&expr.Cmp{Op: expr.CmpOpEq, Register: reg, Data: binary.BigEndian.AppendUint16(nil, t)},
	})
}

// inNetwork compares bytes of what a frame carries.
func inNetwork(offset uint32, data []byte) part {
	return part{
		&expr.Payload{DestRegister: reg, Base: expr.PayloadBaseNetworkHeader, Offset: offset, Len: uint32(len(data))},
		&expr.Cmp{Op: expr.CmpOpEq, Register: reg, Data: data},
	}
}

// join makes one part of several.
func join(parts ...part) part {
	var all part
	for _, p := range parts {
		all = append(all, p...)
	}
	return all
}
