package resolver

import (
	"context"
	"encoding/binary"
	"io"
	"net"
	"net/netip"
	"strings"
	"testing"
	"time"

	"github.com/miekg/dns"

	"github.com/vmsan/vmsan/api"
	"github.com/vmsan/vmsan/internal/policy"
)

// canned is a connection to a resolver that says the same to everything.
type canned struct {
	net.Conn
	network string
	says    []byte
	unread  []byte
}

// Write makes the answer one to what was asked, as far as it is that.
func (c *canned) Write(b []byte) (int, error) {
	says := append([]byte(nil), c.says...)
	if c.network == "tcp" {
		copy(says, b[2:4])
		says = append(binary.BigEndian.AppendUint16(nil, uint16(len(says))), says...)
	} else {
		copy(says, b[:2])
	}
	c.unread = says
	return len(b), nil
}

func (c *canned) Read(b []byte) (int, error) {
	if len(c.unread) == 0 {
		return 0, io.EOF
	}
	n := copy(b, c.unread)
	c.unread = c.unread[n:]
	return n, nil
}

func (c *canned) SetDeadline(time.Time) error { return nil }
func (c *canned) Close() error                { return nil }

// cannedHost has a resolver that says the same to everything.
type cannedHost struct {
	says   []byte
	opened []netip.Addr
}

func (h *cannedHost) Dial(_ context.Context, _ int, network string) (net.Conn, error) {
	return &canned{network: network, says: h.says}, nil
}

func (h *cannedHost) Open(_ context.Context, addrs []netip.Addr, _ time.Duration) error {
	h.opened = append(h.opened, addrs...)
	return nil
}

func (h *cannedHost) Log(api.NetworkEvent) {}

func packed(f *testing.F, m *dns.Msg) []byte {
	f.Helper()
	m.Compress = true
	wire, err := m.Pack()
	if err != nil {
		f.Fatal(err)
	}
	return wire
}

func answerTo(name string, qtype uint16, lines ...string) *dns.Msg {
	m := new(dns.Msg).SetReply(question(name, qtype))
	for _, line := range lines {
		m.Answer = append(m.Answer, record(line))
	}
	return m
}

// FuzzQuestion has a guest say anything.
func FuzzQuestion(f *testing.F) {
	edns := question("a.example.", dns.TypeTXT)
	edns.SetEdns0(4096, true)
	for _, m := range []*dns.Msg{
		question("a.example.", dns.TypeA), question("x.y.example.", dns.TypeSRV), question("other.", dns.TypeA), edns,
		question("1.0.0.127.in-addr.arpa.", dns.TypePTR), new(dns.Msg).SetNotify("a.example."), new(dns.Msg).SetAxfr("a.example."),
		answerTo("a.example.", dns.TypeA, "a.example. 1 IN A 203.0.113.1"),
	} {
		f.Add(packed(f, m), false)
	}
	// A name that points at itself.
	f.Add([]byte{0, 1, 1, 0, 0, 1, 0, 0, 0, 0, 0, 0, 0xc0, 12, 0, 1, 0, 1}, true)
	says := packed(f, answerTo("a.example.", dns.TypeA, "a.example. 1 IN A 203.0.113.1"))
	allowed := rulesOf(f, "*.example")
	f.Fuzz(func(t *testing.T, packet []byte, stream bool) {
		host := &cannedHost{says: says}
		r := New(Config{Policy: allowed, Resolvers: 1, Dialer: host, Opener: host, Log: host})
		defer r.Close()
		network, most := "udp", udpSize
		if stream {
			network, most = "tcp", dns.MaxMsgSize
		}
		wire := r.respond(packet, network)
		if wire == nil {
			return
		}
		reply := new(dns.Msg)
		if err := reply.Unpack(wire); err != nil {
			t.Fatalf("a reply that cannot be read: %v", err)
		}
		if !reply.Response || reply.Id != binary.BigEndian.Uint16(packet) || len(wire) > most {
			t.Errorf("%d bytes: %v", len(wire), reply)
		}
		if len(reply.Answer) > 0 && !strings.HasSuffix(strings.ToLower(reply.Question[0].Name), ".example.") {
			t.Errorf("a name that is not allowed was answered: %v", reply)
		}
	})
}

// FuzzAnswer has a resolver, or whoever is behind it, say anything.
func FuzzAnswer(f *testing.F) {
	truncated := answerTo("a.example.", dns.TypeA, "a.example. 1 IN A 203.0.113.1")
	truncated.Truncated = true
	missing := answerTo("a.example.", dns.TypeA)
	missing.Rcode = dns.RcodeNameError
	missing.Ns = []dns.RR{record(soa)}
	for _, m := range []*dns.Msg{
		answerTo("a.example.", dns.TypeA, "a.example. 1 IN A 203.0.113.1", "a.example. 1 IN A 10.0.0.1"),
		answerTo("a.example.", dns.TypeA, "a.example. 1 IN CNAME b.example.", "b.example. 1 IN A 203.0.113.1"),
		answerTo("a.example.", dns.TypeA, "a.example. 1 IN CNAME b.example.", "b.example. 1 IN CNAME a.example."),
		truncated, missing,
	} {
		f.Add(packed(f, m))
	}
	f.Add([]byte{})
	allowed := rulesOf(f, "a.example")
	f.Fuzz(func(t *testing.T, says []byte) {
		host := &cannedHost{says: says}
		r := New(Config{Policy: allowed, Resolvers: 1, Dialer: host, Opener: host, Log: host})
		defer r.Close()
		wire, err := question("a.example.", dns.TypeA).Pack()
		if err != nil {
			t.Fatal(err)
		}
		reply := new(dns.Msg)
		if err := reply.Unpack(r.respond(wire, "udp")); err != nil {
			t.Fatalf("a reply that cannot be read: %v", err)
		}
		for _, rr := range reply.Answer {
			a, ok := rr.(*dns.A)
			if !ok {
				continue
			}
			addr, _ := netip.AddrFromSlice(a.A.To4())
			if !policy.IsPublic(addr) || len(r.Names(addr)) != 1 {
				t.Errorf("%s was answered, with the names %s", addr, r.Names(addr))
			}
		}
		for _, addr := range host.opened {
			if !policy.IsPublic(addr) {
				t.Errorf("%s was opened", addr)
			}
		}
	})
}
