package sandbox

import (
	"log/slog"
	"os"
	"os/exec"
	"path/filepath"
	"testing"
	"time"

	"github.com/vmsan/vmsan/api"
	"github.com/vmsan/vmsan/internal/store"
)

func testService(t *testing.T) *Service {
	t.Helper()
	dir := t.TempDir()
	layout := store.Layout{Dir: filepath.Join(dir, "state"), Run: filepath.Join(dir, "run")}
	service, err := Open(layout, slog.New(slog.DiscardHandler))
	if err != nil {
		t.Fatal(err)
	}
	return service
}

// died makes a sandbox that runs as its record says, while nobody holds its
// lock.
func (s *Service) died(t *testing.T, change func(*store.Record)) *store.Record {
	t.Helper()
	r := &store.Record{
		Status: api.StatusRunning, CreatedAt: time.Now(), StartedAt: time.Now(), Host: store.Host{BootID: store.BootID()},
	}
	change(r)
	lock, err := s.layout.Allocate(t.Context(), r, func(int) (bool, error) { return true, nil })
	if err != nil {
		t.Fatal(err)
	}
	defer lock.Release()
	if err := os.MkdirAll(s.layout.SandboxRun(r.ID), 0o700); err != nil {
		t.Fatal(err)
	}
	return r
}

// N10: what a dead monitor left is ended and removed, and the record says so.
func TestRepair(t *testing.T) {
	s := testService(t)
	vmm := exec.Command("sleep", "1000")
	if err := vmm.Start(); err != nil {
		t.Fatal(err)
	}
	ended := make(chan error, 1)
	go func() { ended <- vmm.Wait() }()
	defer vmm.Process.Kill()
	r := s.died(t, func(r *store.Record) { r.Host.VMM = store.ProcessOf(vmm.Process.Pid) })
	got, err := s.Get(t.Context(), r.ID)
	if err != nil {
		t.Fatal(err)
	}
	if err := <-ended; err == nil {
		t.Error("the VMM ended by itself")
	}
	if got.Status != api.StatusStopped || got.Reason != "its monitor died" || got.Host.VMM.PID != 0 || got.StoppedAt.IsZero() {
		t.Errorf("the record says %+v", got)
	}
	if _, err := os.Stat(s.layout.SandboxRun(r.ID)); err == nil {
		t.Error("the run directory is left")
	}
}

// N10: after a restart of the host no process is looked for, since the numbers
// are others'.
func TestRepairAfterRestart(t *testing.T) {
	s := testService(t)
	other := exec.Command("sleep", "1000")
	if err := other.Start(); err != nil {
		t.Fatal(err)
	}
	r := s.died(t, func(r *store.Record) {
		r.Host.BootID, r.Host.VMM = "another", store.ProcessOf(other.Process.Pid)
	})
	records, err := s.List(t.Context(), Filter{})
	if err != nil || len(records) != 1 {
		t.Fatal(records, err)
	}
	if got := records[0]; got.ID != r.ID || got.Status != api.StatusStopped || got.Reason != "host restarted" || !got.Interrupted {
		t.Errorf("list has %+v", got)
	}
	if store.ProcessOf(other.Process.Pid) == (store.Process{}) {
		t.Error("a process of this boot was ended")
	}
	other.Process.Kill()
	other.Wait()
}

// N10: of a sandbox that was never there for anybody nothing is left.
func TestRepairGone(t *testing.T) {
	s := testService(t)
	for name, change := range map[string]func(*store.Record){
		"ephemeral":     func(r *store.Record) { r.Ephemeral = true },
		"never started": func(r *store.Record) { r.Status, r.StartedAt = api.StatusCreating, time.Time{} },
	} {
		r := s.died(t, change)
		if _, err := s.Get(t.Context(), r.ID); !api.HasCode(err, api.ErrVMNotFound) {
			t.Errorf("%s: %v", name, err)
		}
		if records, err := s.List(t.Context(), Filter{}); err != nil || len(records) > 0 {
			t.Errorf("%s: list has %v, %v", name, records, err)
		}
		if _, err := os.Stat(s.layout.Sandbox(r.ID)); err == nil {
			t.Errorf("%s: its directory is left", name)
		}
	}
}

// A sandbox whose lock is held is alive, whatever else is wrong with it.
func TestRepairLeavesTheLiving(t *testing.T) {
	s := testService(t)
	r := s.died(t, func(*store.Record) {})
	lock, _, err := store.TryLock(s.layout.SandboxLock(r.ID))
	if err != nil {
		t.Fatal(err)
	}
	defer lock.Release()
	got, err := s.Get(t.Context(), r.ID)
	if err != nil || got.Status != api.StatusRunning {
		t.Errorf("Get: %+v, %v", got, err)
	}
	if _, err := s.Start(t.Context(), r.ID); !api.HasCode(err, api.ErrVMNotStopped) {
		t.Errorf("Start: %v", err)
	}
	if _, err := s.Remove(t.Context(), r.ID, false); !api.HasCode(err, api.ErrVMNotStopped) {
		t.Errorf("Remove: %v", err)
	}
}
