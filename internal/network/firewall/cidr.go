package firewall

import (
	"net"
	"net/netip"

	"github.com/google/nftables"
	"github.com/google/nftables/expr"

	"github.com/vmsan/vmsan/internal/policy"
)

// Rules of a policy compare addresses one by one. Sets that change with the
// policy would be shorter, and wrong for a moment: a packet that comes while a
// transaction is committed may find none of their elements, and so get past
// what is denied. Rules change all at once. They take time of the first packet
// of a flow alone.

// daddrIn is ip daddr with the length of a prefix.
func daddrIn(p netip.Prefix) part {
	if p.Bits() == 0 {
		return ipv4
	}
	load := part{loadDaddr}
	if p.Bits() < 32 {
		load = append(load, &expr.Bitwise{
			SourceRegister: reg, DestRegister: reg, Len: 4,
			Mask: net.CIDRMask(p.Bits(), 32), Xor: make([]byte, 4),
		})
	}
	return join(ipv4, load, part{&expr.Cmp{Op: expr.CmpOpEq, Register: reg, Data: p.Masked().Addr().AsSlice()}})
}

// matches are the packets that a CIDR is about besides their address: any of
// the parts.
func matches(c policy.CIDR) []part {
	var ports part
	if c.FirstPort != 0 {
		ports = dport(c.FirstPort, c.LastPort)
	}
	switch {
	case c.Protocol == policy.TCP:
		return []part{join(tcp, ports)}
	case c.Protocol == policy.UDP:
		return []part{join(udp, ports)}
	case ports != nil:
		return []part{join(tcp, ports), join(udp, ports)}
	}
	return []part{nil}
}

// allow fills c with what the rules allow, and plain with what a rule without
// ports or protocol does.
func (w *writer) allow(c, plain *nftables.Chain, allowed []policy.CIDR) {
	w.forTCPAndUDP(plain, nil, accept)
	w.rule(plain, ipv4, echoRequest, accept)
	for _, cidr := range allowed {
		then := accept
		if cidr.Any() {
			then = jump(plain)
		}
		for _, match := range matches(cidr) {
			w.rule(c, daddrIn(cidr.Prefix), match, then)
		}
	}
}

// deny adds rules to c for what is denied; one without ports or protocol is
// about all there is.
func (w *writer) deny(c *nftables.Chain, denied []policy.CIDR, then part) {
	for _, cidr := range denied {
		for _, match := range matches(cidr) {
			w.rule(c, daddrIn(cidr.Prefix), match, then)
		}
	}
}

// forTCPAndUDP adds a rule for each.
func (w *writer) forTCPAndUDP(c *nftables.Chain, match, then part) {
	w.rule(c, match, tcp, then)
	w.rule(c, match, udp, then)
}
