package link

import (
	"crypto/rand"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"net"
	"sync"
	"time"
)

// A connection over vsock ends where a virtio-serial port would not: a VMM
// that saves its machine resets all that are open, in the machine that goes
// on as well as in each copy. So a port over vsock is a Pipe, which outlives
// the connections that it goes over: what was sent and has not been taken is
// kept, and sent again over the next one.
//
// The host connects and says which pipe it means, by an id made by chance,
// and how much of it has come through; the guest says how much has. To a pipe
// that the guest does not know, which is another host's, or one to a copy,
// it begins anew. Then both send frames of a length and data, or a length
// with ackBit set, which is how much was taken.

const (
	pipeID    = 16
	pipeHello = pipeID + 8
	// pipeWindow is how much may be on its way in each direction, in bytes,
	// and so how much either side keeps.
	pipeWindow = 1 << 20
	// pipeAck is how much is taken before that is told.
	pipeAck = pipeWindow / 4
	// pipeFrame is the most data in one frame.
	pipeFrame = 32 << 10
	ackBit    = 1 << 31
)

// pipeBeat is how often the host says something. A guest that has forgotten a
// connection, and does not say so, resets it when it hears of it.
const pipeBeat = time.Second

// pipePause is from the end of a connection that said nothing to the next.
const pipePause = 5 * time.Millisecond

var errPipeProtocol = errors.New("the other side of a pipe breaks its protocol")

// Pipe is one end of a byte pipe. Its methods may be called from any
// goroutine.
type Pipe struct {
	hangUp func() error // ends whatever brings connections

	mu      sync.Mutex // guards all below
	changed *sync.Cond
	id      [pipeID]byte
	conn    io.ReadWriteCloser // nil while there is none
	err     error              // set when the pipe has ended

	out      []byte // what was written, from what is not known to be taken on
	outStart uint64 // how much came before out
	sent     uint64 // how much was given to conn, counted from the beginning
	in       []byte // what has come and is not yet read
	read     uint64 // how much was read
	told     uint64 // how much of that the other side knows
	beat     bool   // a frame without data is due
}

func newPipe(hangUp func() error) *Pipe {
	p := &Pipe{hangUp: sync.OnceValue(hangUp)}
	p.changed = sync.NewCond(&p.mu)
	return p
}

// Read waits for data.
func (p *Pipe) Read(b []byte) (int, error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	for len(p.in) == 0 && p.err == nil {
		p.changed.Wait()
	}
	if len(p.in) == 0 {
		return 0, p.err
	}
	n := copy(b, p.in)
	if p.in = p.in[n:]; len(p.in) == 0 {
		p.in = nil
	}
	if p.read += uint64(n); p.read-p.told >= pipeAck {
		p.changed.Broadcast()
	}
	return n, nil
}

// Write returns when there is room for all of b, which is not when it has
// been sent.
func (p *Pipe) Write(b []byte) (n int, err error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	for len(b) > 0 {
		for len(p.out) >= pipeWindow && p.err == nil {
			p.changed.Wait()
		}
		if p.err != nil {
			return n, p.err
		}
		some := min(len(b), pipeWindow-len(p.out))
		p.out = append(p.out, b[:some]...)
		b, n = b[some:], n+some
		p.changed.Broadcast()
	}
	return n, nil
}

// Close ends the pipe.
func (p *Pipe) Close() error {
	p.fail(net.ErrClosed)
	return p.hangUp()
}

// fail ends the pipe; the first reason counts. What has come can be read.
func (p *Pipe) fail(reason error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.err == nil {
		p.err = reason
	}
	if p.conn != nil {
		p.conn.Close()
	}
	p.changed.Broadcast()
}

func (p *Pipe) ended() bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.err != nil
}

// forget drops what has arrived. The caller holds mu.
func (p *Pipe) forget(arrived uint64) error {
	if arrived < p.outStart || arrived-p.outStart > uint64(len(p.out)) {
		return errPipeProtocol
	}
	p.out = p.out[arrived-p.outStart:]
	p.outStart = arrived
	p.changed.Broadcast()
	return nil
}

// carry moves data over conn, which is attached, until that breaks, and then
// closes it.
func (p *Pipe) carry(conn io.ReadWriteCloser) error {
	var writer sync.WaitGroup
	writer.Go(func() {
		if p.send(conn) != nil {
			conn.Close()
		}
	})
	err := p.receive(conn)
	p.release()
	conn.Close()
	writer.Wait()
	return err
}

func (p *Pipe) release() {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.conn = nil
	p.changed.Broadcast()
}

// send sends what is written and what is taken.
func (p *Pipe) send(conn io.ReadWriteCloser) error {
	frame := make([]byte, 4+4+pipeFrame)
	for {
		n := p.nextFrames(conn, frame)
		if n == 0 {
			return nil
		}
		if _, err := conn.Write(frame[:n]); err != nil {
			return err
		}
	}
}

// nextFrames waits for something to send over conn; 0 means that conn is no
// longer the pipe's.
func (p *Pipe) nextFrames(conn io.ReadWriteCloser, frame []byte) (n int) {
	p.mu.Lock()
	defer p.mu.Unlock()
	for p.conn == conn && p.err == nil {
		if unknown := p.read - p.told; unknown >= pipeAck || p.beat && unknown > 0 {
			binary.BigEndian.PutUint32(frame, ackBit|uint32(p.read-p.told))
			p.told, n = p.read, 4
		}
		if unsent := p.out[p.sent-p.outStart:]; len(unsent) > 0 {
			some := copy(frame[n+4:n+4+pipeFrame], unsent)
			binary.BigEndian.PutUint32(frame[n:], uint32(some))
			p.sent += uint64(some)
			return n + 4 + some
		}
		if p.beat && n == 0 {
			binary.BigEndian.PutUint32(frame, 0)
			n = 4
		}
		if p.beat = false; n > 0 {
			return n
		}
		p.changed.Wait()
	}
	return 0
}

func (p *Pipe) receive(conn io.ReadWriteCloser) error {
	var head [4]byte
	buf := make([]byte, pipeFrame)
	for {
		if _, err := io.ReadFull(conn, head[:]); err != nil {
			return err
		}
		length := binary.BigEndian.Uint32(head[:])
		if length&ackBit != 0 {
			if err := p.acknowledged(uint64(length &^ ackBit)); err != nil {
				return err
			}
			continue
		}
		if length > pipeFrame {
			return errPipeProtocol
		}
		for left := int(length); left > 0; {
			n, err := conn.Read(buf[:left])
			if err := p.deliver(buf[:n]); err != nil {
				return err
			}
			if left -= n; err != nil {
				return err
			}
		}
	}
}

func (p *Pipe) acknowledged(n uint64) error {
	p.mu.Lock()
	defer p.mu.Unlock()
	if n > p.sent-p.outStart {
		return errPipeProtocol
	}
	return p.forget(p.outStart + n)
}

func (p *Pipe) deliver(b []byte) error {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.read-p.told+uint64(len(p.in)+len(b)) > pipeWindow {
		return errPipeProtocol
	}
	p.in = append(p.in, b...)
	p.changed.Broadcast()
	return nil
}

// dialPipe is the host's end. next returns connection after connection, and
// fails when there will be no more: the machine has ended.
func dialPipe(next func() (io.ReadWriteCloser, error), hangUp func() error) *Pipe {
	p := newPipe(hangUp)
	rand.Read(p.id[:])
	go p.redial(next)
	return p
}

func (p *Pipe) redial(next func() (io.ReadWriteCloser, error)) {
	for {
		conn, err := next()
		if err != nil {
			p.fail(io.EOF)
			return
		}
		err = p.call(conn)
		if p.ended() {
			return
		}
		if errors.Is(err, errPipeProtocol) {
			p.fail(err)
			return
		}
		time.Sleep(pipePause)
	}
}

// call says hello and carries data until the connection breaks.
func (p *Pipe) call(conn io.ReadWriteCloser) error {
	read, err := p.take(conn)
	if err != nil {
		conn.Close()
		return err
	}
	var answer [8]byte
	_, err = conn.Write(binary.BigEndian.AppendUint64(append([]byte(nil), p.id[:]...), read))
	if err == nil {
		_, err = io.ReadFull(conn, answer[:])
	}
	if err == nil {
		err = p.resume(binary.BigEndian.Uint64(answer[:]))
	}
	if err != nil {
		conn.Close()
		return err
	}
	ended := make(chan struct{})
	var beats sync.WaitGroup
	beats.Go(func() { p.beats(ended) })
	defer beats.Wait()
	defer close(ended)
	return p.carry(conn)
}

func (p *Pipe) beats(ended <-chan struct{}) {
	tick := time.NewTicker(pipeBeat)
	defer tick.Stop()
	for {
		select {
		case <-tick.C:
			p.mu.Lock()
			p.beat = true
			p.changed.Broadcast()
			p.mu.Unlock()
		case <-ended:
			return
		}
	}
}

// take makes conn the pipe's, and returns how much was read of what came over
// others. What was not will be sent again.
func (p *Pipe) take(conn io.ReadWriteCloser) (read uint64, err error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.conn, p.in, p.told = conn, nil, p.read
	return p.read, p.err
}

// resume has sending go on from the place that the other side has got to.
func (p *Pipe) resume(arrived uint64) error {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.sent = arrived
	return p.forget(arrived)
}

// acceptPipe is the guest's end, over the connections that come.
func acceptPipe(accept func() (io.ReadWriteCloser, error), hangUp func() error) *Pipe {
	p := newPipe(hangUp)
	go func() {
		var turn sync.Mutex // held by the connection that is the pipe's
		for {
			conn, err := accept()
			if err != nil {
				p.fail(fmt.Errorf("accept host: %w", err))
				return
			}
			go p.answer(conn, &turn)
		}
	}()
	return p
}

// answer takes conn in the place of the connection there is, once it says
// hello: that one is broken, even if this side has not noticed yet.
func (p *Pipe) answer(conn io.ReadWriteCloser, turn *sync.Mutex) {
	var hello [pipeHello]byte
	if _, err := io.ReadFull(conn, hello[:]); err != nil {
		conn.Close()
		return
	}
	p.mu.Lock()
	if p.conn != nil {
		p.conn.Close()
	}
	p.mu.Unlock()
	turn.Lock()
	defer turn.Unlock()
	p.choose([pipeID]byte(hello[:]))
	read, err := p.take(conn)
	if err == nil {
		err = p.resume(binary.BigEndian.Uint64(hello[pipeID:]))
	}
	if err == nil {
		_, err = conn.Write(binary.BigEndian.AppendUint64(nil, read))
	}
	if err != nil {
		conn.Close()
		return
	}
	p.carry(conn)
}

// choose goes on with the pipe id, or begins it. What is on its way then is
// for the new host too, as it would be in a port: it may be the answer to what
// that host has said on another.
func (p *Pipe) choose(id [pipeID]byte) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if id != p.id {
		p.id, p.outStart, p.sent, p.read = id, 0, 0, 0
		p.changed.Broadcast()
	}
}
