package lab_test

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"encoding/json"
	"io"
	"net"
	"net/http"
	"net/netip"
	"os"
	"testing"
	"time"

	"github.com/miekg/dns"

	"github.com/vmsan/vmsan/internal/testenv"
	"github.com/vmsan/vmsan/internal/testenv/lab"
)

func TestMain(m *testing.M) { os.Exit(testenv.Main(m)) }

// limit bounds what should happen at once.
const limit = 20 * time.Second

func world(t *testing.T) *lab.Lab {
	t.Helper()
	testenv.RequireRoot(t)
	l := testenv.Lab(t)
	l.Hits.Reset()
	return l
}

// watch returns the packets that leave the host while f runs.
func watch(t *testing.T, l *lab.Lab, f func()) map[lab.Flow]int {
	t.Helper()
	capture, err := l.Watch()
	if err != nil {
		t.Fatal(err)
	}
	defer capture.Close()
	f()
	flows, err := capture.Flows()
	if err != nil {
		t.Fatal(err)
	}
	return flows
}

// What this process sends stays in the lab, which answers for everybody.
func TestInternetAnswersForAll(t *testing.T) {
	l := world(t)
	for _, network := range []string{"tcp", "udp"} {
		for _, address := range []string{"198.51.100.10", "8.8.4.4", "192.0.2.77", "203.0.113.77", "172.16.3.4"} {
			to := netip.AddrPortFrom(netip.MustParseAddr(address), lab.EchoPort)
			flows := watch(t, l, func() { echo(t, network, to) })
			want := lab.Flow{From: lab.Uplink, To: to.Addr(), Protocol: network, Port: lab.EchoPort}
			if flows[want] == 0 {
				t.Errorf("%s to %s: the capture has %v", network, to, flows)
			}
			hit := lab.Hit{Where: "internet", Service: network, At: to, From: lab.Uplink}
			if l.Hits.All()[hit] == 0 {
				t.Errorf("%s to %s: the hits are %v", network, to, l.Hits.All())
			}
		}
	}
}

func echo(t *testing.T, network string, to netip.AddrPort) {
	t.Helper()
	conn, err := net.DialTimeout(network, to.String(), limit)
	if err != nil {
		t.Error(err)
		return
	}
	defer conn.Close()
	conn.SetDeadline(time.Now().Add(limit))
	answer := make([]byte, 5)
	if _, err := conn.Write([]byte("hello")); err != nil {
		t.Error(err)
	}
	if _, err := io.ReadFull(conn, answer); err != nil || string(answer) != "hello" {
		t.Errorf("%s to %s: %q, %v", network, to, answer, err)
	}
}

// The host's other neighbours, and the host itself, are not by its uplink.
func TestNeighbours(t *testing.T) {
	l := world(t)
	for where, address := range map[string]netip.Addr{"lan": lab.Neighbour, "metadata": lab.Metadata, "host": lab.HostLAN} {
		flows := watch(t, l, func() {
			if got := get(t, "http://"+address.String()+"/", nil); got.Where != where || got.At.Addr() != address {
				t.Errorf("%s: %+v", address, got)
			}
		})
		if len(flows) != 0 {
			t.Errorf("%s: left by the uplink: %v", address, flows)
		}
	}
}

func get(t *testing.T, url string, change func(*http.Transport, *http.Request)) (answer lab.Answer) {
	t.Helper()
	transport := &http.Transport{DisableKeepAlives: true}
	defer transport.CloseIdleConnections()
	request, err := http.NewRequest(http.MethodGet, url, nil)
	if err != nil {
		t.Fatal(err)
	}
	if change != nil {
		change(transport, request)
	}
	response, err := (&http.Client{Transport: transport, Timeout: limit}).Do(request)
	if err != nil {
		t.Fatal(err)
	}
	defer response.Body.Close()
	if err := json.NewDecoder(response.Body).Decode(&answer); err != nil {
		t.Fatal(err)
	}
	return answer
}

// A server says which name and host it was asked for, under a certificate
// that the lab's authority signed.
func TestHTTPS(t *testing.T) {
	l := world(t)
	got := get(t, "https://other.example/path", func(transport *http.Transport, request *http.Request) {
		roots := x509.NewCertPool()
		roots.AppendCertsFromPEM(l.CA.PEM())
		transport.TLSClientConfig = &tls.Config{RootCAs: roots}
		request.Host = "allowed.example"
	})
	if got.SNI != "other.example" || got.Host != "allowed.example" || got.At.String() != "198.51.100.20:443" || got.Path != "/path" {
		t.Errorf("the server says %+v", got)
	}
}

// The host's resolver is the lab's.
func TestNames(t *testing.T) {
	l := world(t)
	ctx, cancel := context.WithTimeout(t.Context(), limit)
	defer cancel()
	for name, want := range map[string]string{
		"allowed.example": "198.51.100.10", "a.b.wild.example": "198.51.100.30", "chain.example": "198.51.100.44",
	} {
		got, err := net.DefaultResolver.LookupNetIP(ctx, "ip4", name)
		if err != nil || len(got) != 1 || got[0].String() != want {
			t.Errorf("%s is at %v, %v", name, got, err)
		}
	}
	asked := l.Hits.Count(func(h lab.Hit) bool {
		return h.Service == "dns-udp" && h.At.Addr() == lab.Resolver && h.Name == "chain.example."
	})
	if asked == 0 {
		t.Errorf("nobody asked the resolver: %v", l.Hits.All())
	}
}

func TestZone(t *testing.T) {
	l := world(t)
	ask := func(network, name string, kind uint16) *dns.Msg {
		t.Helper()
		client := &dns.Client{Net: network, Timeout: limit, TLSConfig: &tls.Config{InsecureSkipVerify: true}}
		port := "53"
		if network == "tcp-tls" {
			port = "853"
		}
		reply, _, err := client.ExchangeContext(t.Context(), new(dns.Msg).SetQuestion(name, kind), net.JoinHostPort(lab.OtherResolver.String(), port))
		if err != nil {
			t.Fatal(err)
		}
		return reply
	}
	if got := ask("udp", "big.example.", dns.TypeTXT); !got.Truncated {
		t.Errorf("a long answer by UDP has %d records and is not truncated", len(got.Answer))
	}
	if got := ask("tcp", "big.example.", dns.TypeTXT); len(got.Answer) != 50 {
		t.Errorf("a long answer by TCP has %d records", len(got.Answer))
	}
	if got := ask("tcp-tls", "allowed.example.", dns.TypeHTTPS); len(got.Answer) != 1 {
		t.Errorf("the HTTPS record is %v", got)
	}
	if got := ask("udp", "nothing.example.", dns.TypeA); got.Rcode != dns.RcodeNameError || len(got.Ns) != 1 {
		t.Errorf("a name that is not: %v", got)
	}
	if got := ask("udp", "six.example.", dns.TypeA); got.Rcode != dns.RcodeSuccess || len(got.Answer) != 0 {
		t.Errorf("a name without an IPv4 address: %v", got)
	}
	if got := ask("udp", "loop.example.", dns.TypeA); len(got.Answer) == 0 {
		t.Errorf("a loop: %v", got)
	}
	if err := l.Zone.Set("new.example. 60 A 198.51.100.99"); err != nil {
		t.Fatal(err)
	}
	if got := ask("udp", "new.example.", dns.TypeA); len(got.Answer) != 1 {
		t.Errorf("a new name: %v", got)
	}
	t.Cleanup(func() { l.Zone.Handle("new.example.", nil) })
	l.Zone.Handle("new.example.", func(w dns.ResponseWriter, request *dns.Msg) {
		w.WriteMsg(new(dns.Msg).SetRcode(request, dns.RcodeServerFailure))
	})
	if got := ask("udp", "new.example.", dns.TypeA); got.Rcode != dns.RcodeServerFailure {
		t.Errorf("a name that is handled: %v", got)
	}
}
