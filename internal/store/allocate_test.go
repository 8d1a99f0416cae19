package store

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"golang.org/x/sync/errgroup"

	"github.com/vmsan/vmsan/api"
)

// S2, L3: sandboxes made at once get ids and slots of their own, and of those
// that want the same name one gets it.
func TestAllocateParallel(t *testing.T) {
	l := testLayout(t)
	const each = 16
	var all errgroup.Group
	refused := make(chan struct{}, each)
	for i := range each {
		all.Go(func() error {
			return allocateOne(t.Context(), l, fmt.Sprintf("name%d", i), nil)
		})
		all.Go(func() error {
			return allocateOne(t.Context(), l, "same", refused)
		})
	}
	if err := all.Wait(); err != nil {
		t.Fatal(err)
	}
	if len(refused) != each-1 {
		t.Errorf("the same name was refused %d times, not %d", len(refused), each-1)
	}
	records, broken, err := l.List()
	if err != nil || len(broken) > 0 {
		t.Fatal(err, broken)
	}
	slots, names := map[int]bool{}, map[string]bool{}
	for _, r := range records {
		slots[r.Slot], names[r.Name] = true, true
		if r.Slot > each {
			t.Errorf("slot %d, with slots below free", r.Slot)
		}
	}
	if len(records) != each+1 || len(slots) != each+1 || len(names) != each+1 {
		t.Errorf("%d records with %d slots and %d names", len(records), len(slots), len(names))
	}
}

func allocateOne(ctx context.Context, l Layout, name string, refused chan<- struct{}) error {
	lock, err := l.Allocate(ctx, &Record{Name: name, Status: api.StatusStopped}, anySlot)
	if refused != nil && api.HasCode(err, api.ErrVMNameTaken) {
		refused <- struct{}{}
		return nil
	}
	lock.Release()
	return err
}

// S2: slots begin at 0, and gaps are filled.
func TestAllocateSlots(t *testing.T) {
	l := testLayout(t)
	var ids []string
	for want := range 3 {
		r := &Record{Status: api.StatusStopped}
		allocate(t, l, r)
		if r.Slot != want || !ValidID(r.ID) {
			t.Errorf("got slot %d, id %s, want slot %d", r.Slot, r.ID, want)
		}
		ids = append(ids, r.ID)
	}
	if err := l.Delete(ids[1]); err != nil {
		t.Fatal(err)
	}
	r := &Record{Status: api.StatusStopped}
	allocate(t, l, r)
	if r.Slot != 1 {
		t.Errorf("the gap is slot 1, and %d was given", r.Slot)
	}
}

func anySlot(int) (bool, error) { return true, nil }

// A slot that something on the host is still named after is passed over; the
// error of looking ends the search.
func TestAllocateUsableSlots(t *testing.T) {
	l := testLayout(t)
	r := &Record{Status: api.StatusStopped}
	lock, err := l.Allocate(t.Context(), r, func(slot int) (bool, error) { return slot%10 == 7, nil })
	if err != nil {
		t.Fatal(err)
	}
	lock.Release()
	if r.Slot != 7 {
		t.Errorf("slot %d, of which only those ending in 7 may be used", r.Slot)
	}
	broken := errors.New("broken")
	if _, err := l.Allocate(t.Context(), r, func(int) (bool, error) { return false, broken }); !errors.Is(err, broken) {
		t.Errorf("Allocate = %v", err)
	}
}

// S2: when all slots are taken, that is said; those of sandboxes that are gone
// count as free, whoever forgot to give them back.
func TestAllocateExhausted(t *testing.T) {
	l := testLayout(t)
	kept := &Record{Status: api.StatusStopped}
	allocate(t, l, kept)
	x, err := l.openIndex()
	if err != nil {
		t.Fatal(err)
	}
	for slot := range Slots {
		x.set(slot, true)
	}
	if err := x.save(); err != nil {
		t.Fatal(err)
	}
	r := &Record{Status: api.StatusStopped}
	allocate(t, l, r)
	if r.Slot != 1 {
		t.Errorf("slot %d, want the first that no record has", r.Slot)
	}
	none := func(int) (bool, error) { return false, nil }
	if _, err := l.Allocate(t.Context(), r, none); !api.HasCode(err, api.ErrVMSlotsExhausted) {
		t.Errorf("without a free slot: %v", err)
	}
}

// The index follows from the records: losing it loses nothing.
func TestIndexIsRebuilt(t *testing.T) {
	l := testLayout(t)
	allocate(t, l, &Record{Name: "web", Status: api.StatusStopped})
	for _, damage := range []func() error{
		func() error { return os.RemoveAll(l.Index()) },
		func() error { return os.WriteFile(filepath.Join(l.Index(), "slots"), []byte("short"), 0o600) },
	} {
		if err := damage(); err != nil {
			t.Fatal(err)
		}
		if _, err := l.Allocate(t.Context(), &Record{Name: "web"}, anySlot); !api.HasCode(err, api.ErrVMNameTaken) {
			t.Errorf("a second web: %v", err)
		}
		r := &Record{Status: api.StatusStopped}
		allocate(t, l, r)
		if r.Slot != 1 {
			t.Errorf("slot %d, want 1", r.Slot)
		}
		if err := l.Delete(r.ID); err != nil {
			t.Fatal(err)
		}
	}
}

// A name is free again when its sandbox is gone or has another one.
func TestNamesAreGivenBack(t *testing.T) {
	l := testLayout(t)
	first := &Record{Name: "web", Status: api.StatusStopped}
	allocate(t, l, first)
	if err := l.Delete(first.ID); err != nil {
		t.Fatal(err)
	}
	second := &Record{Name: "web", Status: api.StatusStopped}
	allocate(t, l, second)
	err := l.WithName(t.Context(), second.ID, "db", func() error {
		second.Name = "db"
		return l.Save(second)
	})
	if err != nil {
		t.Fatal(err)
	}
	allocate(t, l, &Record{Name: "web", Status: api.StatusStopped})
	if _, err := l.Allocate(t.Context(), &Record{Name: "db"}, anySlot); !api.HasCode(err, api.ErrVMNameTaken) {
		t.Errorf("a second db: %v", err)
	}
}

func TestWithName(t *testing.T) {
	l := testLayout(t)
	a, b := &Record{Name: "a", Status: api.StatusStopped}, &Record{Name: "b", Status: api.StatusStopped}
	allocate(t, l, a)
	allocate(t, l, b)
	saved := errors.New("saved")
	save := func() error { return saved }
	if err := l.WithName(t.Context(), a.ID, "b", save); !api.HasCode(err, api.ErrVMNameTaken) {
		t.Errorf("a takes b's name: %v", err)
	}
	for _, name := range []string{"a", "c", ""} {
		if err := l.WithName(t.Context(), a.ID, name, save); !errors.Is(err, saved) {
			t.Errorf("a takes the name %q: %v", name, err)
		}
	}
}

func TestLock(t *testing.T) {
	path := filepath.Join(t.TempDir(), "lock")
	first, held, err := TryLock(path)
	if err != nil || held {
		t.Fatal(held, err)
	}
	if _, held, err := TryLock(path); err != nil || !held {
		t.Errorf("the lock is held, TryLock says %v, %v", held, err)
	}
	ctx, cancel := context.WithCancelCause(t.Context())
	enough := errors.New("enough")
	cancel(enough)
	if _, err := AcquireLock(ctx, path); !errors.Is(err, enough) {
		t.Errorf("AcquireLock, cancelled: %v", err)
	}
	if err := AwaitLock(ctx, path); !errors.Is(err, enough) {
		t.Errorf("AwaitLock, cancelled: %v", err)
	}
	ended := make(chan error, 1)
	go func() { ended <- AwaitLock(t.Context(), path) }()
	first.Release()
	if err := <-ended; err != nil {
		t.Error(err)
	}
	again, err := AcquireLock(t.Context(), path)
	if err != nil {
		t.Fatal(err)
	}
	again.Release()
}

// The lock is free when the last process that inherited it is dead.
func TestLockInherited(t *testing.T) {
	path := filepath.Join(t.TempDir(), "lock")
	lock, _, err := TryLock(path)
	if err != nil {
		t.Fatal(err)
	}
	child := exec.Command("sleep", "1000")
	child.ExtraFiles = []*os.File{lock.File()}
	if err := child.Start(); err != nil {
		t.Fatal(err)
	}
	lock.Release()
	if _, held, err := TryLock(path); err != nil || !held {
		t.Errorf("the child lives, TryLock says %v, %v", held, err)
	}
	child.Process.Kill()
	child.Wait()
	lock, held, err := TryLock(path)
	if err != nil || held {
		t.Errorf("the child is dead, TryLock says %v, %v", held, err)
	}
	lock.Release()
}

// N11: a process is killed only if it still is the one that was named.
func TestProcessKill(t *testing.T) {
	child := exec.Command("sleep", "1000")
	if err := child.Start(); err != nil {
		t.Fatal(err)
	}
	ended := make(chan error, 1)
	go func() { ended <- child.Wait() }()
	defer child.Process.Kill()
	p := ProcessOf(child.Process.Pid)
	if p.PID != child.Process.Pid || p.StartTicks == 0 {
		t.Fatalf("ProcessOf = %+v", p)
	}
	for _, other := range []Process{
		{PID: p.PID, StartTicks: p.StartTicks - 1}, // the number was used again
		{PID: p.PID}, {}, {PID: 1}, {PID: 0}, {PID: -1},
	} {
		if err := other.Kill(); err != nil {
			t.Errorf("kill of %+v: %v", other, err)
		}
	}
	select {
	case <-ended:
		t.Fatal("a process that was not meant was killed")
	case <-time.After(50 * time.Millisecond):
	}
	if err := p.Kill(); err != nil {
		t.Fatal(err)
	}
	if err := <-ended; err == nil || !strings.Contains(err.Error(), "killed") {
		t.Errorf("the process ended with %v", err)
	}
	if err := p.Kill(); err != nil {
		t.Errorf("kill of a dead process: %v", err)
	}
	if got := ProcessOf(p.PID); got != (Process{}) {
		t.Errorf("a dead process is %+v", got)
	}
}

// Socket paths fit into 108 bytes however long the state directory's is.
func TestLayoutSockets(t *testing.T) {
	l, err := NewLayout("/" + strings.Repeat("long/", 200))
	if err != nil {
		t.Fatal(err)
	}
	for _, path := range []string{l.ControlSocket("vm0123456789"), l.GuestSocket("vm0123456789")} {
		if len(path) >= maxSocketPath {
			t.Errorf("%s has %d bytes", path, len(path))
		}
	}
	if other, err := NewLayout("/other"); err != nil || other.Run == l.Run {
		t.Errorf("two state directories have the run directory %s, %v", l.Run, err)
	}
}

func TestRunDirectoryOfSomebodyElse(t *testing.T) {
	l := testLayout(t)
	if err := os.Chmod(l.Run, 0o777); err != nil {
		t.Fatal(err)
	}
	if err := l.Init(); !api.HasCode(err, api.ErrValidationStateDir) {
		t.Errorf("a run directory that all can write to: %v", err)
	}
}

// TestForeignDirectory gives the directory of something else as the state
// directory: nothing is made there, and so nothing is taken for a leftover.
func TestForeignDirectory(t *testing.T) {
	for _, c := range []struct {
		name  string
		there []string
		fits  bool
	}{
		{"project", []string{"tmp", "src"}, false},
		{"host", []string{"tmp", "etc", "lost+found"}, false},
		{"empty", nil, true},
		{"prepared", []string{"hooks", "registries.json", "lost+found"}, true},
		{"in use", []string{"sandboxes", "tmp", "notes.txt"}, true},
	} {
		t.Run(c.name, func(t *testing.T) {
			l := Layout{Dir: filepath.Join(t.TempDir(), "state"), Run: filepath.Join(t.TempDir(), "run")}
			for _, name := range c.there {
				if err := os.MkdirAll(filepath.Join(l.Dir, name), 0o755); err != nil {
					t.Fatal(err)
				}
			}
			err := l.Init()
			if c.fits && err != nil || !c.fits && !api.HasCode(err, api.ErrValidationStateDir) {
				t.Errorf("got %v", err)
			}
			if _, err := os.Stat(l.Sandboxes()); (err == nil) != c.fits {
				t.Errorf("of the sandboxes' directory: %v", err)
			}
		})
	}
}

// TestLayoutByLink has a state directory be one, by whatever path it is named.
func TestLayoutByLink(t *testing.T) {
	top := t.TempDir()
	real, link := filepath.Join(top, "real"), filepath.Join(top, "link")
	if err := errors.Join(os.Mkdir(real, 0o755), os.Symlink("real", link)); err != nil {
		t.Fatal(err)
	}
	for _, name := range []string{"", "there", "not/there"} {
		want, err := NewLayout(filepath.Join(real, name))
		if err != nil {
			t.Fatal(err)
		}
		if got, err := NewLayout(filepath.Join(link, name)); err != nil || got != want {
			t.Errorf("%s is %+v, %v; want %+v", name, got, err, want)
		}
	}
	if _, err := NewLayout(filepath.Join(top, "loop")); err != nil {
		t.Error(err)
	}
	if err := os.Symlink("loop", filepath.Join(top, "loop")); err != nil {
		t.Fatal(err)
	}
	if _, err := NewLayout(filepath.Join(top, "loop", "x")); !api.HasCode(err, api.ErrValidationStateDir) {
		t.Errorf("of a loop: %v", err)
	}
}
