package vmm

import (
	"fmt"
	"os"

	"golang.org/x/sys/unix"
)

// SocketPair returns the two ends of a byte stream, ours and the VMM's.
func SocketPair(name string) (ours, theirs *os.File, err error) {
	return socketPair(name, unix.SOCK_STREAM)
}

// PacketPair is SocketPair for packets.
func PacketPair(name string) (ours, theirs *os.File, err error) {
	return socketPair(name, unix.SOCK_SEQPACKET)
}

func socketPair(name string, kind int) (ours, theirs *os.File, err error) {
	fds, err := unix.Socketpair(unix.AF_UNIX, kind|unix.SOCK_CLOEXEC|unix.SOCK_NONBLOCK, 0)
	if err != nil {
		return nil, nil, fmt.Errorf("make socket pair for %s: %w", name, err)
	}
	return os.NewFile(uintptr(fds[0]), name), os.NewFile(uintptr(fds[1]), name), nil
}
