package lab

import (
	"fmt"
	"maps"
	"net"
	"net/netip"
	"sync"
)

// Hit is something that reached a server of the lab.
type Hit struct {
	Where   string // host, internet, lan or metadata
	Service string // tcp, udp, http, https, tls, dns-udp, dns-tcp, dot or doh
	At      netip.AddrPort
	From    netip.Addr
	Name    string // the host, server or domain name that it asked for
}

// maxHits bounds how many different ones are kept.
const maxHits = 1 << 16

// Hits counts what reached the lab's servers.
type Hits struct {
	mu     sync.Mutex
	counts map[Hit]int
}

func newHits() *Hits { return &Hits{counts: map[Hit]int{}} }

func (h *Hits) add(hit Hit) {
	h.mu.Lock()
	defer h.mu.Unlock()
	if _, known := h.counts[hit]; !known && len(h.counts) >= maxHits {
		panic(fmt.Sprintf("the lab's servers got more than %d different requests", maxHits))
	}
	h.counts[hit]++
}

// All returns how often each came since the last Reset.
func (h *Hits) All() map[Hit]int {
	h.mu.Lock()
	defer h.mu.Unlock()
	return maps.Clone(h.counts)
}

// Count returns how many of them wanted is true for.
func (h *Hits) Count(wanted func(Hit) bool) (n int) {
	for hit, count := range h.All() {
		if wanted(hit) {
			n += count
		}
	}
	return n
}

// Reset forgets them.
func (h *Hits) Reset() {
	h.mu.Lock()
	defer h.mu.Unlock()
	clear(h.counts)
}

// addressOf is a socket's, without IPv6 around an IPv4 address.
func addressOf(a net.Addr) netip.AddrPort {
	var address netip.AddrPort
	switch a := a.(type) {
	case *net.TCPAddr:
		address = a.AddrPort()
	case *net.UDPAddr:
		address = a.AddrPort()
	}
	return netip.AddrPortFrom(address.Addr().Unmap().WithZone(""), address.Port())
}
