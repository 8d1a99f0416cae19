package firewall

import (
	"net/netip"

	"github.com/google/nftables"

	"github.com/vmsan/vmsan/internal/policy"
)

// service is what a policy.CIDR is about besides addresses.
type service struct {
	first, last uint16
	protocol    policy.Protocol
}

// byService groups rules that differ in their addresses alone, in the order
// in which each service comes up first.
func byService(cidrs []policy.CIDR) (services []service, prefixes map[service][]netip.Prefix) {
	prefixes = map[service][]netip.Prefix{}
	for _, c := range cidrs {
		s := service{c.FirstPort, c.LastPort, c.Protocol}
		if prefixes[s] == nil {
			services = append(services, s)
		}
		prefixes[s] = append(prefixes[s], c.Prefix)
	}
	return services, prefixes
}

// matches are the packets that s is about.
func (w *writer) matches(s service) part {
	var match part
	switch s.protocol {
	case policy.TCP:
		match = tcp
	case policy.UDP:
		match = udp
	case policy.AnyProtocol:
		if s.first != 0 {
			match = w.tcpOrUDP()
		}
	}
	if s.first != 0 {
		match = join(match, dport(s.first, s.last))
	}
	return match
}

// allow fills c with what the rules allow, and plain with what a rule without
// ports or protocol does.
func (w *writer) allow(c, plain *nftables.Chain, allowed []policy.CIDR) {
	services, prefixes := byService(allowed)
	for _, s := range services {
		then := accept
		if s == (service{}) {
			then = jump(plain)
		}
		w.rule(c, w.daddrIn(prefixes[s]), w.matches(s), then)
	}
}

// deny adds a rule to c for each service that is denied; one without ports or
// protocol is about all there is.
func (w *writer) deny(c *nftables.Chain, denied []policy.CIDR, then part) {
	services, prefixes := byService(denied)
	for _, s := range services {
		w.rule(c, w.daddrIn(prefixes[s]), w.matches(s), then)
	}
}
