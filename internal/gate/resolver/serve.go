package resolver

import (
	"encoding/binary"
	"errors"
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

// A stream is closed that brings no question for streamIdle; readPause is how
// long nothing is read after that has failed.
const (
	streamIdle = 10 * time.Second
	readPause  = 100 * time.Millisecond
)

// ServePacket answers what comes by UDP until the socket is closed, or the
// Resolver.
func (r *Resolver) ServePacket(conn net.PacketConn) error {
	if !r.server.Hold(conn) {
		return nil
	}
	defer r.server.Release(conn)
	buffer := make([]byte, maxQuery)
	for {
		n, from, err := conn.ReadFrom(buffer)
		switch {
		case errors.Is(err, net.ErrClosed):
			return nil
		case err != nil:
			time.Sleep(readPause)
			continue
		}
		select {
		case r.places <- struct{}{}:
		default:
			continue
		}
		packet := append([]byte(nil), buffer[:n]...)
		r.answering.Go(func() {
			defer func() { <-r.places }()
			if reply := r.respond(packet, "udp"); reply != nil {
				conn.WriteTo(reply, from)
			}
		})
	}
}

// ServeStream answers what comes by TCP until the listener is closed, or the
// Resolver.
func (r *Resolver) ServeStream(listener net.Listener) error {
	return r.server.Accept(listener, maxStreams, r.converse, func(net.Conn) {})
}

// converse answers one question after another.
func (r *Resolver) converse(conn net.Conn) {
	for {
		conn.SetDeadline(time.Now().Add(streamIdle))
		packet, err := readFrame(conn, maxQuery)
		if err != nil {
			return
		}
		reply := r.respond(packet, "tcp")
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
func (r *Resolver) respond(packet []byte, network string) []byte {
	q, reply := parse(packet, network)
	if q != nil {
		reply = r.answer(q)
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

// Close ends all that Serve... has begun, and waits for it. The sockets that
// they were given are closed.
func (r *Resolver) Close() error {
	r.cancel()
	r.server.Close()
	r.answering.Wait()
	return nil
}
