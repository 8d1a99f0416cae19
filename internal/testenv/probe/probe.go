// Package probe is what tests have a guest try of its network. The program
// vmsan-probe does it in the guest.
package probe

import (
	"bytes"
	"context"
	"crypto/x509"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"sync"
	"time"

	"github.com/miekg/dns"
)

// Kind is what to try.
type Kind string

// The kinds. Those that answer are answered in full, or it is an error.
const (
	Lookup    Kind = "lookup"    // a question for the guest's resolver
	DNSUDP    Kind = "dns-udp"   // a question for the server To
	DNSTCP    Kind = "dns-tcp"   //
	DoT       Kind = "dot"       // by TLS
	DoH       Kind = "doh"       // by HTTPS
	TCP       Kind = "tcp"       // an echo
	UDP       Kind = "udp"       // an echo
	Ping      Kind = "ping"      // an echo by ICMP
	Timestamp Kind = "timestamp" // another message of ICMP
	HTTP      Kind = "http"      // a request of a server of the lab
	TLS       Kind = "tls"       // the same by TLS
	ECH       Kind = "ech"       // TLS whose hello is encrypted for Server
	Frames    Kind = "frames"    // what is sent at the link's level
	Hold      Kind = "hold"      // echoes on one connection, until Wait has passed
	Flood     Kind = "flood"     // new flows, answered or not, until Wait has passed
	Download  Kind = "download"  // as much as comes until Wait has passed; answers bits a second
	Upload    Kind = "upload"    // as much as goes
)

// Probe is one thing to try.
type Probe struct {
	Name string
	Kind Kind
	// To is whom: an address and port, or a name and port, to be looked up.
	To string
	// Before are names to look up first.
	Before []string
	// Server is what a TLS client asks for; without it, for an address.
	Server string
	// Host is what HTTP asks for, and Then what it asks for next on the same
	// connection. Both optional.
	Host, Then string
	// Question and Type are for DNS.
	Question, Type string
	// Payload is sent by UDP. Optional.
	Payload []byte
	// Frames are sent as they are. With a Port, a datagram that comes to it
	// is waited for.
	Frames [][]byte
	Port   uint16
	// Wait is how long to wait for an answer.
	Wait time.Duration
}

// Task is what the program reads.
type Task struct {
	// CA has certificates of authorities, in PEM.
	CA     []byte
	Probes []Probe
}

// Result is what became of a probe.
type Result struct {
	Name     string
	Answered bool
	Answer   string // what was said
	Error    string
}

// prober has what all probes of a task use.
type prober struct{ roots *x509.CertPool }

// Run tries everything at once.
func (t Task) Run(ctx context.Context) []Result {
	p := prober{roots: x509.NewCertPool()}
	p.roots.AppendCertsFromPEM(t.CA)
	results := make([]Result, len(t.Probes))
	var trying sync.WaitGroup
	for i, one := range t.Probes {
		trying.Go(func() {
			ctx, cancel := context.WithTimeout(ctx, one.Wait)
			defer cancel()
			answer, err := p.try(ctx, one)
			results[i] = Result{Name: one.Name, Answered: err == nil, Answer: answer}
			if err != nil {
				results[i].Error = err.Error()
			}
		})
	}
	trying.Wait()
	return results
}

func (p prober) try(ctx context.Context, one Probe) (answer string, err error) {
	for _, name := range one.Before {
		if _, err := lookUp(ctx, name); err != nil {
			return "", err
		}
	}
	switch one.Kind {
	case Lookup:
		server, err := resolver()
		if err != nil {
			return "", err
		}
		return ask(ctx, "udp", server, one.Question, one.Type)
	case DNSUDP:
		return ask(ctx, "udp", one.To, one.Question, one.Type)
	case DNSTCP:
		return ask(ctx, "tcp", one.To, one.Question, one.Type)
	case Frames:
		return sendFrames(ctx, one)
	}
	to, err := find(ctx, one.To)
	if err != nil {
		return "", err
	}
	switch one.Kind {
	case Ping:
		return askICMP(ctx, to.Addr(), echoRequest, echoReply)
	case Timestamp:
		return askICMP(ctx, to.Addr(), timestampRequest, timestampReply)
	case Flood:
		return flood(ctx, to)
	}
	network := "tcp4"
	if one.Kind == UDP {
		network = "udp4"
	}
	if to.Addr().Is6() {
		network = network[:3] + "6"
	}
	conn, err := new(net.Dialer).DialContext(ctx, network, to.String())
	if err != nil {
		return "", err
	}
	defer conn.Close()
	end, _ := ctx.Deadline()
	conn.SetDeadline(end)
	switch one.Kind {
	case TCP:
		return echo(conn, []byte("hello"))
	case UDP:
		return echoDatagram(ctx, conn, one.Payload)
	case HTTP:
		return request(conn, one, to)
	case Hold:
		return hold(ctx, conn)
	case Download:
		return download(ctx, conn)
	case Upload:
		return upload(ctx, conn)
	case TLS, DoH, DoT:
		return p.overTLS(ctx, conn, one, to)
	case ECH:
		return p.encryptedHello(ctx, conn, one)
	}
	return "", fmt.Errorf("there is no probe %q", one.Kind)
}

// echo sends text, which has to come back.
func echo(conn net.Conn, text []byte) (string, error) {
	if _, err := conn.Write(text); err != nil {
		return "", err
	}
	answer := make([]byte, len(text))
	for n := 0; n < len(answer); {
		m, err := conn.Read(answer[n:])
		if err != nil {
			return "", err
		}
		n += m
	}
	if !bytes.Equal(answer, text) {
		return "", fmt.Errorf("the echo is %q", answer)
	}
	return "echo", nil
}

// patience is how long to wait before a datagram is sent again.
const patience = time.Second

func echoDatagram(ctx context.Context, conn net.Conn, payload []byte) (string, error) {
	if payload == nil {
		payload = []byte("hello")
	}
	for {
		conn.SetDeadline(time.Now().Add(patience))
		answer, err := echo(conn, payload)
		if !errors.Is(err, os.ErrDeadlineExceeded) || ctx.Err() != nil {
			return answer, err
		}
	}
}

// find is the address of a name and port, or of an address and port.
func find(ctx context.Context, to string) (netip.AddrPort, error) {
	if address, err := netip.ParseAddrPort(to); err == nil {
		return address, nil
	}
	name, port, err := net.SplitHostPort(to)
	if err != nil {
		return netip.AddrPort{}, err
	}
	address, err := lookUp(ctx, name)
	if err != nil {
		return netip.AddrPort{}, err
	}
	return netip.ParseAddrPort(net.JoinHostPort(address, port))
}

// lookUp asks the guest's resolver for an address of a name.
func lookUp(ctx context.Context, name string) (string, error) {
	server, err := resolver()
	if err != nil {
		return "", err
	}
	return ask(ctx, "udp", server, name, "A")
}

func resolver() (string, error) {
	config, err := dns.ClientConfigFromFile("/etc/resolv.conf")
	if err != nil {
		return "", err
	}
	if len(config.Servers) == 0 {
		return "", errors.New("no resolver in resolv.conf")
	}
	return net.JoinHostPort(config.Servers[0], "53"), nil
}

// ask returns the data of the first record of the type that was asked for.
func ask(ctx context.Context, network, server, name, kind string) (string, error) {
	question := new(dns.Msg).SetQuestion(dns.Fqdn(name), dns.StringToType[kind])
	for {
		reply, _, err := (&dns.Client{Net: network, Timeout: 2 * patience}).ExchangeContext(ctx, question, server)
		if timeout := net.Error(nil); errors.As(err, &timeout) && timeout.Timeout() && ctx.Err() == nil {
			continue // a datagram was lost, or the guest is slow
		}
		if err != nil {
			return "", err
		}
		return dataOf(reply)
	}
}

func dataOf(reply *dns.Msg) (string, error) {
	if reply.Rcode != dns.RcodeSuccess {
		return "", errors.New(dns.RcodeToString[reply.Rcode])
	}
	for _, rr := range reply.Answer {
		if rr.Header().Rrtype == reply.Question[0].Qtype {
			return dns.Field(rr, 1), nil
		}
	}
	return "", errors.New("no such record")
}
