// Package ports joins published ports of the host to ports of a guest.
//
// System calls beyond read, write, accept, splice and epoll: setsockopt,
// getsockname, getpeername, shutdown, pipe2, fcntl, recvfrom, recvmsg, sendto,
// sendmsg; and what Config.Dial needs.
package ports

import (
	"context"
	"log/slog"
	"net"

	"github.com/vmsan/vmsan/internal/policy"
)

// Config is what Ports need.
type Config struct {
	// Dial connects to a port of the guest's network address. The network is
	// "tcp" or "udp".
	Dial func(ctx context.Context, network string, port uint16) (net.Conn, error)
	// DialLoopback opens a stream to a TCP port of the guest's 127.0.0.1,
	// through the agent. If the stream has no CloseWrite, its Close must end
	// only the sending, as yamux's does.
	DialLoopback func(ctx context.Context, port uint16) (net.Conn, error)
	Log          *slog.Logger
}

// Ports serve published ports.
type Ports struct{}

// New makes Ports, which have none yet.
func New(c Config) *Ports { return &Ports{} }

// ServeStream joins what listener accepts to where to leads, until it is
// closed.
func (p *Ports) ServeStream(listener net.Listener, to policy.Publication) error { return nil }

// ServePacket carries datagrams between conn's clients and where to leads,
// until it is closed.
func (p *Ports) ServePacket(conn *net.UDPConn, to policy.Publication) error { return nil }

// Close closes all sockets that Serve... was given, cuts all connections, and
// waits for them.
func (p *Ports) Close() error { return nil }
