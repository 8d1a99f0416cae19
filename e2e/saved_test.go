package e2e

import (
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/vmsan/vmsan/api"
	"github.com/vmsan/vmsan/internal/snapshot"
	"github.com/vmsan/vmsan/internal/testenv"
)

// counter counts in memory and in a file that is open and has no name. Beside
// the number it writes the digest of what else it has in memory.
const counter = `
import hashlib, os, time
memory = os.urandom(1 << 20)
out = os.open("/root/open", os.O_RDWR | os.O_CREAT)
os.unlink("/root/open")
n = 0
while True:
    n += 1
    os.pwrite(out, b"%d %s\n" % (n, hashlib.sha256(memory).hexdigest().encode()), 0)
    if n == 1:
        with open("/root/process", "w") as f: f.write("/proc/%d/fd/%d" % (os.getpid(), out))
    time.sleep(0.01)
`

// startPython runs a program in a sandbox beside everything else, and waits
// until it has made a file.
func (h *host) startPython(name, program, made string) {
	h.t.Helper()
	if _, err := h.exec(h.t.Context(), strings.NewReader(program), name, "sh", "-c", "cat >/root/program.py"); err != nil {
		h.t.Fatal(err)
	}
	h.must("exec", "-d", name, "python3", "/root/program.py")
	h.sh(name, "until [ -s "+made+" ]; do sleep 0.05; done")
}

// sh runs a script in a sandbox, which has to succeed.
func (h *host) sh(name, script string) string {
	h.t.Helper()
	return h.must("exec", "--no-stdin", name, "sh", "-c", script)
}

func (h *host) inspect(name string) (vm api.VM) {
	h.t.Helper()
	if err := json.Unmarshal([]byte(h.must("inspect", "--json", name)), &vm); err != nil {
		h.t.Fatal(err)
	}
	return vm
}

// refused runs what has to fail, and returns how.
func (h *host) refused(args ...string) api.Error {
	h.t.Helper()
	out, err := h.vmsan(append([]string{"--json"}, args...)...)
	if err == nil {
		h.t.Fatalf("vmsan %q succeeded: %s", args, out)
	}
	var failure struct{ Error api.Error }
	if err := json.Unmarshal([]byte(out), &failure); err != nil {
		h.t.Fatalf("vmsan %q: %v: %s", args, err, out)
	}
	return failure.Error
}

// count is what the counter in a sandbox has written last.
func (h *host) count(name string) (n int, digest string) {
	h.t.Helper()
	text := h.sh(name, "cat $(cat /root/process)")
	if _, err := fmt.Sscan(text, &n, &digest); err != nil {
		h.t.Fatalf("the counter in %s wrote %q: %v", name, text, err)
	}
	return n, digest
}

// TestStateSurvives has a program with something in its memory and an open
// file, and one that sleeps, go through all that can be done with a machine.
func TestStateSurvives(t *testing.T) {
	t.Parallel()
	h := newHost(t)
	h.must("create", "--name", "source")
	h.startPython("source", counter, "/root/process")
	h.must("exec", "-d", "source", "sh", "-c", "echo $$ >/root/sleeper; exec sleep 100000")
	h.sh("source", "echo written before >/root/before; until [ -s /root/sleeper ]; do sleep 0.05; done")
	first, digest := h.count("source")
	h.must("snapshot", "create", "source", "--name", "saved")
	h.sh("source", "echo written after >/root/after")
	later, _ := h.count("source")

	// same checks that a machine goes on where it was, and not at its beginning.
	same := func(what, name string, least int) {
		t.Helper()
		n, got := h.count(name)
		if got != digest || n < least {
			t.Errorf("%s: the counter is at %d with %.8s, not beyond %d with %.8s", what, n, got, least, digest)
		}
		h.sh(name, "ps -o args= -p $(cat /root/sleeper) | grep -q 'sleep 100000'")
		if got := h.sh(name, "cat /root/before"); got != "written before" {
			t.Errorf("%s: the file holds %q", what, got)
		}
		if next, _ := h.count(name); next <= n {
			t.Errorf("%s: the counter stands at %d", what, n)
		}
	}
	h.must("create", "--snapshot", "saved", "--name", "copy")
	same("created from the snapshot", "copy", first)
	h.sh("copy", "test ! -e /root/after")
	h.must("fork", "source", "--name", "fork")
	same("forked", "fork-1", later)
	h.sh("fork-1", "test -e /root/after")
	same("the source", "source", later)
	h.must("restore", "source", "saved")
	same("restored in place", "source", first)
	h.sh("source", "test ! -e /root/after")
	h.must("pause", "--reclaim", "source")
	h.must("restore", "source", "saved")
	same("restored in place without its memory", "source", first)
	h.sh("source", "test ! -e /root/after")
	for _, args := range [][]string{{"pause"}, {"pause", "--reclaim"}} {
		before, _ := h.count("copy")
		h.must(append(args, "copy")...)
		h.must("resume", "copy")
		same(strings.Join(args, " "), "copy", before)
	}
}

// client keeps one connection, and says what comes of it.
const client = `
import os, socket, threading
log = os.open("/root/log", os.O_WRONLY | os.O_CREAT | os.O_APPEND)
conn = socket.create_connection(("198.51.100.10", 7))
os.mkfifo("/root/say")
def hear():
    try:
        while True:
            got = conn.recv(100)
            os.write(log, b"got " + got)
            if not got: break
    except OSError as e:
        os.write(log, b"failed\n")
threading.Thread(target=hear).start()
os.write(log, b"connected\n")
while True:
    with open("/root/say", "rb") as say: conn.sendall(say.read())
`

// TestConnectionsReset: a copy's program that waits for what an open
// connection brings hears within two seconds that it is gone. The source's
// goes on, also after a pause.
func TestConnectionsReset(t *testing.T) {
	t.Parallel()
	h := newHost(t)
	testenv.Lab(t)
	h.must("create", "--name", "source")
	h.startPython("source", client, "/root/log")
	h.must("snapshot", "create", "source", "--name", "open")
	h.must("fork", "source", "--name", "fork")
	h.must("create", "--snapshot", "open", "--name", "copy")
	for _, name := range []string{"fork-1", "copy"} {
		got := h.sh(name, "for i in $(seq 20); do grep -q failed /root/log && break; sleep 0.1; done; cat /root/log")
		if got != "connected\nfailed" {
			t.Errorf("%s: the client says %q", name, got)
		}
	}
	h.must("pause", "source")
	h.must("resume", "source")
	h.sh("source", "echo hello >/root/say; for i in $(seq 50); do grep -q hello /root/log && break; sleep 0.1; done")
	if got := h.sh("source", "cat /root/log"); got != "connected\ngot hello" {
		t.Errorf("the source's client says %q", got)
	}
}

// cpuTime is what a process and all its threads have had of the CPU.
func cpuTime(t *testing.T, pid int) (ticks int) {
	t.Helper()
	text, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
	if err != nil {
		t.Fatal(err)
	}
	fields := strings.Fields(string(text[strings.LastIndexByte(string(text), ')')+1:]))
	for _, field := range fields[11:13] {
		n, err := strconv.Atoi(field)
		if err != nil {
			t.Fatal(err)
		}
		ticks += n
	}
	return ticks
}

// TestPausedCostsNothing: no CPU, and with --reclaim no process.
func TestPausedCostsNothing(t *testing.T) {
	h := newHost(t)
	h.must("create", "--name", "busy")
	h.must("exec", "-d", "busy", "sh", "-c", "while :; do :; done")
	vmm := h.inspect("busy").PIDs.VMM
	h.must("pause", "busy")
	before := cpuTime(t, vmm)
	time.Sleep(time.Second)
	if used := cpuTime(t, vmm) - before; used > 0 {
		t.Errorf("a paused sandbox's VMM ran for %d ticks in a second", used)
	}
	h.must("pause", "--reclaim", "busy")
	if err := syscall.Kill(vmm, 0); !errors.Is(err, syscall.ESRCH) {
		t.Errorf("the VMM of a reclaimed sandbox is there: %v", err)
	}
	if vm := h.inspect("busy"); vm.Status != api.StatusPaused || vm.PIDs != nil {
		t.Errorf("a reclaimed sandbox is %s, with %+v", vm.Status, vm.PIDs)
	}
	h.checkProcesses([]string{h.idOf("busy")})
	h.must("resume", "busy")
	h.sh("busy", "ps -e -o args | grep -q '[w]hile :'")
}

// witness writes a file when it is told to end.
const witness = `
import os, signal, sys, time
def end(*_):
    with open("/root/ended", "w") as f: f.write("in order")
    sys.exit()
signal.signal(signal.SIGTERM, end)
with open("/root/ready", "w") as f: f.write("ready")
while True: time.sleep(100)
`

// TestVerbsWhilePaused does with paused sandboxes, with their memory and
// without, what can be done with others.
func TestVerbsWhilePaused(t *testing.T) {
	t.Parallel()
	h := newHost(t)
	testenv.Lab(t)
	const good = "198.51.100.10"
	for name, pause := range map[string][]string{"paused": {"pause"}, "reclaimed": {"pause", "--reclaim"}} {
		id := h.must("create", "--name", "first")
		h.startPython(id, witness, "/root/ready")
		h.must(append(pause, id)...)
		if e := h.refused("exec", id, "true"); e.Code != api.ErrVMNotRunning || e.Hint != "vmsan resume "+id {
			t.Errorf("%s: exec says %+v", name, e)
		}
		if e := h.refused("rm", id); e.Code != api.ErrVMNotStopped {
			t.Errorf("%s: rm says %+v", name, e)
		}
		h.must("rename", id, name)
		h.must("network", id, "--allowed-cidr", good+"/32")
		if vm := h.inspect(name); vm.Status != api.StatusPaused || vm.NetworkPolicy.Policy != "custom" {
			t.Errorf("%s: it is %s with %+v", name, vm.Status, vm.NetworkPolicy)
		}
		h.must("resume", name)
		if got := h.reached(id, good, "203.0.113.99"); got != good {
			t.Errorf("%s: what can be reached is %q", name, got)
		}

		h.must(append(pause, id)...)
		h.must("stop", "--timeout", "1m", id)
		if vm := h.inspect(id); vm.Status != api.StatusStopped {
			t.Errorf("%s: stopped, it is %s", name, vm.Status)
		}
		h.must("start", id)
		if got := h.sh(id, "cat /root/ended"); got != "in order" {
			t.Errorf("%s: the program ended %q", name, got)
		}
		h.sh(id, "touch /run/of-this-boot")
		h.must(append(pause, id)...)
		h.must("restart", "--timeout", "1m", id)
		h.sh(id, "test ! -e /run/of-this-boot")
		h.must(append(pause, id)...)
		h.must("rm", "-f", id)
	}
}

// reached says which of two addresses a sandbox reaches. What it may reach gets
// time, for a guest that has just come back runs all its code anew.
func (h *host) reached(name, may, mayNot string) string {
	h.t.Helper()
	return h.sh(name, `reach() { timeout $1 bash -c "</dev/tcp/$2/7" 2>/dev/null && echo $2; }; reach 60 `+may+`; reach 2 `+mayNot+`; true`)
}

// TestGateDeathWhilePaused: the next gate lets the guest go on.
func TestGateDeathWhilePaused(t *testing.T) {
	t.Parallel()
	h := newHost(t)
	h.must("create", "--name", "gateless")
	h.must("pause", "gateless")
	h.must("snapshot", "create", "gateless") // so that the guest has to be told to go on
	if err := syscall.Kill(h.inspect("gateless").PIDs.Gate, syscall.SIGKILL); err != nil {
		t.Fatal(err)
	}
	h.must("resume", "gateless")
	h.sh("gateless", "echo on >/root/file; sync")
	h.checkClock("gateless")
}

// dice draws random numbers all the time.
const dice = `
import os, time
out = os.open("/root/dice", os.O_WRONLY | os.O_CREAT)
urandom = os.open("/dev/urandom", os.O_RDONLY)
while True:
    os.write(out, os.read(urandom, 16).hex().encode() + b"\n")
    time.sleep(0.01)
`

// TestCopiesOfCopies: what can be copied once can be copied again, whatever it
// is and does.
func TestCopiesOfCopies(t *testing.T) {
	t.Parallel()
	h := newHost(t)
	h.must("create", "--name", "a", "--network", "none", "--vcpus", "2")
	h.startPython("a", dice, "/root/dice")
	h.must("fork", "a", "--name", "b")
	h.must("fork", "b-1", "--name", "c")
	h.must("snapshot", "create", "c-1", "--name", "one")
	h.must("create", "--snapshot", "one", "--name", "d")
	h.must("snapshot", "create", "d", "--name", "two")
	h.must("restore", "a", "two")
	h.must("restore", "a", "two")
	// Paused ones can be saved as often as one likes, and their copies wake up
	// as others: nothing in them runs before.
	h.must("pause", "d")
	h.must("snapshot", "create", "d", "--name", "three")
	h.must("snapshot", "create", "d", "--name", "four")
	h.must("fork", "d", "--name", "e", "--count", "3")
	var streams [][]string
	for _, name := range []string{"e-1", "e-2", "e-3"} {
		streams = append(streams, strings.Fields(h.sh(name, "sleep 0.3; cat /root/dice")))
	}
	checkStreams(t, streams)
	h.must("create", "--snapshot", "four", "--name", "f")
	if got := h.inspect("d").Status; got != api.StatusPaused {
		t.Errorf("a paused sandbox that was saved is %s", got)
	}
	h.must("resume", "d")
	h.must("snapshot", "create", "d", "--stop", "--name", "five")
	if vm := h.inspect("d"); vm.Status != api.StatusStopped {
		t.Errorf("saved with --stop it is %s", vm.Status)
	}
	for _, name := range []string{"a", "b-1", "c-1", "f"} {
		h.sh(name, "n=$(wc -l </root/dice); sleep 0.5; test $(wc -l </root/dice) -gt $n; test $(nproc) = 2")
	}
}

// snapshots lists those there are.
func (h *host) snapshots() (list []struct{ ID, Name string }) {
	h.t.Helper()
	if err := json.Unmarshal([]byte(h.must("snapshot", "ls", "--json")), &list); err != nil {
		h.t.Fatal(err)
	}
	return list
}

// TestBadSnapshots: what is no snapshot, or none of this host, is refused and
// harms nothing.
func TestBadSnapshots(t *testing.T) {
	t.Parallel()
	h := newHost(t)
	h.must("create", "--name", "source")
	h.must("snapshot", "create", "source", "--name", "good")
	good := h.snapshots()[0].ID

	for _, ref := range []string{"unknown", "sn0000000000", "../" + good, "../../images", "/etc/passwd", "..", "a\nb"} {
		for _, args := range [][]string{
			{"create", "--snapshot", ref}, {"snapshot", "inspect", ref}, {"snapshot", "rm", ref}, {"restore", "source", ref},
		} {
			if e := h.refused(args...); e.Code != api.ErrSnapshotNotFound {
				t.Errorf("vmsan %q says %+v", args, e)
			}
		}
	}
	for _, name := range []string{"../x", "a/b", ".", "sn0123456789", strings.Repeat("x", 64)} {
		if e := h.refused("snapshot", "create", "source", "--name", name); e.Code != api.ErrValidationName {
			t.Errorf("the name %q: %+v", name, e)
		}
	}
	for what, c := range map[string]struct {
		change func(dir string, m *snapshot.Manifest) error
		code   api.Code
		says   string
	}{
		"another VMM":       {func(_ string, m *snapshot.Manifest) error { m.Host.VMMVersion = "1.2.3"; return nil }, api.ErrSnapshotUnfit, "1.2.3"},
		"another CPU":       {func(_ string, m *snapshot.Manifest) error { m.Host.CPU = "i386"; return nil }, api.ErrSnapshotUnfit, "i386"},
		"another kernel":    {func(_ string, m *snapshot.Manifest) error { m.Host.Kernel = zeros; return nil }, api.ErrSnapshotUnfit, "kernel"},
		"another image":     {func(_ string, m *snapshot.Manifest) error { m.Image = zeros; return nil }, api.ErrImageNotFound, "image"},
		"a strange network": {func(_ string, m *snapshot.Manifest) error { m.Guest = []byte(`{"network":"host"}`); return nil }, api.ErrSnapshotCorrupt, "network"},
		"a strange init": {func(_ string, m *snapshot.Manifest) error {
			m.Guest = []byte(`{"network":"nat","init":"x y"}`)
			return nil
		}, api.ErrSnapshotCorrupt, "init"},
		"a kernel elsewhere": {func(_ string, m *snapshot.Manifest) error { m.Host.Kernel = "../../tmp"; return nil }, api.ErrSnapshotCorrupt, "kernel"},
		"no driver":          {func(_ string, m *snapshot.Manifest) error { m.Host.Driver = "../qemu"; return nil }, api.ErrUnsupported, "driver"},
		"less memory":        {func(_ string, m *snapshot.Manifest) error { m.MemoryMiB = 64; return nil }, api.ErrSnapshotCorrupt, "memory"},
		"no disk":            {func(d string, _ *snapshot.Manifest) error { return os.Remove(filepath.Join(d, snapshot.OverlayFile)) }, api.ErrSnapshotCorrupt, "overlay"},
		"half a memory": {func(d string, _ *snapshot.Manifest) error {
			return os.Truncate(filepath.Join(d, snapshot.MemoryFile), 1<<20)
		}, api.ErrSnapshotCorrupt, "memory"},
		"tampered disk":  {func(d string, _ *snapshot.Manifest) error { return tamper(filepath.Join(d, snapshot.OverlayFile)) }, api.ErrSnapshotCorrupt, "digest"},
		"tampered state": {func(d string, _ *snapshot.Manifest) error { return tamper(filepath.Join(d, snapshot.StateFile)) }, api.ErrSnapshotCorrupt, "digest"},
	} {
		bad := h.badCopy(good, c.change)
		for _, args := range [][]string{{"create", "--snapshot", bad}, {"restore", "source", bad}} {
			if e := h.refused(args...); e.Code != c.code || !strings.Contains(e.Message, c.says) {
				t.Errorf("%s: vmsan %v says %+v", what, args, e)
			}
		}
		h.must("snapshot", "rm", bad)
	}
	// It was refused before anything was done to the sandbox.
	h.must("exec", "source", "true")
	h.must("run", "--snapshot", "good", "--", "true")
	if err := h.listIs(1); err != nil {
		t.Error(err)
	}
}

// TestSnapshotKeepsPolicy: what a sandbox may not reach, one that goes on from
// its snapshot may not reach either, unless that is asked for.
func TestSnapshotKeepsPolicy(t *testing.T) {
	t.Parallel()
	h := newHost(t)
	testenv.Lab(t)
	const good, bad = "198.51.100.10", "203.0.113.99"
	h.must("create", "--name", "source", "--allowed-cidr", good+"/32")
	h.must("snapshot", "create", "source", "--name", "saved")
	h.must("fork", "source", "--name", "fork")
	h.must("create", "--snapshot", "saved", "--name", "copy")
	h.must("create", "--snapshot", "saved", "--name", "other", "--allowed-cidr", bad+"/32")
	for name, reach := range map[string][2]string{"fork-1": {good, bad}, "copy": {good, bad}, "other": {bad, good}} {
		if got := h.reached(name, reach[0], reach[1]); got != reach[0] {
			t.Errorf("%s reaches %q, not %q", name, got, reach[0])
		}
	}
	// The sandbox's own policy is not part of what is put back.
	h.must("network", "source", "--network-policy", "deny-all")
	h.must("restore", "source", "saved")
	if got := h.sh("source", `timeout 5 bash -c "</dev/tcp/`+good+`/7" 2>/dev/null && echo `+good+`; true`); got != "" {
		t.Errorf("restored in place it reaches %q", got)
	}
}

// zeros is the digest of nothing that there is.
var zeros = strings.Repeat("0", 64)

// badCopy copies a snapshot and changes something about it.
func (h *host) badCopy(of string, change func(dir string, m *snapshot.Manifest) error) string {
	h.t.Helper()
	const bad = "snbadbadbad0"
	from, dir := filepath.Join(h.layout.Snapshots(), of), filepath.Join(h.layout.Snapshots(), bad)
	if err := os.MkdirAll(dir, 0o700); err != nil {
		h.t.Fatal(err)
	}
	for _, name := range []string{snapshot.MemoryFile, snapshot.StateFile, snapshot.OverlayFile} {
		sh(h.t, "cp --sparse=always "+filepath.Join(from, name)+" "+dir+" && chmod u+w "+filepath.Join(dir, name))
	}
	var m snapshot.Manifest
	raw, err := os.ReadFile(filepath.Join(from, "manifest.json"))
	if err == nil {
		err = json.Unmarshal(raw, &m)
	}
	m.ID, m.Name = bad, ""
	if err == nil {
		err = change(dir, &m)
	}
	if err == nil {
		raw, err = json.Marshal(m)
	}
	if err == nil {
		err = os.WriteFile(filepath.Join(dir, "manifest.json"), raw, 0o600)
	}
	if err != nil {
		h.t.Fatal(err)
	}
	return bad
}

// tamper changes the first byte of a file that is not zero.
func tamper(path string) error {
	file, err := os.OpenFile(path, os.O_RDWR, 0)
	if err != nil {
		return err
	}
	defer file.Close()
	b := make([]byte, 8192)
	n, err := file.Read(b)
	if err != nil {
		return err
	}
	for i, c := range b[:n] {
		if c != 0 {
			_, err := file.WriteAt([]byte{c ^ 1}, int64(i))
			return err
		}
	}
	return errors.New("it begins with nothing but zeros")
}
