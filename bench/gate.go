package main

import (
	"bytes"
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"time"

	"github.com/miekg/dns"

	"github.com/vmsan/vmsan/api"
	"github.com/vmsan/vmsan/internal/gate/proxy"
	"github.com/vmsan/vmsan/internal/gate/resolver"
	"github.com/vmsan/vmsan/internal/gate/sockets"
	"github.com/vmsan/vmsan/internal/policy"
	"github.com/vmsan/vmsan/internal/testenv/lab"
	"github.com/vmsan/vmsan/internal/timing"
)

// gate measures what a sandbox's connections and questions go through.
func (b *bench) gate(ctx context.Context) error {
	if err := b.proxied(ctx); err != nil {
		return fmt.Errorf("measure the proxy: %w", err)
	}
	if err := b.resolved(); err != nil {
		return fmt.Errorf("measure the resolver: %w", err)
	}
	return nil
}

// allowed is a name that the policy allows.
const allowed = "a.example"

var onlyAllowed = policy.Policy{Mode: policy.Custom, AllowedDomains: []policy.Domain{{Name: allowed}}}

// Two neighbours of the host, which forwards between them, and where it has a
// proxy and the one a server.
var (
	clientNet = [2]netip.Prefix{netip.MustParsePrefix("10.1.0.1/24"), netip.MustParsePrefix("10.1.0.2/24")}
	serverNet = [2]netip.Prefix{netip.MustParsePrefix("198.51.101.1/24"), netip.MustParsePrefix("198.51.101.2/24")}
	front     = netip.AddrPortFrom(clientNet[0].Addr(), 7080)
	source    = netip.AddrPortFrom(serverNet[1].Addr(), 80)
)

// unheard is for events that nobody wants to know.
type unheard struct{}

func (unheard) Log(api.NetworkEvent) {}

// proxied downloads from a server in another network, by way of the host that
// forwards packets, and of a proxy on it.
func (b *bench) proxied(ctx context.Context) (err error) {
	client, detachClient, err := b.world.Attach("client", clientNet[0], clientNet[1])
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, detachClient()) }()
	server, detachServer, err := b.world.Attach("server", serverNet[0], serverNet[1])
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, detachServer()) }()
	for _, link := range []string{"client", "server"} {
		if err := b.world.Host.Sysctl("ipv4/conf/"+link+"/forwarding", "1"); err != nil {
			return err
		}
	}
	pouring, err := server.Listen("tcp4", source.String())
	if err != nil {
		return err
	}
	var pourers sockets.Server
	defer pourers.Close()
	go pourers.Accept(pouring, 2*b.rounds, pour, func(net.Conn) {})
	passing, err := net.Listen("tcp4", front.String())
	if err != nil {
		return err
	}
	p := proxy.New(proxy.Config{
		Policy: onlyAllowed, Names: func(netip.Addr) []string { return []string{allowed} }, Log: unheard{},
		Original: func(net.Conn) (netip.AddrPort, error) { return source, nil },
	})
	defer p.Close()
	go p.Serve(passing)
	hello, err := clientHello(allowed)
	if err != nil {
		return err
	}
	times := map[netip.AddrPort][]time.Duration{}
	for range b.rounds {
		for _, to := range []netip.AddrPort{source, front} {
			took, err := download(ctx, client, to, hello)
			if err != nil {
				return err
			}
			times[to] = append(times[to], took)
		}
	}
	t, s := timing.Median(times[front]), timing.Median(times[source])
	b.add("TLS through the proxy; floor: forwarded by the kernel", rate(poured, t), rate(poured, s),
		fmt.Sprintf("%.0f %%", 100*s.Seconds()/t.Seconds()), ">= 70 %")
	return nil
}

// poured is how much is read in all, and part how much at once, in bytes.
const (
	poured = 512 << 20
	part   = 256 << 10
)

// tooLong is more than a download takes.
const tooLong = time.Minute

// pour gives whoever connects as much as they take.
func pour(conn net.Conn) {
	conn.SetDeadline(time.Now().Add(tooLong))
	_, err := conn.Read(make([]byte, 1))
	for data := make([]byte, part); err == nil; {
		_, err = conn.Write(data)
	}
}

// download has a server pour.
func download(ctx context.Context, client *lab.Namespace, from netip.AddrPort, hello []byte) (took time.Duration, err error) {
	conn, err := client.Dial(ctx, "tcp4", from)
	if err != nil {
		return 0, err
	}
	defer conn.Close()
	conn.SetDeadline(time.Now().Add(tooLong))
	return timing.Timed(func() error {
		if _, err := conn.Write(hello); err != nil {
			return err
		}
		_, err := io.CopyBuffer(struct{ io.Writer }{io.Discard}, io.LimitReader(conn, poured), make([]byte, part))
		return err
	})
}

// clientHello is how a TLS client begins that wants to speak to name.
func clientHello(name string) ([]byte, error) {
	near, far := net.Pipe()
	defer far.Close()
	go func() {
		tls.Client(near, &tls.Config{ServerName: name}).Handshake() // fails when far has closed
		near.Close()
	}()
	data := make([]byte, 16<<10)
	n, err := far.Read(data)
	return data[:n], err
}

// resolved asks for a name that is known already, beside a socket that sends
// the question back.
func (b *bench) resolved() error {
	upstream, err := net.ListenPacket("udp4", "127.0.0.1:0")
	if err != nil {
		return err
	}
	answers := &dns.Server{PacketConn: upstream, Handler: dns.HandlerFunc(answer)}
	go answers.ActivateAndServe()
	defer answers.Shutdown()
	r := resolver.New(resolver.Config{
		Policy: onlyAllowed, Resolvers: 1, Dialer: dialer(upstream.LocalAddr().String()), Opener: opener{}, Log: unheard{},
	})
	defer r.Close()
	asked, err := net.ListenPacket("udp4", "127.0.0.1:0")
	if err != nil {
		return err
	}
	go r.ServePacket(asked)
	echo, err := net.ListenPacket("udp4", "127.0.0.1:0")
	if err != nil {
		return err
	}
	defer echo.Close()
	go repeat(echo)
	var known, echoed []time.Duration
	for range 100 * quick {
		k, err := ask(asked.LocalAddr())
		if err != nil {
			return err
		}
		e, err := ask(echo.LocalAddr())
		if err != nil {
			return err
		}
		known, echoed = append(known, k), append(echoed, e)
	}
	k, e := timing.Median(known), timing.Median(echoed)
	b.add("DNS answer from the cache; floor: the question sent back", us(k), us(e), us(k-e)+" more", "<= 1 ms more")
	return nil
}

// answer has an address for every name.
func answer(w dns.ResponseWriter, m *dns.Msg) {
	reply := new(dns.Msg).SetReply(m)
	record, err := dns.NewRR(m.Question[0].Name + " 300 IN A 203.0.113.1")
	if err == nil {
		reply.Answer = []dns.RR{record}
	}
	w.WriteMsg(reply)
}

// dialer has one resolver, at this address.
type dialer string

func (d dialer) Dial(_ context.Context, _ int, network string) (net.Conn, error) {
	return net.Dial(network, string(d))
}

// opener has no firewall.
type opener struct{}

func (opener) Open(context.Context, []netip.Addr, time.Duration) error { return nil }

// repeat sends back what comes, until the socket is closed.
func repeat(socket net.PacketConn) {
	data := make([]byte, 1500)
	for {
		n, from, err := socket.ReadFrom(data)
		if err != nil {
			return
		}
		socket.WriteTo(data[:n], from)
	}
}

// ask sends a question and waits for what comes back.
func ask(addr net.Addr) (time.Duration, error) {
	question, err := new(dns.Msg).SetQuestion(allowed+".", dns.TypeA).Pack()
	if err != nil {
		return 0, err
	}
	conn, err := net.Dial("udp4", addr.String())
	if err != nil {
		return 0, err
	}
	defer conn.Close()
	conn.SetDeadline(time.Now().Add(5 * time.Second))
	data := make([]byte, 1500)
	return timing.Timed(func() error {
		if _, err := conn.Write(question); err != nil {
			return err
		}
		n, err := conn.Read(data)
		if err == nil && !bytes.Equal(data[:2], question[:2]) {
			err = fmt.Errorf("a strange answer of %d bytes", n)
		}
		return err
	})
}
