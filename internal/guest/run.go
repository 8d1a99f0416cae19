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
func (c *Client) Run(ctx context.Context, command Command) (exit Exit, err error) {
	err = c.talk(ctx, func(err error) error { return startError(command.Args[0], err) }, func(t *talk) error {
		t.stdout, t.stderr = command.Stdout, command.Stderr
		if command.Stdin != nil {
			t.started = func(int) { go t.sendInput(command.Stdin) }
		}
		exit, err = t.toEnd(command.request().Frame())
		return err
	})
	return exit, err
}

// talk opens a stream for what is said of one command, for as long as say takes.
// explain says which command an error is about.
func (c *Client) talk(ctx context.Context, explain func(error) error, say func(*talk) error) error {
	stream, err := c.dial(ctx)
	if err != nil {
		return explain(err)
	}
	defer stream.Close()
	defer context.AfterFunc(ctx, func() { stream.Close() })()
	err = say(newTalk(stream, explain))
	if err != nil && ctx.Err() != nil {
		// What is wrong with the stream is that it was closed.
		err = ctx.Err()
	}
	return err
}

// request is what a command means on the wire.
func (c *Command) request() *wire.Request {
	return &wire.Request{Args: c.Args, Env: c.Env, Dir: c.Dir, User: c.User, Timeout: c.Timeout, Stdin: c.Stdin != nil}
}

// readSize is what is read from a stream at once, in bytes.
const readSize = 64 << 10

// talk is what is said of one command, on a stream of its own.
type talk struct {
	stream         net.Conn
	in             *bufio.Reader
	room           credit
	stdout, stderr io.Writer
	explain        func(error) error // says which command it is about
	started        func(pid int)     // is called once; may be nil
	caughtUp       func()            // may be nil
	begun          bool
}

func newTalk(stream net.Conn, explain func(error) error) *talk {
	return &talk{
		stream: stream, in: bufio.NewReaderSize(stream, readSize),
		room: credit{given: make(chan struct{}, 1), bytes: wire.InputWindow}, explain: explain,
	}
}

// open says the first frame and hears that there is a command.
func (t *talk) open(first []byte) error {
	if _, err := t.stream.Write(append([]byte{wire.Hello}, first...)); err != nil {
		return t.failed(err)
	}
	for !t.begun {
		_, ended, err := t.next()
		if err != nil {
			return err
		}
		if ended {
			return t.failed(io.ErrUnexpectedEOF)
		}
	}
	return nil
}

// toEnd says the first frame and hears the guest out.
func (t *talk) toEnd(first []byte) (Exit, error) {
	defer t.room.end()
	if err := t.open(first); err != nil {
		return Exit{}, err
	}
	return t.rest()
}

// rest hears the guest out.
func (t *talk) rest() (Exit, error) {
	for {
		if exit, ended, err := t.next(); ended || err != nil {
			return exit, err
		}
	}
}

// next reads a frame and does what it asks for.
func (t *talk) next() (exit Exit, ended bool, err error) {
	header, err := wire.ReadHeader(t.in, false)
	if err != nil {
		return exit, false, t.failed(err)
	}
	switch header.Kind {
	case wire.Stdout:
		return exit, false, t.write(t.stdout, header.Length, "output")
	case wire.Stderr:
		return exit, false, t.write(t.stderr, header.Length, "errors")
	case wire.Started, wire.Taken:
		n, err := wire.ReadNumber(t.in, header)
		if err != nil {
			return exit, false, t.failed(err)
		}
		if header.Kind == wire.Taken {
			t.room.give(n)
			return exit, false, nil
		}
		return exit, false, t.begin(n)
	case wire.CaughtUp:
		if t.caughtUp != nil {
			t.caughtUp()
		}
		return exit, false, nil
	case wire.Ended:
		end, err := wire.ReadEnd(t.in, header)
		if err != nil {
			return exit, false, t.failed(err)
		}
		return Exit{Code: int(end.Code), Signal: int(end.Signal), TimedOut: end.TimedOut}, true, nil
	}
	failure, err := wire.ReadFailure(t.in, header)
	if err != nil {
		return exit, false, t.failed(err)
	}
	return exit, false, t.failed(connect.NewWireError(connect.Code(failure.Code), errors.New(failure.Text)))
}

// begin is once: a guest may say anything any number of times.
func (t *talk) begin(pid int) error {
	if t.begun {
		return t.failed(errors.New("the guest says again that the command has started"))
	}
	t.begun = true
	if t.started != nil {
		t.started(pid)
	}
	return nil
}

func (t *talk) failed(err error) error {
	if err == io.EOF {
		err = io.ErrUnexpectedEOF
	}
	return t.explain(err)
}

// write hands on n bytes of output as they come.
func (t *talk) write(w io.Writer, n int, what string) error {
	for n > 0 {
		if t.in.Buffered() == 0 {
			if _, err := t.in.Peek(1); err != nil {
				return t.failed(err)
			}
		}
		data, err := t.in.Peek(min(n, t.in.Buffered()))
		if err != nil {
			return t.failed(err)
		}
		if w != nil {
			if _, err := w.Write(data); err != nil {
				return fmt.Errorf("write the command's %s: %w", what, err)
			}
		}
		t.in.Discard(len(data))
		n -= len(data)
	}
	return nil
}

// inputChunk is how much input is sent in one frame, in bytes.
const inputChunk = 64 << 10

// sendInput sends the input until it ends, and then closes the command's.
// That the command does not want it is no error: it shows in how it ends.
func (t *talk) sendInput(from io.Reader) {
	buffer := make([]byte, wire.HeaderSize+inputChunk)
	for {
		room := t.room.take(inputChunk)
		if room == 0 {
			return
		}
		n, err := from.Read(buffer[wire.HeaderSize:][:room])
		t.room.give(room - n)
		if n > 0 {
			wire.Header{Kind: wire.Input, Length: n}.Put(buffer)
			if _, err := t.stream.Write(buffer[:wire.HeaderSize+n]); err != nil {
				return
			}
		}
		if err != nil {
			// If it cannot be sent, the command is gone.
			_, _ = t.stream.Write(wire.Frame(wire.InputEnd, nil))
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
