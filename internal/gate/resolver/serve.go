package resolver

import (
	"context"
	"encoding/binary"
	"errors"
	"io"
	"net"
	"time"

	"github.com/miekg/dns"
)

// How many questions are worked on at once, and how many streams are open.
// More packets are dropped, and more streams closed.
const (
	maxQuestions = 256
	maxStreams   = 32
)

// A stream is closed that brings no question for streamIdle; acceptPause is
// how long nothing is read after that has failed.
const (
	streamIdle  = 10 * time.Second
	acceptPause = 100 * time.Millisecond
)

// ServePacket answers what comes by UDP until the socket is closed, or the
// Resolver.
func (r *Resolver) ServePacket(conn net.PacketConn) error {
	if !r.hold(conn) {
		return nil
	}
	defer r.release(conn)
	buffer := make([]byte, maxQuery)
	for {
		n, from, err := conn.ReadFrom(buffer)
		switch {
		case errors.Is(err, net.ErrClosed):
			return nil
		case err != nil:
			time.Sleep(acceptPause)
			continue
		}
		select {
		case r.places <- struct{}{}:
		default:
			continue
		}
		packet := append([]byte(nil), buffer[:n]...)
		r.serving.Go(func() {
			defer func() { <-r.places }()
			if reply := r.respond(r.ctx, packet, "udp"); reply != nil {
				conn.WriteTo(reply, from)
			}
		})
	}
}

// ServeStream answers what comes by TCP until the listener is closed, or the
// Resolver.
func (r *Resolver) ServeStream(listener net.Listener) error {
	if !r.hold(listener) {
		return nil
	}
	defer r.release(listener)
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
		case r.streams <- struct{}{}:
		default:
			conn.Close()
			continue
		}
		r.serving.Go(func() {
			defer func() { <-r.streams }()
			r.converse(conn)
		})
	}
}

// converse answers one question after another.
func (r *Resolver) converse(conn net.Conn) {
	defer conn.Close()
	if !r.hold(conn) {
		return
	}
	defer r.release(conn)
	for {
		conn.SetDeadline(time.Now().Add(streamIdle))
		packet, err := readFrame(conn, maxQuery)
		if err != nil {
			return
		}
		reply := r.respond(r.ctx, packet, "tcp")
		if reply == nil {
			return
		}
		framed := binary.BigEndian.AppendUint16(nil, uint16(len(reply)))
		if _, err := conn.Write(append(framed, reply...)); err != nil {
			return
		}
	}
}

// respond answers a packet, or has nothing to say to it.
func (r *Resolver) respond(ctx context.Context, packet []byte, network string) []byte {
	q, reply := parse(packet, network)
	if q != nil {
		reply = r.answer(ctx, q)
		reply.Truncate(q.size)
	}
	if reply == nil {
		return nil
	}
	wire, err := reply.Pack()
	if err != nil {
		// A record that can be read but not be written.
		reply.Answer, reply.Ns, reply.Rcode = nil, nil, dns.RcodeServerFailure
		wire, _ = reply.Pack()
	}
	return wire
}

// hold remembers a socket for Close, unless that has been called.
func (r *Resolver) hold(socket io.Closer) bool {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.closed {
		socket.Close()
		return false
	}
	r.serving.Add(1)
	r.sockets[socket] = true
	return true
}

func (r *Resolver) release(socket io.Closer) {
	r.mu.Lock()
	defer r.mu.Unlock()
	delete(r.sockets, socket)
	r.serving.Done()
}

// Close ends all that Serve... has begun, and waits for it. The sockets that
// they were given are closed.
func (r *Resolver) Close() error {
	r.cancel()
	r.mu.Lock()
	r.closed = true
	for socket := range r.sockets {
		socket.Close()
	}
	r.mu.Unlock()
	r.serving.Wait()
	return nil
}
