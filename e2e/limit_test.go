package e2e

import (
	"context"
	"encoding/json"
	"io"
	"strings"
	"testing"
	"time"

	"github.com/vmsan/vmsan/api"
)

// awaitVM waits until a sandbox is as it should be.
func (h *host) awaitVM(t *testing.T, ref, what string, is func(api.VM) bool) api.VM {
	t.Helper()
	for deadline := time.Now().Add(patience); ; time.Sleep(100 * time.Millisecond) {
		vm := h.inspect(ref)
		if is(vm) {
			return vm
		}
		if time.Now().After(deadline) {
			t.Fatalf("VM %s is not %s: %+v", ref, what, vm)
		}
	}
}

// awaitStop waits until a sandbox is stopped, and checks why it was.
func (h *host) awaitStop(t *testing.T, ref, reason string) {
	t.Helper()
	h.must("wait", ref)
	vm := h.inspect(ref)
	if vm.Status != api.StatusStopped || vm.Reason != reason || vm.TimeoutAt != nil || vm.TimeoutLeftMs != 0 {
		t.Errorf("VM %s is %s: %q, until %v; want stopped: %q", ref, vm.Status, vm.Reason, vm.TimeoutAt, reason)
	}
}

const threePassed = "timeout: its limit of 3s has passed"

// N6: the limit holds when the command that set it is gone, begins anew with
// each start, and leaves nothing; TestMain's and newHost's checks look for that.
func TestTimeout(t *testing.T) {
	h := newHost(t)
	began := time.Now()
	h.must("create", "--name", "web", "--timeout", "3s")
	h.awaitStop(t, "web", threePassed)
	if took := time.Since(began); took < 3*time.Second {
		t.Errorf("it was stopped after %s", took)
	}
	h.must("start", "web")
	if vm := h.inspect("web"); vm.TimeoutMs != 3000 || vm.OnTimeout != "stop" || vm.Status == api.StatusRunning && vm.TimeoutAt == nil {
		t.Errorf("started again it has the limit %d ms, until %v", vm.TimeoutMs, vm.TimeoutAt)
	}
	h.awaitStop(t, "web", threePassed)
	if _, err := h.vmsan("extend", "web", "1h"); err == nil || !strings.Contains(err.Error(), "vmsan start") {
		t.Errorf("one that is stopped is extended: %v", err)
	}
	stops := h.events(t, "--vm", "web", "--type", "vm.stop")
	if len(stops) != 2 || stops[1].Reason != threePassed {
		t.Errorf("got events %v", stops)
	}
}

func TestExtend(t *testing.T) {
	h := newHost(t)
	h.must("create", "--name", "web", "--timeout", "60", "--network", "none") // minutes
	left := func() time.Duration {
		t.Helper()
		vm := h.inspect("web")
		if vm.TimeoutAt == nil {
			t.Fatalf("it has no limit: %+v", vm)
		}
		return time.Until(*vm.TimeoutAt)
	}
	if d := left(); d > time.Hour || d < time.Hour-patience {
		t.Errorf("%s are left of an hour", d)
	}
	if out := h.must("list"); !strings.Contains(out, "TIMEOUT") || !strings.Contains(out, "in 59m") && !strings.Contains(out, "in 60m") {
		t.Errorf("list does not have the limit: %s", out)
	}
	var extended api.VM
	if err := json.Unmarshal([]byte(h.must("extend", "web", "2h", "--json")), &extended); err != nil || extended.TimeoutAt == nil {
		t.Errorf("extend --json prints no VM with a limit: %+v, %v", extended, err)
	}
	if d := left(); d > 2*time.Hour || d < 2*time.Hour-patience {
		t.Errorf("%s are left of two hours", d)
	}
	// The clock stands while it is paused, also where its memory is on the disk.
	for _, pause := range [][]string{{"pause", "web"}, {"pause", "--reclaim", "web"}} {
		h.must(pause...)
		vm := h.inspect("web")
		if d := time.Duration(vm.TimeoutLeftMs) * time.Millisecond; vm.TimeoutAt != nil || d > 2*time.Hour || d < 2*time.Hour-patience {
			t.Errorf("%v: %s are left, until %v", pause, d, vm.TimeoutAt)
		}
		if out := h.must("list"); !strings.Contains(out, "1h left") {
			t.Errorf("list does not have what is left: %s", out)
		}
		h.must("resume", "web")
		if d := left(); d > 2*time.Hour || d < 2*time.Hour-patience {
			t.Errorf("%v: %s are left then", pause, d)
		}
	}
	h.must("pause", "--reclaim", "web")
	h.must("extend", "web", "none")
	h.must("resume", "web")
	if vm := h.inspect("web"); vm.TimeoutAt != nil {
		t.Errorf("it was lifted, and passes at %s", vm.TimeoutAt)
	}
	h.must("extend", "web", "3s")
	h.awaitStop(t, "web", threePassed)
}

// What is done when the limit has passed.
func TestOnTimeout(t *testing.T) {
	h := newHost(t)
	is := func(s api.Status) func(api.VM) bool { return func(vm api.VM) bool { return vm.Status == s } }

	h.must("create", "--name", "paused", "--timeout", "3s", "--on-timeout", "pause")
	vm := h.awaitVM(t, "paused", "paused", is(api.StatusPaused))
	if vm.Reason != threePassed {
		t.Errorf("it is paused because: %q", vm.Reason)
	}
	h.must("extend", "paused", "1h")
	h.must("resume", "paused")
	if got := h.must("exec", "paused", "echo", "goes on"); got != "goes on" {
		t.Errorf("got %q", got)
	}

	h.must("create", "--name", "saved", "--timeout", "1h", "--on-timeout", "snapshot")
	h.must("exec", "saved", "sh", "-c", "echo kept > /root/kept; sync")
	h.must("extend", "saved", "3s")
	h.awaitStop(t, "saved", threePassed)
	taken := h.events(t, "--vm", "saved", "--type", "snapshot.create")
	if len(taken) != 1 {
		t.Fatalf("%d snapshots were taken", len(taken))
	}
	h.must("create", "--name", "again", "--snapshot", taken[0].Snapshot)
	if got := h.must("exec", "again", "cat", "/root/kept"); got != "kept" {
		t.Errorf("the snapshot has %q", got)
	}
	if vm := h.inspect("again"); vm.TimeoutAt != nil {
		t.Errorf("a sandbox made of it has a limit too: %s", vm.TimeoutAt)
	}
	h.must("rm", "-f", "again", "saved", "paused")
	h.must("snapshot", "rm", taken[0].Snapshot)

	id := h.must("create", "--timeout", "3s", "--on-timeout", "remove")
	for deadline := time.Now().Add(patience); ; time.Sleep(100 * time.Millisecond) {
		if _, err := h.vmsan("inspect", id); err != nil {
			break
		}
		if time.Now().After(deadline) {
			t.Fatal("it is not removed")
		}
	}
	events := h.events(t, "--vm", id)
	if last := events[len(events)-1].Type; last != api.EventVMRemove {
		t.Errorf("the last that is told of it is %s", last)
	}
}

// client runs vmsan with an input that stays open, until kill is called.
func (h *host) client(t *testing.T, args ...string) (kill func()) {
	t.Helper()
	cmd := h.command(context.Background(), args...)
	stdin, err := cmd.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	stdout, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	kill = func() { cmd.Process.Kill(); cmd.Wait(); stdin.Close() }
	t.Cleanup(kill)
	// It runs once it has said something.
	if _, err := io.ReadFull(stdout, make([]byte, 1)); err != nil {
		t.Fatalf("%v says nothing: %v", args, err)
	}
	go io.Copy(io.Discard, stdout)
	return kill
}

// A terminal keeps its sandbox alive until its client is gone, unless that was
// not wanted.
func TestTerminalsExtend(t *testing.T) {
	t.Parallel()
	h := newHost(t)
	h.must("create", "--name", "web", "--timeout", "1h")
	kill := h.client(t, "exec", "-t", "web", "sh", "-c", "echo here; sleep 100000")
	h.must("extend", "web", "3s")
	first := h.inspect("web").TimeoutAt
	if first == nil {
		t.Fatal("it has no limit")
	}
	h.awaitVM(t, "web", "extended twice", func(vm api.VM) bool {
		return vm.Status != api.StatusRunning || vm.TimeoutAt != nil && vm.TimeoutAt.After(first.Add(4*time.Second))
	})
	if vm := h.inspect("web"); vm.Status != api.StatusRunning {
		t.Errorf("it is %s: %s", vm.Status, vm.Reason)
	}
	kill()
	h.awaitStop(t, "web", threePassed)

	h.must("start", "web")
	h.client(t, "exec", "-t", "--no-extend-timeout", "web", "sh", "-c", "echo here; sleep 100000")
	h.must("extend", "web", "3s")
	h.awaitStop(t, "web", threePassed)
}

const idlePassed = "timeout: it was idle for 8s"

// Work and clients keep a sandbox from being idle, and nothing else does.
func TestIdle(t *testing.T) {
	h := newHost(t)
	for _, name := range []string{"busy", "used", "quiet"} {
		h.must("create", "--name", name, "--idle-timeout", "8s")
	}
	pid := h.must("exec", "-d", "busy", "sh", "-c", "while :; do :; done")
	leave := h.client(t, "exec", "used", "sh", "-c", "echo here; sleep 100000")
	h.awaitStop(t, "quiet", idlePassed)
	// As long again, at least.
	h.must("start", "quiet")
	h.awaitStop(t, "quiet", idlePassed)
	for _, name := range []string{"busy", "used"} {
		if vm := h.inspect(name); vm.Status != api.StatusRunning {
			t.Errorf("the one that is %s is %s: %s", name, vm.Status, vm.Reason)
		}
	}
	h.must("kill", "busy", pid)
	leave()
	h.awaitStop(t, "busy", idlePassed)
	h.awaitStop(t, "used", idlePassed)
}
