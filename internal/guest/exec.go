package guest

import (
	"context"
	"errors"
	"fmt"
	"io"
	"strconv"
	"strings"
	"time"
	"unicode"

	"connectrpc.com/connect"

	"github.com/vmsan/vmsan/api"
	"github.com/vmsan/vmsan/internal/guest/proto/process"
)

// Command is a command to run in the guest.
type Command struct {
	// Args is argv, passed on as it is: no shell sees it. Required.
	Args []string
	// Env is added to the sandbox's own environment.
	Env map[string]string
	// Dir is the working directory. Default: the sandbox's, or the home of
	// User.
	Dir string
	// User is a name, a uid, or either with a group after a colon. Default:
	// the sandbox's.
	User string
	// Timeout is after how long the command's tree is killed. 0: never.
	Timeout time.Duration

	// Stdin is sent until it ends, and then the command's is closed. nil:
	// /dev/null.
	Stdin io.Reader
	// Stdout and Stderr take the output as it comes; a slow writer makes the
	// command wait. nil: thrown away.
	Stdout, Stderr io.Writer
}

// Exit is how a command ended.
type Exit struct {
	// Code is its exit code, or -1 if a signal ended it.
	Code int
	// Signal that ended it, or 0.
	Signal int
	// TimedOut is true if it was killed because its Timeout had passed.
	TimedOut bool
}

// start is what Command means on the wire.
func (c *Command) start() *process.StartRequest {
	config := &process.ProcessConfig{Cmd: c.Args[0], Args: c.Args[1:], Envs: c.Env}
	if c.Dir != "" {
		config.Cwd = &c.Dir
	}
	if c.User != "" {
		config.User = &c.User
	}
	stdin := c.Stdin != nil
	return &process.StartRequest{Process: config, Stdin: &stdin}
}

// timeoutHeader is Connect's own; the guest API makes it the command's limit.
const timeoutHeader = "Connect-Timeout-Ms"

// open starts a command. A timeout is not given by way of a context's
// deadline, which would end our wait together with the command and so lose
// what the guest has to say about its end.
func (c *Client) open(ctx context.Context, request *process.StartRequest, timeout time.Duration) (*connect.ServerStreamForClient[process.StartResponse], error) {
	r := connect.NewRequest(request)
	if timeout > 0 {
		r.Header().Set(timeoutHeader, strconv.FormatInt(max(timeout.Milliseconds(), 1), 10))
	}
	stream, err := c.proc.Start(ctx, r)
	if err != nil {
		return nil, startError(request.Process.Cmd, err)
	}
	return stream, nil
}

// output writes a command's output where it belongs.
type output struct{ stdout, stderr io.Writer }

func (o output) take(event *process.ProcessEvent) (exit Exit, ended bool, err error) {
	if end := event.GetEnd(); end != nil {
		return exitOf(end), true, nil
	}
	data := event.GetData()
	if err := write(o.stdout, data.GetStdout()); err != nil {
		return exit, false, fmt.Errorf("write the command's output: %w", err)
	}
	if err := write(o.stdout, data.GetPty()); err != nil {
		return exit, false, fmt.Errorf("write the command's output: %w", err)
	}
	if err := write(o.stderr, data.GetStderr()); err != nil {
		return exit, false, fmt.Errorf("write the command's errors: %w", err)
	}
	return exit, false, nil
}

func write(w io.Writer, data []byte) error {
	if w == nil || len(data) == 0 {
		return nil
	}
	_, err := w.Write(data)
	return err
}

func exitOf(end *process.ProcessEvent_EndEvent) Exit {
	return Exit{Code: int(end.GetExitCode()), Signal: int(end.GetSignal()), TimedOut: end.GetTimedOut()}
}

// startError says why a command did not run. The guest answers "not found"
// and "permission denied" for the program alone.
func startError(program string, err error) error {
	if err == nil {
		return linkError(io.ErrUnexpectedEOF)
	}
	var remote *connect.Error
	if errors.As(err, &remote) && connect.IsWireError(err) {
		text := printable(remote.Message())
		switch remote.Code() {
		case connect.CodeNotFound:
			return api.Errorf(api.ErrExecNotFound, "run %s in the guest: %s", printable(program), text)
		case connect.CodePermissionDenied:
			return api.Errorf(api.ErrExecNotExecutable, "run %s in the guest: %s", printable(program), text)
		}
	}
	return callError("run "+printable(program), err)
}

// Process is a command in the guest.
type Process struct {
	PID     int
	Args    []string
	Dir     string
	User    string
	Running bool
	// Exit is how it ended, if it has.
	Exit      Exit
	StartedAt time.Time
	// Kept is true if its output can be had again with Attach.
	Kept bool
	// Terminal is true if it runs on one.
	Terminal bool
}

// StartDetached starts a command that goes on without us, whose output is
// kept in the guest, and returns its process id.
func (c *Client) StartDetached(ctx context.Context, command Command) (int, error) {
	request := command.start()
	request.KeepOutput = true
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	stream, err := c.open(ctx, request, command.Timeout)
	if err != nil {
		return 0, err
	}
	defer stream.Close()
	for stream.Receive() {
		if started := stream.Msg().GetEvent().GetStart(); started != nil {
			return int(started.GetPid()), nil
		}
	}
	return 0, startError(command.Args[0], stream.Err())
}

// Attach writes what the process pid has put out, as far as it was kept, and
// what it goes on to put out, until it ends. When ctx ends the process goes
// on.
func (c *Client) Attach(ctx context.Context, pid int, stdout, stderr io.Writer) (Exit, error) {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	stream, err := c.proc.Connect(ctx, connect.NewRequest(&process.ConnectRequest{
		Process: selectPID(pid),
		Replay:  true,
	}))
	if err != nil {
		return Exit{}, processError(pid, err)
	}
	defer stream.Close()
	out := output{stdout: stdout, stderr: stderr}
	for stream.Receive() {
		if exit, ended, err := out.take(stream.Msg().GetEvent()); ended || err != nil {
			return exit, err
		}
	}
	if stream.Err() == nil {
		return Exit{}, linkError(io.ErrUnexpectedEOF)
	}
	return Exit{}, processError(pid, stream.Err())
}

// Processes lists the commands that run, and the detached ones that ended.
func (c *Client) Processes(ctx context.Context) ([]Process, error) {
	response, err := c.proc.List(ctx, connect.NewRequest(&process.ListRequest{IncludeEnded: true}))
	if err != nil {
		return nil, callError("list processes", err)
	}
	var list []Process
	for _, p := range response.Msg.GetProcesses() {
		running := p.GetState() != process.ProcessState_PROCESS_STATE_ENDED
		if !running && !p.GetKept() {
			continue
		}
		list = append(list, Process{
			PID:       int(p.GetPid()),
			Args:      append([]string{p.GetConfig().GetCmd()}, p.GetConfig().GetArgs()...),
			Dir:       p.GetConfig().GetCwd(),
			User:      p.GetConfig().GetUser(),
			Running:   running,
			Exit:      exitOf(p.GetEnd()),
			StartedAt: p.GetStartedAt().AsTime(),
			Kept:      p.GetKept(),
			Terminal:  p.GetPty(),
		})
	}
	return list, nil
}

// Signal sends a signal to the process pid and all that it started.
func (c *Client) Signal(ctx context.Context, pid, signal int) error {
	number := int32(signal)
	_, err := c.proc.SendSignal(ctx, connect.NewRequest(&process.SendSignalRequest{
		Process: selectPID(pid),
		Tree:    true,
		Number:  &number,
	}))
	if err != nil {
		return processError(pid, err)
	}
	return nil
}

func processError(pid int, err error) error {
	if connect.CodeOf(err) == connect.CodeNotFound {
		return api.Errorf(api.ErrProcessNotFound, "the guest has no command with process id %d", pid).
			WithHint("vmsan ps VM")
	}
	return callError(fmt.Sprintf("process %d", pid), err)
}

// printable replaces what could move a terminal's cursor in text that the
// guest chose.
func printable(s string) string {
	const longest = 1024
	s = s[:min(len(s), longest)]
	return strings.Map(func(r rune) rune {
		if unicode.IsPrint(r) {
			return r
		}
		return '?'
	}, s)
}
