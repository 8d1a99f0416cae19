package sandbox

import (
	"context"
	"errors"
	"io/fs"
	"net"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"syscall"

	"github.com/vmsan/vmsan/api"
	"github.com/vmsan/vmsan/internal/gate/sockets"
	"github.com/vmsan/vmsan/internal/guest"
	"github.com/vmsan/vmsan/internal/store"
)

// maxForwarded bounds the connections of one forwarding at a time.
const maxForwarded = 256

// Endpoint is where a forwarding begins on the host, or ends in the sandbox.
type Endpoint struct {
	// Network is "tcp" or "unix".
	Network string
	// Address is a host and a port, or the path of a socket.
	Address string
}

// Forwarding leads connections to Local on to Remote, over the guest link:
// whatever the sandbox may reach, and without a network.
type Forwarding struct{ Local, Remote Endpoint }

const loopback = "127.0.0.1"

// ParseForwarding reads [[ADDRESS:]LOCAL:]REMOTE. LOCAL and REMOTE are ports,
// or absolute paths of sockets; LOCAL 0 is any port that is free, and none the
// same as REMOTE. Without ADDRESS the host listens on its loopback alone.
func ParseForwarding(text string) (Forwarding, error) {
	left, right, both := cutLast(text)
	if !both {
		left = right
	}
	remote, err := parseEndpoint(right, 1)
	if err != nil {
		return Forwarding{}, invalidForwarding(text)
	}
	if !both && remote.Network == "unix" {
		return Forwarding{}, invalidForwarding(text)
	}
	local, err := parseEndpoint(left, 0)
	if err != nil {
		return Forwarding{}, invalidForwarding(text)
	}
	return Forwarding{Local: local, Remote: remote}, nil
}

func cutLast(text string) (left, right string, found bool) {
	i := strings.LastIndexByte(text, ':')
	if i < 0 {
		return "", text, false
	}
	return text[:i], text[i+1:], true
}

func invalidForwarding(text string) error {
	return api.Errorf(api.ErrValidationPort, "Invalid forwarding: %.200q. Must be [[ADDRESS:]LOCAL:]REMOTE, with ports or absolute paths of sockets.", text).
		WithHint("vmsan port-forward VM 8080:80")
}

var errEndpoint = errors.New("neither a port nor an absolute path")

func parseEndpoint(text string, least uint64) (Endpoint, error) {
	if filepath.IsAbs(text) {
		return Endpoint{"unix", text}, nil
	}
	host, port := loopback, text
	if address, p, ok := cutLast(text); ok {
		if least > 0 || net.ParseIP(strings.Trim(address, "[]")) == nil {
			return Endpoint{}, errEndpoint
		}
		host, port = strings.Trim(address, "[]"), p
	}
	n, err := strconv.ParseUint(port, 10, 16)
	if err != nil || n < least {
		return Endpoint{}, errEndpoint
	}
	return Endpoint{"tcp", net.JoinHostPort(host, port)}, nil
}

// Forward forwards until ctx ends, or the sandbox does. It calls listening
// once with what is listened on, in the order of forwardings, when all can be
// used.
func (s *Service) Forward(ctx context.Context, ref string, forwardings []Forwarding, listening func([]Forwarding)) error {
	record, err := s.Get(ctx, ref)
	if err != nil {
		return err
	}
	client, err := s.Guest(record)
	if err != nil {
		return err
	}
	defer client.Close()
	listeners, open, err := listenAll(forwardings)
	defer func() {
		for _, l := range listeners {
			l.Close()
		}
	}()
	if err != nil {
		return err
	}
	listening(open)
	f := forwarder{service: s, record: record, client: client}
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	var serving sync.WaitGroup
	for i, l := range listeners {
		serving.Go(func() { cancel(f.serve(ctx, l, forwardings[i].Remote)) })
	}
	go func() { cancel(f.awaitEnd(ctx)) }()
	<-ctx.Done()
	f.server.Close()
	serving.Wait()
	return context.Cause(ctx)
}

func listenAll(forwardings []Forwarding) (listeners []net.Listener, open []Forwarding, err error) {
	for _, f := range forwardings {
		l, err := net.Listen(f.Local.Network, f.Local.Address)
		if err != nil {
			return listeners, nil, listenError(f.Local.Address, err)
		}
		listeners = append(listeners, l)
		f.Local.Address = l.Addr().String()
		open = append(open, f)
	}
	return listeners, open, nil
}

func listenError(address string, err error) error {
	var number syscall.Errno
	errors.As(err, &number)
	switch {
	case number == syscall.EADDRINUSE:
		return api.Errorf(api.ErrValidationPortConflict, "%s is in use on this host", address).WithHint("0:REMOTE takes a port that is free")
	case errors.Is(err, fs.ErrPermission):
		return api.Errorf(api.ErrPermission, "listen on %s: %w", address, os.ErrPermission)
	}
	return api.Errorf(api.ErrValidationAddress, "cannot listen on %s: %w", address, err)
}

// forwarder is one call of Forward.
type forwarder struct {
	service *Service
	record  *store.Record
	client  *guest.Client
	server  sockets.Server
}

func (f *forwarder) serve(ctx context.Context, l net.Listener, remote Endpoint) error {
	return f.server.Accept(l, maxForwarded, func(conn net.Conn) {
		stream, err := f.client.DialPort(ctx, remote.Network, remote.Address)
		if err != nil {
			f.service.log.Warn("forward", "to", remote.Address, "error", err)
			sockets.Cut(conn)
			return
		}
		// How either ends is the business of who talks.
		_ = sockets.Join(conn, stream)
	}, sockets.Cut)
}

// awaitEnd returns why the sandbox has ended, when it has.
func (f *forwarder) awaitEnd(ctx context.Context) error {
	store.AwaitLock(ctx, f.service.layout.SandboxLock(f.record.ID))
	if ctx.Err() != nil {
		return ctx.Err()
	}
	return f.service.Explain(ctx, f.record, api.Errorf(api.ErrGuestLink, "VM %s has ended", f.record.ID).WithVM(f.record.ID))
}
