// Package resolver is the only DNS that a sandbox has. It asks the host's
// resolvers for the names that the policy allows, and sees to it that the
// firewall knows an address before the guest does.
//
// System calls beyond read, write, epoll and accept: those of the sockets it
// is given (recvfrom, sendto) and getrandom. It makes no socket.
package resolver

import (
	"context"
	"net"
	"net/netip"
	"time"

	"github.com/vmsan/vmsan/api"
	"github.com/vmsan/vmsan/internal/policy"
)

// Dialer hands over sockets to the host's resolvers.
type Dialer interface {
	// Dial returns a socket connected to the resolver of that index. The
	// network is "udp" or "tcp". Each question has a socket, and so a source
	// port, of its own.
	Dial(ctx context.Context, resolver int, network string) (net.Conn, error)
}

// Opener lets a sandbox through to addresses.
type Opener interface {
	// Open returns when the firewall lets the sandbox's TCP connections to
	// addrs through to the proxy, for at least ttl from now. It is called
	// from many goroutines, and again for an address that has to stay open
	// for longer.
	Open(ctx context.Context, addrs []netip.Addr, ttl time.Duration) error
}

// Log takes events. It does not block.
type Log interface {
	Log(api.NetworkEvent)
}

// Config is what a Resolver needs.
type Config struct {
	Policy policy.Policy
	// Resolvers is how many Dial knows: 0 to Resolvers-1.
	Resolvers int
	Dialer    Dialer
	Opener    Opener
	Log       Log
	// Pool is where sandboxes have their addresses: none of it is public.
	Pool netip.Prefix
}

// MaxOpen is the longest that an address is opened for at once.
const MaxOpen = time.Hour

// Resolver answers a sandbox's questions.
type Resolver struct{}

// New makes a Resolver, which answers once it is given sockets.
func New(c Config) *Resolver { return &Resolver{} }

// ServePacket answers what comes by UDP until the socket is closed.
func (r *Resolver) ServePacket(conn net.PacketConn) error { return nil }

// ServeStream answers what comes by TCP until the listener is closed.
func (r *Resolver) ServeStream(listener net.Listener) error { return nil }

// SetPolicy replaces the policy. When it returns, nothing is opened any more
// that only the old one allowed; closed are the addresses that were opened
// for names which p does not allow, for the caller to close. Open must be
// able to return while SetPolicy is waited for.
func (r *Resolver) SetPolicy(p policy.Policy) (closed []netip.Addr) { return nil }

// Names returns the allowed names that have resolved to addr and still do,
// in lower case and without a dot at the end. The policy has not been asked
// about ports.
func (r *Resolver) Names(addr netip.Addr) []string { return nil }

// Close ends all that Serve... has begun, and waits for it. The sockets that
// they were given are closed.
func (r *Resolver) Close() error { return nil }
