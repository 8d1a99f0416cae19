package guest

import (
	"context"
	"io"
	"time"

	"connectrpc.com/connect"

	"github.com/vmsan/vmsan/internal/guest/proto/process"
)

// Size is that of a terminal, in characters. Zeros stand for 80 and 24.
type Size struct{ Columns, Rows int }

func (s Size) pty() *process.PTY {
	return &process.PTY{Size: &process.PTY_Size{Cols: uint32(max(s.Columns, 0)), Rows: uint32(max(s.Rows, 0))}}
}

// Terminal is a client of a command that runs on a terminal in the guest. The
// command goes on when its clients leave, and its output is kept in the guest
// for those that come later. Follow is called once; Write, Resize and Close
// may be called from other goroutines meanwhile.
type Terminal struct {
	// PID is the command's process id in the guest.
	PID int

	client *Client
	joined bool
	events terminalEvents
	input  *connect.ClientStreamForClient[process.StreamInputRequest, process.StreamInputResponse]
	cancel context.CancelFunc
}

// terminalEvents are the events of a Start or a Connect.
type terminalEvents interface {
	Receive() bool
	Err() error
	Close() error
}

// OpenTerminal starts a command on a terminal of its own. Its Stdin, Stdout
// and Stderr are not looked at, and Timeout ends it as ever.
func (c *Client) OpenTerminal(ctx context.Context, command Command, size Size) (*Terminal, error) {
	request := command.start()
	request.Pty, request.Stdin, request.KeepOutput = size.pty(), nil, true
	ctx, cancel := context.WithCancel(ctx)
	stream, err := c.open(ctx, request, command.Timeout)
	if err != nil {
		cancel()
		return nil, err
	}
	t := &Terminal{client: c, events: stream, cancel: cancel}
	for stream.Receive() {
		if started := stream.Msg().GetEvent().GetStart(); started != nil {
			t.PID = int(started.GetPid())
			t.openInput(ctx)
			return t, nil
		}
	}
	defer t.Close()
	return nil, startError(command.Args[0], stream.Err())
}

// JoinTerminal makes another client of a command on a terminal. Follow begins
// with the output that was kept.
func (c *Client) JoinTerminal(ctx context.Context, pid int) (*Terminal, error) {
	ctx, cancel := context.WithCancel(ctx)
	stream, err := c.proc.Connect(ctx, connect.NewRequest(&process.ConnectRequest{Process: selectPID(pid), Replay: true}))
	if err != nil {
		cancel()
		return nil, processError(pid, err)
	}
	t := &Terminal{PID: pid, client: c, joined: true, events: stream, cancel: cancel}
	t.openInput(ctx)
	return t, nil
}

func selectPID(pid int) *process.ProcessSelector {
	return &process.ProcessSelector{Selector: &process.ProcessSelector_Pid{Pid: uint32(pid)}}
}

// openInput opens the stream of what is typed. That it is not taken any more
// is what Follow tells.
func (t *Terminal) openInput(ctx context.Context) {
	t.input = t.client.proc.StreamInput(ctx)
	_ = t.input.Send(&process.StreamInputRequest{Event: &process.StreamInputRequest_Start{
		Start: &process.StreamInputRequest_StartEvent{Process: selectPID(t.PID)},
	}})
}

// Joined is true for a terminal that was there before this client.
func (t *Terminal) Joined() bool { return t.joined }

// Follow writes what the terminal shows until the command has ended. When all
// that was kept from before has been written, it calls caughtUp.
func (t *Terminal) Follow(w io.Writer, caughtUp func()) (Exit, error) {
	replaying := t.joined
	if !replaying {
		caughtUp()
	}
	out := output{stdout: w}
	for t.events.Receive() {
		event := t.event()
		if replaying && event.GetKeepalive() != nil {
			replaying = false
			caughtUp()
		}
		if exit, ended, err := out.take(event); ended || err != nil {
			return exit, err
		}
	}
	switch err := t.events.Err(); {
	case err == nil:
		return Exit{}, linkError(io.ErrUnexpectedEOF)
	case connect.CodeOf(err) == connect.CodeDeadlineExceeded && connect.IsWireError(err):
		// So the contract ends the stream of a command whose time is up.
		return Exit{Code: -1, TimedOut: true}, nil
	default:
		return Exit{}, processError(t.PID, err)
	}
}

func (t *Terminal) event() *process.ProcessEvent {
	switch stream := t.events.(type) {
	case *connect.ServerStreamForClient[process.StartResponse]:
		return stream.Msg().GetEvent()
	case *connect.ServerStreamForClient[process.ConnectResponse]:
		return stream.Msg().GetEvent()
	}
	return nil
}

// Write types into the terminal.
func (t *Terminal) Write(data []byte) (int, error) {
	err := t.input.Send(&process.StreamInputRequest{Event: &process.StreamInputRequest_Data{
		Data: &process.StreamInputRequest_DataEvent{Input: &process.ProcessInput{Input: &process.ProcessInput_Pty{Pty: data}}},
	}})
	if err != nil {
		return 0, callError("type into the terminal", err)
	}
	return len(data), nil
}

// Resize tells the command of another size.
func (t *Terminal) Resize(ctx context.Context, size Size) error {
	_, err := t.client.proc.Update(ctx, connect.NewRequest(&process.UpdateRequest{Process: selectPID(t.PID), Pty: size.pty()}))
	return callError("resize the terminal", err)
}

// leaveTime is how long a guest may take to take what was typed last.
const leaveTime = 2 * time.Second

// Leave is Close after all that was typed has been taken.
func (t *Terminal) Leave() {
	defer time.AfterFunc(leaveTime, t.cancel).Stop()
	// It fails if the command has ended, which needs no input then.
	_, _ = t.input.CloseAndReceive()
	t.Close()
}

// Close leaves the command alone.
func (t *Terminal) Close() {
	t.cancel()
	t.events.Close()
}
