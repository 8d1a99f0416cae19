package link

import (
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"sync"
	"time"

	"github.com/hashicorp/yamux"
)

// Port is the guest's end of a virtio-serial port, an *os.File in the poller.
type Port interface {
	io.ReadWriteCloser
	SetReadDeadline(time.Time) error
}

// Guest is the guest's end of a guest link: it accepts streams from one
// session of the host after the other. It is a net.Listener.
type Guest struct {
	control, data Port
	streams       chan net.Conn
	done          chan struct{}
	close         func() error
}

// Listen serves the two ports until Close or until the control port fails.
func Listen(control, data Port) *Guest {
	g := &Guest{control: guestPort{control}, data: guestPort{data}, streams: make(chan net.Conn), done: make(chan struct{})}
	g.close = sync.OnceValue(func() error {
		close(g.done)
		return errors.Join(control.Close(), data.Close())
	})
	go g.serve()
	return g
}

// Fail tells the host, over its control port alone, that this guest cannot
// come up.
func Fail(control io.Writer, reason error) error {
	text := reason.Error()
	return writeMessage(control, message{Failed: text[:min(len(text), maxLine/8)]})
}

func (g *Guest) serve() {
	defer g.Close()
	var current *session
	defer func() { current.end() }()
	// A line too long to be a message ends the reading of one host; the
	// next one begins afresh.
	readMessages(g.control, func(m message) bool {
		n, ok := m.reset()
		if !ok {
			return true
		}
		current.end()
		current = g.begin(n)
		return true
	})
}

// begin starts a session in the background, so that a host which dies before
// its nonce has come through does not keep the next one from resetting.
func (g *Guest) begin(n nonce) *session {
	s := &session{pipe: &pipe{port: g.data, lent: true}, ended: make(chan struct{})}
	go func() {
		defer close(s.ended)
		if err := s.run(n, g); err != nil && !errors.Is(err, errReset) {
			fmt.Fprintf(os.Stderr, "guest link: %v\n", err)
		}
	}()
	return s
}

// session is one host's conversation on the data port.
type session struct {
	pipe  *pipe
	ended chan struct{}
}

func (s *session) run(n nonce, g *Guest) error {
	if _, err := s.pipe.Write(n[:]); err != nil {
		return fmt.Errorf("answer host: %w", err)
	}
	rest, err := discardUntil(s.pipe, n)
	if err != nil {
		return err
	}
	s.pipe.pending = rest
	mux, err := yamux.Server(s.pipe, config())
	if err != nil {
		return err
	}
	defer mux.Close()
	for {
		stream, err := mux.AcceptStream()
		if err != nil {
			return err
		}
		select {
		case g.streams <- stream:
		case <-g.done:
			return net.ErrClosed
		}
	}
}

// end stops s and returns when it no longer touches the data port.
func (s *session) end() {
	if s == nil {
		return
	}
	s.pipe.Close()
	<-s.ended
	s.pipe.drain()
}

// Accept returns the next stream.
func (g *Guest) Accept() (net.Conn, error) {
	select {
	case stream := <-g.streams:
		return stream, nil
	case <-g.done:
		return nil, net.ErrClosed
	}
}

// Close closes the ports and ends Accept.
func (g *Guest) Close() error { return g.close() }

// Addr names the link.
func (g *Guest) Addr() net.Addr { return addr{} }

type addr struct{}

func (addr) Network() string { return "virtio-serial" }
func (addr) String() string  { return DataPort }
