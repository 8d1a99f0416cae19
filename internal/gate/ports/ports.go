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
	"time"

	"github.com/vmsan/vmsan/internal/gate/sockets"
	"github.com/vmsan/vmsan/internal/policy"
)

// Config is what Ports need.
type Config struct {
	// Dial connects to a port of the guest's network address. The network is
	// "tcp" or "udp", and the connection that of package net.
	Dial func(ctx context.Context, network string, port uint16) (net.Conn, error)
	// DialLoopback opens a stream to a TCP port of the guest's 127.0.0.1,
	// through the agent. The stream has a CloseWrite.
	DialLoopback func(ctx context.Context, port uint16) (net.Conn, error)
	Log          *slog.Logger
}

// Bounds of a port, and how long the guest may take to answer.
const (
	maxConns = 256
	dialTime = 10 * time.Second
)

// Ports serve published ports.
type Ports struct {
	Config
	ctx    context.Context
	cancel context.CancelFunc
	server sockets.Server
}

// New makes Ports, which have none yet.
func New(c Config) *Ports {
	ctx, cancel := context.WithCancel(context.Background())
	return &Ports{Config: c, ctx: ctx, cancel: cancel}
}

// ServeStream joins what listener accepts to where to leads, until it is
// closed.
func (p *Ports) ServeStream(listener net.Listener, to policy.Publication) error {
	return p.server.Accept(listener, maxConns,
		func(client net.Conn) {
			if err := p.join(client, to); err != nil {
				p.Log.Debug("published port", "port", to, "error", err)
			}
		},
		func(client net.Conn) {
			p.Log.Warn("published port has too many connections", "port", to)
			sockets.Cut(client)
		})
}

// join cuts a client off that the guest does not answer, as if nobody
// listened.
func (p *Ports) join(client net.Conn, to policy.Publication) error {
	guest, err := p.dial(to)
	if err != nil {
		sockets.Cut(client)
		return err
	}
	defer guest.Close()
	if !p.server.Hold(guest) {
		return nil
	}
	defer p.server.Release(guest)
	sockets.SetKeepAlive(client)
	sockets.SetKeepAlive(guest)
	return sockets.Join(client, guest)
}

func (p *Ports) dial(to policy.Publication) (net.Conn, error) {
	ctx, cancel := context.WithTimeout(p.ctx, dialTime)
	defer cancel()
	if to.Loopback {
		return p.DialLoopback(ctx, to.Guest)
	}
	return p.Dial(ctx, string(to.Protocol), to.Guest)
}

// Close closes all sockets that Serve... was given, cuts all connections, and
// waits for them.
func (p *Ports) Close() error {
	p.cancel()
	p.server.Close()
	return nil
}
