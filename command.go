package vmsan

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"time"

	"github.com/vmsan/vmsan/api"
	"github.com/vmsan/vmsan/internal/sandbox"
)

// Command is a command to run in a sandbox.
type Command struct {
	// Args is the program with its arguments, passed on as they are: no shell
	// sees them. Required.
	Args []string
	// Env is added to the sandbox's own environment.
	Env map[string]string
	// Dir is the working directory. Default: the sandbox's, or the home of
	// User.
	Dir string
	// User is a name, a number, or either with a group after a colon. Default:
	// the sandbox's.
	User string
	// Timeout is after how long the command is killed with all that it has
	// started. 0: never.
	Timeout time.Duration

	// Stdin is read until it ends, which the command then sees. nil: the
	// command has none.
	Stdin io.Reader
	// Stdout and Stderr take the output as it comes; a slow writer makes the
	// command wait. nil: it is thrown away.
	Stdout, Stderr io.Writer
}

func (c Command) check() error {
	if len(c.Args) == 0 || c.Args[0] == "" {
		return api.Errorf(api.ErrUsage, "the command is empty")
	}
	for _, check := range []error{sandbox.CheckEnv(c.Env), sandbox.CheckWorkdir(c.Dir), sandbox.CheckUser(c.User)} {
		if check != nil {
			return check
		}
	}
	return nil
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

// Success tells whether the command ended with exit code 0.
func (e Exit) Success() bool { return e == Exit{} }

func (e Exit) String() string {
	switch {
	case e.TimedOut:
		return "killed after its timeout"
	case e.Signal != 0:
		return fmt.Sprintf("signal %d", e.Signal)
	}
	return fmt.Sprintf("exit status %d", e.Code)
}

// ExitError is the error of a command that ran, and did not succeed.
type ExitError struct {
	Exit
	// Stderr is the end of what the command said there, if Output ran it and
	// it was not asked for.
	Stderr []byte
}

func (e *ExitError) Error() string { return e.Exit.String() }

// Cmd is a Command in a sandbox, to be used like exec.Cmd: once, and its fields
// are not to be changed after it was started.
type Cmd struct {
	Command
	// Exit is how it ended, after Wait.
	Exit Exit

	ctx     context.Context
	service Service
	vm      string
	ended   chan error
}

// NewCmd returns a Cmd that runs a program in a sandbox. When ctx ends the
// command is killed with all that it has started.
func NewCmd(ctx context.Context, service Service, vm, program string, args ...string) *Cmd {
	return &Cmd{Command: Command{Args: append([]string{program}, args...)}, ctx: ctx, service: service, vm: vm}
}

// Start has the command run beside the caller. That the sandbox cannot run it
// is known to Wait.
func (c *Cmd) Start() error {
	if c.ended != nil {
		return errors.New("vmsan: the command was started already")
	}
	ended := make(chan error, 1)
	c.ended = ended
	go func() {
		var err error
		c.Exit, err = c.service.Exec(c.ctx, c.vm, c.Command)
		ended <- err
	}()
	return nil
}

// Wait waits until the command has ended, and all of its output is written. An
// ExitError says that it did not succeed.
func (c *Cmd) Wait() error {
	if c.ended == nil {
		return errors.New("vmsan: the command was not started")
	}
	err, first := <-c.ended
	if !first {
		return errors.New("vmsan: the command was waited for already")
	}
	close(c.ended)
	if err == nil && !c.Exit.Success() {
		err = &ExitError{Exit: c.Exit}
	}
	return err
}

// Run is Start and Wait.
func (c *Cmd) Run() error {
	if err := c.Start(); err != nil {
		return err
	}
	return c.Wait()
}

// Output runs the command and returns what it puts out.
func (c *Cmd) Output() ([]byte, error) {
	if c.Stdout != nil {
		return nil, errors.New("vmsan: Stdout is set already")
	}
	var stdout bytes.Buffer
	var stderr lastBytes
	c.Stdout = &stdout
	if c.Stderr == nil {
		c.Stderr = &stderr
	}
	err := c.Run()
	var failed *ExitError
	if errors.As(err, &failed) {
		failed.Stderr = stderr
	}
	return stdout.Bytes(), err
}

// CombinedOutput runs the command and returns what it puts out, errors too.
func (c *Cmd) CombinedOutput() ([]byte, error) {
	if c.Stdout != nil || c.Stderr != nil {
		return nil, errors.New("vmsan: Stdout or Stderr is set already")
	}
	var both bytes.Buffer
	c.Stdout, c.Stderr = &both, &both
	err := c.Run()
	return both.Bytes(), err
}

// maxStderr bounds what an ExitError keeps, in bytes.
const maxStderr = 32 << 10

// lastBytes keeps the end of what is written to it.
type lastBytes []byte

func (l *lastBytes) Write(b []byte) (int, error) {
	*l = append(*l, b[max(len(b)-maxStderr, 0):]...)
	*l = (*l)[max(len(*l)-maxStderr, 0):]
	return len(b), nil
}
