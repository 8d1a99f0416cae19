package hooks

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/vmsan/vmsan/api"
	"github.com/vmsan/vmsan/internal/store"
)

// script puts an executable shell script into a directory of hooks.
func script(t *testing.T, dir string, hook api.Hook, name, text string) string {
	t.Helper()
	path := filepath.Join(dir, string(hook)+".d", name)
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(path, []byte("#!/bin/sh\n"+text+"\n"), 0o755); err != nil {
		t.Fatal(err)
	}
	return path
}

// set is that of dir, and what it logs.
func set(dir string) (Set, *bytes.Buffer) {
	var log bytes.Buffer
	return Set{Dir: dir, State: "/state", Log: slog.New(slog.NewTextHandler(&log, nil)), Timeout: time.Minute}, &log
}

func before(vm string) api.HookEvent { return api.HookEvent{Hook: api.HookBeforeStart, VM: vm} }

// Executables are told all of the event, after the program's own hooks and in
// the order of their names; what is no executable is left out.
func TestOrder(t *testing.T) {
	dir, out := t.TempDir(), filepath.Join(t.TempDir(), "out")
	script(t, dir, api.HookBeforeStart, "20-second", "echo second $VMSAN_HOOK $VMSAN_VM $VMSAN_DIR >>"+out+"; cat >>"+out)
	script(t, dir, api.HookBeforeStart, "10-first", "echo first >>"+out)
	script(t, dir, api.HookBeforeStart, ".hidden", "echo hidden >>"+out)
	script(t, dir, api.HookBeforeStart, "30-backup~", "echo backup >>"+out)
	script(t, dir, api.HookAfterStart, "10-other", "echo other >>"+out)
	if err := os.Chmod(script(t, dir, api.HookBeforeStart, "15-off", "echo off >>"+out), 0o644); err != nil {
		t.Fatal(err)
	}
	s, _ := set(dir)
	s.Code = []Hook{code{"own", func(context.Context, api.HookEvent) error {
		return os.WriteFile(out, []byte("own\n"), 0o600)
	}}}
	event := before("vm0123456789")
	event.State = &api.VM{ID: "vm0123456789", Name: "web", Status: api.StatusStopped}
	if err := s.Before(t.Context(), event); err != nil {
		t.Fatal(err)
	}
	got, err := os.ReadFile(out)
	if err != nil {
		t.Fatal(err)
	}
	head, told, _ := strings.Cut(string(got), "{")
	if want := "own\nfirst\nsecond vm:beforeStart vm0123456789 /state\n"; head != want {
		t.Errorf("ran %q, want %q", head, want)
	}
	var heard api.HookEvent
	if err := json.Unmarshal([]byte("{"+told), &heard); err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(event, heard); diff != "" {
		t.Errorf("told (-want +got):\n%s", diff)
	}
}

type code struct {
	name string
	run  func(context.Context, api.HookEvent) error
}

func (c code) Name() string { return c.name }

func (c code) Run(ctx context.Context, e api.HookEvent) error { return c.run(ctx, e) }

// The first hook that fails before something stops it and those behind; what it
// says last on stderr is why. After something all run, and failures are logged.
func TestFailure(t *testing.T) {
	dir, out := t.TempDir(), filepath.Join(t.TempDir(), "out")
	for _, hook := range []api.Hook{api.HookBeforeStart, api.HookAfterStart} {
		script(t, dir, hook, "10-refuses", `echo reading the rules >&2; printf 'no\033[2J more of them' >&2; exit 3`)
		script(t, dir, hook, "20-next", "echo ran >>"+out)
	}
	s, log := set(dir)
	err := s.Before(t.Context(), before("vm0123456789"))
	failure := api.AsError(err)
	if !api.HasCode(err, api.ErrHook) || !strings.HasSuffix(failure.Message, "10-refuses of vm:beforeStart: no?[2J more of them") ||
		failure.Hint == "" || failure.VM != "vm0123456789" {
		t.Errorf("Before: %+v", failure)
	}
	if _, err := os.Stat(out); err == nil {
		t.Error("a hook ran behind the one that failed")
	}
	s.After(t.Context(), api.HookEvent{Hook: api.HookAfterStart, VM: "vm0123456789"})
	if got, err := os.ReadFile(out); err != nil || string(got) != "ran\n" {
		t.Errorf("behind one that failed afterwards: %q, %v", got, err)
	}
	if !strings.Contains(log.String(), "no?[2J more of them") || !strings.Contains(log.String(), "vm=vm0123456789") {
		t.Errorf("logged: %s", log)
	}
}

// A hook without words fails with its exit status.
func TestSilentFailure(t *testing.T) {
	dir := t.TempDir()
	script(t, dir, api.HookBeforeStart, "h", "exit 7")
	s, _ := set(dir)
	if err := s.Before(t.Context(), before("")); err == nil || !strings.Contains(err.Error(), "exit status 7") {
		t.Errorf("got %v", err)
	}
}

// A hook that takes too long is killed with what it has started.
func TestTimeout(t *testing.T) {
	dir, pid := t.TempDir(), filepath.Join(t.TempDir(), "pid")
	script(t, dir, api.HookBeforeStart, "h", "sleep 1000 & echo $! >"+pid+"; wait")
	s, _ := set(dir)
	s.Timeout = 2 * time.Second
	err := s.Before(t.Context(), before(""))
	if !api.HasCode(err, api.ErrHook) || !strings.Contains(err.Error(), "it took longer than 2s") {
		t.Fatalf("got %v", err)
	}
	awaitDeath(t, pid)
}

// awaitDeath waits until the process whose number is in a file is gone.
func awaitDeath(t *testing.T, path string) {
	t.Helper()
	text, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	var pid int
	if _, err := fmt.Sscan(string(text), &pid); err != nil {
		t.Fatal(err)
	}
	for deadline := time.Now().Add(time.Minute); ; time.Sleep(10 * time.Millisecond) {
		state, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
		// Nobody may be there to wait for it but us.
		if err != nil || strings.Contains(string(state), ") Z ") {
			return
		}
		if time.Now().After(deadline) {
			syscall.Kill(pid, syscall.SIGKILL)
			t.Fatalf("process %d lives on: %s", pid, state)
		}
	}
}

// What happened has happened, whether the command is still waited for or not;
// what is to happen is not once the command is interrupted.
func TestInterrupted(t *testing.T) {
	dir, out := t.TempDir(), filepath.Join(t.TempDir(), "out")
	for _, hook := range []api.Hook{api.HookBeforeStart, api.HookAfterStart} {
		script(t, dir, hook, "h", "echo $VMSAN_HOOK >>"+out)
	}
	s, _ := set(dir)
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if err := s.Before(ctx, before("")); !errors.Is(err, context.Canceled) {
		t.Errorf("Before: %v", err)
	}
	s.After(ctx, api.HookEvent{Hook: api.HookAfterStart})
	if got, err := os.ReadFile(out); err != nil || string(got) != "vm:afterStart\n" {
		t.Errorf("ran %q, %v", got, err)
	}
}

// What a hook leaves running does not keep anybody waiting.
func TestBackground(t *testing.T) {
	dir, pid := t.TempDir(), filepath.Join(t.TempDir(), "pid")
	script(t, dir, api.HookBeforeStart, "h", "sleep 1000 & echo $! >"+pid)
	s, _ := set(dir)
	if err := s.Before(t.Context(), before("")); err != nil {
		t.Fatal(err)
	}
	var number int
	text, err := os.ReadFile(pid)
	if err == nil {
		_, err = fmt.Sscan(string(text), &number)
	}
	if err != nil {
		t.Fatal(err)
	}
	if err := syscall.Kill(number, syscall.SIGKILL); err != nil {
		t.Errorf("what it left running is gone: %v", err)
	}
}

// Nobody but root and the caller may have had a hand in what runs with the
// caller's rights.
func TestRefused(t *testing.T) {
	for name, spoil := range map[string]func(hook string) error{
		"file writable by the group":  func(hook string) error { return os.Chmod(hook, 0o775) },
		"file writable by all":        func(hook string) error { return os.Chmod(hook, 0o757) },
		"directory writable by all":   func(hook string) error { return os.Chmod(filepath.Dir(hook), 0o777) },
		"directory of hooks writable": func(hook string) error { return os.Chmod(filepath.Dir(filepath.Dir(hook)), 0o777) },
		"link into such a directory": func(hook string) error {
			open := filepath.Join(filepath.Dir(filepath.Dir(hook)), "open")
			if err := os.Mkdir(open, 0o777); err != nil {
				return err
			}
			if err := os.Chmod(open, 0o777); err != nil {
				return err
			}
			to := filepath.Join(open, "hook")
			return errors.Join(os.Rename(hook, to), os.Symlink(to, hook))
		},
		"link to nothing": func(hook string) error { return errors.Join(os.Remove(hook), os.Symlink("/nonexistent", hook)) },
	} {
		t.Run(name, func(t *testing.T) {
			dir := filepath.Join(t.TempDir(), "hooks")
			out := filepath.Join(t.TempDir(), "out")
			s, log := set(dir)
			hook := script(t, dir, api.HookBeforeStart, "h", "echo ran >"+out)
			script(t, dir, api.HookAfterStart, "h", "echo ran >"+out)
			if err := spoil(hook); err != nil {
				t.Fatal(err)
			}
			err := s.Before(t.Context(), before(""))
			if code := api.AsError(err).Code; code != api.ErrPermission && code != api.ErrHook || api.AsError(err).Hint == "" {
				t.Errorf("got %v", err)
			}
			if _, err := os.Stat(out); err == nil {
				t.Error("it ran")
			}
			if log.Len() > 0 {
				t.Errorf("logged %s", log)
			}
		})
	}
}

// A directory like /tmp is as good as one's own for what is one's own there.
func TestStickyDirectory(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "hooks")
	script(t, dir, api.HookBeforeStart, "h", "exit 0")
	if err := os.Chmod(dir, 0o777|os.ModeSticky); err != nil {
		t.Fatal(err)
	}
	s, _ := set(dir)
	if err := s.Before(t.Context(), before("")); err != nil {
		t.Error(err)
	}
}

func TestOwner(t *testing.T) {
	path := filepath.Join(t.TempDir(), "f")
	if err := os.WriteFile(path, nil, 0o755); err != nil {
		t.Fatal(err)
	}
	info, err := os.Stat(path)
	if err != nil {
		t.Fatal(err)
	}
	if err := checkAlone(path, info, os.Geteuid()); err != nil {
		t.Error(err)
	}
	if err := checkAlone(path, info, os.Geteuid()+1); os.Geteuid() != 0 && !api.HasCode(err, api.ErrPermission) {
		t.Errorf("another's file: %v", err)
	}
	if os.Geteuid() != 0 {
		return
	}
	if err := os.Chown(path, 12345, 0); err != nil {
		t.Fatal(err)
	}
	if info, err = os.Stat(path); err != nil {
		t.Fatal(err)
	}
	if err := checkAlone(path, info, 0); !api.HasCode(err, api.ErrPermission) {
		t.Errorf("another's file: %v", err)
	}
}

// A hook may say as much as it wants.
func TestMuchOutput(t *testing.T) {
	dir := t.TempDir()
	script(t, dir, api.HookBeforeStart, "h", "i=0; while [ $i -lt 5000 ]; do echo line $i of many >&2; i=$((i+1)); done; echo the last >&2; exit 1")
	s, _ := set(dir)
	if err := s.Before(t.Context(), before("")); err == nil || !strings.HasSuffix(err.Error(), ": the last") {
		t.Errorf("got %.200v", err)
	}
}

func TestNoHooks(t *testing.T) {
	s := Set{Dir: filepath.Join(t.TempDir(), "none"), Log: slog.New(slog.NewTextHandler(io.Discard, nil))}
	if err := s.Before(t.Context(), before("")); err != nil {
		t.Error(err)
	}
	s.After(t.Context(), api.HookEvent{Hook: api.HookAfterStart})
	Set{}.After(t.Context(), api.HookEvent{Hook: api.HookAfterStart})
}

// The names are those of the tool before, and of what its hooks lacked.
func TestEvents(t *testing.T) {
	record := &store.Record{ID: "vm0123456789", Status: api.StatusStopped, Spec: store.Spec{Network: "nat"}, Slot: 3}
	running, none := *record, *record
	running.Status = api.StatusRunning
	none.Spec.Network = "none"
	for name, test := range map[string]struct {
		events []api.HookEvent
		want   string
	}{
		"created": {CameUp(api.HookAfterCreate, api.StatusCreating, &running), "network:afterSetup state:change=creating>running vm:afterCreate"},
		"without": {CameUp(api.HookAfterStart, api.StatusStopped, &none), "state:change=stopped>stopped vm:afterStart"},
		"ended":   {Ended(&running, record), "network:afterTeardown state:change=running>stopped vm:afterStop"},
		"failed":  {Failed("start", record, true, errors.New("x")), "network:afterTeardown vm:error"},
	} {
		var got []string
		for _, e := range test.events {
			word := string(e.Hook)
			if e.Hook == api.HookStateChange {
				word += "=" + e.OldValue + ">" + e.NewValue
			}
			if e.VM != record.ID || e.State == nil {
				t.Errorf("%s: %s is not about the sandbox", name, e.Hook)
			}
			got = append(got, word)
		}
		if strings.Join(got, " ") != test.want {
			t.Errorf("%s: %v, want %s", name, got, test.want)
		}
	}
	setup := CameUp(api.HookAfterCreate, "", &running)[0].Network
	if setup == nil || setup.Device != "vmsan0123456789" || setup.Slot != 3 {
		t.Errorf("the network is %+v", setup)
	}
}
