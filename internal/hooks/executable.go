package hooks

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"log/slog"
	"os"
	"os/exec"
	"strings"
	"syscall"
	"time"
	"unicode"

	"github.com/vmsan/vmsan/api"
)

// executable is a file in the directory of hooks.
type executable struct {
	path  string
	state string
	log   *slog.Logger
}

// Name is the file's path, by which it can be found and mended.
func (e executable) Name() string { return e.path }

// outputWait is how long what a hook has left behind may hold its output. It
// lives on without.
const outputWait = time.Second

// Run gives the hook the event as JSON on its standard input. What it says is
// logged; if it fails its last line on stderr is the error. When ctx ends it is
// killed with all that it has started.
func (e executable) Run(ctx context.Context, event api.HookEvent) error {
	input, err := json.Marshal(event)
	if err != nil {
		return err
	}
	var stdout, stderr tail
	cmd := exec.CommandContext(ctx, e.path)
	cmd.Dir = "/"
	cmd.Env = append(os.Environ(), "VMSAN_DIR="+e.state, "VMSAN_HOOK="+string(event.Hook), "VMSAN_VM="+event.VM)
	cmd.Stdin, cmd.Stdout, cmd.Stderr = bytes.NewReader(append(input, '\n')), &stdout, &stderr
	// What it starts and does not wait for outlives it, but not its time.
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	cmd.Cancel = func() error { return syscall.Kill(-cmd.Process.Pid, syscall.SIGKILL) }
	cmd.WaitDelay = outputWait
	err = cmd.Run()
	for _, said := range []*tail{&stdout, &stderr} {
		if text := said.String(); text != "" {
			e.log.Debug("a hook says", "hook", e.path, "text", text)
		}
	}
	var ended *exec.ExitError
	switch {
	case errors.Is(err, exec.ErrWaitDelay):
		return nil
	case errors.As(err, &ended) && stderr.last() != "":
		return errors.New(stderr.last())
	}
	return err
}

// maxTail bounds what is kept of a hook's output, in bytes.
const maxTail = 4 << 10

// tail keeps the end of what is written to it.
type tail struct{ data []byte }

func (t *tail) Write(b []byte) (int, error) {
	t.data = append(t.data, b[max(len(b)-maxTail, 0):]...)
	t.data = t.data[max(len(t.data)-maxTail, 0):]
	return len(b), nil
}

// String is what was kept, without what could move a terminal's cursor.
func (t *tail) String() string {
	return strings.TrimSpace(strings.Map(func(r rune) rune {
		if unicode.IsPrint(r) || r == '\n' {
			return r
		}
		return '?'
	}, string(t.data)))
}

// last is the last line.
func (t *tail) last() string {
	text := t.String()
	return strings.TrimSpace(text[strings.LastIndexByte(text, '\n')+1:])
}
