package vmsan_test

import (
	"bytes"
	"context"
	"errors"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"testing/fstest"
	"time"

	"github.com/vmsan/vmsan"
	"github.com/vmsan/vmsan/api"
	"github.com/vmsan/vmsan/internal/store"
	"github.com/vmsan/vmsan/internal/testenv"
)

// open is a service on a state directory of the test's own.
func open(t *testing.T, o vmsan.Options) vmsan.Service {
	t.Helper()
	o.Dir = testenv.RequireVM(t).Dir
	s, err := vmsan.Open(o)
	if err != nil {
		t.Fatal(err)
	}
	return s
}

// create makes a sandbox that is removed at the end.
func create(t *testing.T, s vmsan.Service, o vmsan.CreateOptions) api.VM {
	t.Helper()
	vm, err := s.Create(t.Context(), o)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { remove(t, s, vm.ID) })
	return vm
}

func remove(t *testing.T, s vmsan.Service, id string) {
	t.Helper()
	if err := s.Remove(context.WithoutCancel(t.Context()), id, true); err != nil && !api.HasCode(err, api.ErrVMNotFound) {
		t.Error(err)
	}
}

// output runs a command that has to succeed.
func output(t *testing.T, s vmsan.Service, vm string, args ...string) string {
	t.Helper()
	out, err := vmsan.NewCmd(t.Context(), s, vm, args[0], args[1:]...).Output()
	if err != nil {
		t.Fatalf("%v: %v", args, err)
	}
	return strings.TrimSpace(string(out))
}

// One sandbox through its life, by the library alone.
func TestLife(t *testing.T) {
	testenv.RequireRoot(t)
	ctx := t.Context()
	var heard []api.Hook
	s := open(t, vmsan.Options{Hooks: []vmsan.Hook{vmsan.On(api.HookAfterStart, "test", func(_ context.Context, e api.HookEvent) error {
		heard = append(heard, e.Hook)
		return nil
	})}})
	vm := create(t, s, vmsan.CreateOptions{
		Name: "web", Labels: map[string]string{"tier": "front"}, Env: map[string]string{"COLOUR": "green"},
		NetworkPolicy: api.NetworkPolicy{Policy: "deny-all"},
	})
	if vm.Status != api.StatusRunning || vm.Name != "web" || vm.NetworkPolicy.Policy != "deny-all" {
		t.Fatalf("created %+v", vm)
	}
	if got := output(t, s, "web", "sh", "-c", "echo $COLOUR"); got != "green" {
		t.Errorf("the environment has %q", got)
	}
	if list, err := s.List(ctx, vmsan.Filter{Labels: map[string]string{"tier": "front"}}); err != nil || len(list) != 1 || list[0].ID != vm.ID {
		t.Errorf("listed %v, %v", list, err)
	}
	change, err := s.SetNetworkPolicy(ctx, "web", api.NetworkPolicy{AllowedDomains: []string{"example.org"}}, false)
	if err != nil || change.Previous.Policy != "deny-all" || change.Current.Policy != "custom" {
		t.Errorf("network: %+v, %v", change, err)
	}
	if vm, err = s.Pause(ctx, "web"); err != nil || vm.Status != api.StatusPaused {
		t.Errorf("paused: %v, %v", vm.Status, err)
	}
	if _, err := s.Exec(ctx, "web", vmsan.Command{Args: []string{"true"}}); !api.HasCode(err, api.ErrVMNotRunning) {
		t.Errorf("a command in one that is paused: %v", err)
	}
	if vm, err = s.Resume(ctx, "web"); err != nil || vm.Status != api.StatusRunning {
		t.Errorf("resumed: %v, %v", vm.Status, err)
	}
	output(t, s, "web", "sh", "-c", "echo kept >/root/f; sync")
	if vm, err = s.Stop(ctx, "web", 30*time.Second); err != nil || vm.Status != api.StatusStopped {
		t.Errorf("stopped: %v, %v", vm.Status, err)
	}
	if vm, err = s.Start(ctx, "web"); err != nil || vm.Status != api.StatusRunning {
		t.Errorf("started: %v, %v", vm.Status, err)
	}
	if got := output(t, s, "web", "cat", "/root/f"); got != "kept" {
		t.Errorf("its disk has %q", got)
	}
	if len(heard) != 1 {
		t.Errorf("heard %v", heard)
	}
	if err := s.Remove(ctx, "web", false); !api.HasCode(err, api.ErrVMNotStopped) {
		t.Errorf("remove of one that runs: %v", err)
	}
	if err := s.Remove(ctx, "web", true); err != nil {
		t.Error(err)
	}
	if _, err := s.Get(ctx, "web"); !api.HasCode(err, api.ErrVMNotFound) {
		t.Errorf("after its removal: %v", err)
	}
	const want = "vm.create vm.start vm.running vm.policy vm.pause vm.resume vm.stop vm.start vm.running vm.stop vm.remove"
	if got := happened(t, s, vm.ID); got != want {
		t.Errorf("what happened was %s, want %s", got, want)
	}
}

// happened are the types of a sandbox's events.
func happened(t *testing.T, s vmsan.Service, vm string) string {
	t.Helper()
	events, err := s.Events(t.Context(), vmsan.EventFilter{VM: vm})
	if err != nil {
		t.Error(err)
	}
	var types []string
	for _, e := range events {
		types = append(types, string(e.Type))
	}
	return strings.Join(types, " ")
}

// What is to happen is heard of when it does, and a limit of time is one.
func TestEvents(t *testing.T) {
	testenv.RequireRoot(t)
	s := open(t, vmsan.Options{})
	vm := create(t, s, vmsan.CreateOptions{Network: "none", Timeout: time.Hour, OnTimeout: "pause"})
	if vm.TimeoutAt == nil || vm.OnTimeout != "pause" {
		t.Errorf("its limit is %v, and then %q", vm.TimeoutAt, vm.OnTimeout)
	}
	vm, err := s.Extend(t.Context(), vm.ID, time.Second)
	if err != nil {
		t.Fatal(err)
	}
	found := errors.New("found")
	err = s.FollowEvents(t.Context(), vmsan.EventFilter{VM: vm.ID, Type: "vm.pause"}, func(e api.Event) error { return found })
	if err != found {
		t.Error(err)
	}
	if _, err := s.Events(t.Context(), vmsan.EventFilter{Type: "nosuch"}); !api.HasCode(err, api.ErrValidationChoice) {
		t.Errorf("of a type that is none: %v", err)
	}
}

// A snapshot and forks go on from what the memory was.
func TestCopies(t *testing.T) {
	testenv.RequireRoot(t)
	ctx := t.Context()
	s := open(t, vmsan.Options{})
	create(t, s, vmsan.CreateOptions{Name: "web", Network: "none"})
	output(t, s, "web", "sh", "-c", "echo here >/dev/shm/f")
	saved, err := s.Snapshot(ctx, "web", "ready")
	if err != nil {
		t.Fatal(err)
	}
	forks, err := s.Fork(ctx, "web", 2, "copy")
	if err != nil || len(forks) != 2 {
		t.Fatalf("forks %v, %v", forks, err)
	}
	for _, fork := range forks {
		t.Cleanup(func() { remove(t, s, fork.ID) })
	}
	create(t, s, vmsan.CreateOptions{Name: "again", Snapshot: "ready"})
	for _, vm := range []string{"copy-1", "copy-2", "again"} {
		if got := output(t, s, vm, "cat", "/dev/shm/f"); got != "here" {
			t.Errorf("%s has %q", vm, got)
		}
	}
	if all, err := s.Snapshots(ctx); err != nil || len(all) != 1 || all[0].ID != saved.ID {
		t.Errorf("snapshots %v, %v", all, err)
	}
	if err := s.DeleteSnapshot(ctx, "ready"); err != nil {
		t.Error(err)
	}
}

// The guest's files are what package io/fs wants them to be, and what the host
// has copied arrives.
func TestFiles(t *testing.T) {
	testenv.RequireRoot(t)
	s := open(t, vmsan.Options{})
	vm := create(t, s, vmsan.CreateOptions{Network: "none"})
	files, err := s.Files(t.Context(), vm.ID)
	if err != nil {
		t.Fatal(err)
	}
	defer files.Close()
	large := bytes.Repeat([]byte("0123456789abcdef"), 1<<18) // 4 MiB
	for _, err := range []error{
		files.MkdirAll("srv/tree/sub/empty"), files.MkdirAll("srv/tree"),
		files.WriteFile("srv/tree/sub/large", large, 0o640), files.WriteFile("srv/tree/none", nil, 0o600),
		files.WriteFile("srv/tree/old", []byte("old"), 0o755), files.Rename("srv/tree/old", "srv/tree/made/new"),
		files.RemoveAll("srv/nothing"),
	} {
		if err != nil {
			t.Fatal(err)
		}
	}
	output(t, s, vm.ID, "sh", "-c", "ln -s sub/large /srv/tree/link; ln -s nowhere /srv/tree/broken; mkfifo /srv/pipe")
	if got := output(t, s, vm.ID, "stat", "-c", "%a %s", "/srv/tree/sub/large", "/srv/tree/none", "/srv/tree/made/new"); got != "640 4194304\n600 0\n755 3" {
		t.Errorf("the guest sees %q", got)
	}
	if got, err := files.ReadFile("srv/tree/link"); err != nil || !bytes.Equal(got, large) {
		t.Errorf("through a link: %d bytes, %v", len(got), err)
	}
	if info, err := files.Stat("srv/tree/link"); err != nil || info.Size() != int64(len(large)) || info.Mode() != 0o640 || info.Name() != "link" {
		t.Errorf("through a link: %v, %v", info, err)
	}
	if got, err := files.ReadFile("proc/version"); err != nil || !strings.HasPrefix(string(got), "Linux") {
		t.Errorf("/proc/version: %q, %v", got, err)
	}
	output(t, s, vm.ID, "rm", "/srv/tree/broken", "/srv/tree/link")
	tree, err := fs.Sub(files, "srv/tree")
	if err != nil {
		t.Fatal(err)
	}
	if err := fstest.TestFS(tree, "sub/large", "none", "made/new", "sub/empty"); err != nil {
		t.Error(err)
	}
	for what, err := range map[string]error{
		"not there": second(files.Open("srv/tree/nosuch")), "broken": second(files.Stat("srv/tree/broken")),
		"no directory": files.WriteFile("srv/nosuch/f", nil, 0o600), "rename nothing": files.Rename("srv/nosuch", "srv/x"),
	} {
		var failed *fs.PathError
		if !errors.As(err, &failed) || !errors.Is(err, fs.ErrNotExist) && what != "no directory" {
			t.Errorf("%s: %v", what, err)
		}
	}
	for what, err := range map[string]error{
		"pipe": second(files.ReadFile("srv/pipe")), "directory": second(files.ReadFile("srv")), "root": files.RemoveAll("."),
		"above": second(files.Open("../etc/passwd")), "absolute": second(files.Open("/etc/passwd")),
		"directory over a file": files.MkdirAll("srv/tree/none"),
	} {
		if err == nil {
			t.Errorf("%s: no error", what)
		}
	}
	here := filepath.Join(t.TempDir(), "f")
	if err := os.WriteFile(here, []byte("from the host"), 0o600); err != nil {
		t.Fatal(err)
	}
	if n, err := s.Copy(t.Context(), here, vm.ID+":/srv/f"); err != nil || n.Files != 1 {
		t.Errorf("copied %+v, %v", n, err)
	}
	if got, err := fs.ReadFile(files, "srv/f"); err != nil || string(got) != "from the host" {
		t.Errorf("the copy has %q, %v", got, err)
	}
	if _, err := s.Copy(t.Context(), "-", vm.ID+":/srv"); !api.HasCode(err, api.ErrValidationPath) {
		t.Errorf("a stream: %v", err)
	}
}

func second[T any](_ T, err error) error { return err }

// A command ends with its context, and what it says is kept apart.
func TestCommands(t *testing.T) {
	testenv.RequireRoot(t)
	s := open(t, vmsan.Options{})
	vm := create(t, s, vmsan.CreateOptions{Network: "none"})
	_, err := vmsan.NewCmd(t.Context(), s, vm.ID, "sh", "-c", "echo out; echo why >&2; kill -9 $$").Output()
	var failed *vmsan.ExitError
	if !errors.As(err, &failed) || failed.Signal != 9 || string(failed.Stderr) != "why\n" || err.Error() != "signal 9" {
		t.Errorf("killed: %v, %+v", err, failed)
	}
	both, err := vmsan.NewCmd(t.Context(), s, vm.ID, "sh", "-c", "echo out; echo why >&2").CombinedOutput()
	if err != nil || len(both) != len("out\nwhy\n") {
		t.Errorf("both: %q, %v", both, err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	slow := vmsan.NewCmd(ctx, s, vm.ID, "sh", "-c", "echo ready; exec sleep 1000")
	started, ready := make(chan struct{}), false
	slow.Stdout = writer(func(b []byte) {
		if !ready {
			ready = true
			close(started)
		}
	})
	if err := slow.Start(); err != nil {
		t.Fatal(err)
	}
	<-started
	cancel()
	if err := slow.Wait(); !errors.Is(err, context.Canceled) {
		t.Errorf("canceled: %v", err)
	}
	if err := slow.Wait(); err == nil {
		t.Error("waited for twice")
	}
	for _, c := range []vmsan.Command{{}, {Args: []string{""}}, {Args: []string{"a"}, Dir: "relative"}, {Args: []string{"a"}, User: "a b"}} {
		if _, err := s.Exec(t.Context(), vm.ID, c); err == nil {
			t.Errorf("%+v: no error", c)
		}
	}
}

type writer func([]byte)

func (w writer) Write(b []byte) (int, error) {
	w(b)
	return len(b), nil
}

// Without the vmsan program all works but to start sandboxes, which says why.
func TestNoProgram(t *testing.T) {
	testenv.RequireRoot(t)
	s := open(t, vmsan.Options{Binary: "/nonexistent/vmsan"})
	if list, err := s.List(t.Context(), vmsan.Filter{}); err != nil || len(list) != 0 {
		t.Errorf("list: %v, %v", list, err)
	}
	_, err := s.Create(t.Context(), vmsan.CreateOptions{Network: "none"})
	if !api.HasCode(err, api.ErrSetupMissingBinary) || !strings.Contains(api.AsError(err).Hint, "vmsan.Options.Binary") {
		t.Errorf("create: %+v", api.AsError(err))
	}
	other := open(t, vmsan.Options{Binary: "true"})
	if _, err := other.Create(t.Context(), vmsan.CreateOptions{Network: "none"}); err == nil || !strings.Contains(err.Error(), "died before it could say why") {
		t.Errorf("with another program: %v", err)
	}
}

// A program that calls Main needs no other, unless it needs libraries.
func TestEmbedded(t *testing.T) {
	testenv.RequireRoot(t)
	dir := testenv.RequireVM(t).Dir
	program := filepath.Join(t.TempDir(), "embed")
	build := exec.Command("go", "build", "-o", program, "./examples/embed")
	build.Env = append(os.Environ(), "CGO_ENABLED=0")
	if out, err := build.CombinedOutput(); err != nil {
		t.Fatalf("build: %v: %s", err, out)
	}
	run := exec.Command(program, "sh", "-c", "read line; echo guest says $line")
	run.Env = append(os.Environ(), "VMSAN_DIR="+dir, "PATH="+withoutVmsan())
	run.Stdin = strings.NewReader("hello\n")
	out, err := run.CombinedOutput()
	if err != nil || string(out) != "guest says hello\n" {
		t.Errorf("%v: %s", err, out)
	}
}

// withoutVmsan is the search path but for where vmsan is.
func withoutVmsan() string {
	var kept []string
	for _, dir := range filepath.SplitList(os.Getenv("PATH")) {
		if _, err := os.Stat(filepath.Join(dir, "vmsan")); err != nil {
			kept = append(kept, dir)
		}
	}
	return strings.Join(kept, ":")
}

func TestOpen(t *testing.T) {
	for _, o := range []vmsan.CreateOptions{
		{Volumes: []string{"data"}}, {Publish: []string{"x"}}, {Resolvers: []string{"x"}}, {Bandwidth: "x"}, {VCPUs: -1}, {Name: "a b"},
		{NetworkPolicy: api.NetworkPolicy{Policy: "open"}},
	} {
		layout, err := store.NewLayout(filepath.Join(t.TempDir(), "state"))
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { os.RemoveAll(layout.Run) })
		s, err := vmsan.Open(vmsan.Options{Dir: layout.Dir})
		if err != nil {
			t.Fatal(err)
		}
		if _, err := s.Create(t.Context(), o); err == nil || api.AsError(err).Code == api.ErrInternal {
			t.Errorf("%+v: %v", o, err)
		}
	}
}
