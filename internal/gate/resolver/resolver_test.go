package resolver

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"net"
	"net/netip"
	"os"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/miekg/dns"

	"github.com/vmsan/vmsan/api"
	"github.com/vmsan/vmsan/internal/policy"
	"github.com/vmsan/vmsan/internal/testenv"
)

func TestMain(m *testing.M) { os.Exit(testenv.Main(m)) }

// upstream is a DNS server on loopback with a zone of its own.
type upstream struct {
	addr string
	// zone has the answers by "name. TYPE", as lines of a zone file. What is
	// not in it does not exist.
	zone  map[string][]string
	asked atomic.Int64
	// says, if set, answers in zone's stead.
	says func(w dns.ResponseWriter, m *dns.Msg)
	log  sync.Map // "name. TYPE" by network that was asked for
}

const soa = "example. 300 IN SOA ns.example. host.example. 1 2 3 4 60"

func newUpstream(t testing.TB, zone map[string][]string) *upstream {
	t.Helper()
	u := &upstream{zone: zone}
	u.start(t)
	return u
}

// newLiar is an upstream that has no zone.
func newLiar(t testing.TB, says func(dns.ResponseWriter, *dns.Msg)) *upstream {
	t.Helper()
	u := &upstream{says: says}
	u.start(t)
	return u
}

// listen finds a port of loopback that is free for both protocols.
func listen(t testing.TB) (net.PacketConn, net.Listener) {
	t.Helper()
	for range 20 {
		listener, err := net.Listen("tcp4", "127.0.0.1:0")
		if err != nil {
			t.Fatal(err)
		}
		if packet, err := net.ListenPacket("udp4", listener.Addr().String()); err == nil {
			return packet, listener
		}
		listener.Close()
	}
	t.Fatal("no port is free")
	return nil, nil
}

func (u *upstream) start(t testing.TB) {
	packet, listener := listen(t)
	u.addr = listener.Addr().String()
	for _, server := range []*dns.Server{
		{PacketConn: packet, Handler: u}, {Listener: listener, Handler: u},
	} {
		started := make(chan struct{})
		server.NotifyStartedFunc = func() { close(started) }
		var serving sync.WaitGroup
		serving.Go(func() { server.ActivateAndServe() })
		<-started
		t.Cleanup(func() { server.Shutdown(); serving.Wait() })
	}
}

func (u *upstream) ServeDNS(w dns.ResponseWriter, m *dns.Msg) {
	u.asked.Add(1)
	q := m.Question[0]
	u.log.Store(w.RemoteAddr().Network()+" "+strings.ToLower(q.Name)+" "+dns.TypeToString[q.Qtype], true)
	if u.says != nil {
		u.says(w, m)
		return
	}
	reply := new(dns.Msg)
	reply.SetReply(m)
	lines, exists := u.zone[strings.ToLower(q.Name)+" "+dns.TypeToString[q.Qtype]]
	if !exists {
		reply.Rcode = dns.RcodeNameError
	}
	for _, line := range lines {
		reply.Answer = append(reply.Answer, record(line))
	}
	if len(lines) == 0 {
		reply.Ns = []dns.RR{record(soa)}
	}
	if w.RemoteAddr().Network() == "udp" {
		reply.Truncate(udpSize)
	}
	w.WriteMsg(reply)
}

func record(line string) dns.RR {
	rr, err := dns.NewRR(line)
	if err != nil {
		panic(line + ": " + err.Error())
	}
	return rr
}

// host is what the monitor does for a resolver.
type host struct {
	resolvers []string

	mu     sync.Mutex
	opened map[netip.Addr]time.Duration
	opens  int
	broken error
	events []api.NetworkEvent
}

func (h *host) Dial(ctx context.Context, resolver int, network string) (net.Conn, error) {
	var d net.Dialer
	return d.DialContext(ctx, network, h.resolvers[resolver])
}

func (h *host) Open(_ context.Context, addrs []netip.Addr, ttl time.Duration) error {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.opens++
	for _, addr := range addrs {
		h.opened[addr] = ttl
	}
	return h.broken
}

func (h *host) Log(e api.NetworkEvent) {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.events = append(h.events, e)
}

func (h *host) logged() []api.NetworkEvent {
	h.mu.Lock()
	defer h.mu.Unlock()
	return slices.Clone(h.events)
}

func (h *host) openings() int {
	h.mu.Lock()
	defer h.mu.Unlock()
	return h.opens
}

func (h *host) lasting(addr string) time.Duration {
	h.mu.Lock()
	defer h.mu.Unlock()
	return h.opened[netip.MustParseAddr(addr)]
}

func (h *host) fail(err error) {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.broken = err
}

func (h *host) open() []string {
	h.mu.Lock()
	defer h.mu.Unlock()
	var open []string
	for _, addr := range slices.SortedFunc(maps.Keys(h.opened), netip.Addr.Compare) {
		open = append(open, addr.String())
	}
	return open
}

// guest is a sandbox with its resolver.
type guest struct {
	*host
	resolver *Resolver
	addr     string
}

// newGuest starts a resolver that asks upstreams for what the rules allow:
// a mode, domains, CIDRs.
func newGuest(t testing.TB, rules string, upstreams ...*upstream) *guest {
	t.Helper()
	g := &guest{host: &host{opened: map[netip.Addr]time.Duration{}}}
	for _, u := range upstreams {
		g.resolvers = append(g.resolvers, u.addr)
	}
	g.resolver = New(Config{
		Policy: rulesOf(t, rules), Resolvers: len(g.resolvers), Dialer: g, Opener: g, Log: g,
		Pool: netip.MustParsePrefix("203.0.113.128/25"),
	})
	packet, listener := listen(t)
	g.addr = listener.Addr().String()
	var serving sync.WaitGroup
	serving.Go(func() { g.resolver.ServePacket(packet) })
	serving.Go(func() { g.resolver.ServeStream(listener) })
	t.Cleanup(func() { g.resolver.Close(); serving.Wait() })
	return g
}

func rulesOf(t testing.TB, rules string) policy.Policy {
	t.Helper()
	var mode policy.Mode
	var domains []policy.Domain
	var allowed, denied []policy.CIDR
	for _, rule := range strings.Fields(rules) {
		if slices.Contains(policy.Modes, policy.Mode(rule)) {
			mode = policy.Mode(rule)
		} else if text, no := strings.CutPrefix(rule, "!"); no {
			denied = append(denied, parsed(t, policy.ParseCIDR, text))
		} else if strings.Contains(rule, "/") {
			allowed = append(allowed, parsed(t, policy.ParseCIDR, rule))
		} else {
			domains = append(domains, parsed(t, policy.ParseDomain, rule))
		}
	}
	p, err := policy.New(mode, domains, allowed, denied)
	if err != nil {
		t.Fatal(err)
	}
	return p
}

func parsed[T any](t testing.TB, parse func(string) (T, error), text string) T {
	t.Helper()
	value, err := parse(text)
	if err != nil {
		t.Fatal(err)
	}
	return value
}

func question(name string, qtype uint16) *dns.Msg {
	m := new(dns.Msg)
	m.SetQuestion(name, qtype)
	return m
}

func (g *guest) ask(t testing.TB, network string, m *dns.Msg) *dns.Msg {
	t.Helper()
	client := dns.Client{Net: network, Timeout: 10 * time.Second}
	reply, _, err := client.Exchange(m, g.addr)
	if err != nil {
		t.Fatalf("%s %s: %v", network, m.Question[0].String(), err)
	}
	return reply
}

func (g *guest) lookUp(t testing.TB, name string, qtype uint16) *dns.Msg {
	t.Helper()
	return g.ask(t, "udp", question(name, qtype))
}

// told are the records of an answer, without their TTL.
func told(m *dns.Msg) []string {
	lines := []string{dns.RcodeToString[m.Rcode]}
	for _, rr := range m.Answer {
		text := strings.TrimPrefix(rr.String(), rr.Header().String())
		lines = append(lines, rr.Header().Name+" "+dns.TypeToString[rr.Header().Rrtype]+" "+text)
	}
	return lines
}

var zone = map[string][]string{
	"a.example. A":            {"a.example. 300 IN A 203.0.113.1", "a.example. 200 IN A 203.0.113.2"},
	"b.example. A":            {"b.example. 300 IN A 203.0.113.2"},
	"short.example. A":        {"short.example. 0 IN A 203.0.113.3"},
	"long.example. A":         {"long.example. 864000 IN A 203.0.113.4"},
	"alias.example. A":        {"alias.example. 300 IN CNAME cdn.other.", "cdn.other. 100 IN A 198.51.100.7"},
	"a.example. MX":           {"a.example. 300 IN MX 10 mail.other."},
	"a.example. TXT":          {`a.example. 300 IN TXT "hello"`},
	"_http._tcp.example. SRV": {"_http._tcp.example. 300 IN SRV 1 1 80 srv.other."},
	"a.example. NS":           {"a.example. 300 IN NS ns.other."},
	"empty.example. A":        {},
	"rebind.example. A": {
		"rebind.example. 60 IN A 10.0.0.1", "rebind.example. 60 IN A 127.0.0.1", "rebind.example. 60 IN A 169.254.169.254",
		"rebind.example. 60 IN A 224.0.0.1", "rebind.example. 60 IN A 0.0.0.0", "rebind.example. 60 IN A 203.0.113.200",
		"rebind.example. 60 IN A 203.0.113.9"},
	"stranger.example. A":        {"stranger.example. 300 IN A 203.0.113.5", "other.example. 300 IN A 203.0.113.6"},
	"mail.other. A":              {"mail.other. 300 IN A 203.0.113.7"},
	"big.example. A":             many("big.example. 300 IN A 198.51.100.%d", 100),
	"a.example. AAAA":            {"a.example. 300 IN AAAA 2001:db8::1"},
	"a.example. HTTPS":           {`a.example. 300 IN HTTPS 1 . alpn="h3"`},
	"4.3.2.1.in-addr.arpa. PTR":  {"4.3.2.1.in-addr.arpa. 300 IN PTR one.example."},
	"1.0.0.10.in-addr.arpa. PTR": {"1.0.0.10.in-addr.arpa. 300 IN PTR nas.lan."},
}

func many(format string, n int) (lines []string) {
	for i := range n {
		lines = append(lines, fmt.Sprintf(format, i+1))
	}
	return lines
}

func TestAnswers(t *testing.T) {
	u := newUpstream(t, zone)
	g := newGuest(t, "*.example", u)
	for _, c := range []struct {
		name  string
		qtype uint16
		want  []string
	}{
		{"a.example.", dns.TypeA, []string{"NOERROR", "a.example. A 203.0.113.1", "a.example. A 203.0.113.2"}},
		{"A.eXample.", dns.TypeA, []string{"NOERROR", "A.eXample. A 203.0.113.1", "A.eXample. A 203.0.113.2"}},
		{"alias.example.", dns.TypeA, []string{"NOERROR", "alias.example. CNAME cdn.other.", "cdn.other. A 198.51.100.7"}},
		{"a.example.", dns.TypeMX, []string{"NOERROR", "a.example. MX 10 mail.other."}},
		{"a.example.", dns.TypeTXT, []string{"NOERROR", `a.example. TXT "hello"`}},
		{"_http._tcp.example.", dns.TypeSRV, []string{"NOERROR", "_http._tcp.example. SRV 1 1 80 srv.other."}},
		{"a.example.", dns.TypeNS, []string{"NOERROR", "a.example. NS ns.other."}},
		{"empty.example.", dns.TypeA, []string{"NOERROR"}},
		{"none.example.", dns.TypeA, []string{"NXDOMAIN"}},
		{"stranger.example.", dns.TypeA, []string{"NOERROR", "stranger.example. A 203.0.113.5"}},
		{"a.example.", dns.TypeAAAA, []string{"NOERROR"}},
		{"a.example.", dns.TypeHTTPS, []string{"NOERROR"}},
		{"a.example.", dns.TypeANY, []string{"REFUSED"}},
		{"mail.other.", dns.TypeA, []string{"REFUSED"}},
		{"cdn.other.", dns.TypeA, []string{"REFUSED"}},
		{"srv.other.", dns.TypeA, []string{"REFUSED"}},
		{"example.", dns.TypeA, []string{"REFUSED"}},
		{"4.3.2.1.in-addr.arpa.", dns.TypePTR, []string{"REFUSED"}},
		{`evil\.example.`, dns.TypeA, []string{"REFUSED"}},
	} {
		for _, network := range []string{"udp", "tcp"} {
			reply := g.ask(t, network, question(c.name, c.qtype))
			if diff := cmp.Diff(c.want, told(reply)); diff != "" {
				t.Errorf("%s %s by %s: %s", c.name, dns.TypeToString[c.qtype], network, diff)
			}
			if !reply.RecursionAvailable || reply.Authoritative || reply.AuthenticatedData {
				t.Errorf("%s: bits are wrong: %v", c.name, reply.MsgHdr)
			}
		}
	}
	for _, never := range []string{"AAAA", "HTTPS", "ANY", "other. A", " example. A", "arpa", `\`} {
		u.log.Range(func(asked, _ any) bool {
			if strings.Contains(asked.(string), never) {
				t.Errorf("the upstream was asked for %s", asked)
			}
			return true
		})
	}
}

// At most one question goes upstream for a name, whatever the letter case,
// and none for a second time.
func TestCache(t *testing.T) {
	u := newUpstream(t, zone)
	g := newGuest(t, "*.example", u)
	for name, questions := range map[string]int64{"a.example.": 1, "none.example.": 1, "empty.example.": 1, "short.example.": 3} {
		before := u.asked.Load()
		for _, name := range []string{name, strings.ToUpper(name), name} {
			g.lookUp(t, name, dns.TypeA)
		}
		if asked := u.asked.Load() - before; asked != questions {
			t.Errorf("%s: the upstream was asked %d times, not %d", name, asked, questions)
		}
	}
}

func TestQuestionsAtATimeAreAskedOnce(t *testing.T) {
	u := newLiar(t, func(w dns.ResponseWriter, m *dns.Msg) {
		time.Sleep(200 * time.Millisecond)
		reply := new(dns.Msg)
		reply.SetReply(m)
		reply.Answer = []dns.RR{record("a.example. 0 IN A 203.0.113.1")}
		w.WriteMsg(reply)
	})
	g := newGuest(t, "a.example", u)
	var asking sync.WaitGroup
	for range 20 {
		asking.Go(func() {
			client := dns.Client{Timeout: 5 * time.Second}
			reply, _, err := client.Exchange(question("a.example.", dns.TypeA), g.addr)
			if err != nil || len(reply.Answer) != 1 {
				t.Errorf("got %v, %v", reply, err)
			}
		})
	}
	asking.Wait()
	if asked := u.asked.Load(); asked > 2 {
		t.Errorf("asked %d times", asked)
	}
}

func TestFirewallKnowsAddressesBeforeTheGuestDoes(t *testing.T) {
	g := newGuest(t, "*.example", newUpstream(t, zone))
	reply := g.lookUp(t, "a.example.", dns.TypeA)
	if diff := cmp.Diff([]string{"203.0.113.1", "203.0.113.2"}, g.open()); diff != "" {
		t.Error(diff)
	}
	for _, rr := range reply.Answer {
		if ttl := rr.Header().Ttl; ttl > 200 || ttl < 190 {
			t.Errorf("a TTL of %d, of 200", ttl)
		}
	}
	g.lookUp(t, "alias.example.", dns.TypeA)
	if diff := cmp.Diff([]string{"alias.example"}, g.resolver.Names(netip.MustParseAddr("198.51.100.7"))); diff != "" {
		t.Errorf("names of an alias' address: %s", diff)
	}
	g.lookUp(t, "b.example.", dns.TypeA)
	if diff := cmp.Diff([]string{"a.example", "b.example"}, g.resolver.Names(netip.MustParseAddr("203.0.113.2"))); diff != "" {
		t.Errorf("names of a shared address: %s", diff)
	}
	if names := g.resolver.Names(netip.MustParseAddr("203.0.113.77")); names != nil {
		t.Errorf("an address that nobody asked for has the names %s", names)
	}
	opens := g.openings()
	g.lookUp(t, "a.example.", dns.TypeA)
	g.lookUp(t, "b.example.", dns.TypeA)
	if g.openings() != opens {
		t.Error("what is open was opened again")
	}
}

func TestOpeningLastsLongerThanTheAnswer(t *testing.T) {
	g := newGuest(t, "*.example", newUpstream(t, zone))
	for name, want := range map[string]struct {
		addr string
		ttl  uint32
		open time.Duration
	}{
		"short.example.": {"203.0.113.3", 0, minOpen + grace},
		"long.example.":  {"203.0.113.4", uint32(maxTTL / time.Second), MaxOpen},
	} {
		reply := g.lookUp(t, name, dns.TypeA)
		if got := reply.Answer[0].Header().Ttl; got > want.ttl || got+2 < want.ttl {
			t.Errorf("%s: a TTL of %d, want %d", name, got, want.ttl)
		}
		got := g.lasting(want.addr)
		if got > want.open || got < want.open-2*time.Second {
			t.Errorf("%s: open for %s, want %s", name, got, want.open)
		}
	}
}

func TestNoAnswerIfTheFirewallFails(t *testing.T) {
	g := newGuest(t, "*.example", newUpstream(t, zone))
	g.fail(errors.New("no"))
	if reply := g.lookUp(t, "a.example.", dns.TypeA); reply.Rcode != dns.RcodeServerFailure || len(reply.Answer) > 0 {
		t.Errorf("got %v", reply)
	}
	g.fail(nil)
	if reply := g.lookUp(t, "a.example.", dns.TypeA); len(reply.Answer) != 2 || g.openings() != 2 {
		t.Errorf("later: got %v after %d openings", reply, g.openings())
	}
}

func TestAddressesThatAreNotPublicAreDropped(t *testing.T) {
	u := newUpstream(t, zone)
	for rules, want := range map[string][]string{
		"*.example":            {"NOERROR", "rebind.example. A 203.0.113.9"},
		"allow-all":            {"NOERROR", "rebind.example. A 203.0.113.9"},
		"*.example 10.0.0.0/8": {"NOERROR", "rebind.example. A 10.0.0.1", "rebind.example. A 203.0.113.9"},
	} {
		g := newGuest(t, rules, u)
		if diff := cmp.Diff(want, told(g.lookUp(t, "rebind.example.", dns.TypeA))); diff != "" {
			t.Errorf("%s: %s", rules, diff)
		}
		for _, addr := range g.open() {
			if addr != "203.0.113.9" {
				t.Errorf("%s: %s was opened", rules, addr)
			}
		}
		dropped := slices.ContainsFunc(g.logged(), func(e api.NetworkEvent) bool {
			return e.Rule == "private" && e.Destination.String() == "169.254.169.254" && e.Hint == "--allowed-cidr 169.254.169.254/32"
		})
		if !dropped {
			t.Errorf("%s: the log does not tell: %+v", rules, g.logged())
		}
	}
}

func TestReverseNamesOfTheLANAreNotAskedFor(t *testing.T) {
	u := newUpstream(t, zone)
	g := newGuest(t, "allow-all", u)
	if diff := cmp.Diff([]string{"NXDOMAIN"}, told(g.lookUp(t, "1.0.0.10.in-addr.arpa.", dns.TypePTR))); diff != "" {
		t.Error(diff)
	}
	if u.asked.Load() != 0 {
		t.Error("the upstream was asked")
	}
	want := []string{"NOERROR", "4.3.2.1.in-addr.arpa. PTR one.example."}
	if diff := cmp.Diff(want, told(g.lookUp(t, "4.3.2.1.in-addr.arpa.", dns.TypePTR))); diff != "" {
		t.Errorf("a public address: %s", diff)
	}
}

func TestDenyAllRefusesEverything(t *testing.T) {
	u := newUpstream(t, zone)
	g := newGuest(t, "deny-all", u)
	for _, qtype := range []uint16{dns.TypeA, dns.TypeAAAA, dns.TypeTXT} {
		if reply := g.lookUp(t, "a.example.", qtype); reply.Rcode != dns.RcodeRefused {
			t.Errorf("got %v", reply)
		}
	}
	if u.asked.Load() != 0 {
		t.Error("the upstream was asked")
	}
	want := api.NetworkEvent{
		Verdict: api.VerdictDenied, Kind: api.EventDNS, Protocol: "udp", Name: "a.example", Rule: "policy",
		Hint: "--allowed-domain a.example",
	}
	if g.logged()[0] != want {
		t.Errorf("logged %+v, want %+v", g.logged()[0], want)
	}
}

func TestPublicPolicyAsksForAnythingAndOpensNothing(t *testing.T) {
	for _, rules := range []string{"allow-all", "!203.0.113.7/32"} {
		g := newGuest(t, rules, newUpstream(t, zone))
		if reply := g.lookUp(t, "mail.other.", dns.TypeA); len(reply.Answer) != 1 {
			t.Errorf("%s: got %v", rules, reply)
		}
		if g.openings() != 0 {
			t.Errorf("%s: %d openings", rules, g.openings())
		}
		if diff := cmp.Diff([]string{"mail.other"}, g.resolver.Names(netip.MustParseAddr("203.0.113.7"))); diff != "" {
			t.Errorf("%s: %s", rules, diff)
		}
	}
}

func TestNewPolicy(t *testing.T) {
	u := newUpstream(t, zone)
	g := newGuest(t, "allow-all", u)
	g.lookUp(t, "mail.other.", dns.TypeA)
	if closed := g.resolver.SetPolicy(rulesOf(t, "*.example")); closed != nil {
		t.Errorf("closed %s, which was never opened", closed)
	}
	if names := g.resolver.Names(netip.MustParseAddr("203.0.113.7")); names != nil {
		t.Errorf("still known: %s", names)
	}
	g.lookUp(t, "a.example.", dns.TypeA)
	g.lookUp(t, "b.example.", dns.TypeA)
	closed := g.resolver.SetPolicy(rulesOf(t, "b.example"))
	if diff := cmp.Diff("[203.0.113.1]", fmt.Sprint(closed)); diff != "" {
		t.Errorf("closed: %s", diff)
	}
	if diff := cmp.Diff([]string{"b.example"}, g.resolver.Names(netip.MustParseAddr("203.0.113.2"))); diff != "" {
		t.Errorf("names of what is left: %s", diff)
	}
	if reply := g.lookUp(t, "a.example.", dns.TypeA); reply.Rcode != dns.RcodeRefused {
		t.Errorf("what is no longer allowed is answered from the cache: %v", reply)
	}
	// What was cached without being opened is opened when it is asked for.
	g.resolver.SetPolicy(rulesOf(t, "mail.other"))
	g.lookUp(t, "mail.other.", dns.TypeA)
	if !slices.Contains(g.open(), "203.0.113.7") {
		t.Error("an answer from the cache was not opened")
	}
}

// slowHost takes its time to open the firewall.
type slowHost struct {
	*host
	opening, release chan struct{}
}

func (h *slowHost) Open(ctx context.Context, addrs []netip.Addr, ttl time.Duration) error {
	close(h.opening)
	<-h.release
	return h.host.Open(ctx, addrs, ttl)
}

// Whatever is being opened as the policy changes is among what is closed.
func TestNothingIsOpenedBehindANewPolicy(t *testing.T) {
	g := newGuest(t, "*.example", newUpstream(t, zone))
	slow := &slowHost{g.host, make(chan struct{}), make(chan struct{})}
	g.resolver.Opener = slow
	replied := make(chan *dns.Msg)
	go func() {
		client := dns.Client{Timeout: 5 * time.Second}
		reply, _, _ := client.Exchange(question("a.example.", dns.TypeA), g.addr)
		replied <- reply
	}()
	<-slow.opening
	changed := make(chan []netip.Addr)
	go func() { changed <- g.resolver.SetPolicy(rulesOf(t, "deny-all")) }()
	select {
	case <-changed:
		t.Error("the policy changed while addresses were being opened")
	case <-time.After(50 * time.Millisecond):
	}
	close(slow.release)
	if closed := <-changed; len(closed) != 2 {
		t.Errorf("closed %s", closed)
	}
	<-replied
}

func TestTruncation(t *testing.T) {
	u := newUpstream(t, zone)
	g := newGuest(t, "*.example", u)
	for size, want := range map[uint16]int{0: 512, 100: 512, 512: 512, 1000: 1000, 1232: 1232, 65535: 1232} {
		m := question("big.example.", dns.TypeA)
		if size > 0 {
			m.SetEdns0(size, true)
		}
		reply := g.ask(t, "udp", m)
		reply.Compress = true
		if !reply.Truncated || reply.Len() > want || len(reply.Answer) < want/16-10 {
			t.Errorf("size %d: %d records in %d bytes, truncated %t", size, len(reply.Answer), reply.Len(), reply.Truncated)
		}
		if opt := reply.IsEdns0(); (opt != nil) != (size > 0) || opt != nil && (opt.Do() || len(opt.Option) > 0) {
			t.Errorf("size %d: options %v", size, opt)
		}
	}
	if reply := g.ask(t, "tcp", question("big.example.", dns.TypeA)); reply.Truncated || len(reply.Answer) != 100 {
		t.Errorf("by TCP: %d records, truncated %t", len(reply.Answer), reply.Truncated)
	}
	if _, ok := u.log.Load("tcp big.example. A"); !ok {
		t.Error("a truncated answer was not asked for by TCP")
	}
	if got := len(g.open()); got != 100 {
		t.Errorf("%d addresses are open of 100", got)
	}
}

// What a guest adds to its question stays here.
func TestOptionsAreNotPassedOn(t *testing.T) {
	passed := make(chan *dns.Msg, 1)
	u := newLiar(t, func(w dns.ResponseWriter, m *dns.Msg) {
		passed <- m
		reply := new(dns.Msg)
		reply.SetReply(m)
		reply.AuthenticatedData = true
		reply.Answer = []dns.RR{record("a.example. 1 IN A 203.0.113.1"), record("a.example. 1 IN RRSIG A 8 2 1 20300101000000 20200101000000 1 example. AAAA")}
		reply.Extra = []dns.RR{record("c.example. 1 IN A 203.0.113.3"), &dns.OPT{
			Hdr: dns.RR_Header{Name: ".", Rrtype: dns.TypeOPT}, Option: []dns.EDNS0{&dns.EDNS0_COOKIE{Code: dns.EDNS0COOKIE, Cookie: "0011223344556677"}}}}
		w.WriteMsg(reply)
	})
	g := newGuest(t, "a.example", u)
	m := question("a.example.", dns.TypeA)
	m.AuthenticatedData, m.CheckingDisabled = true, true
	m.SetEdns0(4096, true)
	m.IsEdns0().Option = []dns.EDNS0{
		&dns.EDNS0_SUBNET{Code: dns.EDNS0SUBNET, Family: 1, SourceNetmask: 24, Address: net.IP{1, 2, 3, 0}},
		&dns.EDNS0_COOKIE{Code: dns.EDNS0COOKIE, Cookie: "0011223344556677"},
	}
	reply := g.ask(t, "udp", m)
	asked := <-passed
	if opt := asked.IsEdns0(); opt == nil || len(opt.Option) > 0 || opt.Do() || asked.CheckingDisabled || asked.AuthenticatedData || asked.Id == m.Id {
		t.Errorf("asked %v", asked)
	}
	if opt := reply.IsEdns0(); opt == nil || len(opt.Option) > 0 || len(reply.Extra) != 1 || len(reply.Answer) != 1 || reply.AuthenticatedData {
		t.Errorf("replied %v", reply)
	}
}

func TestNextResolverIsAsked(t *testing.T) {
	good := newUpstream(t, zone)
	for name, says := range map[string]func(dns.ResponseWriter, *dns.Msg){
		"silent":  func(dns.ResponseWriter, *dns.Msg) {},
		"failing": func(w dns.ResponseWriter, m *dns.Msg) { w.WriteMsg(new(dns.Msg).SetRcode(m, dns.RcodeServerFailure)) },
		"refusing": func(w dns.ResponseWriter, m *dns.Msg) {
			w.WriteMsg(new(dns.Msg).SetRcode(m, dns.RcodeRefused))
		},
		"answers another question": func(w dns.ResponseWriter, m *dns.Msg) {
			reply := new(dns.Msg).SetReply(m)
			reply.Question[0].Name = "evil.example."
			reply.Answer = []dns.RR{record("a.example. 1 IN A 203.0.113.66")}
			w.WriteMsg(reply)
		},
		"answers with another id": func(w dns.ResponseWriter, m *dns.Msg) {
			reply := new(dns.Msg).SetReply(m)
			reply.Id++
			reply.Answer = []dns.RR{record("a.example. 1 IN A 203.0.113.66")}
			w.WriteMsg(reply)
		},
		"garbage": func(w dns.ResponseWriter, m *dns.Msg) { w.Write([]byte("garbage")) },
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			bad := newLiar(t, says)
			g := newGuest(t, "*.example", bad, good)
			want := []string{"NOERROR", "a.example. A 203.0.113.1", "a.example. A 203.0.113.2"}
			if diff := cmp.Diff(want, told(g.lookUp(t, "a.example.", dns.TypeA))); diff != "" {
				t.Error(diff)
			}
			// The one that works is remembered.
			before := bad.asked.Load()
			g.lookUp(t, "b.example.", dns.TypeA)
			if bad.asked.Load() != before {
				t.Error("the bad resolver was asked again")
			}
		})
	}
}

func TestNoResolverAnswers(t *testing.T) {
	g := newGuest(t, "*.example")
	if reply := g.lookUp(t, "a.example.", dns.TypeA); reply.Rcode != dns.RcodeServerFailure {
		t.Errorf("without resolvers: got %v", reply)
	}
	bad := newLiar(t, func(w dns.ResponseWriter, m *dns.Msg) {
		w.WriteMsg(new(dns.Msg).SetRcode(m, dns.RcodeServerFailure))
	})
	g = newGuest(t, "*.example", bad)
	for range 3 {
		if reply := g.lookUp(t, "a.example.", dns.TypeA); reply.Rcode != dns.RcodeServerFailure {
			t.Errorf("got %v", reply)
		}
	}
	if asked := bad.asked.Load(); asked != rounds {
		t.Errorf("the failing resolver was asked %d times", asked)
	}
}

func TestMalformedQuestions(t *testing.T) {
	g := newGuest(t, "*.example", newUpstream(t, zone))
	two := question("a.example.", dns.TypeA)
	two.Question = append(two.Question, two.Question[0])
	notify := new(dns.Msg).SetNotify("a.example.")
	none := question("a.example.", dns.TypeA)
	none.Question = nil
	chaos := question("version.bind.", dns.TypeTXT)
	chaos.Question[0].Qclass = dns.ClassCHAOS
	transfer := new(dns.Msg).SetAxfr("a.example.")
	version := question("a.example.", dns.TypeA)
	version.SetEdns0(512, false)
	version.IsEdns0().SetVersion(1)
	for name, c := range map[string]struct {
		m    *dns.Msg
		want int
	}{
		"two questions":   {two, dns.RcodeFormatError},
		"no question":     {none, dns.RcodeFormatError},
		"notify":          {notify, dns.RcodeNotImplemented},
		"class CH":        {chaos, dns.RcodeRefused},
		"zone transfer":   {transfer, dns.RcodeRefused},
		"a later EDNS":    {version, dns.RcodeBadVers},
		"a root question": {question(".", dns.TypeA), dns.RcodeRefused},
	} {
		wire, err := c.m.Pack()
		if err != nil {
			t.Fatal(err)
		}
		conn, err := net.Dial("udp4", g.addr)
		if err != nil {
			t.Fatal(err)
		}
		conn.SetDeadline(time.Now().Add(5 * time.Second))
		conn.Write(wire)
		buffer := make([]byte, 4096)
		n, err := conn.Read(buffer)
		conn.Close()
		reply := new(dns.Msg)
		if err != nil || reply.Unpack(buffer[:n]) != nil {
			t.Errorf("%s: %v", name, err)
			continue
		}
		if reply.Rcode != c.want || reply.Id != c.m.Id || !reply.Response {
			t.Errorf("%s: got %v, want %s", name, reply, dns.RcodeToString[c.want])
		}
	}
	for name, packet := range map[string][]byte{
		"empty": {}, "short": {1, 2, 3}, "an answer": {0, 1, 0x80, 0, 0, 1, 0, 0, 0, 0, 0, 0},
	} {
		if reply := g.resolver.respond(packet, "udp"); reply != nil {
			t.Errorf("%s: was answered with % x", name, reply)
		}
	}
}

func TestRefusalSaysWhy(t *testing.T) {
	g := newGuest(t, "*.example", newUpstream(t, zone))
	m := question("mail.other.", dns.TypeA)
	m.SetEdns0(1232, false)
	opt := g.ask(t, "udp", m).IsEdns0()
	if opt == nil || len(opt.Option) != 1 || !strings.Contains(opt.Option[0].String(), "policy") {
		t.Errorf("got %v", opt)
	}
}

// A stream may carry several questions, and one that says nothing or too
// much is closed.
func TestStream(t *testing.T) {
	g := newGuest(t, "*.example", newUpstream(t, zone))
	conn, err := net.Dial("tcp4", g.addr)
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	c := dns.Conn{Conn: conn}
	for _, name := range []string{"a.example.", "b.example."} {
		if err := c.WriteMsg(question(name, dns.TypeA)); err != nil {
			t.Fatal(err)
		}
		if reply, err := c.ReadMsg(); err != nil || len(reply.Answer) == 0 {
			t.Errorf("%s: got %v, %v", name, reply, err)
		}
	}
	conn.Write([]byte{0xff, 0xff, 0, 0})
	conn.SetReadDeadline(time.Now().Add(5 * time.Second))
	if _, err := conn.Read(make([]byte, 1)); err == nil || errors.Is(err, os.ErrDeadlineExceeded) {
		t.Errorf("a question of 64 KiB: %v", err)
	}
}

func TestStreamsAreBounded(t *testing.T) {
	g := newGuest(t, "*.example", newUpstream(t, zone))
	for range maxStreams {
		conn, err := net.Dial("tcp4", g.addr)
		if err != nil {
			t.Fatal(err)
		}
		defer conn.Close()
	}
	conn, err := net.Dial("tcp4", g.addr)
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	conn.SetReadDeadline(time.Now().Add(5 * time.Second))
	if _, err := conn.Read(make([]byte, 1)); err == nil || errors.Is(err, os.ErrDeadlineExceeded) {
		t.Errorf("one too many: %v", err)
	}
}

func TestCacheIsBounded(t *testing.T) {
	var c cache
	now := time.Now()
	f := &found{ttl: time.Hour, until: now.Add(time.Hour), records: []dns.RR{record("a.example. 1 IN A 203.0.113.1")}}
	for i := range 2 * maxEntries {
		c.put(key{fmt.Sprint(i), dns.TypeA}, f)
	}
	if len(c.entries) > maxEntries || c.recent.Len() != len(c.entries) {
		t.Errorf("%d entries", len(c.entries))
	}
	if c.get(key{"0", dns.TypeA}, now) != nil || c.get(key{fmt.Sprint(2*maxEntries - 1), dns.TypeA}, now) == nil {
		t.Error("it is not the oldest that was dropped")
	}
	large := &found{ttl: time.Hour, until: now.Add(time.Hour)}
	for range 200 {
		large.records = append(large.records, record(`a.example. 1 IN TXT "`+strings.Repeat("x", 250)+`"`))
	}
	for i := range 200 {
		c.put(key{fmt.Sprint("large", i), dns.TypeTXT}, large)
	}
	if c.bytes > maxBytes {
		t.Errorf("%d bytes", c.bytes)
	}
	for k := range c.entries {
		c.drop(c.entries[k])
	}
	if c.bytes != 0 || c.recent.Len() != 0 {
		t.Errorf("%d bytes are left of nothing", c.bytes)
	}
}

func TestAddressesAreBounded(t *testing.T) {
	var a addresses
	now := time.Now()
	at := func(i int) []netip.Addr { return []netip.Addr{netip.AddrFrom4([4]byte{203, 0, byte(i >> 8), byte(i)})} }
	for i := range maxAddresses {
		if _, err := a.add("a.example", at(i), 0, now); err != nil {
			t.Fatal(err)
		}
	}
	if _, err := a.add("a.example", at(maxAddresses), 0, now); err == nil {
		t.Error("one too many was taken")
	}
	if _, err := a.add("b.example", at(maxAddresses), 0, now.Add(time.Hour)); err != nil {
		t.Errorf("after the others ran out: %v", err)
	}
	for i := range 2 * maxNames {
		a.add(fmt.Sprintf("%d.example", i), at(0), time.Duration(i)*time.Second, now)
	}
	if names := a.names(at(0)[0], now); len(names) != maxNames || !slices.Contains(names, fmt.Sprintf("%d.example", 2*maxNames-1)) {
		t.Errorf("%d names: %s", len(names), names)
	}
}

func TestClosedResolverServesNothing(t *testing.T) {
	r := New(Config{})
	r.Close()
	packet, err := net.ListenPacket("udp4", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	if err := r.ServePacket(packet); err != nil {
		t.Error(err)
	}
	if _, err := packet.WriteTo(nil, packet.LocalAddr()); !errors.Is(err, net.ErrClosed) {
		t.Errorf("its socket is open: %v", err)
	}
}

func BenchmarkFromCache(b *testing.B) {
	g := newGuest(b, "*.example", newUpstream(b, zone))
	g.lookUp(b, "a.example.", dns.TypeA)
	conn, err := net.Dial("udp4", g.addr)
	if err != nil {
		b.Fatal(err)
	}
	defer conn.Close()
	wire, _ := question("a.example.", dns.TypeA).Pack()
	buffer := make([]byte, 512)
	for b.Loop() {
		conn.Write(wire)
		if _, err := conn.Read(buffer); err != nil {
			b.Fatal(err)
		}

	}
}

func TestWhatRunsOutIsForgotten(t *testing.T) {
	now := time.Now()
	var c cache
	c.put(key{"a.example", dns.TypeA}, &found{ttl: time.Minute, until: now.Add(time.Minute)})
	if c.get(key{"a.example", dns.TypeA}, now.Add(time.Minute-1)) == nil || c.get(key{"a.example", dns.TypeA}, now.Add(time.Minute)) != nil {
		t.Error("an answer is not kept for just its time")
	}
	var a addresses
	addr := netip.MustParseAddr("203.0.113.1")
	a.add("a.example", []netip.Addr{addr}, 10*time.Minute, now)
	if a.names(addr, now.Add(10*time.Minute+grace-1)) == nil || a.names(addr, now.Add(10*time.Minute+grace)) != nil {
		t.Error("a name is not known for just its time and the grace")
	}
}
