// Package proxy stands in the way of a sandbox's TCP connections to addresses
// that only a name allows: it reads which name a client asks for, by TLS or
// HTTP, and passes on what the policy allows at that very address.
//
// System calls beyond read, write, accept, splice and epoll: getsockopt
// (SO_ORIGINAL_DST, SO_ERROR), setsockopt, getsockname, getpeername,
// shutdown, pipe2, fcntl; socket(AF_INET, SOCK_STREAM) and connect, unless
// Config.Dial does without.
package proxy

import (
	"context"
	"net"
	"net/netip"

	"github.com/vmsan/vmsan/api"
	"github.com/vmsan/vmsan/internal/policy"
)

// Log takes events. It does not block.
type Log interface {
	Log(api.NetworkEvent)
}

// Config is what a Proxy needs.
type Config struct {
	Policy policy.Policy
	// Names returns the names that have resolved to an address: see
	// resolver.Resolver.
	Names func(netip.Addr) []string
	Log   Log
	// Dial connects to where a client wanted to. By default it does so from
	// the process's own network namespace.
	Dial func(ctx context.Context, addr netip.AddrPort) (net.Conn, error)
	// Original returns where a client wanted to connect to. By default it
	// asks the kernel, which redirected the connection.
	Original func(client net.Conn) (netip.AddrPort, error)
}

// Proxy passes connections on.
type Proxy struct{}

// New makes a Proxy, which works once it is given a listener.
func New(c Config) *Proxy { return &Proxy{} }

// Serve passes on what listener accepts until it is closed.
func (p *Proxy) Serve(listener net.Listener) error { return nil }

// SetPolicy replaces the policy for new connections and further requests.
// With kill it also cuts the connections that it does not allow.
func (p *Proxy) SetPolicy(to policy.Policy, kill bool) {}

// Close cuts all connections and waits for Serve to return. The listener is
// closed.
func (p *Proxy) Close() error { return nil }
