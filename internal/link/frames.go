package link

import (
	"encoding/binary"
	"io"
	"sync"
)

// frameHeader is the size of yamux's header; the last four bytes are the
// length, and byte 1 is the type, 0 for data (yamux spec.md, "Framing").
const frameHeader = 12

// portWrite is the most that one write to a virtio-serial port takes
// (drivers/char/virtio_console.c, port_fops_write), in bytes.
const portWrite = 32 << 10

// frameWriter joins the header and the body of a data frame, which yamux
// writes in two calls, as far as one write takes them: each write to a
// virtio-serial port is a buffer of its own and an exit to the VMM.
type frameWriter struct {
	port io.Writer

	mu     sync.Mutex // held during a write; guards all below
	closed bool
	header []byte
	frame  []byte
}

func (w *frameWriter) Write(b []byte) (int, error) {
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.closed {
		return 0, errReset
	}
	if w.header == nil {
		if bodyFollows(b) {
			w.header = append([]byte(nil), b...)
			return len(b), nil
		}
		return w.port.Write(b)
	}
	held := len(w.header)
	first := min(len(b), portWrite-held)
	w.frame = append(append(w.frame[:0], w.header...), b[:first]...)
	w.header = nil
	n, err := w.port.Write(w.frame)
	if err != nil || first == len(b) {
		return max(n-held, 0), err
	}
	n, err = w.port.Write(b[first:])
	return first + n, err
}

func bodyFollows(b []byte) bool {
	return len(b) == frameHeader && b[0] == 0 && b[1] == 0 && binary.BigEndian.Uint32(b[8:]) > 0
}

// stop waits for the write under way and refuses all further ones.
func (w *frameWriter) stop() {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.closed = true
}
