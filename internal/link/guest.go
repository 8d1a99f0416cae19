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
	self          Self
	streams       chan net.Conn
	done          chan struct{}
	close         func() error

	port  io.Reader // of data
	early []byte    // what was read for the last session and is the next one's

	mu      sync.Mutex // guards current
	current *session
}

// Self is what a guest does about itself when the host tells it to.
type Self interface {
	// SetClock sets the clock. With advance, which corrects what was just set,
	// it is right already if it shows a later time.
	SetClock(to time.Time, advance bool) error
	// Identify becomes who the host says. It ends before the host is answered.
	Identify(Identity) error
}

// Listen serves the two ports until Close or until one of them fails. They
// should block, and so be files outside the runtime's poller, which would
// otherwise be woken by the completion of each write. self may be nil for a
// guest that is told nothing.
func Listen(control, data io.ReadWriteCloser, self Self) *Guest {
	g := &Guest{control: control, data: data, port: patient{newPagePort(data)}, self: self, streams: make(chan net.Conn), done: make(chan struct{})}
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
		} else if m.verb == verbTime || m.verb == verbAdvance {
			g.setClock(m)
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
func (g *Guest) setClock(m message) {
	n, err := strconv.ParseInt(m.text, 10, 64)
	if err != nil {
		return
	}
	if err := g.self.SetClock(time.Unix(0, n), m.verb == verbAdvance); err != nil {
		err = fmt.Errorf("set the clock: %w", err)
		if g.session() == nil {
			Fail(g.control, err)
		} else { // the host does not wait for long
			fmt.Fprintf(os.Stderr, "guest link: %v\n", err)
		}
		return
	}
	writeMessage(g.control, verbTimed, m.text)
}

// become tells whether the guest could take its identity.
func (g *Guest) become(digits string) bool {
	id, err := decodeIdentity(digits)
	if err == nil {
		err = g.self.Identify(id)
	}
	if err != nil {
		Fail(g.control, err)
	}
	return err == nil
}

// receive runs one session after the other, for as long as the port lives. What
// comes while there is none was meant for an old one.
func (g *Guest) receive() {
	defer g.Close()
	for {
		in := inlet{g, g.session()}
		if in.session != nil {
			g.report(in.session.run(in))
		}
		if _, err := io.Copy(io.Discard, in); !errors.Is(err, errReset) {
			return
		}
	}
}

// report tells the console why a session ended, if it was not replaced.
func (g *Guest) report(err error) {
	select {
	case <-g.done:
	default:
		if !errors.Is(err, errReset) {
			fmt.Fprintf(os.Stderr, "guest link: %v\n", err)
		}
	}
}

// inlet is the data port for as long as a session is the guest's. Reading a port
// cannot be interrupted, so what comes may be the next session's: it is kept
// for that.
type inlet struct {
	guest   *Guest
	session *session
}

func (i inlet) Read(b []byte) (int, error) {
	g := i.guest
	if g.session() != i.session {
		return 0, errReset
	}
	if len(g.early) > 0 {
		n := copy(b, g.early)
		g.early = g.early[n:]
		return n, nil
	}
	n, err := g.port.Read(b)
	if g.session() != i.session {
		g.early = append([]byte(nil), b[:n]...)
		return 0, errReset
	}
	return n, err
}

func (g *Guest) session() *session {
	g.mu.Lock()
	defer g.mu.Unlock()
	return g.current
}

func (g *Guest) swap(next *session) (old *session) {
	g.mu.Lock()
	defer g.mu.Unlock()
	old, g.current = g.current, next
	return old
}

// replace ends the session there is, if any, and begins another. The answer is
// written in the background, so that a host which dies before it has come
// through does not keep the next one from resetting.
func (g *Guest) replace(n nonce) {
	g.swap(nil).end()
	s := &session{mux: newMux(nil, g.data, func() {}, g.offer), nonce: n}
	g.swap(s)
	go func() {
		if err := s.raw(n[:]); err != nil {
			s.fail(fmt.Errorf("answer host: %w", err))
		}
	}()
}

// session is one host's conversation on the data port.
type session struct {
	*mux
	nonce nonce
}

// run receives until the session ends.
func (s *session) run(in io.Reader) error {
	rest, err := discardUntil(in, s.nonce)
	if err != nil {
		return s.fail(err)
	}
	s.in.Reset(io.MultiReader(bytes.NewReader(rest), in))
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

// end stops s and returns when it no longer writes to the data port. Nil is
// fine.
func (s *session) end() {
	if s == nil {
		return
	}
	s.fail(errReset)
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
