package e2e

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"io"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/vmsan/vmsan/api"
)

// parseEvents reads what events --json prints.
func parseEvents(t *testing.T, r io.Reader) (events []api.Event) {
	t.Helper()
	for lines := bufio.NewScanner(r); lines.Scan(); {
		var e api.Event
		if err := json.Unmarshal(lines.Bytes(), &e); err != nil {
			t.Fatalf("%q: %v", lines.Text(), err)
		}
		events = append(events, e)
	}
	return events
}

func (h *host) events(t *testing.T, args ...string) []api.Event {
	t.Helper()
	return parseEvents(t, strings.NewReader(h.must(append([]string{"events", "--json"}, args...)...)))
}

// briefly is each event as its type and what it says.
func briefly(events []api.Event) (list []string) {
	for _, e := range events {
		words := []string{string(e.Type)}
		for _, word := range []string{
			e.Name, e.Reason, e.From, e.PreviousName, e.Policy, strings.Join(e.Copies, " "), e.Snapshot, e.Volume, e.Image,
		} {
			if word != "" {
				words = append(words, word)
			}
		}
		list = append(list, strings.Join(words, " "))
	}
	return list
}

// follow starts events -f. end interrupts it, and returns what it printed.
func (h *host) follow(t *testing.T) (end func() []api.Event) {
	t.Helper()
	cmd := h.command(context.Background(), "events", "-f", "--json")
	var out syncBuffer
	cmd.Stdout, cmd.Stderr = &out, os.Stderr
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	var once sync.Once
	kill := func() { once.Do(func() { cmd.Process.Kill(); cmd.Wait() }) }
	t.Cleanup(kill)
	return func() []api.Event {
		// It has seen all once it has seen the last.
		h.must("volume", "create", "last")
		for deadline := time.Now().Add(patience); !strings.Contains(out.String(), `"volume":"last"`); time.Sleep(10 * time.Millisecond) {
			if time.Now().After(deadline) {
				t.Fatal("events -f does not print what happens")
			}
		}
		once.Do(func() {
			cmd.Process.Signal(syscall.SIGINT)
			if err := cmd.Wait(); err != nil {
				t.Errorf("events -f, interrupted: %v", err)
			}
		})
		return parseEvents(t, strings.NewReader(out.String()))
	}
}

// syncBuffer is a buffer that is read while it is written.
type syncBuffer struct {
	mu   sync.Mutex
	text bytes.Buffer
}

func (b *syncBuffer) Write(p []byte) (int, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.text.Write(p)
}

func (b *syncBuffer) String() string {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.text.String()
}

// A whole life is in the journal, step by step and once, also when the sandbox
// is gone, and who follows sees the same.
func TestEventsOfALife(t *testing.T) {
	t.Parallel()
	h := newHost(t)
	following := h.follow(t)
	id := h.must("create", "--name", "web", "--network-policy", "deny-all")
	h.must("rename", "web", "www")
	h.must("resize", "www", "--disk", "11g")
	h.must("pause", "www")
	h.must("pause", "www") // nothing happens
	h.must("resume", "www")
	h.must("network", "www", "--network-policy", "custom", "--allowed-domain", "allowed.example")
	snapshot := h.must("snapshot", "create", "www")
	fork := h.must("fork", "www")
	h.must("rm", "-f", fork)
	h.must("stop", "www")
	h.must("start", "www")
	h.must("pause", "--reclaim", "www")
	h.must("resume", "www")
	killMonitor(t, h, id)
	h.must("restore", "www", snapshot)
	if _, err := h.vmsan("exec", "www", "false"); err == nil {
		t.Error("false succeeds")
	}
	h.must("rm", "-f", "www")
	h.must("volume", "create", "data")
	h.must("volume", "rm", "data")
	archive := filepath.Join(t.TempDir(), "archive")
	h.must("snapshot", "export", snapshot, archive)
	h.must("snapshot", "rm", snapshot)
	imported := h.must("snapshot", "import", archive)
	h.must("snapshot", "rm", imported)
	h.must("image", "tag", "debian", "mine")
	h.must("image", "rm", "mine")
	h.must("run", "--network", "none", "--", "true")
	if _, err := h.vmsan("create", "--name", "never", "--boot-timeout", "1", "--cold", "--network", "none"); err == nil {
		t.Log("this host boots within a second")
	}

	var life []api.Event
	for _, e := range h.events(t, "--vm", id) {
		if e.VM != id {
			t.Errorf("--vm %s prints %v", id, e)
		}
		life = append(life, e)
	}
	want := []string{
		"vm.create web debian", "vm.start web template", "vm.running web", "vm.rename www web", "vm.resize www", "vm.pause www",
		"vm.resume www", "vm.policy www custom", "snapshot.create www " + snapshot, "vm.fork www " + fork,
		"vm.stop www stopped", "vm.start www boot", "vm.running www", "vm.pause www its memory is on the disk", "vm.start www memory",
		"vm.running www", "vm.stop www its monitor died", "vm.restore www " + snapshot, "vm.start www snapshot", "vm.running www",
		"vm.stop www stopped", "vm.remove www",
	}
	if diff := cmp.Diff(want, briefly(life)); diff != "" {
		t.Error(diff)
	}
	all := following()
	if diff := cmp.Diff(briefly(all), briefly(h.events(t))); diff != "" {
		t.Errorf("who follows sees something else: %s", diff)
	}
	var others []string
	for _, line := range briefly(all) {
		if noun, _, _ := strings.Cut(line, "."); noun == "volume" || noun == "image" || strings.HasPrefix(line, "snapshot.") && !strings.Contains(line, "www") {
			others = append(others, line)
		}
	}
	want = []string{
		"volume.create data", "volume.remove data", "snapshot.export " + snapshot, "snapshot.remove " + snapshot, "snapshot.import " + imported,
		"snapshot.remove " + imported, "image.tag mine", "image.remove mine", "volume.create last",
	}
	if diff := cmp.Diff(want, others); diff != "" {
		t.Error(diff)
	}
	if copies := h.events(t, "--vm", fork, "--type", "vm"); copies[0].Type != api.EventVMCreate || copies[1].From != "fork" {
		t.Errorf("of the copy is told %v", briefly(copies))
	}
	if failed := briefly(h.events(t, "--vm", "never")); len(failed) > 0 && !strings.Contains(strings.Join(failed, "\n"), "vm.error never") {
		t.Errorf("of the one that did not come up is told %v", failed)
	}
	h.must("volume", "rm", "last")
}

// killMonitor ends the monitor of a sandbox, and waits until what it left is
// taken back.
func killMonitor(t *testing.T, h *host, id string) {
	t.Helper()
	record, err := h.layout.Load(id)
	if err != nil {
		t.Fatal(err)
	}
	if err := syscall.Kill(record.Host.Monitor.PID, syscall.SIGKILL); err != nil {
		t.Fatal(err)
	}
	h.must("wait", id)
}

// What a network refuses is in the journal, and a guest that has a lot refused
// fills no more of it than is its own.
func TestEventsOfDenials(t *testing.T) {
	h := newHost(t)
	id := h.must("create", "--name", "web", "--network-policy", "deny-all")
	if _, err := h.vmsan("exec", "web", "curl", "-sS", "-m", "10", "http://198.51.100.20/"); err == nil {
		t.Error("deny-all denies nothing")
	}
	var denied []api.Event
	for deadline := time.Now().Add(patience); len(denied) == 0 && time.Now().Before(deadline); time.Sleep(100 * time.Millisecond) {
		denied = h.events(t, "--type", "network.denied", "--vm", "web")
	}
	if len(denied) == 0 {
		t.Fatal("nothing is told of what was denied")
	}
	e := denied[0]
	if e.VM != id || e.Network == nil || e.Network.Verdict != api.VerdictDenied || e.Network.Destination.String() != "198.51.100.20" || e.Network.Port != 80 {
		t.Errorf("got %+v of %+v", e, e.Network)
	}
	h.must("exec", "web", "python3", "-c", `
import socket
s = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
for port in range(1, 20000):
    try:
        s.sendto(b"x", ("198.51.100.%d" % (port % 200 + 1), port))
    except OSError:
        pass
`)
	h.must("rm", "-f", "web")
	if n := len(h.events(t, "--type", "network")); n > 60 {
		t.Errorf("20000 packets are %d events", n)
	}
	if kept := h.events(t, "--type", "vm.create"); len(kept) == 0 {
		t.Error("the flood pushed something out")
	}
}
