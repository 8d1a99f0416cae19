package e2e

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/vmsan/vmsan/api"
	"github.com/vmsan/vmsan/internal/store"
)

// TestKilledWhileSaving kills the command, the monitor or the VMM, or interrupts
// the command, at some moment of everything that saves or restores machines.
// With the tests of load there are more moments.
func TestKilledWhileSaving(t *testing.T) {
	t.Parallel()
	h := newHost(t)
	rounds := 1
	if os.Getenv(loadVar) != "" {
		rounds = 6
	}
	h.must("create", "--name", "first")
	h.must("snapshot", "create", "first", "--name", "kept")
	h.must("rm", "-f", "first")
	for _, args := range [][]string{
		{"snapshot", "create", "source"}, {"snapshot", "create", "source", "--stop"}, {"restore", "source", "kept"},
		{"fork", "source", "--count", "2"}, {"pause", "--reclaim", "source"},
	} {
		for _, victim := range []string{"command", "monitor", "vmm", "interrupted command"} {
			for range rounds {
				h.killDuring(victim, args)
			}
		}
	}
	// The next to use the place for what is being made gives it back.
	h.must("create", "--name", "last")
	h.must("snapshot", "create", "last")
}

// killDuring has a victim killed while a command does something to the sandbox
// source, which is made for that.
func (h *host) killDuring(victim string, args []string) {
	h.t.Helper()
	h.must("create", "--name", "source")
	pids := h.inspect("source").PIDs
	// Those that end by themselves meanwhile are not taken for others.
	victims := map[string]*os.Process{"monitor": h.process(pids.Monitor), "vmm": h.process(pids.VMM)}
	cmd := h.command(context.Background(), args...)
	var said bytes.Buffer
	cmd.Stderr = &said
	if err := cmd.Start(); err != nil {
		h.t.Fatal(err)
	}
	wait := time.Duration(rand.IntN(700)) * time.Millisecond
	time.Sleep(wait)
	var err error
	switch victim {
	case "command":
		err = cmd.Process.Kill()
	case "interrupted command":
		err = cmd.Process.Signal(os.Interrupt)
	default:
		err = victims[victim].Kill()
	}
	if err != nil && !errors.Is(err, os.ErrProcessDone) {
		h.t.Fatal(err)
	}
	err = cmd.Wait()
	what := fmt.Sprintf("%s of %v killed after %s (%v: %s)", victim, args, wait, err, strings.TrimSpace(said.String()))
	for _, s := range h.snapshots() {
		if _, err := h.vmsan("snapshot", "inspect", s.ID, "--verify"); err != nil {
			h.t.Errorf("%s: a snapshot is listed: %v", what, err)
		}
		if s.Name != "kept" {
			h.must("snapshot", "rm", s.ID)
		}
	}
	h.checkUsable(what, "source")
	h.removeAll()
}

// process holds on to a process, by a pidfd.
func (h *host) process(pid int) *os.Process {
	h.t.Helper()
	p, err := os.FindProcess(pid)
	if err != nil {
		h.t.Fatal(err)
	}
	h.t.Cleanup(func() { p.Release() })
	return p
}

// checkUsable checks that a sandbox runs, or can be made to and says why it
// does not.
func (h *host) checkUsable(what, name string) {
	h.t.Helper()
	vm, err := h.use(what, name)
	if err != nil && vm.Status == api.StatusRunning && h.inspect(name).Status == api.StatusStopped {
		// A command that was killed had asked for its end already.
		vm, err = h.use(what, name)
	}
	if err != nil {
		log, _ := os.ReadFile(h.layout.MonitorLog(vm.ID))
		h.t.Errorf("%s: the source %s was %s (%s): %v\nits monitor says:\n%s", what, vm.Name, vm.Status, vm.Reason, err, log[max(0, len(log)-4<<10):])
	}
}

// use has a sandbox run, and runs a command there. vm is what it was before.
func (h *host) use(what, name string) (vm api.VM, err error) {
	h.t.Helper()
	vm = h.inspect(name)
	for deadline := time.Now().Add(time.Minute); vm.Status == api.StatusCreating && time.Now().Before(deadline); vm = h.inspect(name) {
		time.Sleep(50 * time.Millisecond)
	}
	switch vm.Status {
	case api.StatusRunning:
	case api.StatusPaused:
		_, err = h.vmsan("resume", name)
	case api.StatusStopped, api.StatusError:
		if vm.Reason == "" {
			h.t.Errorf("%s: the source is %s and does not say why", what, vm.Status)
		}
		_, err = h.vmsan("start", name)
	default:
		h.t.Errorf("%s: the source is %s", what, vm.Status)
	}
	if err == nil {
		_, err = h.vmsan("exec", "--no-stdin", name, "sh", "-c", "echo works >/root/works && sync")
	}
	return vm, err
}

// TestCommandsDuringSnapshots: a command that comes while its sandbox is saved
// waits, and then runs.
func TestCommandsDuringSnapshots(t *testing.T) {
	t.Parallel()
	h := newHost(t)
	h.must("create", "--name", "asked")
	stop, ended := make(chan struct{}), make(chan error, 1)
	go func() {
		for {
			select {
			case <-stop:
				ended <- nil
				return
			default:
			}
			if _, err := h.vmsan("exec", "--no-stdin", "asked", "sh", "-c", "echo asked >/root/asked"); err != nil {
				ended <- err
				return
			}
		}
	}()
	for range 15 {
		h.must("snapshot", "create", "asked")
	}
	close(stop)
	if err := <-ended; err != nil {
		t.Error(err)
	}
}

// TestFullDisk has no room for what is to be saved: nothing is listed, nothing
// is left, and the sandbox goes on.
func TestFullDisk(t *testing.T) {
	h := newHost(t)
	// With a file system of its own that keeps holes, as tmpfs does not.
	dir := t.TempDir()
	disk := filepath.Join(t.TempDir(), "disk")
	sh(t, "truncate -s 3G "+disk+" && mkfs.ext4 -q -m 0 "+disk+" && mount -o loop "+disk+" "+dir)
	small := &host{t: t, layout: h.layout, binary: h.binary, ids: map[string]bool{}}
	small.layout.Dir = filepath.Join(dir, "state")
	defer func() {
		small.removeAll()
		if err := syscall.Unmount(dir, 0); err != nil {
			t.Error(err)
		}
		os.RemoveAll(small.layout.Run)
	}()
	sh(t, "cp -a --sparse=always "+h.layout.Dir+" "+small.layout.Dir)
	small.must("create", "--name", "source")
	fill(t, filepath.Join(dir, "filler"), 8<<20)
	for _, args := range [][]string{
		{"snapshot", "create", "source"}, {"snapshot", "create", "source", "--stop"}, {"fork", "source"}, {"pause", "--reclaim", "source"},
	} {
		if e := small.refused(args...); e.Code != api.ErrDiskFull {
			t.Errorf("vmsan %v says %+v", args, e)
		}
		if vm := small.inspect("source"); vm.Status != api.StatusRunning {
			t.Errorf("after vmsan %v the source is %s: %s", args, vm.Status, vm.Reason)
		}
		small.must("exec", "--no-stdin", "source", "sh", "-c", "echo on >/run/on")
		if left := names(t, small.layout.Tmp()); len(left) > 0 {
			t.Errorf("vmsan %v leaves %v", args, left)
		}
	}
	if list := small.snapshots(); len(list) > 0 {
		t.Errorf("there are snapshots: %v", list)
	}
	if e := small.refused("create", "--name", "another"); e.Code != api.ErrDiskFull {
		t.Errorf("another is refused with %+v", e)
	}
	small.standsStill("source", filepath.Join(dir, "filler"))
}

// standsStill has a sandbox write more than the host has room for, which it gets
// when a file is removed. What was written is there.
func (h *host) standsStill(name, filler string) {
	h.t.Helper()
	const write = `head -c 64M /dev/urandom >/run/data && cp /run/data /root/data && sync &&
sysctl -q vm.drop_caches=3 && cmp /run/data /root/data && echo whole`
	written := make(chan error, 1)
	go func() {
		out, err := h.vmsan("exec", "--no-stdin", name, "sh", "-c", write)
		if err == nil && out != "whole\n" {
			err = fmt.Errorf("it says %q", out)
		}
		written <- err
	}()
	for deadline := time.Now().Add(patience); h.inspect(name).Reason != store.StalledReason; time.Sleep(50 * time.Millisecond) {
		if time.Now().After(deadline) {
			h.t.Fatal("nothing says that the sandbox stands still")
		}
	}
	select {
	case err := <-written:
		h.t.Fatalf("it was written where there is no room: %v", err)
	case <-time.After(2 * stallLook):
	}
	if err := os.Remove(filler); err != nil {
		h.t.Fatal(err)
	}
	select {
	case err := <-written:
		if err != nil {
			h.t.Error(err)
		}
	case <-time.After(patience):
		h.t.Fatal("it does not go on when there is room")
	}
	if vm := h.inspect(name); vm.Status != api.StatusRunning || vm.Reason != "" {
		h.t.Errorf("it is %s: %s", vm.Status, vm.Reason)
	}
}

// stallLook is how often a monitor looks whether there is room again.
const stallLook = time.Second

// fill leaves so many bytes of a file system.
func fill(t *testing.T, path string, left uint64) {
	t.Helper()
	var fs syscall.Statfs_t
	if err := syscall.Statfs(filepath.Dir(path), &fs); err != nil {
		t.Fatal(err)
	}
	file, err := os.Create(path)
	if err == nil {
		err = syscall.Fallocate(int(file.Fd()), 0, 0, int64(fs.Bavail*uint64(fs.Bsize)-left))
		file.Close()
	}
	if err != nil {
		t.Fatal(err)
	}
}

// templateIDs lists the templates there are.
func (h *host) templateIDs() []string {
	h.t.Helper()
	return names(h.t, h.layout.Templates())
}

// awaitTemplates waits until there are n templates, and the sandboxes that
// they are made of are gone.
func (h *host) awaitTemplates(n int) {
	h.t.Helper()
	for deadline := time.Now().Add(patience); len(h.templateIDs()) != n || len(names(h.t, h.layout.Sandboxes())) > 0; {
		if time.Now().After(deadline) {
			h.t.Fatalf("there are the templates %v, not %d", h.templateIDs(), n)
		}
		time.Sleep(100 * time.Millisecond)
	}
}

// TestTemplates makes sandboxes of a kind that there is no template of.
func TestTemplates(t *testing.T) {
	t.Parallel()
	h := newHost(t)
	h.env = []string{"VMSAN_TEMPLATES="}
	sh(t, "rm -rf "+h.layout.Templates()+"/*")
	kind := []string{"--memory", "136", "--network", "none"}
	trace := func(more ...string) string {
		_, stderr := h.both(append(append(append([]string{"run", "--trace"}, kind...), more...), "--", "true")...)
		return stderr
	}
	await := func(n int) string {
		t.Helper()
		h.awaitTemplates(n)
		return strings.Join(h.templateIDs(), "")
	}

	if got := trace("--cold"); strings.Contains(got, "restored") {
		t.Errorf("a cold start says\n%s", got)
	}
	time.Sleep(time.Second)
	await(0)

	const secret = "c0rrecthorsebatterystaple"
	if got := trace("--env", "SECRET="+secret, "--name", "name-"+secret, "--label", "l="+secret); strings.Contains(got, "restored") {
		t.Errorf("the first start says\n%s", got)
	}
	id := await(1)
	for _, file := range names(t, filepath.Join(h.layout.Templates(), id)) {
		if holds(t, filepath.Join(h.layout.Templates(), id, file), secret) {
			t.Errorf("%s of the template has what is the user's", file)
		}
	}
	if got := trace(); !strings.Contains(got, "restored") {
		t.Errorf("the second start says\n%s", got)
	}
	if got := trace("--cold"); strings.Contains(got, "restored") {
		t.Errorf("a cold start says\n%s", got)
	}

	// One that does not fit this host any more is made again.
	sh(t, fmt.Sprintf(`f=%s/%s/manifest.json; sed 's/"vmm_version": "[^"]*"/"vmm_version": "0.1"/' $f >$f.new && mv $f.new $f`, h.layout.Templates(), id))
	if got := trace(); strings.Contains(got, "restored") {
		t.Errorf("a start from a template of another VMM says\n%s", got)
	}
	if next := await(1); next == id {
		t.Error("the template of another VMM is still there")
	}

	// A maker that is killed leaves nothing.
	sh(t, "rm -rf "+h.layout.Templates()+"/*")
	trace()
	time.Sleep(time.Second)
	h.killMaker()
	await(0)
	trace()
	await(1)
}

// killMaker kills the process that makes a template.
func (h *host) killMaker() {
	h.t.Helper()
	all, err := filepath.Glob("/proc/[0-9]*/cmdline")
	if err != nil {
		h.t.Fatal(err)
	}
	for _, path := range all {
		line, _ := os.ReadFile(path)
		if bytes.Contains(line, []byte("make-template\x00"+h.layout.Dir)) {
			var pid int
			fmt.Sscanf(path, "/proc/%d/", &pid)
			if err := syscall.Kill(pid, syscall.SIGKILL); err != nil {
				h.t.Fatal(err)
			}
			return
		}
	}
	h.t.Fatal("nobody makes a template")
}

// both is must with stderr.
func (h *host) both(args ...string) (stdout, stderr string) {
	h.t.Helper()
	cmd := h.command(h.t.Context(), args...)
	var out, errs bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &errs
	if err := cmd.Run(); err != nil {
		h.t.Fatal(&failure{args, err, errs.String()})
	}
	return out.String(), errs.String()
}

// holds tells whether a text is in a file, which may be large.
func holds(t *testing.T, path, text string) bool {
	t.Helper()
	file, err := os.Open(path)
	if err != nil {
		t.Fatal(err)
	}
	defer file.Close()
	b := make([]byte, 4<<20)
	kept := 0
	for {
		n, err := io.ReadFull(file, b[kept:])
		if bytes.Contains(b[:kept+n], []byte(text)) {
			return true
		}
		if err != nil {
			return false
		}
		kept = copy(b, b[len(b)-len(text):])
	}
}

// TestHungProcess: whichever of a sandbox's processes does not answer any more,
// others are told of the sandbox. Without its VMM or gate it can be stopped and
// started again; without its monitor it can be removed.
func TestHungProcess(t *testing.T) {
	t.Parallel()
	h := newHost(t)
	h.must("create", "--name", "box", "--network-policy", "allow-all")
	h.must("exec", "--no-stdin", "box", "sh", "-c", "echo acknowledged >/root/file; sync")
	for _, kind := range []string{"VMM", "paused VMM", "gate", "monitor"} {
		if kind == "paused VMM" {
			h.must("pause", "box")
		}
		pids := h.inspect("box").PIDs
		pid := map[string]int{"VMM": pids.VMM, "paused VMM": pids.VMM, "gate": pids.Gate, "monitor": pids.Monitor}[kind]
		if pid == 0 {
			t.Fatalf("there is no %s", kind)
		}
		if err := h.process(pid).Signal(syscall.SIGSTOP); err != nil {
			t.Fatal(err)
		}
		began := time.Now()
		h.must("list")
		h.inspect("box")
		looked := time.Since(began)
		if kind == "monitor" {
			break
		}
		h.must("stop", "--timeout", "1s", "box")
		t.Logf("%s hangs: looked at in %s, stopped %s after", kind, looked.Round(time.Millisecond), (time.Since(began) - looked).Round(time.Millisecond))
		if reason := h.inspect("box").Reason; strings.Contains(reason, "monitor") {
			t.Errorf("%s hangs: the monitor was killed: %s", kind, reason)
		}
		h.must("start", "box")
		h.checkBox("after its " + kind + " hung")
	}
	h.must("rm", "-f", "box")
}
