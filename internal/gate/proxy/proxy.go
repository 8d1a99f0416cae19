// Package proxy stands in the way of a sandbox's TCP connections to addresses
// that only a name allows: it reads which name a client asks for, by TLS or
// HTTP, and passes on what the policy allows at that very address.
//
// What is within TLS is not read. A server that answers to several names on
// one certificate's connection can be asked for any of them.
//
// System calls beyond read, write, accept, splice and epoll: getsockopt
// (SO_ORIGINAL_DST, SO_ERROR), setsockopt, getsockname, getpeername,
// shutdown, pipe2, fcntl; socket(AF_INET, SOCK_STREAM) and connect, unless
// Config.Dial does without. A connection takes up to six descriptors.
package proxy

import (
	"context"
	"net"
	"net/netip"
	"slices"
	"sync"
	"time"

	"github.com/vmsan/vmsan/api"
	"github.com/vmsan/vmsan/internal/gate/sockets"
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

// MaxConns is how many connections there may be at once.
const MaxConns = 512

// dialTime is how long a server may take to answer.
const dialTime = 10 * time.Second

// Proxy passes connections on.
type Proxy struct {
	Config
	ctx    context.Context
	cancel context.CancelFunc
	server sockets.Server

	mu     sync.Mutex
	policy policy.Policy
	flows  map[*flow]bool
}

// New makes a Proxy, which works once it is given a listener.
func New(c Config) *Proxy {
	if c.Original == nil {
		c.Original = original
	}
	if c.Dial == nil {
		c.Dial = dial
	}
	ctx, cancel := context.WithCancel(context.Background())
	return &Proxy{Config: c, ctx: ctx, cancel: cancel, policy: c.Policy, flows: map[*flow]bool{}}
}

func dial(ctx context.Context, addr netip.AddrPort) (net.Conn, error) {
	// DialTCP would bind first, which the gate may not.
	var d net.Dialer
	return d.DialContext(ctx, "tcp4", addr.String())
}

// Serve passes on what listener accepts until it is closed.
func (p *Proxy) Serve(listener net.Listener) error {
	return p.server.Accept(listener, MaxConns, p.serve, func(client net.Conn) {
		p.Log.Log(api.NetworkEvent{Verdict: api.VerdictDenied, Kind: api.EventFlow, Protocol: "tcp", Rule: "too many connections"})
		sockets.Cut(client)
	})
}

func (p *Proxy) serve(client net.Conn) {
	to, err := p.Original(client)
	if err != nil {
		sockets.Cut(client)
		return
	}
	sockets.SetKeepAlive(client)
	f := &flow{proxy: p, to: to, client: ahead{Conn: client}, names: p.Names(to.Addr())}
	p.hold(f)
	defer p.release(f)
	if err := f.serve(); err != nil {
		f.cut()
	}
}

func (p *Proxy) hold(f *flow) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.flows[f] = true
}

func (p *Proxy) release(f *flow) {
	p.mu.Lock()
	defer p.mu.Unlock()
	delete(p.flows, f)
}

// SetPolicy replaces the policy for new connections and further requests.
// With kill it also cuts the connections that it does not allow, and tells how
// many.
func (p *Proxy) SetPolicy(to policy.Policy, kill bool) (cut int) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.policy = to
	if !kill {
		return 0
	}
	for f := range p.flows {
		if f.passing && !keeps(to, f) {
			f.cutLocked()
			cut++
		}
	}
	return cut
}

// keeps tells whether p allows what f has been allowed before.
func keeps(p policy.Policy, f *flow) bool {
	if matches(p.DeniedCIDRs, f.to) {
		return false
	}
	if p.Public() || matches(p.AllowedCIDRs, f.to) {
		return true
	}
	if f.name != "" {
		allowed, _ := p.AllowsName(f.name, f.to.Port())
		return allowed
	}
	return slices.ContainsFunc(f.names, func(name string) bool {
		_, named := p.AllowsName(name, f.to.Port())
		return named
	})
}

func matches(rules []policy.CIDR, to netip.AddrPort) bool {
	return slices.ContainsFunc(rules, func(c policy.CIDR) bool { return c.Matches(to.Addr(), to.Port(), policy.TCP) })
}

// Close cuts all connections and waits for Serve to return. The listener is
// closed.
func (p *Proxy) Close() error {
	p.cancel()
	p.server.Close()
	return nil
}
