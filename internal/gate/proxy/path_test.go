package proxy

import (
	"context"
	"net"
	"net/netip"
	"os"
	"sync"
	"testing"
	"time"

	"github.com/vishvananda/netlink"

	"github.com/vmsan/vmsan/internal/network/netns"
	"github.com/vmsan/vmsan/internal/testenv"
)

// joinUp makes a pair of devices between two namespaces, each with an address
// of one network.
func joinUp(name string, a, b *netns.Namespace, toA, toB string) error {
	err := a.Do(func() error {
		pair := &netlink.Veth{
			LinkAttrs: netlink.LinkAttrs{Name: name}, PeerName: name, PeerNamespace: netlink.NsFd(b.File().Fd()),
		}
		return netlink.LinkAdd(pair)
	})
	if err != nil {
		return err
	}
	for ns, cidr := range map[*netns.Namespace]string{a: toA, b: toB} {
		err := ns.Do(func() error {
			link, err := netlink.LinkByName(name)
			if err != nil {
				return err
			}
			addr, err := netlink.ParseAddr(cidr)
			if err != nil {
				return err
			}
			if err := netlink.AddrAdd(link, addr); err != nil {
				return err
			}
			return netlink.LinkSetUp(link)
		})
		if err != nil {
			return err
		}
	}
	return nil
}

// routeBy sends a namespace's packets to others by a router.
func routeBy(ns *netns.Namespace, router string) error {
	return ns.Do(func() error { return netlink.RouteAdd(&netlink.Route{Gw: net.ParseIP(router)}) })
}

// BenchmarkPath downloads between two network namespaces, in whose middle
// there is a third that forwards packets, or a proxy in it.
func BenchmarkPath(b *testing.B) {
	testenv.RequireRoot(b)
	var spaces []*netns.Namespace
	for range 3 {
		ns, err := netns.New()
		if err != nil {
			b.Fatal(err)
		}
		b.Cleanup(func() { ns.Close() })
		spaces = append(spaces, ns)
	}
	client, middle, server := spaces[0], spaces[1], spaces[2]
	var source, front net.Listener
	steps := []func() error{
		func() error { return joinUp("inner", client, middle, "10.1.0.2/24", "10.1.0.1/24") },
		func() error { return joinUp("outer", server, middle, "203.0.113.1/24", "203.0.113.2/24") },
		func() error { return routeBy(client, "10.1.0.1") },
		func() error { return routeBy(server, "203.0.113.2") },
		func() error {
			return middle.Do(func() error { return os.WriteFile("/proc/sys/net/ipv4/ip_forward", []byte("1"), 0) })
		},
		func() error {
			return server.Do(func() (err error) { source, err = net.Listen("tcp4", "203.0.113.1:80"); return err })
		},
		func() error {
			return middle.Do(func() (err error) { front, err = net.Listen("tcp4", "10.1.0.1:80"); return err })
		},
	}
	for i, step := range steps {
		if err := step(); err != nil {
			b.Fatalf("step %d: %v", i, err)
		}
	}
	to := netip.MustParseAddrPort("203.0.113.1:80")
	p := New(Config{
		Policy: rulesOf(b, "a.example"), Names: func(netip.Addr) []string { return []string{"a.example"} }, Log: quiet{},
		Original: func(net.Conn) (netip.AddrPort, error) { return to, nil },
		Dial: func(context.Context, netip.AddrPort) (conn net.Conn, err error) {
			err = middle.Do(func() error { conn, err = net.Dial("tcp4", to.String()); return err })
			return conn, err
		},
	})
	var serving sync.WaitGroup
	serving.Go(func() { p.Serve(front) })
	serving.Go(func() { pour(source) })
	b.Cleanup(func() { p.Close(); source.Close(); serving.Wait(); freePipes() })
	for path, addr := range map[string]string{"forwarded": to.String(), "proxied": "10.1.0.1:80"} {
		b.Run(path, func(b *testing.B) {
			err := client.Do(func() error { download(b, addr, handshake(nameExtension("a.example"))); return nil })
			if err != nil {
				b.Fatal(err)
			}
		})
	}
}

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
			conn.Read(make([]byte, 1))
			for data := make([]byte, chunk); ; {
				conn.SetDeadline(time.Now().Add(10 * time.Second))
				if _, err := conn.Write(data); err != nil {
					return
				}
			}
		})
	}
}
