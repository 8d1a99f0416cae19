package link

import (
	"io"
	"net"
	"os"
	"sync"
	"sync/atomic"
	"time"
)

// Stream is a net.Conn over the guest link. Its methods may be called from
// any goroutine.
type Stream struct {
	mux *mux
	id  uint32

	sending sync.Mutex // held during Write, so that each stays whole
	opened  bool       // the other side knows of it; guarded by sending

	mu      sync.Mutex // guards what follows
	changed sync.Cond
	broken  error // the session's end

	data   chunks
	held   atomic.Int64 // how many bytes are in data; changed with mu held
	taken  int          // bytes read since the other side was last told
	expect int          // bytes that the other side may still send
	ended  bool
	room   int // bytes that we may still send
	gone   bool
	closed struct{ write, read bool } // by us

	readDeadline, writeDeadline deadline
}

func newStream(m *mux, id uint32) *Stream {
	s := &Stream{mux: m, id: id, expect: window, room: window}
	s.changed.L = &s.mu
	return s
}

// change does something to what mu guards, and wakes who waits for it. A nil
// stream is one that is forgotten.
func (s *Stream) change(what func()) {
	if s == nil {
		return
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	what()
	s.changed.Broadcast()
}

// receive reads the body of a frame.
func (s *Stream) receive(in io.Reader, length int) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if length > s.expect || s.ended {
		return errWindow
	}
	s.expect -= length
	for length > 0 {
		free := s.data.fill(length)
		s.mu.Unlock()
		n, err := in.Read(free)
		s.mu.Lock()
		s.data.filled(n)
		s.held.Add(int64(n))
		length -= n
		// A port gives a page at a time, and for each a reader would have to be
		// woken, and to write it elsewhere.
		if length == 0 || n == len(free) || err != nil {
			s.changed.Broadcast()
		}
		if err != nil {
			return err
		}
		if wait := s.mux.wait; n < waitBelow && length >= waitBelow && wait > 0 {
			s.mu.Unlock()
			time.Sleep(wait)
			s.mu.Lock()
		}
	}
	return nil
}

func (s *Stream) moreRoom(n int) (err error) {
	s.change(func() {
		if n > window-s.room {
			err = errRoom
			return
		}
		s.room += n
	})
	return err
}

func (s *Stream) remoteEnded(gone bool) {
	s.change(func() {
		s.ended = true
		s.gone = s.gone || gone
	})
}

// Read implements net.Conn.
func (s *Stream) Read(b []byte) (int, error) {
	s.mu.Lock()
	data, err := s.await()
	n := copy(b, data)
	owed := s.consume(n)
	s.mu.Unlock()
	if owed > 0 {
		// If it fails, so will the next read.
		_ = s.mux.send(frameRoom, s.id, owed, nil)
	}
	return n, err
}

// WriteTo implements io.WriterTo, without a buffer in between, and with all that
// there is in one system call where w has one for that.
func (s *Stream) WriteTo(w io.Writer) (total int64, err error) {
	parts := make([][]byte, 0, window/chunkSize)
	for {
		s.mu.Lock()
		_, err := s.await()
		some := net.Buffers(s.data.all(parts))
		s.mu.Unlock()
		if err == io.EOF {
			return total, nil
		}
		if err != nil {
			return total, err
		}
		n, err := some.WriteTo(w)
		total += n
		s.mu.Lock()
		owed := s.consume(int(n))
		s.mu.Unlock()
		if owed > 0 {
			_ = s.mux.send(frameRoom, s.id, owed, nil)
		}
		if err != nil {
			return total, err
		}
	}
}

// await waits for data, which stays good until it is consumed. It is called
// with the lock held, and by one reader at a time.
func (s *Stream) await() ([]byte, error) {
	for {
		data := s.data.first()
		switch {
		case s.closed.read:
			return nil, net.ErrClosed
		case len(data) > 0:
			return data, nil
		case s.ended:
			return nil, io.EOF
		case s.broken != nil:
			return nil, s.broken
		case s.readDeadline.passed():
			return nil, os.ErrDeadlineExceeded
		}
		s.changed.Wait()
	}
}

// consume returns how much more the other side is to be told that it may
// send, which is nothing until it is worth a frame.
func (s *Stream) consume(n int) (owed int) {
	if n == 0 || s.closed.read {
		return 0
	}
	s.data.drop(n)
	s.held.Add(-int64(n))
	s.taken += n
	if s.taken < window/2 || s.ended {
		return 0
	}
	owed, s.taken = s.taken, 0
	s.expect += owed
	return owed
}

// Write implements net.Conn.
func (s *Stream) Write(b []byte) (total int, err error) {
	s.sending.Lock()
	defer s.sending.Unlock()
	for total < len(b) {
		n, err := s.reserve(1, len(b)-total)
		if err != nil {
			return total, err
		}
		if err := s.mux.send(s.dataKind(), s.id, n, b[total:total+n]); err != nil {
			return total, err
		}
		total += n
	}
	return total, nil
}

// dataKind is called with sending held.
func (s *Stream) dataKind() byte {
	if s.opened {
		return frameData
	}
	s.opened = true
	return frameOpen
}

// reserve waits until least bytes may be sent and takes up to most of them.
func (s *Stream) reserve(least, most int) (int, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for {
		switch {
		case s.closed.write:
			return 0, net.ErrClosed
		case s.broken != nil:
			return 0, s.broken
		case s.gone:
			return 0, errGone
		case s.writeDeadline.passed():
			return 0, os.ErrDeadlineExceeded
		case s.room >= least:
			n := min(s.room, most)
			s.room -= n
			return n, nil
		}
		s.changed.Wait()
	}
}

// MoveFrom sends up to most bytes of what is in a pipe, after what head
// returns for their number, which is of headSize bytes. The kernel moves them
// to the port. 0 is an empty pipe, or that they cannot be moved; they can be
// read then.
func (s *Stream) MoveFrom(pipe *os.File, most, headSize int, head func(n int) []byte) (int, error) {
	s.sending.Lock()
	defer s.sending.Unlock()
	room, err := s.reserve(headSize+1, headSize+most)
	if err != nil {
		return 0, err
	}
	n, err := s.mux.move(s, pipe, room-headSize, head)
	unused := room - headSize - n
	if n == 0 {
		unused = room
	}
	s.change(func() { s.room += unused })
	return n, err
}

// Gone tells whether the other side has closed the stream, and not merely said
// all it has to say.
func (s *Stream) Gone() bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.gone || s.broken != nil
}

// CloseWrite ends what is sent. Reading goes on.
func (s *Stream) CloseWrite() error { return s.end(false) }

// Close ends the stream. What the other side has sent, or sends, is lost.
func (s *Stream) Close() error {
	err := s.end(true)
	s.mux.forget(s)
	return err
}

// cutOff forgets what was not read, and ends the stream. Whoever is just writing
// some of it elsewhere keeps that.
func (s *Stream) cutOff() {
	s.change(func() {
		s.data, s.broken = chunks{}, errUnread
		s.held.Store(0)
		s.closed.write, s.closed.read = true, true
	})
	// A write under way ends now, or is ahead of this.
	s.sending.Lock()
	defer s.sending.Unlock()
	// A session that cannot tell its guest has ended.
	_ = s.mux.send(frameGone, s.id, 0, nil)
}

func (s *Stream) end(whole bool) error {
	kind, known := frameEnd, false
	if whole {
		kind = frameGone
	}
	s.change(func() {
		known = s.closed.read || (s.closed.write && !whole) || (s.closed.write && s.ended) || s.gone || s.broken != nil
		s.closed.write = true
		s.closed.read = s.closed.read || whole
	})
	if known {
		return nil
	}
	// A write under way ends now, or is ahead of this.
	s.sending.Lock()
	defer s.sending.Unlock()
	if !s.opened {
		if whole {
			return nil
		}
		if err := s.mux.send(s.dataKind(), s.id, 0, nil); err != nil {
			return err
		}
	}
	return s.mux.send(kind, s.id, 0, nil)
}

// LocalAddr implements net.Conn.
func (s *Stream) LocalAddr() net.Addr { return addr{} }

// RemoteAddr implements net.Conn.
func (s *Stream) RemoteAddr() net.Addr { return addr{} }

// SetDeadline implements net.Conn.
func (s *Stream) SetDeadline(t time.Time) error {
	s.SetReadDeadline(t)
	return s.SetWriteDeadline(t)
}

// SetReadDeadline implements net.Conn.
func (s *Stream) SetReadDeadline(t time.Time) error {
	s.change(func() { s.readDeadline.set(t, s) })
	return nil
}

// SetWriteDeadline implements net.Conn. A write that the port has begun to
// take is not interrupted.
func (s *Stream) SetWriteDeadline(t time.Time) error {
	s.change(func() { s.writeDeadline.set(t, s) })
	return nil
}

// deadline is guarded by its stream's lock.
type deadline struct {
	at    time.Time
	timer *time.Timer
}

func (d *deadline) set(t time.Time, s *Stream) {
	if d.timer != nil {
		d.timer.Stop()
		d.timer = nil
	}
	d.at = t
	if wait := time.Until(t); !t.IsZero() && wait > 0 {
		d.timer = time.AfterFunc(wait, func() { s.change(func() {}) })
	}
}

func (d *deadline) passed() bool { return !d.at.IsZero() && !time.Now().Before(d.at) }
