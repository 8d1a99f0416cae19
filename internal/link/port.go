package link

import (
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"time"

	"golang.org/x/sys/unix"
)

// VsockPorts are the ports of the guest's vsock that stand in for the two
// virtio-serial ports, where a VMM has no such device.
var VsockPorts = map[string]uint32{ControlPort: 1024, DataPort: 1025}

// HostPort opens the host's end of a port. A stream is the port itself. A
// socket of packets belongs to somebody who connects: asked with a packet, he
// answers with one that has a connection beside it, as often as it takes; see
// Connector. file stays the caller's.
func HostPort(file *os.File) (io.ReadWriteCloser, error) {
	conn, err := net.FileConn(file)
	if err != nil {
		return nil, fmt.Errorf("open port: %w", err)
	}
	packets, ok := conn.(*net.UnixConn)
	if !ok || packets.LocalAddr().Network() != "unixpacket" {
		return conn, nil
	}
	return dialPipe(func() (io.ReadWriteCloser, error) { return askFor(packets) }, packets.Close), nil
}

// askFor asks for a connection and waits for it.
func askFor(packets *net.UnixConn) (io.ReadWriteCloser, error) {
	if _, err := packets.Write([]byte{0}); err != nil {
		return nil, err
	}
	rights := make([]byte, unix.CmsgSpace(4))
	n, nrights, _, _, err := packets.ReadMsgUnix(make([]byte, 1), rights)
	if err != nil {
		return nil, err
	}
	if n == 0 {
		return nil, io.EOF
	}
	messages, err := unix.ParseSocketControlMessage(rights[:nrights])
	if err != nil || len(messages) != 1 {
		return nil, errors.New("no connection came")
	}
	fds, err := unix.ParseUnixRights(&messages[0])
	if err != nil || len(fds) != 1 {
		return nil, errors.New("no connection came")
	}
	// Else closing it would not end a read.
	if err := unix.SetNonblock(fds[0], true); err != nil {
		unix.Close(fds[0])
		return nil, err
	}
	return os.NewFile(uintptr(fds[0]), "connection"), nil
}

// Connector answers on its end of a port's socket of packets until nobody can
// ask any more, or dial says that there will be no more connections.
func Connector(packets *net.UnixConn, dial func() (*os.File, error)) error {
	for {
		if n, err := packets.Read(make([]byte, 1)); n == 0 || err != nil {
			return nil
		}
		file, err := dial()
		if err != nil {
			return err
		}
		_, _, err = packets.WriteMsgUnix([]byte{0}, unix.UnixRights(int(file.Fd())), nil)
		file.Close()
		if err != nil {
			return fmt.Errorf("hand connection over: %w", err)
		}
		// Whoever asks may have been taken over, and ask without end.
		time.Sleep(pipePause)
	}
}

// GuestPort opens the guest's end of a port. A file is the port itself; over
// a socket that listens, the host connects. It takes file over.
func GuestPort(file *os.File) io.ReadWriteCloser {
	listening, err := unix.GetsockoptInt(int(file.Fd()), unix.SOL_SOCKET, unix.SO_ACCEPTCONN)
	if err != nil || listening == 0 {
		return file
	}
	l := &listener{file: file, fd: int(file.Fd())}
	return acceptPipe(l.accept, l.close)
}

// listener accepts from a socket of any family: package net knows no vsock.
type listener struct {
	file *os.File
	fd   int // file's
}

// accept waits in the kernel: the socket is one for the life of the guest.
func (l *listener) accept() (io.ReadWriteCloser, error) {
	for {
		fd, from, err := unix.Accept4(l.fd, unix.SOCK_CLOEXEC|unix.SOCK_NONBLOCK)
		if errors.Is(err, unix.EINTR) || errors.Is(err, unix.ECONNABORTED) {
			continue
		}
		if err != nil {
			return nil, errors.Join(err, l.file.Close())
		}
		// The guest's own processes can connect too, if it has the module.
		if peer, ok := from.(*unix.SockaddrVM); ok && peer.CID != unix.VMADDR_CID_HOST {
			unix.Close(fd)
			continue
		}
		return os.NewFile(uintptr(fd), "host"), nil
	}
}

// close has the accept that waits return, where the kernel does that. It is
// called once.
func (l *listener) close() error { return unix.Shutdown(l.fd, unix.SHUT_RDWR) }

// ListenVsock makes the socket that the host connects to for the port name.
func ListenVsock(name string) (*os.File, error) {
	port := VsockPorts[name]
	fd, err := unix.Socket(unix.AF_VSOCK, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return nil, fmt.Errorf("open vsock: %w", err)
	}
	err = unix.Bind(fd, &unix.SockaddrVM{CID: unix.VMADDR_CID_ANY, Port: port})
	if err == nil {
		err = unix.Listen(fd, 4)
	}
	if err != nil {
		unix.Close(fd)
		return nil, fmt.Errorf("listen on vsock port %d: %w", port, err)
	}
	return os.NewFile(uintptr(fd), name), nil
}
