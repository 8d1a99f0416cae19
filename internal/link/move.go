package link

import (
	"errors"
	"fmt"
	"io"
	"os"
	"syscall"

	"golang.org/x/sys/unix"
)

// move moves n bytes from a pipe to the port. virtio_console takes the pipe's
// pages as they are (port_fops_splice_write); where a port or socket cannot do
// that, the bytes are copied.
func move(port io.Writer, pipe *os.File, n int) error {
	if file, ok := port.(syscall.Conn); ok {
		moved, err := splice(file, pipe, n)
		if err == nil || moved > 0 || !errors.Is(err, unix.EINVAL) {
			return err
		}
	}
	moved, err := io.CopyN(struct{ io.Writer }{port}, struct{ io.Reader }{pipe}, int64(n))
	if err != nil {
		return fmt.Errorf("move output from pipe to port: byte %d of %d: %w", moved, n, err)
	}
	return nil
}

func splice(port, pipe syscall.Conn, n int) (moved int, err error) {
	to, err := port.SyscallConn()
	if err != nil {
		return 0, err
	}
	from, err := pipe.SyscallConn()
	if err != nil {
		return 0, err
	}
	var spliceErr error
	for moved < n && err == nil && spliceErr == nil {
		err = to.Write(func(port uintptr) (done bool) {
			controlErr := from.Control(func(pipe uintptr) {
				var some int64
				some, spliceErr = spliceOnce(int(pipe), int(port), n-moved)
				moved += int(some)
			})
			if controlErr != nil {
				spliceErr = controlErr
			}
			if spliceErr == unix.EAGAIN {
				spliceErr = nil
				return false
			}
			return true
		})
	}
	if err = errors.Join(err, spliceErr); err != nil {
		return moved, fmt.Errorf("splice output from pipe to port: byte %d of %d: %w", moved, n, err)
	}
	return moved, nil
}

// spliceOnce waits for the port first: in splice(2) it would do so with the
// pipe locked, and a command that writes to the pipe could not even be killed.
func spliceOnce(pipe, port, n int) (int64, error) {
	for {
		_, err := unix.Poll([]unix.PollFd{{Fd: int32(port), Events: unix.POLLOUT}}, -1)
		if err == nil {
			var some int64
			some, err = unix.Splice(pipe, nil, port, nil, n, 0)
			if some == 0 && err == nil {
				// Both an empty pipe and a port that is gone.
				return 0, io.ErrUnexpectedEOF
			}
			if err == nil {
				return some, nil
			}
		}
		if err != unix.EINTR {
			return 0, err
		}
	}
}
