package e2e

import (
	"encoding/json"
	"io"
	"net"
	"os"
	"os/exec"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/vmsan/vmsan/api"
)

// meter is a stats that runs.
type meter struct {
	t     *testing.T
	cmd   *exec.Cmd
	lines chan api.Stats
}

func (h *host) stats(t *testing.T, args ...string) *meter {
	t.Helper()
	m := &meter{t: t, cmd: exec.Command(h.binary, append([]string{"stats", "--json", "--interval", "500ms"}, args...)...), lines: make(chan api.Stats)}
	m.cmd.Env = append(os.Environ(), "VMSAN_DIR="+h.layout.Dir)
	m.cmd.Stderr = os.Stderr
	out, err := m.cmd.StdoutPipe()
	if err == nil {
		err = m.cmd.Start()
	}
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		m.cmd.Process.Kill()
		for range m.lines { // its reader is not to hang
		}
	})
	go func() {
		defer close(m.lines)
		for d := json.NewDecoder(out); ; {
			var s api.Stats
			err := d.Decode(&s)
			if err == io.EOF {
				return
			}
			if err != nil {
				t.Errorf("stats: %v", err)
				return
			}
			m.lines <- s
		}
	}()
	return m
}

// await reads on until the newest figures of all sandboxes are as is wanted.
func (m *meter) await(what string, holds func(now map[string]api.Stats) bool) {
	m.t.Helper()
	now := map[string]api.Stats{}
	for deadline := time.After(patience); ; {
		select {
		case s, ok := <-m.lines:
			if !ok {
				m.t.Fatalf("stats ended before %s", what)
			}
			now[s.Name] = s
			if holds(now) {
				return
			}
		case <-deadline:
			text, _ := json.MarshalIndent(now, "", " ")
			m.t.Fatalf("never %s: %s", what, text)
		}
	}
}

// server says a lot to whoever connects.
const server = `
import socket
s = socket.socket()
s.bind(("", 80))
s.listen()
open("/root/up", "w").write("up")
while True:
    c, _ = s.accept()
    c.sendall(b"x" * 1_000_000)
    c.close()
`

// TestStats watches sandboxes that work, rest, hang, pause and stop.
func TestStats(t *testing.T) {
	h := newHost(t)
	h.must("create", "--name", "idle", "--network", "none")
	h.must("create", "--name", "busy", "--publish", "18480:80")
	h.startPython("busy", server, "/root/up")
	m := h.stats(t)
	h.must("exec", "-d", "busy", "sh", "-c", "while :; do :; done")
	cpu := func(s api.Stats) float64 {
		if s.Rates == nil {
			return -1
		}
		return s.Rates.CPUPercent
	}
	var before api.Stats
	m.await("the busy one takes more CPU", func(now map[string]api.Stats) bool {
		before = now["busy"]
		return cpu(now["idle"]) >= 0 && cpu(before) > 20 && cpu(before) > 2*cpu(now["idle"]) && before.Guest != nil && now["idle"].Guest != nil
	})
	if g := before.Guest; g.MemoryBytes > 256<<20 || g.MemoryUsedBytes == 0 || g.MemoryUsedBytes > g.MemoryBytes || g.Processes < 3 || g.DiskUsedBytes > g.DiskBytes {
		t.Errorf("the guest has %+v", *g)
	}
	if p := before.Host; p.PSSBytes < 10<<20 || p.PSSBytes > p.RSSBytes || p.CPUSeconds == 0 || p.Disk == nil || p.Network == nil {
		t.Errorf("the host has %+v", *p)
	}
	// Memory that is taken, a disk that is written to, and a network that is used show.
	h.must("exec", "-d", "busy", "python3", "-c", "held = b'x' * 60_000_000; import time; time.sleep(100000)")
	h.sh("busy", "dd if=/dev/urandom of=/root/data bs=1M count=20 conv=fsync 2>/dev/null")
	conn, err := net.Dial("tcp", "127.0.0.1:18480")
	if err != nil {
		t.Fatal(err)
	}
	if n, err := io.Copy(io.Discard, conn); n != 1_000_000 || err != nil {
		t.Errorf("read %d bytes, %v", n, err)
	}
	conn.Close()
	m.await("it shows what was taken", func(now map[string]api.Stats) bool {
		s := now["busy"]
		return s.Guest != nil && s.Guest.MemoryUsedBytes > before.Guest.MemoryUsedBytes+40<<20 && s.Guest.Processes > before.Guest.Processes &&
			s.Host.Disk.WrittenBytes > before.Host.Disk.WrittenBytes+20<<20 && s.OverlayBytes > before.OverlayBytes+15<<20 &&
			s.Host.Network.SentBytes > before.Host.Network.SentBytes+1_000_000 && s.Host.Network.ReceivedBytes > before.Host.Network.ReceivedBytes
	})

	// One that hangs says nothing of itself, and keeps nobody else from it.
	vmm := h.inspect("idle").PIDs.VMM
	if err := syscall.Kill(vmm, syscall.SIGSTOP); err != nil {
		t.Fatal(err)
	}
	m.await("the one that hangs is silent", func(now map[string]api.Stats) bool {
		idle := now["idle"]
		return idle.Status == api.StatusRunning && idle.Guest == nil && idle.Host != nil && now["busy"].Guest != nil
	})
	if err := syscall.Kill(vmm, syscall.SIGCONT); err != nil {
		t.Fatal(err)
	}
	m.await("it talks again", func(now map[string]api.Stats) bool { return now["idle"].Guest != nil })

	h.must("pause", "idle")
	m.await("one is paused", func(now map[string]api.Stats) bool {
		idle := now["idle"]
		return idle.Status == api.StatusPaused && idle.Guest == nil && idle.Host != nil && now["busy"].Guest != nil
	})
	named := h.stats(t, "busy")
	h.must("stop", "--timeout", "1s", "busy")
	m.await("one has stopped", func(now map[string]api.Stats) bool {
		return now["busy"].Status == api.StatusStopped && now["busy"].Host == nil && now["idle"].Status == api.StatusPaused
	})
	h.must("resume", "idle")
	m.await("the other goes on", func(now map[string]api.Stats) bool {
		_, shown := now["busy"]
		return !shown && now["idle"].Guest != nil
	})
	m.cmd.Process.Signal(syscall.SIGINT)
	for range m.lines {
	}
	if err := m.cmd.Wait(); err != nil {
		t.Errorf("told to stop: %v", err)
	}

	// Who asked for one by name is told of its end, and is done.
	named.await("the one that was named has stopped", func(now map[string]api.Stats) bool { return now["busy"].Status == api.StatusStopped })
	h.must("rm", "busy")
	named.await("it is gone", func(now map[string]api.Stats) bool { return now["busy"].VM != "" && now["busy"].Status == "" })
	for range named.lines {
	}
	if err := named.cmd.Wait(); err != nil {
		t.Errorf("at the end of all: %v", err)
	}
}

// TestStatsOnTerminal sees one table, whose figures change.
func TestStatsOnTerminal(t *testing.T) {
	t.Parallel()
	h := newHost(t)
	h.must("create", "--name", "box", "--network", "none")
	s := h.newScreen(t)
	s.enter("clear; vmsan stats --interval 300ms; echo it exited with $?")
	box := func(rows []string, status string) bool {
		return len(rows) > 1 && strings.HasPrefix(rows[0], "VM ") && strings.HasPrefix(rows[1], "box ") && strings.Contains(rows[1], status)
	}
	s.awaitThat("shows the sandbox", func(rows []string) bool { return box(rows, " running ") && len(rows) == 2 })
	h.must("pause", "box")
	s.awaitThat("shows it paused", func(rows []string) bool { return box(rows, " paused ") && len(rows) == 2 })
	s.press("C-c")
	s.awaitThat("has left", func(rows []string) bool { return strings.HasSuffix(rows[len(rows)-2], "it exited with 0") })
}
