package link

import (
	"bufio"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"net"
	"sync"
	"time"
)

// The frames of a session: a kind, the number of a stream, and a length.
const (
	frameOpen byte = iota + 1 // from the host: a new stream, and its first data
	frameData                 // as much data as the length says follows
	frameRoom                 // the receiver has taken so many bytes, and as many may follow
	frameEnd                  // the sender has no more data
	frameGone                 // the sender has no more, and throws away what it gets
)

const (
	frameHeader = 1 + 4 + 4
	// window is how much of one stream may be on its way, and so what one
	// stream can make its receiver buffer. It holds several of the agent's
	// chunks of output, so that the guest need not wait for the host.
	window = 4 << 20
	// hostBudget is how much the host holds of all streams together, in bytes.
	// Clients that read hold next to nothing; each that does not, up to a
	// window. The gate has 96 MiB.
	hostBudget = 32 << 20
	// portWrite is the most that one write to a virtio-serial port takes
	// (drivers/char/virtio_console.c, port_fops_write), in bytes.
	portWrite = 32 << 10
	// readAhead is what is read together with a header, in bytes. Larger
	// bodies are read where they go.
	readAhead = 16 << 10
	// waitBelow is how small a piece is too small, and how large a rest is
	// worth waiting for, in bytes.
	waitBelow = 48 << 10
)

// mux is a session: any number of streams over the data port. The host opens
// them, the guest accepts them.
type mux struct {
	in     *bufio.Reader
	close  func()
	accept func(*Stream) // nil at the host; must not block
	// wait is for how long more of a large body is waited for that comes in
	// small pieces: a VMM writes a page at a time, and to be woken for each
	// costs both sides more than the bytes.
	wait time.Duration
	// budget bounds what all streams hold that nobody has read, in bytes. 0: it
	// is not bounded.
	budget int

	closed chan struct{} // closed after err is set
	header [frameHeader]byte

	mu      sync.Mutex // guards what follows
	err     error
	streams map[uint32]*Stream
	last    uint32 // the number of the newest stream opened here

	out struct {
		sync.Mutex // held during a write
		port       io.Writer
		frame      []byte
		stopped    bool
		between    *between
	}
}

// newMux speaks over a port. close interrupts both reading and writing, where
// that is possible, and is called once.
func newMux(in io.Reader, out io.Writer, close func(), accept func(*Stream)) *mux {
	m := &mux{
		in: bufio.NewReaderSize(in, readAhead), close: close, accept: accept,
		closed: make(chan struct{}), streams: map[uint32]*Stream{},
	}
	m.out.port = out
	return m
}

// run receives until the session fails or is closed, and says why.
func (m *mux) run() error {
	for {
		if err := m.receive(); err != nil {
			return m.fail(err)
		}
	}
}

// fail ends the session and all of its streams. The first reason counts, and
// is returned.
func (m *mux) fail(err error) error {
	m.mu.Lock()
	if m.err != nil {
		defer m.mu.Unlock()
		return m.err
	}
	m.err = err
	streams := m.streams
	m.streams = nil
	m.mu.Unlock()
	close(m.closed)
	m.close()
	for _, s := range streams {
		s.change(func() { s.broken = err })
	}
	return err
}

// open makes a stream. The other side hears of it with its first frame.
func (m *mux) open() (*Stream, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.err != nil {
		return nil, m.err
	}
	m.last++
	s := newStream(m, m.last)
	m.streams[s.id] = s
	return s, nil
}

func (m *mux) stream(id uint32) *Stream {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.streams[id]
}

func (m *mux) forget(s *Stream) {
	m.mu.Lock()
	defer m.mu.Unlock()
	delete(m.streams, s.id)
}

// receive takes one frame. Frames of streams that are forgotten here may
// still be on their way, and are passed over.
func (m *mux) receive() error {
	if _, err := io.ReadFull(m.in, m.header[:]); err != nil {
		return err
	}
	kind, id := m.header[0], binary.BigEndian.Uint32(m.header[1:])
	length := int(binary.BigEndian.Uint32(m.header[5:]))
	if kind == frameOpen {
		if err := m.accepted(id); err != nil {
			return err
		}
		kind = frameData
	}
	s := m.stream(id)
	switch kind {
	case frameData:
		if length > window {
			return errWindow
		}
		if s == nil {
			_, err := m.in.Discard(length)
			return err
		}
		if err := s.receive(m.in, length); err != nil {
			return err
		}
		m.shed()
		return nil
	case frameRoom:
		return s.moreRoom(length)
	case frameEnd:
		s.remoteEnded(false)
		return nil
	case frameGone:
		s.remoteEnded(true)
		return nil
	}
	return fmt.Errorf("guest link: frame of unknown kind %#x", kind)
}

// shed cuts off the streams that hold the most, until all together are within
// the budget: else clients that do not read would take the memory of those that
// do. A stream's window cannot be taken back once the guest has been told of it.
func (m *mux) shed() {
	if m.budget == 0 {
		return
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	for {
		var most *Stream
		sum, held := 0, 0
		for _, s := range m.streams {
			n := int(s.held.Load())
			sum += n
			if n > held {
				most, held = s, n
			}
		}
		if sum <= m.budget {
			return
		}
		delete(m.streams, most.id)
		// Not from here, where it might wait for a guest that does not read.
		go most.cutOff()
	}
}

// accepted makes the stream that the other side has opened.
func (m *mux) accepted(id uint32) error {
	m.mu.Lock()
	if m.accept == nil || m.streams[id] != nil || m.err != nil {
		defer m.mu.Unlock()
		return fmt.Errorf("guest link: stream %d cannot be opened from the other side", id)
	}
	s := newStream(m, id)
	s.opened = true
	m.streams[id] = s
	m.mu.Unlock()
	m.accept(s)
	return nil
}

// send writes one frame. The beginning of its body goes with the header, as
// far as one write takes both: each write to a virtio-serial port is a buffer
// of its own and an exit to the VMM.
func (m *mux) send(kind byte, id uint32, length int, body []byte) error {
	m.out.Lock()
	defer m.out.Unlock()
	if m.out.stopped {
		return errReset
	}
	return m.sent(m.write(kind, id, length, body))
}

// sent ends the session if a frame could not be sent: half of it may be out,
// and nothing can follow that. It is called with out held.
func (m *mux) sent(err error) error {
	if err != nil {
		m.out.stopped = true
		m.fail(err)
	}
	return err
}

func (m *mux) write(kind byte, id uint32, length int, body []byte) error {
	first := min(len(body), portWrite-frameHeader)
	frame := append(m.out.frame[:0], kind)
	frame = binary.BigEndian.AppendUint32(frame, id)
	frame = binary.BigEndian.AppendUint32(frame, uint32(length))
	frame = append(frame, body[:first]...)
	m.out.frame = frame
	_, err := m.out.port.Write(frame)
	if err == nil && first < len(body) {
		_, err = m.out.port.Write(body[first:])
	}
	return err
}

// raw writes what is no frame.
func (m *mux) raw(b []byte) error {
	m.out.Lock()
	defer m.out.Unlock()
	if m.out.stopped {
		return errReset
	}
	_, err := m.out.port.Write(b)
	return err
}

// stop waits for the write under way and refuses all further ones.
func (m *mux) stop() {
	m.out.Lock()
	defer m.out.Unlock()
	m.out.stopped = true
	if m.out.between != nil {
		m.out.between.close()
		m.out.between = nil
	}
}

var (
	errWindow = errors.New("guest link: more data than there was room for")
	errUnread = errors.New("guest link: too much that nobody has read")
	errRoom   = errors.New("guest link: room for more data than there was")
)

// addr is both ends of a stream.
type addr struct{}

func (addr) Network() string { return "virtio-serial" }
func (addr) String() string  { return DataPort }

var _ net.Conn = (*Stream)(nil)
