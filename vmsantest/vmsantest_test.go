package vmsantest_test

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"log"
	"strings"
	"testing"
	"testing/fstest"
	"time"

	"github.com/vmsan/vmsan"
	"github.com/vmsan/vmsan/api"
	"github.com/vmsan/vmsan/vmsantest"
)

// A test says what commands do.
func Example() {
	ctx := context.Background()
	service := vmsantest.New(func(_ context.Context, vm api.VM, command vmsan.Command) (vmsan.Exit, error) {
		fmt.Fprintf(command.Stdout, "%s runs %s\n", vm.Name, strings.Join(command.Args, " "))
		return vmsan.Exit{Code: 1}, nil
	})
	vm, err := service.Create(ctx, vmsan.CreateOptions{Name: "web"})
	if err != nil {
		log.Fatal(err)
	}
	out, err := vmsan.NewCmd(ctx, service, vm.ID, "make", "test").Output()
	fmt.Printf("%s%v\n", out, err)
	// Output:
	// web runs make test
	// exit status 1
}

// What a sandbox does is what vmsan's own do, with the same codes.
func TestLife(t *testing.T) {
	ctx := t.Context()
	var heard []string
	all := hook(func(_ context.Context, e api.HookEvent) error {
		heard = append(heard, string(e.Hook))
		return nil
	})
	s := vmsantest.New(nil, all)
	vm, err := s.Create(ctx, vmsan.CreateOptions{Name: "web", Labels: map[string]string{"a": "b"}})
	if err != nil || vm.Status != api.StatusRunning || vm.NetworkPolicy.Policy != "allow-all" {
		t.Fatalf("created %+v, %v", vm, err)
	}
	for what, test := range map[string]struct {
		err  error
		want api.Code
	}{
		"name taken":  {second(s.Create(ctx, vmsan.CreateOptions{Name: "web"})), api.ErrVMNameTaken},
		"not there":   {second(s.Get(ctx, "nosuch")), api.ErrVMNotFound},
		"not stopped": {second(s.Start(ctx, "web")), api.ErrVMNotStopped},
		"runs":        {s.Remove(ctx, "web", false), api.ErrVMNotStopped},
		"no command":  {vmsan.NewCmd(ctx, s, "web", "x").Run(), api.ErrExecNotFound},
		"no snapshot": {second(s.Create(ctx, vmsan.CreateOptions{Snapshot: "x"})), api.ErrSnapshotNotFound},
		"copy":        {second(s.Copy(ctx, "a", "web:b")), api.ErrUnsupported},
	} {
		if !api.HasCode(test.err, test.want) {
			t.Errorf("%s: %v, want %s", what, test.err, test.want)
		}
	}
	waited := make(chan error, 1)
	go func() {
		_, err := s.Wait(ctx, "web")
		waited <- err
	}()
	if vm, err = s.Pause(ctx, "web"); err != nil || vm.Status != api.StatusPaused {
		t.Errorf("paused %+v, %v", vm, err)
	}
	if _, err := s.Exec(ctx, "web", vmsan.Command{Args: []string{"x"}}); !api.HasCode(err, api.ErrVMNotRunning) {
		t.Errorf("a command in one that is paused: %v", err)
	}
	if vm, err = s.Resume(ctx, vm.ID[:5]); err != nil || vm.Status != api.StatusRunning {
		t.Errorf("resumed %+v, %v", vm, err)
	}
	change, err := s.SetNetworkPolicy(ctx, "web", api.NetworkPolicy{AllowedDomains: []string{"example.org"}}, false)
	if err != nil || change.Previous.Policy != "allow-all" || change.Current.Policy != "custom" {
		t.Errorf("network: %+v, %v", change, err)
	}
	if vm, err = s.Stop(ctx, "web", time.Second); err != nil || vm.Status != api.StatusStopped {
		t.Errorf("stopped %+v, %v", vm, err)
	}
	if err := <-waited; err != nil {
		t.Errorf("wait: %v", err)
	}
	if list, err := s.List(ctx, vmsan.Filter{Labels: map[string]string{"a": "b"}, Status: api.StatusStopped}); err != nil || len(list) != 1 {
		t.Errorf("listed %v, %v", list, err)
	}
	if _, err := s.Start(ctx, "web"); err != nil {
		t.Error(err)
	}
	if err := s.Remove(ctx, "web", true); err != nil {
		t.Error(err)
	}
	want := "vm:beforeCreate vm:afterCreate network:policyChange vm:beforeStop vm:afterStop vm:beforeStart vm:afterStart vm:beforeRemove vm:beforeStop vm:afterStop vm:afterRemove"
	if got := strings.Join(heard, " "); got != want {
		t.Errorf("heard %s, want %s", got, want)
	}
}

func second[T any](_ T, err error) error { return err }

type hook func(context.Context, api.HookEvent) error

func (hook) Name() string { return "test" }

func (h hook) Run(ctx context.Context, e api.HookEvent) error { return h(ctx, e) }

// Copies have the files, and change nothing of each other's.
func TestCopies(t *testing.T) {
	ctx := t.Context()
	s := vmsantest.New(nil)
	if _, err := s.Create(ctx, vmsan.CreateOptions{Name: "web"}); err != nil {
		t.Fatal(err)
	}
	files := filesOf(t, s, "web")
	if err := errors.Join(files.MkdirAll("srv"), files.WriteFile("srv/a", []byte("1"), 0o600)); err != nil {
		t.Fatal(err)
	}
	if _, err := s.Snapshot(ctx, "web", "ready"); err != nil {
		t.Fatal(err)
	}
	forks, err := s.Fork(ctx, "web", 2, "copy")
	if err != nil || len(forks) != 2 || forks[1].Name != "copy-2" {
		t.Fatalf("forks %v, %v", forks, err)
	}
	if err := filesOf(t, s, "copy-1").WriteFile("srv/a", []byte("2"), 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := s.Create(ctx, vmsan.CreateOptions{Name: "again", Snapshot: "ready"}); err != nil {
		t.Fatal(err)
	}
	for vm, want := range map[string]string{"web": "1", "copy-1": "2", "copy-2": "1", "again": "1"} {
		if got, err := fs.ReadFile(filesOf(t, s, vm), "srv/a"); string(got) != want {
			t.Errorf("%s has %q, %v", vm, got, err)
		}
	}
}

func filesOf(t *testing.T, s vmsan.Service, vm string) vmsan.Files {
	t.Helper()
	files, err := s.Files(t.Context(), vm)
	if err != nil {
		t.Fatal(err)
	}
	return files
}

func TestFiles(t *testing.T) {
	s := vmsantest.New(nil)
	if _, err := s.Create(t.Context(), vmsan.CreateOptions{Name: "web"}); err != nil {
		t.Fatal(err)
	}
	files := filesOf(t, s, "web")
	for _, err := range []error{
		files.MkdirAll("a/b"), files.WriteFile("a/b/c", []byte("c"), 0o644), files.WriteFile("a/d", nil, 0o600),
		files.MkdirAll("empty"), files.Rename("a/b", "x/y"), files.RemoveAll("a"), files.RemoveAll("nothing"),
	} {
		if err != nil {
			t.Fatal(err)
		}
	}
	if err := fstest.TestFS(files, "x/y/c", "empty"); err != nil {
		t.Error(err)
	}
	if _, err := files.Stat("a/d"); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("what was removed: %v", err)
	}
	for _, err := range []error{
		files.WriteFile("nowhere/f", nil, 0o600), files.WriteFile("/f", nil, 0o600), files.WriteFile("empty", nil, 0o600),
		files.MkdirAll("x/y/c"), files.Rename("x", "x/z"), files.Rename("nothing", "n"), files.RemoveAll("."), files.RemoveAll("../x"),
	} {
		var failed *fs.PathError
		if !errors.As(err, &failed) {
			t.Errorf("no path error: %v", err)
		}
	}
}

// A hook before something keeps it from happening.
func TestHookRefuses(t *testing.T) {
	s := vmsantest.New(nil, vmsan.On(api.HookBeforeCreate, "no", func(context.Context, api.HookEvent) error { return errors.New("no more") }))
	if _, err := s.Create(t.Context(), vmsan.CreateOptions{}); !api.HasCode(err, api.ErrHook) {
		t.Errorf("create: %v", err)
	}
	if list, err := s.List(t.Context(), vmsan.Filter{}); err != nil || len(list) != 0 {
		t.Errorf("there is %v, %v", list, err)
	}
}

// Events are what vmsan's are, for those who were there before and for those
// who wait.
func TestEvents(t *testing.T) {
	s := vmsantest.New(nil)
	if _, err := s.Create(t.Context(), vmsan.CreateOptions{Name: "web"}); err != nil {
		t.Fatal(err)
	}
	var heard []string
	done := errors.New("done")
	pausing := make(chan error, 1)
	err := s.FollowEvents(t.Context(), vmsan.EventFilter{VM: "web"}, func(e api.Event) error {
		heard = append(heard, string(e.Type))
		switch e.Type {
		case api.EventVMRunning:
			go func() { pausing <- second(s.Pause(t.Context(), "web")) }()
		case api.EventVMPause:
			return done
		}
		return nil
	})
	if err != done || <-pausing != nil {
		t.Error(err)
	}
	if got := strings.Join(heard, " "); got != "vm.create vm.running vm.pause" {
		t.Errorf("heard %s", got)
	}
	if events, err := s.Events(t.Context(), vmsan.EventFilter{Type: "vm.pause"}); err != nil || len(events) != 1 {
		t.Errorf("got %v, %v", events, err)
	}
	ended, cancel := context.WithCancel(t.Context())
	cancel()
	if err := s.FollowEvents(ended, vmsan.EventFilter{}, func(api.Event) error { return nil }); err != nil {
		t.Error(err)
	}
}
