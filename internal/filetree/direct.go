package filetree

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"

	"golang.org/x/sys/unix"
)

// A large file that is copied once has little use of the page cache. In an
// emulated guest going through it costs several times what the disk does, and
// so the copy can ask for direct I/O (open(2), O_DIRECT).

const (
	// directBuffer is how much is read or written at once, in bytes, and
	// worthDirect how large a file has to be.
	directBuffer = 1 << 20
	worthDirect  = 4 * directBuffer
	// directBlock is what positions and lengths are multiples of; 4 KiB is
	// enough for any disk.
	directBlock = 4 << 10
	// holeSize is how long a row of zeros is left out of a file.
	holeSize = 64 << 10
)

// direct is a buffer for direct I/O, which has to be aligned in memory. The zero
// value has none yet.
type direct struct{ buffer []byte }

// begin has handle do direct I/O, if it is at a place for it and can.
func (d *direct) begin(handle *os.File) bool {
	at, err := handle.Seek(0, io.SeekCurrent)
	if err != nil || at%directBlock != 0 {
		return false
	}
	if d.buffer == nil {
		if d.buffer, err = unix.Mmap(-1, 0, directBuffer, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_PRIVATE|unix.MAP_ANONYMOUS); err != nil {
			return false
		}
	}
	return setDirect(handle, true) == nil
}

func (d *direct) close() {
	if d.buffer != nil {
		unix.Munmap(d.buffer) // of what was mapped
		d.buffer = nil
	}
}

func setDirect(handle *os.File, on bool) error {
	raw, err := handle.SyscallConn()
	if err != nil {
		return err
	}
	var failed error
	err = raw.Control(func(fd uintptr) {
		flags, err := unix.FcntlInt(fd, unix.F_GETFL, 0)
		if err == nil {
			flags &^= unix.O_DIRECT
			if on {
				flags |= unix.O_DIRECT
			}
			_, err = unix.FcntlInt(fd, unix.F_SETFL, flags)
		}
		failed = err
	})
	return errors.Join(err, failed)
}

// write writes of size bytes of r those that fill whole buffers, and returns
// how many are left.
func (d *direct) write(ctx context.Context, handle *os.File, r io.Reader, size int64) (left int64, err error) {
	if size < worthDirect || !d.begin(handle) {
		return size, nil
	}
	for left = size; left >= directBuffer; left -= directBuffer {
		if err := ctx.Err(); err != nil {
			return left, err
		}
		if _, err := io.ReadFull(r, d.buffer); err != nil {
			return left, fmt.Errorf("read the stream: %w", err)
		}
		if err := writeSparse(handle, d.buffer); err != nil {
			return left, err
		}
	}
	return left, setDirect(handle, false)
}

// writeSparse writes data, and leaves holes where it is zeros.
func writeSparse(handle *os.File, data []byte) error {
	for len(data) > 0 {
		n := pieces(data, true)
		if _, err := handle.Seek(int64(n), io.SeekCurrent); err != nil {
			return err
		}
		data = data[n:]
		n = pieces(data, false)
		if err := writeDirect(handle, data[:n]); err != nil {
			return err
		}
		data = data[n:]
	}
	return nil
}

// pieces is how many bytes data begins with that are in pieces of zeros, or
// in others.
func pieces(data []byte, empty bool) (n int) {
	for n < len(data) {
		piece := data[n:min(n+holeSize, len(data))]
		if isZero(piece) != empty {
			break
		}
		n += len(piece)
	}
	return n
}

// writeDirect goes on without direct I/O on a file system that only says it can,
// and behind what a disk that is full still took, to hear why.
func writeDirect(handle *os.File, data []byte) error {
	n, err := handle.Write(data)
	if !errors.Is(err, unix.EINVAL) {
		return err
	}
	if err := setDirect(handle, false); err != nil {
		return err
	}
	_, err = handle.Write(data[n:])
	return err
}

// read writes of the next size bytes of handle those that fill whole buffers to
// w, and returns how many are left. A file that has become shorter is left to
// others.
func (d *direct) read(ctx context.Context, w io.Writer, handle *os.File, size int64) (left int64, err error) {
	if size < worthDirect || !d.begin(handle) {
		return size, nil
	}
	for left = size; left >= directBuffer; {
		if err := ctx.Err(); err != nil {
			return left, err
		}
		n, err := handle.Read(d.buffer)
		if n == 0 || err != nil {
			break // which reading it otherwise will tell
		}
		if _, err := w.Write(d.buffer[:n]); err != nil {
			return left, err
		}
		left -= int64(n)
	}
	return left, setDirect(handle, false)
}
