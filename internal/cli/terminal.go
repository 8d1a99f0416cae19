package cli

import (
	"errors"
	"io"
	"maps"
	"os"
	"os/signal"
	"time"

	"github.com/moby/term"
	"golang.org/x/sys/unix"

	"github.com/vmsan/vmsan/api"
	"github.com/vmsan/vmsan/internal/guest"
)

// defaultDetachKeys are docker's.
const defaultDetachKeys = "ctrl-p,ctrl-q"

// parseDetachKeys turns keys like "ctrl-p,ctrl-q" into the bytes a terminal
// sends for them. Without keys nothing detaches.
func parseDetachKeys(keys string) ([]byte, error) {
	if keys == "" {
		return nil, nil
	}
	bytes, err := term.ToBytes(keys)
	if err != nil {
		return nil, api.Errorf(api.ErrValidationChoice, "Invalid --detach-keys: %.80q. Must be keys with commas between: a letter or ctrl- and one of a-z @ [ \\ ] ^ _.",
			keys).WithFlag("--detach-keys").WithHint("--detach-keys ctrl-],q")
	}
	return bytes, nil
}

// terminalFD is the descriptor of a terminal, or false if f is none.
func terminalFD(f any) (uintptr, bool) {
	file, ok := f.(*os.File)
	if !ok {
		return 0, false
	}
	return file.Fd(), term.IsTerminal(file.Fd())
}

// terminalSize is that of our terminal, or that of none.
func (a *app) terminalSize() guest.Size {
	for _, f := range []any{a.stdin, a.stdout} {
		if fd, ok := terminalFD(f); ok {
			if size, err := term.GetWinsize(fd); err == nil {
				return guest.Size{Columns: int(size.Width), Rows: int(size.Height)}
			}
		}
	}
	return guest.Size{}
}

// terminalEnv adds to a command's environment what programs on a terminal
// want to know. What the sandbox was given stays.
func terminalEnv(env, sandbox map[string]string) map[string]string {
	all := map[string]string{"TERM": "xterm-256color", "LANG": "C.UTF-8"}
	if kind := os.Getenv("TERM"); kind != "" && kind != "dumb" {
		all["TERM"] = kind
	}
	if kind := os.Getenv("COLORTERM"); kind != "" {
		all["COLORTERM"] = kind
	}
	if no := os.Getenv("NO_COLOR"); no != "" {
		// What we say has no colours anyway.
		all["NO_COLOR"] = no
		delete(all, "COLORTERM")
	}
	for key := range sandbox {
		delete(all, key)
	}
	maps.Copy(all, env)
	return all
}

// converse connects our terminal with one in the guest until the command
// there has ended, or the detach keys are typed. Raw mode lasts as long.
func (a *app) converse(t *guest.Terminal, keys []byte) (exit guest.Exit, detached bool, err error) {
	defer t.Close()
	fd, typed := terminalFD(a.stdin)
	if typed {
		state, err := term.SetRawTerminal(fd)
		if err != nil {
			return exit, false, err
		}
		defer term.RestoreTerminal(fd, state)
	}
	defer a.followSize(t)()
	ready, left, ended := make(chan struct{}), make(chan struct{}), make(chan struct{})
	go func() {
		<-ready
		in := a.stdin
		if typed && t.Joined() {
			a.redraw(t)
			in = withoutAnswers{in, time.Now().Add(answerTime)}
		}
		if errors.As(passInput(t, in, keys), new(term.EscapeError)) {
			close(left)
			t.Leave()
			return
		}
		typeEnds(t, ended)
	}()
	exit, err = t.Follow(a.stdout, func() { close(ready) })
	close(ended)
	select {
	case <-left:
		return guest.Exit{}, true, nil
	default:
		return exit, false, err
	}
}

// endOfTransmission is what ctrl-d types.
const endOfTransmission = 4

// passInput types what comes in until it ends. A terminal has no end of
// input, and so its key for that is typed then.
func passInput(t io.Writer, in io.Reader, keys []byte) error {
	if len(keys) > 0 {
		in = term.NewEscapeProxy(in, keys)
	}
	buffer := make([]byte, 32<<10)
	end := []byte{endOfTransmission}
	for {
		n, err := in.Read(buffer)
		if n > 0 {
			// Behind a line that is not complete the first only completes it.
			end = end[:1]
			if buffer[n-1] != '\n' {
				end = []byte{endOfTransmission, endOfTransmission}
			}
			// When it cannot be typed, Follow knows why.
			if _, err := t.Write(buffer[:n]); err != nil {
				return nil
			}
		}
		if err == io.EOF {
			_, _ = t.Write(end)
			return nil
		}
		if err != nil {
			return err
		}
	}
}

// typeEnds types the end of input again and again, until ended is closed: a
// program that changes modes of its terminal just then, as shells with line
// editing do around each command, never sees the one before.
func typeEnds(t io.Writer, ended <-chan struct{}) {
	for {
		select {
		case <-ended:
			return
		case <-time.After(time.Second):
		}
		if _, err := t.Write([]byte{endOfTransmission}); err != nil {
			return // Follow knows why
		}
	}
}

// answerTime is how long our terminal may take to answer what the output of
// the past asked it.
const answerTime = 200 * time.Millisecond

// withoutAnswers drops what a terminal answers to questions until a time:
// nobody waits any more for the answers to those that were kept.
type withoutAnswers struct {
	io.Reader
	until time.Time
}

// escape begins all that a terminal says by itself, and keys without a
// character of their own.
const escape = 0x1b

func (r withoutAnswers) Read(p []byte) (int, error) {
	for {
		n, err := r.Reader.Read(p)
		if n == 0 || p[0] != escape || time.Now().After(r.until) {
			return n, err
		}
	}
}

// redrawPause is long enough for a program to look at one size before the next.
const redrawPause = 20 * time.Millisecond

// redraw has programs paint the screen anew: its size may be another now.
func (a *app) redraw(t *guest.Terminal) {
	size := a.terminalSize()
	// Only a change of size is told to programs.
	a.resize(t, guest.Size{Columns: size.Columns, Rows: size.Rows + 1})
	time.Sleep(redrawPause)
	a.resize(t, size)
}

func (a *app) resize(t *guest.Terminal, size guest.Size) {
	// If it cannot be told, Follow knows why.
	if err := t.Resize(size); err != nil {
		a.log.Debug("resize", "error", err)
	}
}

// followSize keeps the terminal in the guest as large as ours.
func (a *app) followSize(t *guest.Terminal) (stop func()) {
	changed, done := make(chan os.Signal, 1), make(chan struct{})
	signal.Notify(changed, unix.SIGWINCH)
	go func() {
		for {
			select {
			case <-changed:
				a.resize(t, a.terminalSize())
			case <-done:
				return
			}
		}
	}()
	return func() {
		signal.Stop(changed)
		close(done)
	}
}
