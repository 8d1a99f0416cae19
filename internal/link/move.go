package link

import (
	"fmt"
	"io"
	"os"
	"syscall"

	"golang.org/x/sys/unix"
)

// between is a pipe between the pipe of a command and the port. virtio_console
// takes the pages of a pipe as they are (port_fops_splice_write), but in Linux
// 6.1, for one, only all of them: of a pipe that holds more than is
// asked for it sends buffers of no size, for which the VMM stops the device.
// And a frame begins with its length, while a command may write at any time.
// So what goes to the port is taken out of reach first, which moves pages, too.
type between struct{ read, write *os.File }

// betweenSize is that of the agent's large pipes, in bytes.
const betweenSize = 2 << 20

func newBetween() (*between, error) {
	r, w, err := os.Pipe()
	if err != nil {
		return nil, err
	}
	// Refused to those without CAP_SYS_RESOURCE: slower, not wrong.
	_ = control(r, func(fd int) error {
		_, err := unix.FcntlInt(uintptr(fd), unix.F_SETPIPE_SZ, betweenSize)
		return err
	})
	return &between{r, w}, nil
}

func (b *between) close() {
	b.read.Close()
	b.write.Close()
}

// move sends up to most bytes of what is in pipe. It returns 0 and no error
// if there is nothing, or it cannot be moved, and then has taken nothing.
func (m *mux) move(s *Stream, pipe *os.File, most int, head func(n int) []byte) (n int, err error) {
	m.out.Lock()
	defer m.out.Unlock()
	if m.out.stopped {
		return 0, errReset
	}
	if m.out.between == nil {
		if m.out.between, err = newBetween(); err != nil {
			return 0, nil
		}
	}
	control(pipe, func(from int) error {
		return control(m.out.between.write, func(to int) error {
			var moved int64
			moved, err = unix.Splice(from, nil, to, nil, most, unix.SPLICE_F_NONBLOCK)
			n = max(int(moved), 0)
			return err
		})
	})
	if n == 0 {
		return 0, nil
	}
	first := head(n)
	if err = m.write(s.dataKind(), s.id, len(first)+n, first); err == nil {
		err = m.empty(n)
	}
	return n, m.sent(err)
}

// empty sends the n bytes in between.
func (m *mux) empty(n int) error {
	for n > 0 {
		moved, err := spliceToPort(m.out.port, m.out.between.read, n)
		if err == unix.EINVAL {
			// Neither a port nor a socket.
			var copied int64
			copied, err = io.CopyN(m.out.port, struct{ io.Reader }{m.out.between.read}, int64(n))
			moved = int(copied)
		}
		if err == nil && moved == 0 {
			err = io.ErrUnexpectedEOF // the port is gone
		}
		if err != nil {
			return fmt.Errorf("move output from pipe to port, %d bytes to go: %w", n, err)
		}
		n -= moved
	}
	return nil
}

func spliceToPort(port io.Writer, pipe *os.File, n int) (moved int, err error) {
	file, ok := port.(syscall.Conn)
	if !ok {
		return 0, unix.EINVAL
	}
	raw, err := file.SyscallConn()
	if err != nil {
		return 0, err
	}
	var spliceErr error
	err = raw.Write(func(port uintptr) (done bool) {
		spliceErr = control(pipe, func(pipe int) error {
			some, err := unix.Splice(pipe, nil, int(port), nil, n, 0)
			moved = max(int(some), 0)
			return err
		})
		return spliceErr != unix.EAGAIN && spliceErr != unix.EINTR
	})
	if err == nil {
		err = spliceErr
	}
	return moved, err
}

// control calls do with the descriptor of a file.
func control(file *os.File, do func(fd int) error) error {
	raw, err := file.SyscallConn()
	if err != nil {
		return err
	}
	var doErr error
	if err := raw.Control(func(fd uintptr) { doErr = do(int(fd)) }); err != nil {
		return err
	}
	return doErr
}
