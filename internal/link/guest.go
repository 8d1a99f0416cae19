package link

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"strconv"
	"strings"
	"sync"
	"time"
)

// Guest is the guest's end of a guest link: it accepts streams from one
// session of the host after the other. It is a net.Listener.
type Guest struct {
	control, data io.ReadWriteCloser
	identify      func(Identity) error
	streams       chan net.Conn
	done          chan struct{}
	close         func() error

	mu      sync.Mutex // guards current
	current *session
}

// Listen serves the two ports until Close or until one of them fails. They
// should block, and so be files outside the runtime's poller, which would
// otherwise be woken by the completion of each write. identify is called when
// the host says who this guest is, and ends before the host is answered.
func Listen(control, data io.ReadWriteCloser, identify func(Identity) error) *Guest {
	g := &Guest{control: control, data: data, identify: identify, streams: make(chan net.Conn), done: make(chan struct{})}
	g.close = sync.OnceValue(func() error {
		close(g.done)
		return errors.Join(control.Close(), data.Close())
	})
	go g.obey()
	go g.receive()
	return g
}

// Fail tells the host, over its control port alone, that this guest cannot
// come up.
func Fail(control io.Writer, reason error) error {
	text := strings.ReplaceAll(reason.Error(), "\n", "; ")
	return writeMessage(control, verbFailed, text[:min(len(text), maxReason)])
}

// patient is a port in the guest. It reads as ended while the host's side is
// not connected (drivers/char/virtio_console.c, port_fops_read), as it is for
// a moment after the driver has loaded; that is waited out.
type patient struct{ port io.Reader }

func (p patient) Read(b []byte) (int, error) {
	for wait := time.Millisecond; ; wait = min(2*wait, 100*time.Millisecond) {
		n, err := p.port.Read(b)
		if n > 0 || err != io.EOF {
			return n, err
		}
		time.Sleep(wait)
	}
}

// obey begins a session each time the host asks for one, but not for a host
// that it had to tell that its guest cannot be who it shall be.
func (g *Guest) obey() {
	defer g.Close()
	refused := false
	readMessages(patient{g.control}, maxHostLine, func(m message) bool {
		if m.verb == verbIdentity {
			refused = !g.become(m.text)
		} else if m.verb == verbTime {
			g.setClock(m.text)
		} else if n, ok := m.reset(); ok {
			if !refused {
				g.replace(n)
			}
			refused = false
		}
		return true
	})
	g.swap(nil).end()
}

// setClock sets the guest's clock, and says so.
func (g *Guest) setClock(nanoseconds string) {
	n, err := strconv.ParseInt(nanoseconds, 10, 64)
	if err != nil || g.identify(Identity{ClockOnly: true, Time: time.Unix(0, n)}) != nil {
		return // the host does not wait for long
	}
	writeMessage(g.control, verbTimed, "")
}

// become tells whether the guest could take its identity.
func (g *Guest) become(digits string) bool {
	id, err := decodeIdentity(digits)
	if err == nil {
		err = g.identify(id)
	}
	if err != nil {
		Fail(g.control, err)
	}
	return err == nil
}

// receive hands what comes over the data port to the session there is. What
// comes while there is none was meant for an old one.
func (g *Guest) receive() {
	defer g.Close()
	buf := make([]byte, 32<<10)
	for port := (patient{g.data}); ; {
		n, err := port.Read(buf)
		if err != nil {
			return
		}
		g.mu.Lock()
		current := g.current
		g.mu.Unlock()
		if current != nil {
			current.in.Write(buf[:n])
		}
	}
}

func (g *Guest) swap(next *session) (old *session) {
	g.mu.Lock()
	defer g.mu.Unlock()
	old, g.current = g.current, next
	return old
}

// replace ends the session there is, if any, and begins another, in the
// background, so that a host which dies before its nonce has come through
// does not keep the next one from resetting.
func (g *Guest) replace(n nonce) {
	g.swap(nil).end()
	r, w := io.Pipe()
	s := &session{in: w, ended: make(chan struct{})}
	s.mux = newMux(r, g.data, s.interrupt, g.offer)
	g.swap(s)
	go func() {
		defer close(s.ended)
		if err := s.run(n, r); err != nil && !errors.Is(err, errReset) && !errors.Is(err, io.ErrClosedPipe) {
			fmt.Fprintf(os.Stderr, "guest link: %v\n", err)
		}
	}()
}

// session is one host's conversation on the data port.
type session struct {
	*mux
	in    *io.PipeWriter // what the port has for the session
	ended chan struct{}
}

// interrupt leaves the port open.
func (s *session) interrupt() { s.in.CloseWithError(errReset) }

func (s *session) run(n nonce, r *io.PipeReader) error {
	// So that the port's bytes do not wait for a session that reads no more.
	defer r.CloseWithError(errReset)
	if err := s.raw(n[:]); err != nil {
		return s.fail(fmt.Errorf("answer host: %w", err))
	}
	rest, err := discardUntil(r, n)
	if err != nil {
		return s.fail(err)
	}
	s.mux.in.Reset(io.MultiReader(bytes.NewReader(rest), r))
	return s.mux.run()
}

// offer hands a stream to Accept.
func (g *Guest) offer(stream *Stream) {
	go func() {
		select {
		case g.streams <- stream:
		case <-stream.mux.closed:
		case <-g.done:
		}
	}()
}

// end stops s and returns when it no longer touches the data port. Nil is
// fine.
func (s *session) end() {
	if s == nil {
		return
	}
	s.fail(errReset)
	<-s.ended
	s.stop()
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
