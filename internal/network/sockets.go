package network

import (
	"errors"
	"fmt"
	"os"

	nfnetlink "github.com/mdlayher/netlink"
	"golang.org/x/sys/unix"

	"github.com/vmsan/vmsan/internal/network/firewall"
)

// Sockets are what the gate serves a guest with. They were opened in the
// sandbox's namespace, with rights that the gate does not have.
type Sockets struct {
	// DNSPacket and DNSStream get what the guest sends to port 53 of any
	// address: bound UDP socket and TCP listener.
	DNSPacket, DNSStream *os.File
	// Proxy is a TCP listener that gets the guest's connections to addresses
	// that were given to Open; SO_ORIGINAL_DST tells which.
	Proxy *os.File
	// Denials is a bound NFLOG socket: nfnetlink messages with the first
	// bytes of what was denied, and the reason as prefix: firewall.Denied....
	Denials *os.File
}

// openSockets opens all but Denials, in the namespace of the calling thread.
func openSockets() (s Sockets, err error) {
	for _, socket := range []struct {
		file *(*os.File)
		kind int
		port int
	}{
		{&s.DNSPacket, unix.SOCK_DGRAM, DNSPort},
		{&s.DNSStream, unix.SOCK_STREAM, DNSPort},
		{&s.Proxy, unix.SOCK_STREAM, ProxyPort},
	} {
		fd, err := listen(socket.kind, socket.port)
		if err != nil {
			return Sockets{}, errors.Join(fmt.Errorf("listen on port %d of sandbox: %w", socket.port, err), s.close())
		}
		*socket.file = os.NewFile(uintptr(fd), fmt.Sprint("port-", socket.port))
	}
	return s, nil
}

func (s Sockets) close() error {
	var errs []error
	for _, f := range []*os.File{s.DNSPacket, s.DNSStream, s.Proxy, s.Denials} {
		if f != nil {
			errs = append(errs, f.Close())
		}
	}
	return errors.Join(errs...)
}

// backlog is how many connections may wait for the gate.
const backlog = 512

func listen(kind int, port int) (fd int, err error) {
	fd, err = unix.Socket(unix.AF_INET, kind|unix.SOCK_CLOEXEC|unix.SOCK_NONBLOCK, 0)
	if err != nil {
		return -1, err
	}
	if err = unix.Bind(fd, &unix.SockaddrInet4{Addr: Gateway.Addr().As4(), Port: port}); err == nil && kind == unix.SOCK_STREAM {
		err = unix.Listen(fd, backlog)
	}
	if err != nil {
		unix.Close(fd)
		return -1, err
	}
	return fd, nil
}

// What nfnetlink_log is told (linux/netfilter/nfnetlink_log.h).
const (
	nfulnlConfig     = unix.NFNL_SUBSYS_ULOG<<8 | 1
	nfulaCfgCmd      = 1
	nfulaCfgMode     = 2
	nfulaCfgQthresh  = 5
	nfulnlCmdBind    = 1
	nfulnlCopyPacket = 2
)

// listenForDenials makes of a connection a socket that is told at once of each
// packet that goes into its namespace's log, and drops what nobody reads.
func listenForDenials(conn *nfnetlink.Conn) (*os.File, error) {
	if err := conn.SetOption(nfnetlink.NoENOBUFS, true); err != nil {
		return nil, fmt.Errorf("listen for denials: %w", err)
	}
	for _, attributes := range [][]nfnetlink.Attribute{
		{{Type: nfulaCfgCmd, Data: []byte{nfulnlCmdBind}}},
		{
			{Type: nfulaCfgMode, Data: []byte{0, 0, 0, firewall.LogLength, nfulnlCopyPacket, 0}},
			{Type: nfulaCfgQthresh, Data: []byte{0, 0, 0, 1}},
		},
	} {
		raw, err := nfnetlink.MarshalAttributes(attributes)
		if err != nil {
			return nil, err
		}
		_, err = conn.Execute(nfnetlink.Message{
			Header: nfnetlink.Header{Type: nfulnlConfig, Flags: nfnetlink.Request | nfnetlink.Acknowledge},
			// Any family, version 0, the group.
			Data: append([]byte{unix.AF_UNSPEC, 0, 0, firewall.LogGroup}, raw...),
		})
		if err != nil {
			return nil, fmt.Errorf("listen for denials: bind nfnetlink_log: %w", err)
		}
	}
	return duplicate(conn)
}

// duplicate makes a file of the socket that outlives the connection.
func duplicate(conn *nfnetlink.Conn) (*os.File, error) {
	raw, err := conn.SyscallConn()
	if err != nil {
		return nil, err
	}
	var fd int
	controlErr := raw.Control(func(own uintptr) { fd, err = unix.FcntlInt(own, unix.F_DUPFD_CLOEXEC, 0) })
	if err := errors.Join(controlErr, err); err != nil {
		return nil, fmt.Errorf("duplicate netlink socket: %w", err)
	}
	return os.NewFile(uintptr(fd), "denials"), nil
}
