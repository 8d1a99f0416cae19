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

// serveCommand runs, or joins, the one command of a stream.
func (a *Agent) serveCommand(stream net.Conn, in *bufio.Reader) {
	defer stream.Close()
	out := &commandStream{stream: stream}
	r, follower, err := a.openCommand(in)
	if err == nil {
		err = out.see(r, follower, in)
	}
	if err != nil {
		out.fail(err)
	}
}

// openCommand does what the first frame says: it starts a command, or finds one that is there.
func (a *Agent) openCommand(in *bufio.Reader) (*running, follower, error) {
	header, err := wire.ReadHeader(in, true)
	if err != nil {
		return nil, nil, connect.NewError(connect.CodeInvalidArgument, err)
	}
	switch header.Kind {
	case wire.Start, wire.StartKept:
		request, err := wire.ReadRequest(in, header)
		if err != nil {
			return nil, nil, connect.NewError(connect.CodeInvalidArgument, err)
		}
		r, err := a.startRequest(request)
		if err != nil {
			return nil, nil, err
		}
		return r, r.starter, nil
	case wire.Join:
		pid, err := wire.ReadNumber(in, header)
		if err != nil {
			return nil, nil, connect.NewError(connect.CodeInvalidArgument, err)
		}
		return a.joinCommand(pid)
	}
	return nil, nil, connect.NewError(connect.CodeInvalidArgument, fmt.Errorf("a stream that begins with kind %#x", byte(header.Kind)))
}

// see sees a command to its end, or the host's following it. An error means that there is no such end to tell.
func (s *commandStream) see(r *running, follower follower, in *bufio.Reader) error {
	ctx, cancel := context.WithCancel(context.Background())
	defer cancel()
	owned := !r.command.keep // by this stream
	if owned {
		defer r.kill()
	}
	if r.starter == follower && r.command.limit > 0 {
		// A tree that does not die of its limit is not waited for.
		defer time.AfterFunc(r.command.limit+limitGrace, cancel).Stop()
	}
	if err := s.send(wire.Number(wire.Started, r.pid)); err != nil {
		cancel() // the follower has to be told, too
	}
	go func() {
		s.receive(ctx, r, in)
		// The host is gone, or done: the command's output has nowhere to go.
		if owned {
			r.kill()
		}
		cancel()
		s.stream.SetWriteDeadline(time.Unix(1, 0))
	}()
	s.prepare(follower)
	followErr := follower.follow(ctx, s.output)
	if followErr != nil && !owned {
		return streamError(followErr) // the command goes on
	}
	select {
	case <-r.ended:
	case <-ctx.Done():
	}
	switch {
	case r.timedOut.Load() && r.starter == follower:
		return s.send(wire.End{Code: -1, TimedOut: true}.Frame())
	case followErr != nil:
		return streamError(followErr)
	case ctx.Err() != nil:
		return ctx.Err()
	}
	return s.send(wire.End{Code: r.end.GetExitCode(), Signal: r.end.GetSignal(), TimedOut: r.end.GetTimedOut()}.Frame())
}

// limitGrace is how long after its limit a command's end is waited for.
const limitGrace = 2 * time.Second

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
	start := &process.StartRequest{Process: config, Stdin: &request.Stdin, KeepOutput: request.Keep}
	if request.Terminal != nil {
		start.Pty = terminalOf(*request.Terminal)
	}
	c, err := a.resolveCommand(ctx, start, nil)
	if err != nil {
		return nil, err
	}
	return a.startCommand(c)
}

func terminalOf(size wire.Size) *process.PTY {
	return &process.PTY{Size: &process.PTY_Size{Cols: uint32(size.Columns), Rows: uint32(size.Rows)}}
}

// joinCommand finds a command whose output is kept.
func (a *Agent) joinCommand(pid int) (*running, follower, error) {
	r := a.table.byPid(pid)
	if r == nil {
		return nil, nil, connect.NewError(connect.CodeNotFound, fmt.Errorf("process %d not found", pid))
	}
	if !r.command.keep {
		return nil, nil, connect.NewError(connect.CodeFailedPrecondition, fmt.Errorf("the output of process %d is not kept", pid))
	}
	follower, err := r.output.join(true)
	if err != nil {
		return nil, nil, connect.NewError(connect.CodeResourceExhausted, err)
	}
	return r, follower, nil
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

// prepare makes the stream known to its follower, before anything is sent of the output: it is told when a
// follower of what is kept has caught up, and can have output moved to it.
func (s *commandStream) prepare(of follower) {
	switch f := of.(type) {
	case *keptFollower:
		f.caughtUp = func() error { return s.send(wire.Frame(wire.CaughtUp, nil)) }
	case *directFollower:
		if to, takes := s.stream.(pipeTaker); takes {
			f.output.mu.Lock()
			defer f.output.mu.Unlock()
			f.mover = s.moveFrom(to)
		}
	}
}

func (s *commandStream) moveFrom(to pipeTaker) mover {
	return func(from source, pipe *os.File) (int, error) {
		s.mu.Lock()
		defer s.mu.Unlock()
		return to.MoveFrom(pipe, wire.MaxOutput, wire.HeaderSize, func(n int) []byte {
			head := make([]byte, wire.HeaderSize)
			wire.Header{Kind: outputKind(from), Length: n}.Put(head)
			return head
		})
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
		case wire.Resize:
			size, err := wire.ReadSize(in, header)
			if err != nil {
				return
			}
			// It fails for a command that has ended, or has no terminal.
			_ = r.resize(windowSize(terminalOf(size)))
		default:
			return
		}
	}
}

// inlet holds what the host has sent until the command takes it. So nobody who reads the stream waits for
// a command, and the stream's end is seen at once. One goroutine fills it and one empties it.
type inlet struct {
	mu      sync.Mutex
	changed sync.Cond
	ring    *[wire.InputWindow]byte // nil until something comes
	start   int                     // where what waits begins
	waiting int                     // bytes
	ended   bool
}

func newInlet() *inlet {
	i := &inlet{}
	i.changed.L = &i.mu
	return i
}

var errInputWindow = errors.New("the host sent more input than there was room for")

func (i *inlet) readFrom(in *bufio.Reader, n int) error {
	for n > 0 {
		free, err := i.free(n)
		if err != nil {
			return err
		}
		if _, err := io.ReadFull(in, free); err != nil {
			return err
		}
		i.mu.Lock()
		i.waiting += len(free)
		i.changed.Signal()
		i.mu.Unlock()
		n -= len(free)
	}
	return nil
}

// free is room for up to n bytes, of which there has to be that much altogether.
func (i *inlet) free(n int) ([]byte, error) {
	i.mu.Lock()
	defer i.mu.Unlock()
	if i.ended || i.waiting+n > wire.InputWindow {
		return nil, errInputWindow
	}
	if i.ring == nil {
		i.ring = new([wire.InputWindow]byte)
	}
	at := (i.start + i.waiting) % wire.InputWindow
	return i.ring[at:min(at+n, wire.InputWindow)], nil
}

func (i *inlet) end() {
	i.mu.Lock()
	defer i.mu.Unlock()
	i.ended = true
	i.changed.Signal()
}

// next waits for input and returns up to most bytes of it; there is none at the end.
func (i *inlet) next(most int) []byte {
	i.mu.Lock()
	defer i.mu.Unlock()
	for i.waiting == 0 && !i.ended {
		i.changed.Wait()
	}
	if i.waiting == 0 {
		return nil
	}
	return i.ring[i.start:min(i.start+min(i.waiting, most), wire.InputWindow)]
}

// took gives back the room of what next has returned.
func (i *inlet) took(n int) {
	i.mu.Lock()
	defer i.mu.Unlock()
	i.start = (i.start + n) % wire.InputWindow
	i.waiting -= n
}

// inputPiece is how much of the input is written before the host is told that there is room again, in bytes.
const inputPiece = wire.InputWindow / 4

// drain writes the input to the command and closes it at the end, unless others may come to write. Input that the command does not take is
// not asked for any more.
func (i *inlet) drain(ctx context.Context, r *running, taken func(int) error) {
	if !r.command.keep {
		defer r.closeInput()
	}
	for data := i.next(inputPiece); len(data) > 0; data = i.next(inputPiece) {
		if r.write(ctx, r.terminal != nil, data) != nil {
			return
		}
		i.took(len(data))
		if taken(len(data)) != nil {
			return
		}
	}
}
