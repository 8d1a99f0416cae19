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
	"os"
	"sync"
	"time"

	"github.com/miekg/dns"
	"github.com/vishvananda/netlink"

	"github.com/vmsan/vmsan/api"
	"github.com/vmsan/vmsan/internal/gate/proxy"
	"github.com/vmsan/vmsan/internal/gate/resolver"
	"github.com/vmsan/vmsan/internal/network/netns"
	"github.com/vmsan/vmsan/internal/policy"
)

// gate measures what a sandbox's connections and questions go through.
func (b *bench) gate() error {
	if err := b.proxied(); err != nil {
		return fmt.Errorf("measure the proxy: %w", err)
	}
	if err := b.resolved(); err != nil {
		return fmt.Errorf("measure the resolver: %w", err)
	}
	return nil
}

// allowed is a name that the policy allows, and server where it leads.
const (
	allowed = "a.example"
	server  = "203.0.113.1:80"
)

var onlyAllowed = policy.Policy{Mode: policy.Custom, AllowedDomains: []policy.Domain{{Name: allowed}}}

// unheard is for events that nobody wants to know.
type unheard struct{}

func (unheard) Log(api.NetworkEvent) {}

// proxied downloads from a server on the far side of a network namespace that
// forwards packets, and by way of a proxy in it.
func (b *bench) proxied() error {
	p, err := newPath()
	if err != nil {
		return err
	}
	defer p.close()
	hello, err := clientHello(allowed)
	if err != nil {
		return err
	}
	var through, straight []time.Duration
	for range b.rounds {
		s, err := p.download(server, hello)
		if err != nil {
			return err
		}
		t, err := p.download(p.front.Addr().String(), hello)
		if err != nil {
			return err
		}
		straight, through = append(straight, s), append(through, t)
	}
	t, s := median(through), median(straight)
	b.add("TLS through the proxy; floor: forwarded by the kernel", rate(poured, t), rate(poured, s),
		fmt.Sprintf("%.0f %%", 100*s.Seconds()/t.Seconds()), ">= 70 %")
	return nil
}

// path is a client's, a router's and a server's namespace in a row.
type path struct {
	client, router, server *netns.Namespace
	proxy                  *proxy.Proxy
	source, front          net.Listener
	serving                sync.WaitGroup
}

func newPath() (p *path, err error) {
	p = &path{}
	defer func() {
		if err != nil {
			p.close()
		}
	}()
	for _, ns := range []**netns.Namespace{&p.client, &p.router, &p.server} {
		if *ns, err = netns.New(); err != nil {
			return nil, err
		}
	}
	for _, step := range []func() error{
		func() error { return join("inner", p.client, p.router, "10.1.0.2/24", "10.1.0.1/24") },
		func() error { return join("outer", p.server, p.router, "203.0.113.1/24", "203.0.113.2/24") },
		func() error { return routeBy(p.client, "10.1.0.1") },
		func() error { return routeBy(p.server, "203.0.113.2") },
		func() error {
			return p.router.Do(func() error { return os.WriteFile("/proc/sys/net/ipv4/ip_forward", []byte("1"), 0) })
		},
		func() error {
			return p.server.Do(func() (err error) { p.source, err = net.Listen("tcp4", server); return err })
		},
		func() error {
			return p.router.Do(func() (err error) { p.front, err = net.Listen("tcp4", "10.1.0.1:80"); return err })
		},
	} {
		if err := step(); err != nil {
			return nil, err
		}
	}
	to := netip.MustParseAddrPort(server)
	p.proxy = proxy.New(proxy.Config{
		Policy: onlyAllowed, Names: func(netip.Addr) []string { return []string{allowed} }, Log: unheard{},
		Original: func(net.Conn) (netip.AddrPort, error) { return to, nil },
		Dial: func(context.Context, netip.AddrPort) (conn net.Conn, err error) {
			err = p.router.Do(func() error { conn, err = net.Dial("tcp4", server); return err })
			return conn, err
		},
	})
	p.serving.Go(func() { p.proxy.Serve(p.front) })
	p.serving.Go(func() { pour(p.source) })
	return p, nil
}

func (p *path) close() {
	if p.proxy != nil {
		p.proxy.Close()
	}
	if p.source != nil {
		p.source.Close()
	}
	if p.front != nil {
		p.front.Close()
	}
	p.serving.Wait()
	for _, ns := range []*netns.Namespace{p.client, p.router, p.server} {
		if ns != nil {
			ns.Close()
		}
	}
}

// join makes a pair of devices between two namespaces, each with an address of
// one network.
func join(name string, a, b *netns.Namespace, toA, toB string) error {
	err := a.Do(func() error {
		return netlink.LinkAdd(&netlink.Veth{
			LinkAttrs: netlink.LinkAttrs{Name: name}, PeerName: name, PeerNamespace: netlink.NsFd(b.File().Fd()),
		})
	})
	if err != nil {
		return fmt.Errorf("make devices %s: %w", name, err)
	}
	return errors.Join(a.Do(func() error { return setUp(name, toA) }), b.Do(func() error { return setUp(name, toB) }))
}

func setUp(name, cidr string) error {
	link, err := netlink.LinkByName(name)
	if err != nil {
		return fmt.Errorf("find device %s: %w", name, err)
	}
	addr, err := netlink.ParseAddr(cidr)
	if err != nil {
		return err
	}
	if err := netlink.AddrAdd(link, addr); err != nil {
		return fmt.Errorf("give %s to %s: %w", cidr, name, err)
	}
	return netlink.LinkSetUp(link)
}

// routeBy sends a namespace's packets to others by a router.
func routeBy(ns *netns.Namespace, router string) error {
	return ns.Do(func() error { return netlink.RouteAdd(&netlink.Route{Gw: net.ParseIP(router)}) })
}

// poured is how much is read in all, and part how much at once, in bytes.
const (
	poured = 512 << 20
	part   = 256 << 10
)

// tooLong is more than a download takes.
const tooLong = time.Minute

// pour gives whoever connects as much as they take.
func pour(listener net.Listener) {
	var serving sync.WaitGroup
	defer serving.Wait()
	for {
		conn, err := listener.Accept()
		if err != nil {
			return
		}
		serving.Go(func() {
			defer conn.Close()
			conn.SetDeadline(time.Now().Add(tooLong))
			conn.Read(make([]byte, 1))
			for data := make([]byte, part); err == nil; {
				_, err = conn.Write(data)
			}
		})
	}
}

// download has a server pour.
func (p *path) download(addr string, hello []byte) (took time.Duration, err error) {
	var conn net.Conn
	if err := p.client.Do(func() (err error) { conn, err = net.Dial("tcp4", addr); return err }); err != nil {
		return 0, err
	}
	defer conn.Close()
	conn.SetDeadline(time.Now().Add(tooLong))
	return timed(func() error {
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
	front, err := net.ListenPacket("udp4", "127.0.0.1:0")
	if err != nil {
		return err
	}
	go r.ServePacket(front)
	echo, err := net.ListenPacket("udp4", "127.0.0.1:0")
	if err != nil {
		return err
	}
	defer echo.Close()
	go repeat(echo)
	var known, echoed []time.Duration
	for range 100 * quick {
		k, err := ask(front.LocalAddr())
		if err != nil {
			return err
		}
		e, err := ask(echo.LocalAddr())
		if err != nil {
			return err
		}
		known, echoed = append(known, k), append(echoed, e)
	}
	k, e := median(known), median(echoed)
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
	return timed(func() error {
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
