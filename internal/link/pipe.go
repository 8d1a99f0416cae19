package link

import (
	"encoding/binary"
	"io"
	"sync"
	"sync/atomic"
	"time"
)

// guestPort is a port in the guest. It reads as ended while the host's side
// is not connected (drivers/char/virtio_console.c, port_fops_read), as it is
// for a moment after the driver has loaded; that is waited out.
type guestPort struct{ Port }

func (p guestPort) Read(b []byte) (int, error) {
	for wait := time.Millisecond; ; wait = min(2*wait, 100*time.Millisecond) {
		n, err := p.Port.Read(b)
		if n > 0 || err != io.EOF {
			return n, err
		}
		time.Sleep(wait)
	}
}

// frameHeader is the size of yamux's header; the last four bytes are the
// length, and byte 1 is the type, 0 for data (yamux spec.md, "Framing").
const frameHeader = 12

// portWrite is the most that one write to a virtio-serial port takes
// (drivers/char/virtio_console.c, port_fops_write), in bytes.
const portWrite = 32 << 10

// pipe is one session's use of a data port. It joins the header and the body
// of a data frame, which yamux writes in two calls, as far as one write takes
// them: each write to a virtio-serial port is a buffer of its own and an exit to the
// VMM.
type pipe struct {
	port    Port
	lent    bool   // the port outlives the session
	pending []byte // read already, to be returned first

	reading sync.Mutex // held during a read of the port
	writing sync.Mutex // held during a write; guards header and frame
	header  []byte
	frame   []byte

	closed atomic.Bool
}

func (p *pipe) Read(b []byte) (int, error) {
	p.reading.Lock()
	defer p.reading.Unlock()
	if len(p.pending) > 0 {
		n := copy(b, p.pending)
		p.pending = p.pending[n:]
		return n, nil
	}
	if p.closed.Load() {
		return 0, errReset
	}
	n, err := p.port.Read(b)
	if n == 0 && p.closed.Load() {
		return 0, errReset
	}
	return n, err
}

func (p *pipe) Write(b []byte) (int, error) {
	p.writing.Lock()
	defer p.writing.Unlock()
	if p.closed.Load() {
		return 0, errReset
	}
	if bodyFollows(b) && p.header == nil {
		p.header = append([]byte(nil), b...)
		return len(b), nil
	}
	if p.header == nil {
		return p.port.Write(b)
	}
	held := len(p.header)
	first := min(len(b), portWrite-held)
	p.frame = append(append(p.frame[:0], p.header...), b[:first]...)
	p.header = nil
	n, err := p.port.Write(p.frame)
	if err != nil || first == len(b) {
		return max(n-held, 0), err
	}
	n, err = p.port.Write(b[first:])
	return first + n, err
}

func bodyFollows(b []byte) bool {
	return len(b) == frameHeader && b[0] == 0 && b[1] == 0 && binary.BigEndian.Uint32(b[8:]) > 0
}

// Close ends the session's use of the port, waking a read that waits.
func (p *pipe) Close() error {
	p.closed.Store(true)
	if p.lent {
		return p.port.SetReadDeadline(time.Unix(1, 0))
	}
	return p.port.Close()
}

// drain waits until no read or write of this session is under way and gives
// the port back.
func (p *pipe) drain() {
	p.reading.Lock()
	defer p.reading.Unlock()
	p.writing.Lock()
	defer p.writing.Unlock()
	p.port.SetReadDeadline(time.Time{})
}
