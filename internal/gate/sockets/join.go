package sockets

import (
	"errors"
	"io"
	"net"
	"sync"
	"time"
)

// KeepAlive finds out that a peer is gone which says nothing: there is no
// other limit to how long a connection may be idle.
var KeepAlive = net.KeepAliveConfig{Enable: true, Idle: time.Minute, Interval: 15 * time.Second, Count: 4}

// SetKeepAlive has the kernel watch over conn, if it is one of TCP.
func SetKeepAlive(conn net.Conn) {
	if tcp, ok := conn.(*net.TCPConn); ok {
		tcp.SetKeepAliveConfig(KeepAlive)
	}
}

// Join copies both ways until both have said all they have to say, or either
// is gone, and closes both.
func Join(a, b net.Conn) error {
	back := make(chan error, 1)
	go func() { back <- Pass(a, b) }()
	err := errors.Join(Pass(b, a), <-back)
	a.Close()
	b.Close()
	return err
}

// Pass copies to dst what src says, and passes its end on. It is the kernel
// that copies between two connections of TCP. If either breaks, both are cut.
func Pass(dst, src net.Conn) error {
	if _, err := Copy(dst, src); err != nil {
		Cut(dst)
		Cut(src)
		return err
	}
	CloseWrite(dst)
	return nil
}

// Copy copies to dst what src says, by splice(2) between connections of TCP.
func Copy(dst net.Conn, src io.Reader) (int64, error) {
	source := src
	if limited, ok := src.(*io.LimitedReader); ok {
		source = limited.R
	}
	_, fromTCP := source.(*net.TCPConn)
	if tcp, ok := dst.(*net.TCPConn); ok && fromTCP {
		return tcp.ReadFrom(src)
	}
	b := buffers.Get().(*[]byte)
	defer buffers.Put(b)
	return io.CopyBuffer(struct{ io.Writer }{dst}, struct{ io.Reader }{src}, *b)
}

var buffers = sync.Pool{New: func() any {
	b := make([]byte, 64<<10)
	return &b
}}

// CloseWrite ends what is said to conn, or all of it if it has no halves.
func CloseWrite(conn net.Conn) error {
	if half, ok := conn.(interface{ CloseWrite() error }); ok {
		return half.CloseWrite()
	}
	return conn.Close()
}

// Cut closes conn so that the peer hears of it, and is not left with what
// looks like a proper end.
func Cut(conn net.Conn) {
	if tcp, ok := conn.(*net.TCPConn); ok {
		tcp.SetLinger(0)
	}
	conn.Close()
}
