package policy

import (
	"net/netip"
	"slices"
)

// NotPublic are the ranges that are not of the public internet: no policy
// reaches them unless an allowed CIDR names them (RFC 6890 and its registry).
// 192.0.2.0/24, 198.51.100.0/24 and 203.0.113.0/24, which are for
// documentation, harm nobody.
var NotPublic = []netip.Prefix{
	netip.MustParsePrefix("0.0.0.0/8"),      // this network
	netip.MustParsePrefix("10.0.0.0/8"),     // private
	netip.MustParsePrefix("100.64.0.0/10"),  // carriers' own
	netip.MustParsePrefix("127.0.0.0/8"),    // loopback
	netip.MustParsePrefix("169.254.0.0/16"), // link-local, metadata services
	netip.MustParsePrefix("172.16.0.0/12"),  // private
	netip.MustParsePrefix("192.0.0.0/24"),   // protocols' own, and our guests
	netip.MustParsePrefix("192.88.99.0/24"), // relays into IPv6
	netip.MustParsePrefix("192.168.0.0/16"), // private
	netip.MustParsePrefix("198.18.0.0/15"),  // benchmarks, and our pool
	netip.MustParsePrefix("224.0.0.0/4"),    // multicast
	netip.MustParsePrefix("240.0.0.0/4"),    // reserved, broadcast
}

// IsPublic tells whether addr is of the public internet.
func IsPublic(addr netip.Addr) bool {
	return addr.Is4() && !slices.ContainsFunc(NotPublic, func(p netip.Prefix) bool { return p.Contains(addr) })
}

// Matches tells whether c names the port at addr.
func (c CIDR) Matches(addr netip.Addr, port uint16, protocol Protocol) bool {
	return c.Prefix.Contains(addr) &&
		(c.FirstPort == 0 || c.FirstPort <= port && port <= c.LastPort) &&
		(c.Protocol == AnyProtocol || c.Protocol == protocol)
}
