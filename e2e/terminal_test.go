package e2e

import (
	"encoding/json"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/vmsan/vmsan/api"
)

// screen is a terminal of tmux's with a shell in it.
type screen struct {
	t      *testing.T
	socket string
}

// newScreen opens one of 80 columns and 24 rows. A row is what its lines say
// without what colours they have.
func (h *host) newScreen(t *testing.T) *screen {
	t.Helper()
	s := &screen{t: t, socket: filepath.Join(t.TempDir(), "tmux")}
	s.tmux("-f", "/dev/null", "new-session", "-d", "-x", "80", "-y", "24",
		"env", "PS1=host> ", "PATH="+filepath.Dir(h.binary)+":"+os.Getenv("PATH"), "VMSAN_DIR="+h.layout.Dir, "VMSAN_RUN="+h.layout.Run,
		"TERM=xterm-256color", "LC_ALL=C.UTF-8", "bash", "--norc", "--noprofile")
	t.Cleanup(func() { s.tmux("kill-server") })
	return s
}

func (s *screen) tmux(args ...string) string {
	s.t.Helper()
	out, err := exec.Command("tmux", append([]string{"-u", "-S", s.socket}, args...)...).CombinedOutput()
	if err != nil {
		s.t.Fatalf("tmux %q: %v: %s", args, err, out)
	}
	return string(out)
}

// enter types a line.
func (s *screen) enter(line string) {
	s.t.Helper()
	s.tmux("send-keys", "-l", line)
	s.tmux("send-keys", "Enter")
}

func (s *screen) press(keys ...string) {
	s.t.Helper()
	s.tmux(append([]string{"send-keys"}, keys...)...)
}

// rows are what the screen shows.
func (s *screen) rows() []string {
	s.t.Helper()
	return strings.Split(strings.TrimRight(s.tmux("capture-pane", "-p"), "\n"), "\n")
}

// await waits until a row of the screen is the one that is wanted.
func (s *screen) await(row string) {
	s.t.Helper()
	s.awaitThat("has the row "+row, func(rows []string) bool {
		for _, r := range rows {
			if strings.TrimRight(r, " ") == row {
				return true
			}
		}
		return false
	})
}

func (s *screen) awaitThat(what string, holds func(rows []string) bool) {
	s.t.Helper()
	deadline := time.Now().Add(60 * time.Second)
	for !holds(s.rows()) {
		if time.Now().After(deadline) {
			s.t.Fatalf("the screen never %s; it shows\n%s", what, strings.Join(s.rows(), "\n"))
		}
		time.Sleep(50 * time.Millisecond)
	}
}

func (h *host) sessions(name string) (list []api.Process) {
	h.t.Helper()
	if err := json.Unmarshal([]byte(h.must("sessions", "--json", name)), &list); err != nil {
		h.t.Fatal(err)
	}
	return list
}

// TestTerminal sees what people see who work on a terminal in a sandbox.
func TestTerminal(t *testing.T) {
	t.Parallel()
	h := newHost(t)
	h.must("create", "--name", "box", "--network", "none")
	s := h.newScreen(t)

	s.enter("vmsan connect box; echo it exited with $?")
	s.awaitThat("shows a prompt", func(rows []string) bool { return strings.HasSuffix(rows[len(rows)-1], "box:~#") })
	s.enter("PS1='guest> '")
	s.enter("printf 'größe %s\\n' \"$(stty size)\"")
	s.await("größe 24 80")
	// While a command runs: a shell that edits a line paints it anew.
	s.enter("until [ \"$(stty size)\" = '30 100' ]; do sleep 0.1; done; echo resized to $(stty size)")
	s.tmux("resize-window", "-x", "100", "-y", "30")
	s.await("resized to 30 100")
	s.enter("echo TERM=$TERM LANG=$LANG")
	s.await("TERM=xterm-256color LANG=C.UTF-8")

	// Signals are the guest's.
	s.enter("sh -c \"echo wait'ing'; exec sleep 1000\"")
	s.await("waiting")
	s.press("C-c")
	s.enter("echo interrupted with $?")
	s.await("interrupted with 130")
	s.enter("sh -c 'kill -STOP $$'; echo stopped with $?")
	s.await("stopped with 147")
	s.enter("kill -KILL %1; wait; echo no jo'bs'")
	s.await("no jobs")

	// A program of the whole screen, and what was there before it.
	s.enter("top -d 0.5")
	s.awaitThat("shows top", func(rows []string) bool {
		return strings.HasPrefix(rows[0], "top - ") && strings.Contains(strings.Join(rows, "\n"), "PID USER")
	})
	s.press("q")
	s.awaitThat("has left top", func(rows []string) bool { return rows[len(rows)-1] == "guest>" })

	// Detached, it goes on; a second client sees what was shown meanwhile.
	s.enter("clear; sleep 1; echo said mean'while'")
	s.press("C-p", "C-q")
	s.await("it exited with 0")
	list := h.sessions("box")
	if len(list) != 1 || !list[0].Terminal || list[0].Args[0] != "/bin/bash" {
		t.Fatalf("sessions are %+v", list)
	}
	h.sh("box", "sleep 1.5")
	pid := strconv.Itoa(list[0].PID)
	s.enter("clear; vmsan connect --session " + pid + " box; echo it exited with $?")
	s.await("said meanwhile")

	// Two clients share it.
	other := h.newScreen(t)
	other.enter("vmsan connect --session " + pid + " box")
	other.await("said meanwhile")
	other.enter("echo to bo'th' of us")
	other.await("to both of us")
	s.await("to both of us")

	// A client that is killed leaves it alone.
	s.enter("trap 'echo hung up' HUP; echo here is $$")
	s.await("here is " + pid)
	s.kill("vmsan connect --session " + pid)
	other.enter("echo still he're'")
	other.await("still here")
	s.await("it exited with 137")
	s.enter("clear; vmsan connect --session " + pid + " box; echo it exited with $?")
	s.await("still here")

	// Its end is everybody's.
	other.enter("exit 7")
	s.await("it exited with 7")
	other.awaitThat("is the host's again", func(rows []string) bool { return rows[len(rows)-1] == "host>" })
	if list := h.sessions("box"); len(list) > 0 {
		t.Errorf("sessions are %+v when all have ended", list)
	}
	if _, err := h.vmsan("connect", "--session", pid, "box"); err == nil || !strings.Contains(err.Error(), "has no session "+pid) {
		t.Errorf("connect to a session that has ended: %v", err)
	}
}

// TestTerminalExec: commands on a terminal, with one on the host and without.
func TestTerminalExec(t *testing.T) {
	t.Parallel()
	h := newHost(t)
	h.must("create", "--name", "box", "--network", "none")
	s := h.newScreen(t)
	s.enter("vmsan exec -it box sh -c 'tty; stty size; exit 3'; echo it exited with $?")
	s.await("24 80")
	s.await("it exited with 3")
	s.enter("clear; vmsan exec -t box no-such-command; echo it exited with $?")
	s.await("it exited with 127")
	s.enter("clear; vmsan run -it --network none -- sh -c 'read line; echo got $line; exit 4'; echo it exited with $?")
	s.enter("a line")
	s.await("got a line")
	s.await("it exited with 4")

	// Without one here: what is typed comes from a pipe, and its end is typed too.
	out, err := h.exec(t.Context(), strings.NewReader("echo from $(tty | cut -c1-9)\n"), "-t", "box", "sh")
	if err != nil || !strings.Contains(string(out), "from /dev/pts/") {
		t.Errorf("with a pipe: %q, %v", out, err)
	}
	// A stop ends it, in the middle of a flood.
	s.enter("clear; vmsan exec -t box sh -c 'while :; do echo flood; done'; echo it exited with $?")
	s.await("flood")
	h.must("stop", "box")
	s.await("it exited with 143")
	s.enter("clear; echo the terminal is $(stty -a | grep -o ' icanon')")
	s.await("the terminal is icanon")
	if failure := h.refused("sessions", "box"); failure.Code != api.ErrVMNotRunning {
		t.Errorf("sessions of a stopped sandbox: %+v", failure)
	}
	if _, err := h.vmsan("connect", "box"); err == nil || !strings.Contains(err.Error(), "vmsan start") {
		t.Errorf("connect to a stopped sandbox: %v", err)
	}
	if _, err := h.vmsan("connect", "--detach-keys", "ctrl-", "box"); err == nil || !strings.Contains(err.Error(), "--detach-keys") {
		t.Errorf("bad keys: %v", err)
	}
}

// kill kills the program on the screen whose arguments hold a text.
func (s *screen) kill(text string) {
	s.t.Helper()
	shell, err := strconv.Atoi(strings.TrimSpace(s.tmux("display-message", "-p", "#{pane_pid}")))
	if err != nil {
		s.t.Fatal(err)
	}
	children, err := os.ReadFile("/proc/" + strconv.Itoa(shell) + "/task/" + strconv.Itoa(shell) + "/children")
	if err != nil {
		s.t.Fatal(err)
	}
	for _, field := range strings.Fields(string(children)) {
		line, err := os.ReadFile("/proc/" + field + "/cmdline")
		if err != nil || !strings.Contains(strings.ReplaceAll(string(line), "\x00", " "), text) {
			continue
		}
		pid, err := strconv.Atoi(field)
		if err != nil {
			s.t.Fatal(err)
		}
		if err := syscall.Kill(pid, syscall.SIGKILL); err != nil {
			s.t.Fatal(err)
		}
		return
	}
	s.t.Fatalf("%q is not below the shell %d", text, shell)
}
