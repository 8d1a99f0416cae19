package firecracker

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"

	"golang.org/x/sys/unix"

	"github.com/vmsan/vmsan/internal/jail"
)

// pipe is a named pipe that Firecracker writes to.
type pipe struct {
	path string // on the host, until it is in the jail
	read *os.File
	// hold keeps it from ending before Firecracker has opened it.
	hold *os.File
}

// newPipe makes a pipe for a user.
func newPipe(path string, user jail.User) (p pipe, err error) {
	p.path = path
	if err := unix.Mkfifo(path, 0o600); err != nil {
		return p, fmt.Errorf("make pipe %s: %w", filepath.Base(path), err)
	}
	if p.read, err = os.OpenFile(path, os.O_RDONLY|unix.O_NONBLOCK, 0); err == nil {
		p.hold, err = os.OpenFile(path, os.O_WRONLY|unix.O_NONBLOCK, 0)
	}
	if err == nil {
		err = os.Lchown(path, int(user.UID), int(user.GID))
	}
	if err != nil {
		return p, errors.Join(err, p.forget(), p.end(), p.read.Close())
	}
	return p, nil
}

// forget takes the name away. The jail has one of its own.
func (p pipe) forget() error { return os.Remove(p.path) }

// end has the pipe end once it is read out and Firecracker is gone.
func (p pipe) end() error { return p.hold.Close() }
