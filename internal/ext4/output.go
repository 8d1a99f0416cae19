package ext4

import (
	"bytes"
	"os"

	"golang.org/x/sys/unix"
)

// output writes blocks to a file that was empty, in large pieces as far as
// they follow each other, and leaves holes for zeros.
type output struct {
	f     *os.File
	at    int64 // where buf belongs
	buf   []byte
	fresh int64 // nothing was written from here on
}

const bufferSize = 1 << 20

func newOutput(f *os.File) *output { return &output{f: f, buf: make([]byte, 0, bufferSize)} }

func (o *output) write(at int64, p []byte) error {
	if at != o.at+int64(len(o.buf)) {
		if err := o.flush(); err != nil {
			return err
		}
		o.at = at
	}
	for len(p) > 0 {
		n := copy(o.buf[len(o.buf):cap(o.buf)], p)
		o.buf, p = o.buf[:len(o.buf)+n], p[n:]
		if len(o.buf) == cap(o.buf) {
			if err := o.flush(); err != nil {
				return err
			}
		}
	}
	return nil
}

// room is where the next bytes may be put, ahead of a call to grow.
func (o *output) room() []byte { return o.buf[len(o.buf):cap(o.buf)] }

var zeros [BlockSize]byte

// flush writes the buffer, but for blocks of zeros where there is nothing yet.
func (o *output) flush() error {
	at, rest := o.at, o.buf
	for len(rest) > 0 {
		n := o.same(at, rest)
		if !o.skippable(at, rest) {
			if _, err := o.f.WriteAt(rest[:n], at); err != nil {
				return err
			}
		}
		at, rest = at+int64(n), rest[n:]
	}
	o.fresh = max(o.fresh, at)
	o.at, o.buf = at, o.buf[:0]
	return nil
}

// same is for how many bytes there is the same to be done as for the first.
func (o *output) same(at int64, b []byte) int {
	skip := o.skippable(at, b)
	n := min(BlockSize, len(b))
	for n < len(b) && o.skippable(at+int64(n), b[n:]) == skip {
		n += min(BlockSize, len(b)-n)
	}
	return n
}

func (o *output) skippable(at int64, b []byte) bool {
	b = b[:min(BlockSize, len(b))]
	return at >= o.fresh && bytes.Equal(b, zeros[:len(b)])
}

// punch makes zeros of what was written there.
func (o *output) punch(at, n int64) error {
	if err := o.flush(); err != nil {
		return err
	}
	if n = min(n, o.fresh-at); n <= 0 {
		return nil
	}
	err := unix.Fallocate(int(o.f.Fd()), unix.FALLOC_FL_PUNCH_HOLE|unix.FALLOC_FL_KEEP_SIZE, at, n)
	if err != unix.EOPNOTSUPP {
		return os.NewSyscallError("fallocate", err)
	}
	for n > 0 {
		piece := min(n, int64(len(zeros)))
		if _, err := o.f.WriteAt(zeros[:piece], at); err != nil {
			return err
		}
		at, n = at+piece, n-piece
	}
	return nil
}
