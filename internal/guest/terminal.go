package guest

import (
	"context"
	"io"
	"net"
	"sync"
	"time"

	"github.com/vmsan/vmsan/internal/guest/wire"
)

// Size is that of a terminal, in characters. Zeros stand for 80 and 24.
type Size struct{ Columns, Rows int }

func (s Size) wire() wire.Size {
	return wire.Size{Columns: uint16(min(max(s.Columns, 0), 1<<16-1)), Rows: uint16(min(max(s.Rows, 0), 1<<16-1))}
}

// Terminal is a client of a command that runs on a terminal in the guest. The
// command goes on when its clients leave, and its output is kept in the guest
// for those that come later. Follow is called once; Write, Resize and Close
// may be called from other goroutines meanwhile.
type Terminal struct {
	// PID is the command's process id in the guest.
	PID int

	joined bool
	talk   *talk
	// sending is held while something is written, so that frames stay whole.
	sending sync.Mutex
	ctx     context.Context // its end is that of the stream
	stop    func() bool     // of that
}

// OpenTerminal starts a command on a terminal of its own, which lasts as long
// as ctx. Its Stdin, Stdout and Stderr are not looked at, and Timeout ends it as
// ever.
func (c *Client) OpenTerminal(ctx context.Context, command Command, size Size) (*Terminal, error) {
	request := command.request()
	of := size.wire()
	request.Terminal, request.Keep, request.Stdin = &of, true, false
	return c.terminal(ctx, request.Frame(), func(err error) error { return startError(command.Args[0], err) })
}

// JoinTerminal makes another client of a command on a terminal. Follow begins
// with the output that was kept.
func (c *Client) JoinTerminal(ctx context.Context, pid int) (*Terminal, error) {
	t, err := c.terminal(ctx, wire.Number(wire.Join, pid), func(err error) error { return processError(pid, err) })
	if err != nil {
		return nil, err
	}
	t.joined, t.PID = true, pid
	return t, nil
}

// terminal returns once the guest says that there is one.
func (c *Client) terminal(ctx context.Context, first []byte, explain func(error) error) (*Terminal, error) {
	stream, err := c.dial(ctx)
	if err != nil {
		return nil, explain(err)
	}
	t := &Terminal{
		ctx: ctx, talk: newTalk(stream, explain),
		stop: context.AfterFunc(ctx, func() { stream.Close() }),
	}
	t.talk.started = func(pid int) { t.PID = pid }
	if err := t.talk.open(first); err != nil {
		t.Close()
		return nil, t.reason(err)
	}
	return t, nil
}

// reason is why something failed: what is wrong with a stream may be that it was
// closed because ctx has ended.
func (t *Terminal) reason(err error) error {
	if err != nil && t.ctx.Err() != nil {
		return t.ctx.Err()
	}
	return err
}

// Joined is true for a terminal that was there before this client.
func (t *Terminal) Joined() bool { return t.joined }

// Follow writes what the terminal shows until the command has ended. When all
// that was kept from before has been written, it calls caughtUp.
func (t *Terminal) Follow(w io.Writer, caughtUp func()) (Exit, error) {
	defer t.talk.room.end()
	t.talk.stdout, t.talk.caughtUp = w, sync.OnceFunc(caughtUp)
	if !t.joined {
		t.talk.caughtUp()
	}
	exit, err := t.talk.rest()
	return exit, t.reason(err)
}

// Write types into the terminal. It waits while the guest has no room for it.
func (t *Terminal) Write(data []byte) (n int, err error) {
	for n < len(data) {
		room := t.talk.room.take(min(len(data)-n, inputChunk))
		if room == 0 {
			return n, callError("type into the terminal", net.ErrClosed)
		}
		if err := t.send(wire.Frame(wire.Input, data[n:n+room])); err != nil {
			return n, callError("type into the terminal", err)
		}
		n += room
	}
	return n, nil
}

func (t *Terminal) send(frame []byte) error {
	t.sending.Lock()
	defer t.sending.Unlock()
	_, err := t.talk.stream.Write(frame)
	return err
}

// Resize tells the command of another size.
func (t *Terminal) Resize(size Size) error {
	return callError("resize the terminal", t.send(size.wire().Frame()))
}

// leaveTime is how long a guest may take to take what was typed last.
const leaveTime = 2 * time.Second

// Leave is Close after all that was typed has been taken. It is called by who
// calls Write, while Follow goes on.
func (t *Terminal) Leave() {
	defer time.AfterFunc(leaveTime, t.talk.room.end).Stop()
	for left := wire.InputWindow; left > 0; {
		n := t.talk.room.take(left)
		if n == 0 {
			break
		}
		left -= n
	}
	t.Close()
}

// Close leaves the command alone.
func (t *Terminal) Close() {
	t.stop()
	t.talk.stream.Close()
}
