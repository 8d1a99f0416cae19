package guest

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"sync"

	"connectrpc.com/connect"

	"github.com/vmsan/vmsan/internal/guest/wire"
)

// Run runs a command and returns how it ended. When ctx ends, so does the
// command, with all it started. An error means that the command could not be
// started (api.ErrExecNotFound, ErrExecNotExecutable) or that its end is not
// known.
func (c *Client) Run(ctx context.Context, command Command) (Exit, error) {
	stream, err := c.dial(ctx)
	if err != nil {
		return Exit{}, startError(command.Args[0], err)
	}
	defer stream.Close()
	defer context.AfterFunc(ctx, func() { stream.Close() })()
	r := &run{command: &command, stream: stream, in: bufio.NewReaderSize(stream, readSize), room: credit{given: make(chan struct{}, 1)}}
	exit, err := r.run()
	if err != nil && ctx.Err() != nil {
		// What is wrong with the stream is that it was closed.
		err = ctx.Err()
	}
	return exit, err
}

// readSize is what is read from a stream at once, in bytes.
const readSize = 64 << 10

// run is one command and the stream it is run over.
type run struct {
	command *Command
	stream  net.Conn
	in      *bufio.Reader
	started bool
	room    credit
}

func (r *run) run() (Exit, error) {
	request := wire.Request{
		Args: r.command.Args, Env: r.command.Env, Dir: r.command.Dir, User: r.command.User,
		Timeout: r.command.Timeout, Stdin: r.command.Stdin != nil,
	}
	if _, err := r.stream.Write(append([]byte{wire.Hello}, request.Frame()...)); err != nil {
		return Exit{}, r.failed(err)
	}
	r.room.give(wire.InputWindow)
	defer r.room.end()
	for {
		header, err := wire.ReadHeader(r.in, false)
		if err != nil {
			return Exit{}, r.failed(err)
		}
		exit, ended, err := r.take(header)
		if ended || err != nil {
			return exit, err
		}
	}
}

// take reads the body of a frame and does what it asks for.
func (r *run) take(header wire.Header) (exit Exit, ended bool, err error) {
	switch header.Kind {
	case wire.Stdout:
		return exit, false, r.write(r.command.Stdout, header.Length, "output")
	case wire.Stderr:
		return exit, false, r.write(r.command.Stderr, header.Length, "errors")
	case wire.Started, wire.Taken:
		n, err := wire.ReadNumber(r.in, header)
		if err != nil {
			return exit, false, r.failed(err)
		}
		if header.Kind == wire.Taken {
			r.room.give(n)
			return exit, false, nil
		}
		return exit, false, r.begin()
	case wire.Ended:
		end, err := wire.ReadEnd(r.in, header)
		if err != nil {
			return exit, false, r.failed(err)
		}
		return Exit{Code: int(end.Code), Signal: int(end.Signal), TimedOut: end.TimedOut}, true, nil
	}
	failure, err := wire.ReadFailure(r.in, header)
	if err != nil {
		return exit, false, r.failed(err)
	}
	return exit, false, r.failed(connect.NewWireError(connect.Code(failure.Code), errors.New(failure.Text)))
}

// begin sends the input, once: a guest may say anything any number of times.
func (r *run) begin() error {
	if r.started {
		return r.failed(errors.New("the guest says again that the command has started"))
	}
	r.started = true
	if r.command.Stdin != nil {
		go r.sendInput()
	}
	return nil
}

func (r *run) failed(err error) error {
	if err == io.EOF {
		err = io.ErrUnexpectedEOF
	}
	return startError(r.command.Args[0], err)
}

// write hands on n bytes of output as they come.
func (r *run) write(w io.Writer, n int, what string) error {
	for n > 0 {
		if r.in.Buffered() == 0 {
			if _, err := r.in.Peek(1); err != nil {
				return r.failed(err)
			}
		}
		data, err := r.in.Peek(min(n, r.in.Buffered()))
		if err != nil {
			return r.failed(err)
		}
		if w != nil {
			if _, err := w.Write(data); err != nil {
				return fmt.Errorf("write the command's %s: %w", what, err)
			}
		}
		r.in.Discard(len(data))
		n -= len(data)
	}
	return nil
}

// inputChunk is how much input is sent in one frame, in bytes.
const inputChunk = 64 << 10

// sendInput sends the input until it ends, and then closes the command's.
// That the command does not want it is no error: it shows in how it ends.
func (r *run) sendInput() {
	buffer := make([]byte, wire.HeaderSize+inputChunk)
	for {
		room := r.room.take(inputChunk)
		if room == 0 {
			return
		}
		n, err := r.command.Stdin.Read(buffer[wire.HeaderSize:][:room])
		r.room.give(room - n)
		if n > 0 {
			wire.Header{Kind: wire.Input, Length: n}.Put(buffer)
			if _, err := r.stream.Write(buffer[:wire.HeaderSize+n]); err != nil {
				return
			}
		}
		if err != nil {
			// If it cannot be sent, the command is gone.
			_, _ = r.stream.Write(wire.Frame(wire.InputEnd, nil))
			return
		}
	}
}

// credit is how much input the agent has room for.
type credit struct {
	mu    sync.Mutex
	bytes int
	ended bool
	given chan struct{} // wakes take, of which there is one
}

// give adds to it. More than the window is a guest's lie, and not believed.
func (c *credit) give(n int) {
	c.change(func() { c.bytes = min(c.bytes+n, wire.InputWindow) })
}

// end makes take return nothing from now on.
func (c *credit) end() {
	c.change(func() { c.ended = true })
}

func (c *credit) change(how func()) {
	c.mu.Lock()
	defer c.mu.Unlock()
	how()
	select {
	case c.given <- struct{}{}:
	default:
	}
}

// take waits for credit and takes up to most of it. 0 is the end.
func (c *credit) take(most int) int {
	for {
		c.mu.Lock()
		n := min(c.bytes, most)
		c.bytes -= n
		ended := c.ended
		c.mu.Unlock()
		if ended {
			return 0
		}
		if n > 0 {
			return n
		}
		<-c.given
	}
}
