package e2e

import (
	"fmt"
	"net/netip"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"github.com/vmsan/vmsan/internal/network"
	"github.com/vmsan/vmsan/internal/testenv/lab"
	"github.com/vmsan/vmsan/internal/testenv/probe"
)

// policies are the columns of the matrix.
var policies = []struct {
	name  string
	flags []string
}{
	{"allow-all", nil},
	{"deny-all", []string{"--network-policy", "deny-all"}},
	{"domains", []string{"--allowed-domain", "*.allowed.example,exact.example,port.example:22"}},
	{"ranges", []string{
		"--allowed-cidr", "203.0.113.128/25,203.0.113.32/27:443/tcp,10.20.0.9/32:80/tcp", "--denied-cidr", "203.0.113.192/26",
	}},
	{"denied", []string{"--denied-cidr", "203.0.113.64/26"}},
}

// What becomes of a probe under a policy.
const (
	reached = '+' // whom it is for answers, and the packets can be seen
	stopped = '-' // nobody answers, and no packet is seen
	gated   = 'g' // vmsan itself answers, and no packet is seen
)

// row is a probe with what is to become of it, a sign for each policy.
type row struct {
	want string
	probe.Probe
	// seen tells whether it got anywhere. Without it, it cannot.
	seen func(evidence) bool
}

// evidence is what the world saw while a guest tried everything.
type evidence struct {
	flows map[lab.Flow]int // that left the host by its uplink
	hits  map[lab.Hit]int  // that reached a server
	link  netip.Addr       // the host's end of the sandbox's link
}

// at looks for packets to an address, and for requests that it got.
func at(addr netip.Addr) func(evidence) bool {
	return func(e evidence) bool {
		for f := range e.flows {
			if f.To == addr {
				return true
			}
		}
		for h := range e.hits {
			if h.At.Addr() == addr {
				return true
			}
		}
		return false
	}
}

// atPort is at for one port alone.
func atPort(to string, protocol string) func(evidence) bool {
	want := netip.MustParseAddrPort(to)
	return func(e evidence) bool {
		for f := range e.flows {
			if f.To == want.Addr() && f.Port == want.Port() && f.Protocol == protocol {
				return true
			}
		}
		for h := range e.hits {
			if h.At == want && (protocol == "udp") == strings.HasSuffix(h.Service, "udp") {
				return true
			}
		}
		return false
	}
}

// asked looks for a name that somebody was asked for.
func asked(name string) func(evidence) bool {
	return func(e evidence) bool {
		for h := range e.hits {
			if strings.EqualFold(strings.TrimSuffix(h.Name, "."), name) {
				return true
			}
		}
		return false
	}
}

// atLink is for a service of the host at the sandbox's own link.
func atLink(port uint16) func(evidence) bool {
	return func(e evidence) bool {
		for h := range e.hits {
			if h.At == netip.AddrPortFrom(e.link, port) {
				return true
			}
		}
		return false
	}
}

// matrix collects rows. Each has an address or a name of its own, by which it
// is seen.
type matrix struct {
	rows []row
	zone strings.Builder
	next map[netip.Addr]netip.Addr // by the first of a range
}

// fresh is an address of the range from first on that no other row has.
func (m *matrix) fresh(first string) netip.Addr {
	begin := netip.MustParseAddr(first)
	if m.next == nil {
		m.next = map[netip.Addr]netip.Addr{}
	}
	if !m.next[begin].IsValid() {
		m.next[begin] = begin
	}
	addr := m.next[begin]
	m.next[begin] = addr.Next()
	return addr
}

func (m *matrix) elsewhere() netip.Addr { return m.fresh("198.51.100.160") } // in no range
func (m *matrix) inRange() netip.Addr   { return m.fresh("203.0.113.141") }
func (m *matrix) inDenied() netip.Addr  { return m.fresh("203.0.113.64") }
func (m *matrix) inBoth() netip.Addr    { return m.fresh("203.0.113.192") } // allowed and denied
func (m *matrix) atPorts() netip.Addr   { return m.fresh("203.0.113.32") }  // allowed at port 443

// named is a name below another, and its address.
func (m *matrix) named(below string) (string, netip.Addr) {
	addr := m.fresh("198.51.100.60")
	name := fmt.Sprintf("n%d.%s", addr.As4()[3], below)
	m.record(name, addr)
	return name, addr
}

func (m *matrix) record(name string, addr netip.Addr) {
	fmt.Fprintf(&m.zone, "%s. 60 A %s\n", name, addr)
}

func (m *matrix) add(want, name string, p probe.Probe, seen func(evidence) bool) {
	p.Name = name
	m.rows = append(m.rows, row{want, p, seen})
}

func to(addr netip.Addr, port int) string { return netip.AddrPortFrom(addr, uint16(port)).String() }

// newMatrix has all rows. The signs are for allow-all, deny-all, domains,
// ranges and denied, in that order.
func newMatrix() *matrix {
	var m matrix
	m.names()
	m.falseNames()
	m.addresses()
	m.resolvers()
	m.host()
	m.neighbours()
	m.version6()
	m.frames()
	return &m
}

const (
	allowedZone   = "allowed.example"
	forbiddenZone = "other.example"
)

// names are reached as they should be, or not at all.
func (m *matrix) names() {
	web := func(want, what string, kind probe.Kind, name string, port int, seen func(evidence) bool) {
		m.add(want, what, probe.Probe{Kind: kind, To: fmt.Sprintf("%s:%d", name, port), Server: name, Host: name}, seen)
	}
	for _, c := range []struct {
		want, what string
		kind       probe.Kind
		port       int
		zone       string
	}{
		{"+-+-+", "HTTPS to an allowed name", probe.TLS, 443, allowedZone},
		{"+-+-+", "HTTP to an allowed name", probe.HTTP, 80, allowedZone},
		{"+-+-+", "HTTPS at another port", probe.TLS, 8443, allowedZone},
		{"+-+-+", "HTTP at another port", probe.HTTP, 8080, allowedZone},
		{"+---+", "HTTPS to another name", probe.TLS, 443, forbiddenZone},
		{"+---+", "HTTP to another name", probe.HTTP, 80, forbiddenZone},
		{"+---+", "HTTPS to a name below an exact one", probe.TLS, 443, "exact.example"},
		{"+---+", "a name that ends like an allowed one", probe.TLS, 443, "not" + allowedZone},
		{"+---+", "what is no TLS or HTTP to an allowed name", probe.TCP, 22, allowedZone},
		{"+---+", "UDP to an allowed name", probe.UDP, 7, allowedZone},
		{"+-+-+", "ping of an allowed name", probe.Ping, 0, allowedZone},
		{"+---+", "ping of another name", probe.Ping, 0, forbiddenZone},
	} {
		name, addr := m.named(c.zone)
		web(c.want, c.what, c.kind, name, c.port, at(addr))
	}

	exact := m.elsewhere()
	m.record("exact.example", exact)
	web("+-+-+", "HTTPS to an exact name", probe.TLS, "exact.example", 443, at(exact))
	above := m.elsewhere()
	m.record(allowedZone, above)
	web("+---+", "HTTPS to the name above a wildcard", probe.TLS, allowedZone, 443, at(above))
	port := m.elsewhere()
	m.record("port.example", port)
	web("+-+-+", "a name at its port", probe.TCP, "port.example", 22, atPort(to(port, 22), "tcp"))
	web("+---+", "a name at another port", probe.TLS, "port.example", 443, atPort(to(port, 443), "tcp"))

	end, far := m.named(forbiddenZone)
	fmt.Fprintf(&m.zone, "alias.%s. 60 CNAME hop.%s.\nhop.%s. 60 CNAME %s.\n", allowedZone, forbiddenZone, forbiddenZone, end)
	web("+-+-+", "HTTPS to an alias of another name", probe.TLS, "alias."+allowedZone, 443, at(far))
	denied := m.inDenied()
	m.record("denied."+allowedZone, denied)
	web("+-+--", "HTTPS to a name with a denied address", probe.TLS, "denied."+allowedZone, 443, at(denied))

	// Rebinding.
	for i, addr := range []netip.Addr{lab.Neighbour, lab.Metadata, lab.HostLAN} {
		name := fmt.Sprintf("rebound%d.%s", i, allowedZone)
		m.record(name, addr)
		web("-----", "a name that leads to "+addr.String(), probe.HTTP, name, 80, func(e evidence) bool {
			return seenHost(e, addr, name)
		})
	}
	m.record("self."+allowedZone, netip.MustParseAddr("127.0.0.1"))
	m.add("-----", "an answer with 127.0.0.1", probe.Probe{Kind: probe.Lookup, Question: "self." + allowedZone, Type: "A"}, nil)
}

// seenHost tells whether a server got a request for a host.
func seenHost(e evidence, addr netip.Addr, host string) bool {
	for h := range e.hits {
		if h.At.Addr() == addr && h.Name == host && !strings.HasPrefix(h.Service, "dns") {
			return true
		}
	}
	return false
}

// falseNames say one name and mean another.
func (m *matrix) falseNames() {
	name, addr := m.named(allowedZone)
	m.add("+---+", "another SNI at an allowed address",
		probe.Probe{Kind: probe.TLS, Before: []string{name}, To: to(addr, 443), Server: "forged.example"}, at(addr))
	name, addr = m.named(allowedZone)
	m.add("+---+", "no SNI at an allowed address",
		probe.Probe{Kind: probe.TLS, Before: []string{name}, To: to(addr, 443)}, at(addr))
	name, _ = m.named(allowedZone)
	addr = m.elsewhere()
	m.add("+---+", "an allowed SNI at another address",
		probe.Probe{Kind: probe.TLS, Before: []string{name}, To: to(addr, 443), Server: name}, at(addr))
	name, _ = m.named(allowedZone)
	other, addr := m.named(allowedZone)
	m.add("+---+", "an allowed SNI at another's address",
		probe.Probe{Kind: probe.TLS, Before: []string{name, other}, To: to(addr, 443), Server: name}, at(addr))
	name, addr = m.named(allowedZone)
	m.add("+---+", "an allowed SNI that was not resolved",
		probe.Probe{Kind: probe.TLS, To: to(addr, 443), Server: name}, at(addr))
	name, addr = m.named(allowedZone)
	m.record("cohosted."+forbiddenZone, addr)
	m.add("+---+", "another name at an allowed address",
		probe.Probe{Kind: probe.TLS, Before: []string{name}, To: to(addr, 443), Server: "cohosted." + forbiddenZone}, at(addr))
	name, addr = m.named(allowedZone)
	m.add("+---+", "an encrypted hello under an allowed name",
		probe.Probe{Kind: probe.ECH, To: name + ":443", Host: name, Server: "hidden.example"}, at(addr))
	name, addr = m.named(allowedZone)
	m.add("+---+", "QUIC to an allowed name",
		probe.Probe{Kind: probe.UDP, To: name + ":443", Payload: quicInitial()}, at(addr))

	name, addr = m.named(allowedZone)
	m.add("+---+", "HTTP: another host at an allowed address",
		probe.Probe{Kind: probe.HTTP, Before: []string{name}, To: to(addr, 80), Host: "forged.example"}, at(addr))
	name, _ = m.named(allowedZone)
	addr = m.elsewhere()
	m.add("+---+", "HTTP: an allowed host at another address",
		probe.Probe{Kind: probe.HTTP, Before: []string{name}, To: to(addr, 80), Host: name}, at(addr))
	name, first := m.named(allowedZone)
	m.add("+---+", "HTTP: another host on a kept connection",
		probe.Probe{Kind: probe.HTTP, To: name + ":80", Host: name, Then: "second.example"},
		func(e evidence) bool { return seenHost(e, first, "second.example") })
	name, second := m.named(allowedZone)
	m.record("neighbour."+allowedZone, second)
	m.add("+-+-+", "HTTP: an allowed host on a kept connection",
		probe.Probe{Kind: probe.HTTP, Before: []string{"neighbour." + allowedZone}, To: name + ":80", Host: name, Then: "neighbour." + allowedZone},
		func(e evidence) bool { return seenHost(e, second, "neighbour."+allowedZone) })
}

// quicInitial looks like a client's first datagram (RFC 9000, section 17.2.2).
func quicInitial() []byte {
	d := make([]byte, 1200)
	copy(d, []byte{0xc3, 0, 0, 0, 1, 8, 1, 2, 3, 4, 5, 6, 7, 8, 0, 0, 0x44, 0x9e})
	return d
}

// addresses are reached without a name.
func (m *matrix) addresses() {
	for _, group := range []struct {
		want, what string
		fresh      func() netip.Addr
	}{
		{"+--++", "an allowed range", m.inRange},
		{"+---+", "no range", m.elsewhere},
		{"+----", "a denied range", m.inDenied},
		{"+---+", "a range both allowed and denied", m.inBoth},
	} {
		for _, c := range []struct {
			what string
			kind probe.Kind
			port int
		}{
			{"TLS without SNI", probe.TLS, 443}, {"HTTP", probe.HTTP, 80}, {"TCP", probe.TCP, 22},
			{"UDP", probe.UDP, 7}, {"ping", probe.Ping, 0},
		} {
			addr := group.fresh()
			m.add(group.want, c.what+" to "+group.what, probe.Probe{Kind: c.kind, To: to(addr, c.port)}, at(addr))
		}
	}
	addr := m.inRange()
	m.add("+--++", "any SNI in an allowed range", probe.Probe{Kind: probe.TLS, To: to(addr, 443), Server: "any.example"}, at(addr))
	addr = m.inRange()
	m.add("-----", "another ICMP message to an allowed range", probe.Probe{Kind: probe.Timestamp, To: to(addr, 0)}, at(addr))

	addr = m.atPorts()
	m.add("+--++", "a range at its port", probe.Probe{Kind: probe.TLS, To: to(addr, 443)}, at(addr))
	addr = m.atPorts()
	m.add("+---+", "a range at another port", probe.Probe{Kind: probe.TCP, To: to(addr, 22)}, at(addr))
	addr = m.atPorts()
	m.add("+---+", "a range at its port, by UDP", probe.Probe{Kind: probe.UDP, To: to(addr, 443)}, at(addr))
	addr = m.atPorts()
	m.add("+---+", "ping of a range with a port", probe.Probe{Kind: probe.Ping, To: to(addr, 0)}, at(addr))
}

// resolvers are asked for names, by all the ways there are.
func (m *matrix) resolvers() {
	lookup := func(want, what, name, kind string, seen func(evidence) bool) {
		m.add(want, what, probe.Probe{Kind: probe.Lookup, Question: name, Type: kind}, seen)
	}
	name, _ := m.named(allowedZone)
	lookup("+-+-+", "lookup of an allowed name", name, "A", asked(name))
	name, _ = m.named(forbiddenZone)
	lookup("+---+", "lookup of another name", name, "A", asked(name))
	service := "_web._tcp." + allowedZone
	fmt.Fprintf(&m.zone, "%s. 60 SRV 0 5 443 %s.\n", service, allowedZone)
	lookup("+-+-+", "lookup of an allowed service", service, "SRV", asked(service))
	for _, tunnel := range []struct{ what, name string }{
		{"a tunnel", "c2VjcmV0.tunnel.example"},
		{"a tunnel, with long labels", strings.Repeat("c2VjcmV0.", 20) + "tunnel.example"},
		{"a tunnel, under a false end", allowedZone + ".tunnel.example"},
		{"a tunnel, under an exact name", "c2VjcmV0.exact.example"},
		{"a tunnel, beside an allowed name", "c2VjcmV0-" + allowedZone},
	} {
		fmt.Fprintf(&m.zone, "%s. 0 TXT answer\n", tunnel.name)
		lookup("+---+", tunnel.what, tunnel.name, "TXT", asked(tunnel.name))
	}

	for _, server := range []struct {
		what, allowed, other string
		addr                 netip.Addr
	}{
		{"another resolver", "g-g-g", "g---g", lab.OtherResolver},
		{"a well-known resolver", "g-g-g", "g---g", lab.PublicResolver},
		{"a resolver in an allowed range", "g-g+g", "g--+g", lab.ThirdResolver},
		{"the gateway", "g-g-g", "g---g", network.Gateway.Addr()},
		{"the host's address", "g-g-g", "g---g", lab.Uplink},
		{"the LAN's resolver", "g-g-g", "g---g", lab.Neighbour},
	} {
		for _, way := range []struct {
			what, protocol string
			kind           probe.Kind
		}{{"UDP", "udp", probe.DNSUDP}, {"TCP", "tcp", probe.DNSTCP}} {
			allowed, _ := m.named(allowedZone)
			m.add(server.allowed, "DNS by "+way.what+" to "+server.what,
				probe.Probe{Kind: way.kind, To: to(server.addr, 53), Question: allowed, Type: "A"}, atPort(to(server.addr, 53), way.protocol))
			other, _ := m.named(forbiddenZone)
			m.add(server.other, "DNS by "+way.what+" to "+server.what+", other name",
				probe.Probe{Kind: way.kind, To: to(server.addr, 53), Question: other, Type: "A"}, atPort(to(server.addr, 53), way.protocol))
		}
	}
	for _, c := range []struct {
		want, what string
		kind       probe.Kind
		port       int
		fresh      func() netip.Addr
		server     string
	}{
		{"+---+", "DoT", probe.DoT, 853, m.elsewhere, ""},
		{"+--++", "DoT to an allowed range", probe.DoT, 853, m.inRange, ""},
		{"+---+", "DoT under an allowed SNI", probe.DoT, 853, m.elsewhere, "n60." + allowedZone},
		{"+---+", "DoH", probe.DoH, 443, m.elsewhere, ""},
		{"+--++", "DoH to an allowed range", probe.DoH, 443, m.inRange, ""},
		{"+---+", "DoH under an allowed SNI", probe.DoH, 443, m.elsewhere, "n60." + allowedZone},
	} {
		addr := c.fresh()
		m.add(c.want, c.what, probe.Probe{
			Kind: c.kind, To: to(addr, c.port), Server: c.server, Question: "n60." + allowedZone, Type: "A",
		}, at(addr))
	}
	addr := m.elsewhere()
	m.add("+---+", "UDP at the port of mDNS", probe.Probe{Kind: probe.UDP, To: to(addr, 5353)}, at(addr))
}

// These stand for addresses that a sandbox has once it is there.
const (
	ownLink   = "own-link"
	ownUplink = "own-uplink"
	peerLink  = "peer-link"
	peer      = "peer"
)

// host services are never reached, at no address of the host.
func (m *matrix) host() {
	for _, addr := range []netip.Addr{lab.Uplink, lab.HostLAN, lab.HostLink} {
		m.add("-----", "the host's HTTP at "+addr.String(),
			probe.Probe{Kind: probe.HTTP, To: to(addr, 80)}, atPort(to(addr, 80), "tcp"))
		m.add("-----", "the host's TCP at "+addr.String(),
			probe.Probe{Kind: probe.TCP, To: to(addr, 22)}, atPort(to(addr, 22), "tcp"))
		m.add("-----", "the host's UDP at "+addr.String(),
			probe.Probe{Kind: probe.UDP, To: to(addr, 7)}, atPort(to(addr, 7), "udp"))
		m.add("-----", "ping of the host at "+addr.String(), probe.Probe{Kind: probe.Ping, To: to(addr, 0)}, nil)
	}
	m.add("-----", "the host's TCP at the link", probe.Probe{Kind: probe.TCP, To: ownLink + ":22"}, atLink(22))
	m.add("-----", "the host's UDP at the link", probe.Probe{Kind: probe.UDP, To: ownLink + ":7"}, atLink(7))
	m.add("-----", "ping of the host at the link", probe.Probe{Kind: probe.Ping, To: ownLink + ":0"}, nil)
	m.add("-----", "TCP to its own uplink", probe.Probe{Kind: probe.TCP, To: ownUplink + ":22"}, nil)
	gateway := network.Gateway.Addr()
	m.add("-----", "TCP to the gateway", probe.Probe{Kind: probe.TCP, To: to(gateway, 22)}, nil)
	m.add("-----", "the gateway's proxy, directly",
		probe.Probe{Kind: probe.HTTP, To: to(gateway, network.ProxyPort), Host: "n60." + allowedZone}, nil)
	m.add("-----", "UDP to the gateway", probe.Probe{Kind: probe.UDP, To: to(gateway, 7)}, nil)
	m.add("ggggg", "ping of the gateway", probe.Probe{Kind: probe.Ping, To: to(gateway, 0)}, nil)
}

// peerPort is where another sandbox listens, and publishedPort leads to it
// from all addresses of the host. Its own log says who came.
const (
	peerPort      = 7777
	publishedPort = 17777
)

// neighbours are the other sandboxes and private networks.
func (m *matrix) neighbours() {
	for _, kind := range []probe.Kind{probe.TCP, probe.UDP, probe.Ping} {
		m.add("-----", fmt.Sprintf("another sandbox, %s", kind),
			probe.Probe{Kind: kind, To: fmt.Sprintf("%s:%d", peer, peerPort)}, nil)
	}
	m.add("-----", "the host at another sandbox's link", probe.Probe{Kind: probe.TCP, To: peerLink + ":22"}, nil)
	m.add("-----", "the guest's own address", probe.Probe{Kind: probe.TCP, To: to(network.Guest.Addr(), peerPort)}, nil)
	for _, addr := range []netip.Addr{lab.Uplink, lab.HostLAN} {
		m.add("-----", "another's published port at "+addr.String(),
			probe.Probe{Kind: probe.TCP, To: to(addr, publishedPort)}, nil)
	}
	m.add("---+-", "HTTP in the LAN", probe.Probe{Kind: probe.HTTP, To: to(lab.Neighbour, 80)},
		func(e evidence) bool { return seenHost(e, lab.Neighbour, to(lab.Neighbour, 80)) })
	m.add("-----", "TCP in the LAN", probe.Probe{Kind: probe.TCP, To: to(lab.Neighbour, 22)}, atPort(to(lab.Neighbour, 22), "tcp"))
	m.add("-----", "UDP in the LAN", probe.Probe{Kind: probe.UDP, To: to(lab.Neighbour, 7)}, atPort(to(lab.Neighbour, 7), "udp"))
	m.add("-----", "ping in the LAN", probe.Probe{Kind: probe.Ping, To: to(lab.Neighbour, 0)}, nil)
	m.add("-----", "the metadata service", probe.Probe{Kind: probe.HTTP, To: to(lab.Metadata, 80)},
		func(e evidence) bool { return seenHost(e, lab.Metadata, to(lab.Metadata, 80)) })
	for _, text := range []string{
		"0.1.2.3", "10.77.1.1", "100.64.1.1", "127.0.0.53", "169.254.1.1", "172.16.5.5", "192.168.1.1",
		"198.18.200.1", "224.0.0.251", "240.0.0.1", "255.255.255.255",
	} {
		addr := netip.MustParseAddr(text)
		m.add("-----", "TCP to "+text, probe.Probe{Kind: probe.TCP, To: to(addr, 22)}, at(addr))
		m.add("-----", "UDP to "+text, probe.Probe{Kind: probe.UDP, To: to(addr, 5353)}, at(addr))
	}
}

// version6 is closed.
func (m *matrix) version6() {
	m.add("-----", "TCP by IPv6", probe.Probe{Kind: probe.TCP, To: to(lab.Server6, 22)}, at(lab.Server6))
	m.add("-----", "TCP to the host by IPv6", probe.Probe{Kind: probe.TCP, To: to(lab.Uplink6, 22)}, at(lab.Uplink6))
	global := netip.MustParseAddr("2001:db8:113::76")
	local := netip.MustParseAddr("fe80::76")
	all := netip.MustParseAddr("ff02::1")
	const solicitation, advertisement = 133, 134
	icmp := func(kind byte) []byte { return []byte{kind, 0, 0, 0, 64, 0, 7, 8, 0, 0, 0, 0, 0, 0, 0, 0} }
	for _, c := range []struct {
		what     string
		from, to netip.Addr
		protocol byte
		payload  []byte
	}{
		{"UDP by IPv6", global, lab.Server6, unix.IPPROTO_UDP,
			udp(netip.AddrPortFrom(global, 7000), netip.AddrPortFrom(lab.Server6, 7), "hello")},
		{"UDP by IPv6, from a local address", local, lab.Server6, unix.IPPROTO_UDP,
			udp(netip.AddrPortFrom(local, 7000), netip.AddrPortFrom(lab.Server6, 7), "hello")},
		{"router solicitation", local, all, unix.IPPROTO_ICMPV6, icmp(solicitation)},
		{"router advertisement", local, all, unix.IPPROTO_ICMPV6, icmp(advertisement)},
	} {
		f := frame(network.GuestMAC, unix.ETH_P_IPV6, packet6(c.from, c.to, c.protocol, c.payload))
		m.add("-----", c.what, probe.Probe{Kind: probe.Frames, Frames: [][]byte{f}}, func(e evidence) bool {
			for flow := range e.flows {
				if flow.From == c.from {
					return true
				}
			}
			return at(lab.Server6)(e)
		})
	}
}

// frames are made by hand.
func (m *matrix) frames() {
	guest := network.Guest.Addr()
	port := uint16(20000)
	datagram := func(from, addr netip.Addr, text string) packet {
		port++
		return packet{from: from, to: addr, protocol: unix.IPPROTO_UDP, id: port,
			payload: udp(netip.AddrPortFrom(from, port), netip.AddrPortFrom(addr, 7), text)}
	}
	one := func(p packet) [][]byte { return [][]byte{frame(network.GuestMAC, unix.ETH_P_IP, p.bytes())} }
	send := func(want, what string, frames [][]byte, addr netip.Addr, answer bool) {
		p := probe.Probe{Kind: probe.Frames, Frames: frames}
		if answer {
			p.Port = port
		}
		m.add(want, what, p, at(addr))
	}

	addr := m.inRange()
	send("+--++", "a datagram made by hand", one(datagram(guest, addr, "hello")), addr, true)
	for _, source := range []string{"192.0.0.3", "192.0.0.1", "10.20.0.9", "203.0.113.2", "198.18.0.2", "127.0.0.1", "0.0.0.0"} {
		addr = m.inRange()
		send("-----", "a datagram from "+source, one(datagram(netip.MustParseAddr(source), addr, "hello")), addr, false)
	}
	addr = m.inRange()
	stranger := append([]byte{}, network.GuestMAC...)
	stranger[5]++
	send("-----", "a datagram from another MAC",
		[][]byte{frame(stranger, unix.ETH_P_IP, datagram(guest, addr, "hello").bytes())}, addr, false)
	addr = m.inRange()
	tagged := append([]byte{0, 7, 0x08, 0x00}, datagram(guest, addr, "hello").bytes()...)
	send("-----", "a datagram in a VLAN", [][]byte{frame(network.GuestMAC, unix.ETH_P_8021Q, tagged)}, addr, false)

	long := strings.Repeat("long ", 10)
	addr = m.inRange()
	send("+--++", "fragments", datagram(guest, addr, long).fragments(24, 40), addr, true)
	addr = m.elsewhere()
	send("+---+", "fragments to no range", datagram(guest, addr, long).fragments(8), addr, true)
	addr = m.inDenied()
	send("+----", "fragments to a denied range", datagram(guest, addr, long).fragments(8), addr, true)
	addr = m.atPorts()
	send("+---+", "fragments to a range at another port", datagram(guest, addr, long).fragments(8), addr, true)
	addr = m.inRange()
	send("-----", "a fragment without its first", datagram(guest, addr, long).fragments(24)[1:], addr, false)
	addr = m.atPorts()
	tiny := packet{from: guest, to: addr, protocol: unix.IPPROTO_TCP, id: 7,
		payload: syn(netip.AddrPortFrom(guest, 30001), netip.AddrPortFrom(addr, 22), 20)}
	send("+---+", "a tiny fragment of TCP to another port", tiny.fragments(8, 16), addr, false)
	addr = m.atPorts()
	disguised := packet{from: guest, to: addr, protocol: unix.IPPROTO_TCP, id: 8,
		payload: syn(netip.AddrPortFrom(guest, 30002), netip.AddrPortFrom(addr, 443), 20)}
	overlay := disguised
	overlay.payload = syn(netip.AddrPortFrom(guest, 30002), netip.AddrPortFrom(addr, 22), 20)
	send("-----", "fragments that overlap",
		append(disguised.fragments(8)[:1], overlay.fragments(24)...), addr, false)
}

// wait is how long a guest waits for an answer: patiently for one that has to
// come, shortly for one that must not, since others look for that as well.
func (r row) wait(policy int) time.Duration {
	if r.want[policy] == stopped {
		return 3 * time.Second
	}
	return 40 * time.Second
}
