package firecracker

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

// The pauses between attempts to connect to the guest. There is no other way
// to learn that it listens by now.
const (
	shortestDial = time.Millisecond
	longestDial  = 10 * time.Millisecond
)

// dialGuest connects to a port of the guest's vsock as soon as somebody
// listens there, and fails when the machine has ended.
func (vm *virtualMachine) dialGuest(port uint32) (*os.File, error) {
	for wait := shortestDial; ; wait = min(2*wait, longestDial) {
		if vm.running.Load() {
			if file, err := vm.tryGuest(port); err == nil {
				return file, nil
			}
		}
		select {
		case <-time.After(wait):
		case <-vm.gone:
			return nil, errEnded
		}
	}
}

// tryGuest connects if somebody listens now. Firecracker gives up by itself
// on a guest that does not answer.
func (vm *virtualMachine) tryGuest(port uint32) (*os.File, error) {
	conn, err := vm.connect(context.Background(), jailVsock)
	if err != nil {
		return nil, err
	}
	defer conn.Close()
	if err := handshake(conn, port); err != nil {
		return nil, err
	}
	file, err := conn.(*net.UnixConn).File()
	if err != nil {
		return nil, err
	}
	if err := vm.remember(port, file); err != nil {
		file.Close()
		return nil, err
	}
	return file, nil
}

// maxGreeting bounds what Firecracker answers: "OK " and a number.
const maxGreeting = 32

// handshake asks for a connection and reads the answer byte by byte: what
// comes behind it is the guest's.
func handshake(conn net.Conn, port uint32) error {
	if _, err := fmt.Fprintf(conn, "CONNECT %d\n", port); err != nil {
		return err
	}
	var line []byte
	for one := make([]byte, 1); len(line) < maxGreeting; line = append(line, one[0]) {
		if _, err := conn.Read(one); err != nil {
			return err
		}
		if one[0] != '\n' {
			continue
		}
		if !strings.HasPrefix(string(line), "OK ") {
			return fmt.Errorf("connect to guest: the answer is %q", line)
		}
		return nil
	}
	return errors.New("connect to guest: the answer has no end")
}

// remember keeps a connection so that it can be reset.
func (vm *virtualMachine) remember(port uint32, file *os.File) error {
	fd, err := unix.FcntlInt(file.Fd(), unix.F_DUPFD_CLOEXEC, 0)
	if err != nil {
		return err
	}
	vm.mu.Lock()
	defer vm.mu.Unlock()
	if old := vm.connections[port]; old != nil {
		old.Close()
	}
	vm.connections[port] = os.NewFile(uintptr(fd), file.Name())
	return nil
}

// reset ends the connections there are. A guest whose machine is saved will
// know nothing of them when it goes on.
func (vm *virtualMachine) reset() {
	vm.mu.Lock()
	defer vm.mu.Unlock()
	for port, file := range vm.connections {
		unix.Shutdown(int(file.Fd()), unix.SHUT_RDWR)
		file.Close()
		delete(vm.connections, port)
	}
}
