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
	"time"

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

// Forwarding leads connections to Local, on the host, on to Remote, in the
// sandbox, over the guest link: whatever the sandbox may reach, and without a
// network. A reverse one leads connections to Remote on to Local.
type Forwarding struct {
	Local, Remote Endpoint
	Reverse       bool
}

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

// ParseReverse reads [ADDRESS:]PORT:TARGET. PORT is one of the sandbox, 0 for
// any that is free, or the absolute path of a socket; without ADDRESS only the
// sandbox itself can connect. TARGET is HOST:PORT, a port of this host's
// loopback, or the absolute path of a socket.
func ParseReverse(text string) (Forwarding, error) {
	for _, colon := range colons(text) {
		begin, end := text[:colon], text[colon+1:]
		remote, err := parseEndpoint(begin, 0)
		if err != nil {
			continue
		}
		if local, err := parseTarget(end); err == nil {
			return Forwarding{Local: local, Remote: remote, Reverse: true}, nil
		}
	}
	return Forwarding{}, api.Errorf(api.ErrValidationPort, "Invalid forwarding: %.200q. Must be [ADDRESS:]PORT:TARGET, where TARGET is HOST:PORT, "+
		"a port of this host, or the absolute path of a socket.", text).WithFlag("--reverse").WithHint("vmsan port-forward VM -R 5432:127.0.0.1:5432")
}

func colons(text string) (at []int) {
	for i, c := range []byte(text) {
		if c == ':' {
			at = append(at, i)
		}
	}
	return at
}

// parseTarget reads where a reverse forwarding leads.
func parseTarget(text string) (Endpoint, error) {
	if host, port, err := net.SplitHostPort(text); err == nil && host != "" && !strings.ContainsAny(host, "/ ") {
		if n, err := strconv.ParseUint(port, 10, 16); err == nil && n > 0 {
			return Endpoint{"tcp", text}, nil
		}
	}
	if strings.ContainsRune(text, ':') {
		return Endpoint{}, errEndpoint
	}
	return parseEndpoint(text, 1)
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
	f := forwarder{service: s, record: record, client: client}
	listeners, open, err := f.listenAll(ctx, forwardings)
	defer func() {
		for _, l := range listeners {
			l.Close()
		}
	}()
	if err != nil {
		return err
	}
	listening(open)
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	var serving sync.WaitGroup
	for i, l := range listeners {
		serving.Go(func() { cancel(f.serve(ctx, l, forwardings[i])) })
	}
	go func() { cancel(f.awaitEnd(ctx)) }()
	<-ctx.Done()
	f.server.Close()
	serving.Wait()
	return context.Cause(ctx)
}

// forwarder is one call of Forward.
type forwarder struct {
	service *Service
	record  *store.Record
	client  *guest.Client
	server  sockets.Server
}

// listenAll returns what it has made also if it fails.
func (f *forwarder) listenAll(ctx context.Context, forwardings []Forwarding) (listeners []net.Listener, open []Forwarding, err error) {
	for _, w := range forwardings {
		l, err := f.listen(ctx, &w)
		if err != nil {
			return listeners, nil, err
		}
		listeners, open = append(listeners, l), append(open, w)
	}
	return listeners, open, nil
}

// listen listens where connections of w begin, and writes into it where that
// is.
func (f *forwarder) listen(ctx context.Context, w *Forwarding) (net.Listener, error) {
	if w.Reverse {
		l, err := f.client.Listen(ctx, w.Remote.Network, w.Remote.Address)
		if errors.Is(err, guest.ErrAddressInUse) {
			return nil, api.Errorf(api.ErrValidationPortConflict, "%s is in use in VM %s", w.Remote.Address, f.record.ID).WithVM(f.record.ID).
				WithHint("vmsan ports %s", f.record.ID)
		}
		if err != nil {
			return nil, f.service.Explain(ctx, f.record, err)
		}
		w.Remote.Address = l.Addr().String()
		return l, nil
	}
	l, err := net.Listen(w.Local.Network, w.Local.Address)
	if err != nil {
		return nil, listenError(w.Local.Address, err)
	}
	w.Local.Address = l.Addr().String()
	return l, nil
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

// serve returns why no more is forwarded.
func (f *forwarder) serve(ctx context.Context, l net.Listener, w Forwarding) error {
	err := f.server.Accept(l, maxForwarded, func(conn net.Conn) {
		onward, err := f.dial(ctx, w)
		if err != nil {
			f.service.log.Warn("forward", "error", err)
			sockets.Cut(conn)
			return
		}
		if !f.server.Hold(onward) {
			return
		}
		defer f.server.Release(onward)
		// How either ends is the business of who talks.
		_ = sockets.Join(conn, onward)
	}, sockets.Cut)
	if theirs, ok := l.(*guest.Listener); ok && ctx.Err() == nil {
		err = f.service.Explain(ctx, f.record, theirs.Err())
	}
	return err
}

// dialTime is how long what a reverse forwarding leads to may take.
const dialTime = 30 * time.Second

// dial connects to where w leads, which the user has named: nothing that the
// guest says is part of it.
func (f *forwarder) dial(ctx context.Context, w Forwarding) (net.Conn, error) {
	if !w.Reverse {
		return f.client.DialPort(ctx, w.Remote.Network, w.Remote.Address)
	}
	dialer := net.Dialer{Timeout: dialTime}
	return dialer.DialContext(ctx, w.Local.Network, w.Local.Address)
}

// awaitEnd returns why the sandbox has ended, when it has.
func (f *forwarder) awaitEnd(ctx context.Context) error {
	store.AwaitLock(ctx, f.service.layout.SandboxLock(f.record.ID))
	if ctx.Err() != nil {
		return ctx.Err()
	}
	return f.service.Explain(ctx, f.record, api.Errorf(api.ErrGuestLink, "VM %s has ended", f.record.ID).WithVM(f.record.ID))
}
