// Package sockets is what the gate's servers have in common: connections that
// are bounded in number, joined, and closed together.
package sockets

import (
	"errors"
	"io"
	"net"
	"sync"
	"time"
)

// acceptPause is how long nobody is let in after that has failed: whatever
// it lacks, there may be again later.
const acceptPause = 100 * time.Millisecond

// Server keeps what is open, to close it. Its zero value is ready.
type Server struct {
	mu      sync.Mutex
	closed  bool
	sockets map[io.Closer]bool
	holders sync.WaitGroup
}

// Accept calls serve with each connection that listener accepts, in a
// goroutine, but for those beyond limit, with which it calls refuse. It
// returns when the listener or s is closed, and closes connections when they
// have been served.
func (s *Server) Accept(listener net.Listener, limit int, serve, refuse func(net.Conn)) error {
	if !s.Hold(listener) {
		return nil
	}
	defer s.Release(listener)
	places := make(chan struct{}, limit)
	for {
		conn, err := listener.Accept()
		switch {
		case errors.Is(err, net.ErrClosed):
			return nil
		case err != nil:
			time.Sleep(acceptPause)
			continue
		}
		select {
		case places <- struct{}{}:
		default:
			refuse(conn)
			conn.Close()
			continue
		}
		if !s.Hold(conn) {
			return nil
		}
		go func() {
			defer func() { <-places }()
			defer s.Release(conn)
			defer conn.Close()
			serve(conn)
		}()
	}
}

// Hold takes a socket that Close is to close, and has Close wait for its
// Release. If s is closed already it closes the socket and returns false.
func (s *Server) Hold(socket io.Closer) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.closed {
		socket.Close()
		return false
	}
	if s.sockets == nil {
		s.sockets = map[io.Closer]bool{}
	}
	s.sockets[socket] = true
	s.holders.Add(1)
	return true
}

// Release ends what Hold began.
func (s *Server) Release(socket io.Closer) {
	s.mu.Lock()
	defer s.mu.Unlock()
	delete(s.sockets, socket)
	s.holders.Done()
}

// Close closes all sockets and waits until they are released.
func (s *Server) Close() {
	s.mu.Lock()
	s.closed = true
	for socket := range s.sockets {
		socket.Close()
	}
	s.mu.Unlock()
	s.holders.Wait()
}
