package guest

import (
	"context"
	"errors"
	"fmt"
	"io"
	"strings"
	"time"
	"unicode"

	"connectrpc.com/connect"

	"github.com/vmsan/vmsan/api"
	"github.com/vmsan/vmsan/internal/guest/proto/process"
	"github.com/vmsan/vmsan/internal/guest/wire"
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
func (c *Client) StartDetached(ctx context.Context, command Command) (pid int, err error) {
	request := command.request()
	request.Keep = true
	err = c.talk(ctx, func(err error) error { return startError(command.Args[0], err) }, func(t *talk) error {
		t.started = func(n int) { pid = n }
		return t.open(request.Frame())
	})
	return pid, err
}

// Attach writes what the process pid has put out, as far as it was kept, and
// what it goes on to put out, until it ends. When ctx ends the process goes
// on.
func (c *Client) Attach(ctx context.Context, pid int, stdout, stderr io.Writer) (exit Exit, err error) {
	err = c.talk(ctx, func(err error) error { return processError(pid, err) }, func(t *talk) error {
		t.stdout, t.stderr = stdout, stderr
		exit, err = t.toEnd(wire.Number(wire.Join, pid))
		return err
	})
	return exit, err
}

func selectPID(pid int) *process.ProcessSelector {
	return &process.ProcessSelector{Selector: &process.ProcessSelector_Pid{Pid: uint32(pid)}}
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
