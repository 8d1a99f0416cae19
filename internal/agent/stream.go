package agent

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"sync"
	"time"

	"connectrpc.com/connect"

	"github.com/vmsan/vmsan/internal/guest/proto/process"
	"github.com/vmsan/vmsan/internal/guest/wire"
)

// ServeHost serves the streams of the host's link, whose callers it trusts: those that begin with
// wire.Hello are commands, the others are HTTP. It returns when the listener fails.
func (a *Agent) ServeHost(streams net.Listener) error {
	calls := &callListener{Listener: streams, calls: make(chan net.Conn), done: make(chan struct{})}
	defer close(calls.done)
	// A guest that only runs commands never needs a server of HTTP, which takes long to start.
	serve := sync.OnceFunc(func() { go http.Serve(calls, a.HostHandler()) })
	for {
		stream, err := streams.Accept()
		if err != nil {
			return err
		}
		go func() {
			early := bufio.NewReader(stream)
			first, err := early.Peek(1)
			switch {
			case err != nil:
				stream.Close()
			case first[0] == wire.Hello:
				early.Discard(1)
				a.serveCommand(stream, early)
			default:
				serve()
				calls.put(&call{Conn: stream, reader: early})
			}
		}()
	}
}

// callListener is where the streams that are HTTP come from.
type callListener struct {
	net.Listener
	calls chan net.Conn
	done  chan struct{}
}

func (l *callListener) put(conn net.Conn) {
	select {
	case l.calls <- conn:
	case <-l.done:
		conn.Close()
	}
}

func (l *callListener) Accept() (net.Conn, error) {
	select {
	case conn := <-l.calls:
		return conn, nil
	case <-l.done:
		return nil, net.ErrClosed
	}
}

// call is a stream whose beginning has been looked at.
type call struct {
	net.Conn
	reader *bufio.Reader
}

func (c *call) Read(b []byte) (int, error) { return c.reader.Read(b) }

// CloseWrite is there for calls that are upgraded.
func (c *call) CloseWrite() error {
	closeWrite(c.Conn)
	return nil
}

// serveCommand runs the one command of a stream.
func (a *Agent) serveCommand(stream net.Conn, in *bufio.Reader) {
	defer stream.Close()
	out := &commandStream{stream: stream}
	if err := a.runCommand(out, in); err != nil {
		out.fail(err)
	}
}

// runCommand starts a command and sees it to its end. An error means that there is no such end to tell.
func (a *Agent) runCommand(out *commandStream, in *bufio.Reader) error {
	request, err := readStart(in)
	if err != nil {
		return connect.NewError(connect.CodeInvalidArgument, err)
	}
	r, err := a.startRequest(request)
	if err != nil {
		return err
	}
	defer r.kill()
	ctx, cancel := context.WithCancel(context.Background())
	defer cancel()
	if r.command.limit > 0 {
		// A tree that does not die of its limit is not waited for.
		defer time.AfterFunc(r.command.limit+limitGrace, cancel).Stop()
	}
	if err := out.send(wire.Number(wire.Started, r.pid)); err != nil {
		cancel() // the follower has to be told, too
	}
	go func() {
		out.receive(ctx, r, in)
		// The host is gone, or done: the command's output has nowhere to go.
		r.kill()
		cancel()
		out.stream.SetWriteDeadline(time.Unix(1, 0))
	}()
	out.offerMove(r)
	followErr := r.starter.follow(ctx, out.output)
	select {
	case <-r.ended:
	case <-ctx.Done():
	}
	switch {
	case r.timedOut.Load():
		return out.send(wire.End{Code: -1, TimedOut: true}.Frame())
	case followErr != nil:
		return followErr
	case ctx.Err() != nil:
		return ctx.Err()
	}
	return out.send(wire.End{Code: r.end.GetExitCode(), Signal: r.end.GetSignal()}.Frame())
}

// limitGrace is how long after its limit a command's end is waited for.
const limitGrace = 2 * time.Second

func readStart(in *bufio.Reader) (*wire.Request, error) {
	header, err := wire.ReadHeader(in, true)
	if err != nil {
		return nil, err
	}
	if header.Kind != wire.Start {
		return nil, fmt.Errorf("a stream that begins with kind %#x", byte(header.Kind))
	}
	return wire.ReadRequest(in, header)
}

// startRequest starts a command like the public contract does.
func (a *Agent) startRequest(request *wire.Request) (*running, error) {
	ctx := context.Background()
	if request.Timeout > 0 {
		limited, cancel := context.WithTimeout(ctx, request.Timeout)
		defer cancel()
		ctx = limited
	}
	config := &process.ProcessConfig{Cmd: request.Args[0], Args: request.Args[1:], Envs: request.Env}
	if request.Dir != "" {
		config.Cwd = &request.Dir
	}
	if request.User != "" {
		config.User = &request.User
	}
	c, err := a.resolveCommand(ctx, &process.StartRequest{Process: config, Stdin: &request.Stdin}, nil)
	if err != nil {
		return nil, err
	}
	return a.startCommand(c)
}

// commandStream is what is sent to the host about one command.
type commandStream struct {
	stream net.Conn
	mu     sync.Mutex // held during a write
}

func (s *commandStream) send(frame []byte) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	_, err := s.stream.Write(frame)
	return err
}

// output is the sink of the command's output. The frame's header goes before it, into the headroom.
func (s *commandStream) output(from source, c chunk) error {
	frame := c.buffer[headroom-wire.HeaderSize : headroom+c.n]
	wire.Header{Kind: outputKind(from), Length: c.n}.Put(frame)
	return s.send(frame)
}

// pipeTaker is a stream that can take what is in a pipe without its being read.
type pipeTaker interface {
	MoveFrom(pipe *os.File, most, headSize int, head func(n int) []byte) (int, error)
}

// offerMove lets the output of r be moved to the stream, before any of it is sent.
func (s *commandStream) offerMove(r *running) {
	first, ok := r.starter.(*directFollower)
	to, takes := s.stream.(pipeTaker)
	if ok && takes {
		r.output.mu.Lock()
		defer r.output.mu.Unlock()
		first.mover = func(from source, pipe *os.File) (int, error) {
			s.mu.Lock()
			defer s.mu.Unlock()
			return to.MoveFrom(pipe, wire.MaxOutput, wire.HeaderSize, func(n int) []byte {
				head := make([]byte, wire.HeaderSize)
				wire.Header{Kind: outputKind(from), Length: n}.Put(head)
				return head
			})
		}
	}
}

func outputKind(from source) wire.Kind {
	if from == stderr {
		return wire.Stderr
	}
	return wire.Stdout
}

// fail says why there is no end. If it cannot be said, nobody listens.
func (s *commandStream) fail(err error) {
	failure := wire.Failure{Code: uint32(connect.CodeOf(err)), Text: err.Error()}
	var coded *connect.Error
	if errors.As(err, &coded) {
		failure.Text = coded.Message()
	}
	_ = s.send(failure.Frame())
}

// receive takes the command's input until the stream ends.
func (s *commandStream) receive(ctx context.Context, r *running, in *bufio.Reader) {
	input := newInlet()
	defer input.end()
	begin := sync.OnceFunc(func() {
		go input.drain(ctx, r, func(n int) error { return s.send(wire.Number(wire.Taken, n)) })
	})
	for {
		header, err := wire.ReadHeader(in, true)
		if err != nil {
			return
		}
		begin()
		switch header.Kind {
		case wire.Input:
			if input.readFrom(in, header.Length) != nil {
				return
			}
		case wire.InputEnd:
			input.end()
		default:
			return
		}
	}
}

// inlet holds what the host has sent until the command takes it. So nobody who reads the stream waits for
// a command, and the stream's end is seen at once.
type inlet struct {
	mu      sync.Mutex
	changed sync.Cond
	waiting []byte
	ended   bool
}

func newInlet() *inlet {
	i := &inlet{}
	i.changed.L = &i.mu
	return i
}

var errInputWindow = errors.New("the host sent more input than there was room for")

func (i *inlet) readFrom(in *bufio.Reader, n int) error {
	data := make([]byte, n)
	if _, err := io.ReadFull(in, data); err != nil {
		return err
	}
	i.mu.Lock()
	defer i.mu.Unlock()
	if i.ended || len(i.waiting)+n > wire.InputWindow {
		return errInputWindow
	}
	if len(i.waiting) == 0 {
		i.waiting = data
	} else {
		i.waiting = append(i.waiting, data...)
	}
	i.changed.Signal()
	return nil
}

func (i *inlet) end() {
	i.mu.Lock()
	defer i.mu.Unlock()
	i.ended = true
	i.changed.Signal()
}

// next waits for input; there is none at the end.
func (i *inlet) next() []byte {
	i.mu.Lock()
	defer i.mu.Unlock()
	for len(i.waiting) == 0 && !i.ended {
		i.changed.Wait()
	}
	data := i.waiting
	i.waiting = nil
	return data
}

// inputPiece is how much of the input is written before the host is told that there is room again, in bytes.
const inputPiece = wire.InputWindow / 4

// drain writes the input to the command and closes it at the end. Input that the command does not take is
// not asked for any more.
func (i *inlet) drain(ctx context.Context, r *running, taken func(int) error) {
	defer r.closeInput()
	for data := i.next(); len(data) > 0; data = i.next() {
		for len(data) > 0 {
			piece := data[:min(len(data), inputPiece)]
			data = data[len(piece):]
			if r.write(ctx, false, piece) != nil || taken(len(piece)) != nil {
				return
			}
		}
	}
}
