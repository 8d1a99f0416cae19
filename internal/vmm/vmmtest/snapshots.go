package vmmtest

import (
	"context"
	"errors"
	"io"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/vmsan/vmsan/internal/disk"
	"github.com/vmsan/vmsan/internal/link"
	"github.com/vmsan/vmsan/internal/vmm"
)

// source is a machine that is saved again and again.
type source struct {
	suite
	vm   vmm.VM
	spec vmm.Spec
	// rest is what was saved of it and, if need be, sealed; disks are its
	// disks at that time.
	rest  vmm.Saved
	disks []vmm.Disk
	dir   string // for files that outlive one part
}

// snapshots is one machine that is saved, and many that are restored from it.
func (s suite) snapshots(t *testing.T) {
	ctx, cancel := context.WithTimeout(context.Background(), 2*limit)
	defer cancel()
	src := &source{suite: s, spec: s.spec(t), dir: t.TempDir()}
	var err error
	if src.vm, err = s.driver.Start(ctx, src.spec); err != nil {
		t.Fatal(err)
	}
	attend(t, ctx, src.vm)
	for _, part := range []struct {
		name string
		test func(*testing.T, context.Context)
	}{
		{"save of what runs", src.saveRunning},
		{"save fails", src.saveFails},
		{"save is given up", src.saveGivenUp},
		{"save", src.save},
		{"seal", src.seal},
		{"restore", src.restore},
		{"restore in parallel", src.restoreParallel},
		{"restore is given up", src.restoreGivenUp},
		{"restore of what is damaged", src.restoreDamaged},
		{"seal of what is damaged", src.sealDamaged},
		{"save of what was restored", src.secondGeneration},
		{"restore without the source", src.restoreWithoutSource},
	} {
		if !t.Run(part.name, func(t *testing.T) { part.test(t, ctx) }) {
			return
		}
	}
}

// counter is a file in the guest's memory.
const counter = "/files?username=root&path=/dev/shm/counter"

func count(t *testing.T, ctx context.Context, host *link.Host, value string) {
	t.Helper()
	if _, err := ask(ctx, host, http.MethodPost, counter, value); err != nil {
		t.Fatal(err)
	}
}

func checkCount(t *testing.T, ctx context.Context, host *link.Host, want string) {
	t.Helper()
	if got, err := ask(ctx, host, http.MethodGet, counter, ""); err != nil || got != want {
		t.Fatalf("the counter is %q, %v; want %q", got, err, want)
	}
}

// newSaved returns empty files to save to, which the caller closes.
func newSaved(t *testing.T, dir string) (s vmm.Saved) {
	t.Helper()
	for _, f := range []struct {
		name string
		file **os.File
	}{{"memory", &s.Memory}, {"state", &s.State}} {
		file, err := os.CreateTemp(dir, f.name)
		if err != nil {
			t.Fatal(err)
		}
		*f.file = file
	}
	return s
}

func closeSaved(s vmm.Saved) {
	s.Memory.Close()
	s.State.Close()
}

func (s *source) pause(t *testing.T, ctx context.Context) {
	t.Helper()
	if err := s.vm.Pause(ctx); err != nil {
		t.Fatal(err)
	}
}

// goesOn checks that the source does, after a pause.
func (s *source) goesOn(t *testing.T, ctx context.Context) {
	t.Helper()
	if err := s.vm.Resume(ctx); err != nil {
		t.Fatal(err)
	}
	s.answers(t, ctx)
}

// answers checks that the guest does. A machine has one host at a time.
func (s *source) answers(t *testing.T, ctx context.Context) {
	t.Helper()
	host, err := s.vm.Link().DialGuest(ctx)
	if err != nil {
		t.Fatalf("dial guest: %v", err)
	}
	defer host.Close()
	if err := health(ctx, host); err != nil {
		t.Fatal(err)
	}
}

func (s *source) saveRunning(t *testing.T, ctx context.Context) {
	s.answers(t, ctx)
	to := newSaved(t, t.TempDir())
	defer closeSaved(to)
	if err := s.vm.Save(ctx, to); err == nil {
		t.Error("a machine that runs was saved")
	}
	s.goesOn(t, ctx)
}

// saveFails saves to files that cannot be written.
func (s *source) saveFails(t *testing.T, ctx context.Context) {
	var to vmm.Saved
	for _, f := range []**os.File{&to.Memory, &to.State} {
		file, err := os.Open(os.DevNull)
		if err != nil {
			t.Fatal(err)
		}
		defer file.Close()
		*f = file
	}
	s.pause(t, ctx)
	if err := s.vm.Save(ctx, to); err == nil {
		t.Error("a machine was saved to files that cannot be written")
	}
	s.goesOn(t, ctx)
}

func (s *source) saveGivenUp(t *testing.T, ctx context.Context) {
	s.pause(t, ctx)
	to := newSaved(t, t.TempDir())
	defer closeSaved(to)
	gaveUp := errors.New("gave up")
	ended, cancel := context.WithCancelCause(ctx)
	cancel(gaveUp)
	if err := s.vm.Save(ended, to); !errors.Is(err, gaveUp) {
		t.Errorf("got %v, want the context's cause", err)
	}
	s.goesOn(t, ctx)
}

// save leaves behind what the later parts restore.
func (s *source) save(t *testing.T, ctx context.Context) {
	host := dial(t, ctx, s.vm)
	count(t, ctx, host, "1")
	s.pause(t, ctx)
	// A session that is open is nothing to the machines restored later.
	answered := make(chan error, 1)
	go func() { answered <- health(ctx, host) }()
	s.rest = newSaved(t, s.dir)
	if err := s.vm.Save(ctx, s.rest); err != nil {
		t.Fatal(err)
	}
	s.disks = cloneDisks(t, s.dir, s.spec.Disks)
	select {
	case err := <-answered:
		t.Errorf("a guest that was saved answered: %v", err)
	default:
	}
	if err := s.vm.Resume(ctx); err != nil {
		t.Fatal(err)
	}
	if err := <-answered; err != nil {
		t.Errorf("a call did not outlast the pause: %v", err)
	}
	checkCount(t, ctx, host, "1")
	count(t, ctx, host, "2")
}

// cloneDisks copies what is writable.
func cloneDisks(t *testing.T, dir string, from []vmm.Disk) (clones []vmm.Disk) {
	t.Helper()
	for _, d := range from {
		if !d.ReadOnly {
			path := filepath.Join(dir, d.Name+".clone")
			if _, err := disk.Clone(t.Context(), path, d.File.Name()); err != nil {
				t.Fatal(err)
			}
			file, err := os.OpenFile(path, os.O_RDWR, 0)
			if err != nil {
				t.Fatal(err)
			}
			d.File = file
		}
		clones = append(clones, d)
	}
	return clones
}

func closeDisks(disks []vmm.Disk) {
	for _, d := range disks {
		if !d.ReadOnly {
			d.File.Close()
		}
	}
}

func (s *source) seal(t *testing.T, ctx context.Context) {
	if !s.driver.Features().Seals {
		return
	}
	saved := s.rest
	defer closeSaved(saved)
	s.rest = newSaved(t, s.dir)
	if err := s.driver.Seal(ctx, s.sealSpec(t), saved, s.rest); err != nil {
		t.Fatal(err)
	}
	var memory unix.Stat_t
	if err := unix.Fstat(int(s.rest.Memory.Fd()), &memory); err != nil {
		t.Fatal(err)
	}
	if want := int64(s.spec.MemoryMiB) << 20; memory.Size != want {
		t.Errorf("the memory is %d bytes, want %d", memory.Size, want)
	}
	// A guest that has just booted has touched less than three quarters.
	if stored := memory.Blocks * 512; stored > memory.Size*3/4 {
		t.Errorf("the memory takes %d bytes of %d: zeros were stored", stored, memory.Size)
	}
}

// sealSpec is the source's, with no files but the log's.
func (s *source) sealSpec(t *testing.T) vmm.Spec {
	t.Helper()
	spec := s.spec
	spec.Jail.Root = jailRoot(t, s.spec)
	spec.Disks = nil
	for _, d := range s.spec.Disks {
		spec.Disks = append(spec.Disks, vmm.Disk{Name: d.Name, ReadOnly: d.ReadOnly})
	}
	return spec
}

func jailRoot(t *testing.T, spec vmm.Spec) string {
	t.Helper()
	if spec.Jail.Root == "" {
		return ""
	}
	return t.TempDir()
}

// restored starts a machine from what was saved, with disks of its own.
func (s *source) restored(t *testing.T, ctx context.Context) vmm.VM {
	t.Helper()
	spec := s.spec
	spec.Jail.Root = jailRoot(t, spec)
	spec.Disks = cloneDisks(t, t.TempDir(), s.disks)
	defer closeDisks(spec.Disks)
	from := readOnly(t, s.rest)
	defer closeSaved(from)
	vm, err := s.driver.Restore(ctx, spec, from)
	if err != nil {
		t.Fatal(err)
	}
	attend(t, ctx, vm)
	return vm
}

// readOnly opens the files again, as whoever restores has them.
func readOnly(t *testing.T, s vmm.Saved) (own vmm.Saved) {
	t.Helper()
	for _, f := range []struct{ file, own **os.File }{{&s.Memory, &own.Memory}, {&s.State, &own.State}} {
		file, err := os.Open((*f.file).Name())
		if err != nil {
			t.Fatal(err)
		}
		*f.own = file
	}
	return own
}

func (s *source) restore(t *testing.T, ctx context.Context) {
	vm := s.restored(t, ctx)
	if vm.PID() <= 1 {
		t.Errorf("got PID %d", vm.PID())
	}
	dialled := make(chan *link.Host, 1)
	go func() {
		host, err := vm.Link().DialGuest(ctx)
		if err != nil {
			t.Errorf("dial guest: %v", err)
		}
		dialled <- host
	}()
	select {
	case <-dialled:
		t.Fatal("a restored guest answered before it was resumed")
	case <-time.After(200 * time.Millisecond):
	}
	if err := vm.Resume(ctx); err != nil {
		t.Fatal(err)
	}
	host := <-dialled
	if host == nil {
		return
	}
	checkCount(t, ctx, host, "1")
	host.Close()
	t.Run("pause and resume", func(t *testing.T) { pauseAndResume(t, ctx, vm) })
	t.Run("death", func(t *testing.T) { death(t, ctx, vm) })
}

// restoreParallel also checks that what one machine writes is its own.
func (s *source) restoreParallel(t *testing.T, ctx context.Context) {
	const machines = 4
	var hosts [machines]*link.Host
	var all sync.WaitGroup
	for i := range machines {
		// Their clean-up has to come after all of them.
		all.Go(func() {
			vm := s.restored(t, ctx)
			if err := vm.Resume(ctx); err != nil {
				t.Error(err)
				return
			}
			host, err := vm.Link().DialGuest(ctx)
			if err != nil {
				t.Errorf("dial guest: %v", err)
				return
			}
			hosts[i] = host
		})
	}
	all.Wait()
	for i, host := range hosts {
		if host == nil {
			t.Fatalf("machine %d did not come up", i)
		}
		defer host.Close()
		checkCount(t, ctx, host, "1")
		count(t, ctx, host, strings.Repeat("x", 1000+i))
	}
	for i, host := range hosts {
		checkCount(t, ctx, host, strings.Repeat("x", 1000+i))
	}
	checkCount(t, ctx, dial(t, ctx, s.vm), "2")
}

func (s *source) restoreGivenUp(t *testing.T, ctx context.Context) {
	gaveUp := errors.New("gave up")
	ended, cancel := context.WithCancelCause(ctx)
	cancel(gaveUp)
	spec := s.spec
	spec.Jail.Root = jailRoot(t, spec)
	vm, err := s.driver.Restore(ended, spec, s.rest)
	if err == nil {
		vm.Stop(ctx)
		t.Fatal("a machine was restored after its context had ended")
	}
	if !errors.Is(err, gaveUp) {
		t.Errorf("got %v, want the context's cause", err)
	}
}

// damages are what can become of a file.
func damages(t *testing.T, file *os.File) map[string][]byte {
	t.Helper()
	whole, err := os.ReadFile(file.Name())
	if err != nil {
		t.Fatal(err)
	}
	zeros, noise := make([]byte, len(whole)), []byte(strings.Clone(string(whole)))
	for i := range min(len(noise), 4096) {
		noise[i] ^= byte(i*7 + 1)
	}
	return map[string][]byte{
		"empty": nil, "a byte": whole[:1], "half": whole[:len(whole)/2], "all but a byte": whole[:len(whole)-1],
		"zeros": zeros, "noise": noise,
	}
}

func (s *source) restoreDamaged(t *testing.T, ctx context.Context) {
	for name, state := range damages(t, s.rest.State) {
		t.Run(name, func(t *testing.T) {
			from := newSaved(t, t.TempDir())
			defer closeSaved(from)
			if _, err := from.State.Write(state); err != nil {
				t.Fatal(err)
			}
			s.refuses(t, ctx, vmm.Saved{Memory: s.rest.Memory, State: from.State})
		})
	}
	t.Run("memory of another size", func(t *testing.T) {
		from := newSaved(t, t.TempDir())
		defer closeSaved(from)
		if err := from.Memory.Truncate(int64(s.spec.MemoryMiB-1) << 20); err != nil {
			t.Fatal(err)
		}
		s.refuses(t, ctx, vmm.Saved{Memory: from.Memory, State: s.rest.State})
	})
}

func (s *source) refuses(t *testing.T, ctx context.Context, from vmm.Saved) {
	t.Helper()
	spec := s.spec
	spec.Jail.Root = jailRoot(t, spec)
	vm, err := s.driver.Restore(ctx, spec, from)
	if err == nil {
		vm.Stop(ctx)
		t.Fatal("it was restored")
	}
	if ctx.Err() != nil {
		t.Fatalf("it took for ever: %v", err)
	}
}

func (s *source) sealDamaged(t *testing.T, ctx context.Context) {
	if !s.driver.Features().Seals {
		return
	}
	for _, text := range []string{"", "QEVM", strings.Repeat("x", 1<<16)} {
		from, to := newSaved(t, t.TempDir()), newSaved(t, t.TempDir())
		defer closeSaved(from)
		defer closeSaved(to)
		if _, err := io.WriteString(from.State, text); err != nil {
			t.Fatal(err)
		}
		if err := s.driver.Seal(ctx, s.sealSpec(t), from, to); err == nil || ctx.Err() != nil {
			t.Errorf("seal of %.10q: got %v, want an error at once", text, err)
		}
	}
}

// secondGeneration saves a machine that was restored, and restores that.
func (s *source) secondGeneration(t *testing.T, ctx context.Context) {
	first := s.restored(t, ctx)
	if err := first.Resume(ctx); err != nil {
		t.Fatal(err)
	}
	count(t, ctx, dial(t, ctx, first), "3")
	if err := first.Pause(ctx); err != nil {
		t.Fatal(err)
	}
	// The disks of what is paused are not written, and of no matter here.
	second := &source{suite: s.suite, vm: first, spec: s.spec, disks: s.disks, dir: t.TempDir(), rest: newSaved(t, t.TempDir())}
	defer func() { closeSaved(second.rest) }()
	if err := first.Save(ctx, second.rest); err != nil {
		t.Fatal(err)
	}
	second.seal(t, ctx)
	vm := second.restored(t, ctx)
	if err := vm.Resume(ctx); err != nil {
		t.Fatal(err)
	}
	checkCount(t, ctx, dial(t, ctx, vm), "3")
}

func (s *source) restoreWithoutSource(t *testing.T, ctx context.Context) {
	defer closeSaved(s.rest)
	defer closeDisks(s.disks)
	if err := s.vm.Stop(ctx); err != nil {
		t.Fatal(err)
	}
	vm := s.restored(t, ctx)
	if err := vm.Resume(ctx); err != nil {
		t.Fatal(err)
	}
	checkCount(t, ctx, dial(t, ctx, vm), "1")
}

// endWhileSaving ends a machine while it is being saved: Save says so.
func (s suite) endWhileSaving(t *testing.T) {
	ctx, vm := s.start(t)
	if err := vm.Pause(ctx); err != nil {
		t.Fatal(err)
	}
	to := newSaved(t, t.TempDir())
	defer closeSaved(to)
	saved := make(chan error, 1)
	go func() { saved <- vm.Save(ctx, to) }()
	killed, cancel := context.WithCancel(ctx)
	cancel() // so that it is not in order
	if err := vm.Stop(killed); err != nil {
		t.Fatal(err)
	}
	select {
	case <-saved: // it may have been quick enough
	case <-ctx.Done():
		t.Fatal("Save did not notice the machine's end")
	}
	if err := vm.Save(ctx, to); err == nil {
		t.Error("a machine that has ended was saved")
	}
}
