package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"path/filepath"
	"strings"
	"time"

	"golang.org/x/sync/errgroup"

	"github.com/vmsan/vmsan/bench/floor/request"
	"github.com/vmsan/vmsan/internal/disk"
	"github.com/vmsan/vmsan/internal/jail"
	"github.com/vmsan/vmsan/internal/timing"
	"github.com/vmsan/vmsan/internal/vmm"
	"github.com/vmsan/vmsan/internal/vmm/qemu"
)

// rested is a floor that was saved and sealed.
type rested struct {
	*floor
	dir   string
	saved vmm.Saved
}

// restoreTimes is how often a restore is measured, which takes little.
const restoreTimes = 15

// crowd is how many machines are restored at a time.
const crowd = 16

// restore measures what a restore takes at least: a bare machine that was
// sealed, until it answers.
func (b *bench) restore(ctx context.Context) error {
	dir, err := os.MkdirTemp("", "vmsan-rested-")
	if err != nil {
		return err
	}
	defer os.RemoveAll(dir)
	r := &rested{floor: b.floor, dir: dir}
	pause, seal, err := r.rest(ctx)
	if err != nil {
		return err
	}
	b.add("source's pause to save it", "-", ms(pause), "-", "<= 150 ms + 1 ms/MiB over 100")
	b.add("sealing what was saved", "-", ms(seal), "-", "")
	for _, kind := range []struct {
		name string
		jail bool
	}{{"restore to an answer", false}, {"restore to an answer, VMM shut in", true}} {
		if kind.jail && os.Geteuid() != 0 {
			continue
		}
		took, err := r.wakeUps(ctx, kind.jail)
		if err != nil {
			return err
		}
		b.add(kind.name, "-", ms(took), "-", "")
	}
	all, unique, err := r.wakeCrowd(ctx)
	if err != nil {
		return err
	}
	b.add(fmt.Sprintf("%d restores at once, all have answered", crowd), "-", ms(all), "-", "")
	b.add("memory of an idle clone that is its own", "-", fmt.Sprintf("%.1f MiB", float64(unique)/1024), "-", "<= 28 MiB")
	b.crowdTime = all
	return b.warm(ctx, r)
}

func (r *rested) overlayPath(name string) string { return filepath.Join(r.dir, name+".ext4") }

// cloneFor makes the disk of the machine name.
func (r *rested) cloneFor(name string) error {
	_, err := disk.Clone(context.Background(), r.overlayPath(name), r.overlayPath("saved"))
	return err
}

// create makes an empty file that goes with the directory.
func (r *rested) create(name string) (*os.File, error) {
	return os.OpenFile(filepath.Join(r.dir, name), os.O_RDWR|os.O_CREATE|os.O_EXCL, 0o600)
}

// rest boots a floor and puts it to rest. pause is how long its CPUs stood.
func (r *rested) rest(ctx context.Context) (pause, seal time.Duration, err error) {
	m, _, err := r.start(ctx)
	if err != nil {
		return 0, 0, err
	}
	defer m.stop(ctx)
	if err := m.ask(request.Echo); err != nil {
		return 0, 0, err
	}
	stream, err := r.create("stream")
	if err != nil {
		return 0, 0, err
	}
	defer stream.Close()
	if r.saved.Memory, err = r.create("memory"); err != nil {
		return 0, 0, err
	}
	if r.saved.State, err = r.create("state"); err != nil {
		return 0, 0, err
	}
	if pause, err = timing.Timed(func() error { return r.save(ctx, m.vm, stream) }); err != nil {
		return 0, 0, err
	}
	spec := r.spec(nil, nil)
	seal, err = timing.Timed(func() error { return qemu.Driver{}.Seal(ctx, spec, vmm.Saved{State: stream}, r.saved) })
	return pause, seal, err
}

// save clones the disk while the memory is written.
func (r *rested) save(ctx context.Context, vm vmm.VM, stream *os.File) error {
	if err := vm.Pause(ctx); err != nil {
		return err
	}
	var work errgroup.Group
	work.Go(func() error { return vm.Save(ctx, vmm.Saved{State: stream}) })
	work.Go(func() error {
		_, err := disk.Clone(context.Background(), r.overlayPath("saved"), r.overlay)
		return err
	})
	return errors.Join(work.Wait(), vm.Resume(ctx))
}

// wakeUps is the median of restores one after the other.
func (r *rested) wakeUps(ctx context.Context, shutIn bool) (time.Duration, error) {
	var took []time.Duration
	for i := range restoreTimes {
		name := fmt.Sprintf("one-%v-%d", shutIn, i)
		if err := r.cloneFor(name); err != nil {
			return 0, err
		}
		var m *machine
		d, err := timing.Timed(func() (err error) {
			m, err = r.wake(ctx, name, shutIn)
			return err
		})
		if err != nil {
			return 0, err
		}
		if err := m.stop(ctx); err != nil {
			return 0, err
		}
		took = append(took, d)
	}
	return timing.Median(took), nil
}

// wake restores a machine and waits for its answer.
func (r *rested) wake(ctx context.Context, name string, shutIn bool) (*machine, error) {
	base, err := os.Open(r.image)
	if err != nil {
		return nil, err
	}
	defer base.Close()
	overlay, err := os.OpenFile(r.overlayPath(name), os.O_RDWR, 0)
	if err != nil {
		return nil, err
	}
	defer overlay.Close()
	spec := r.spec(base, overlay)
	if shutIn {
		spec.Jail.User, spec.Jail.Root = &jail.User{UID: 65534, GID: 65534}, filepath.Join(r.dir, "root-"+name)
		if err := os.Mkdir(spec.Jail.Root, 0o700); err != nil {
			return nil, err
		}
	}
	vm, err := qemu.Driver{}.Restore(ctx, spec, r.saved)
	if err != nil {
		return nil, err
	}
	m := &machine{vm: vm}
	if err := vm.Resume(ctx); err != nil {
		return nil, errors.Join(err, vm.Stop(ctx))
	}
	if m.console, err = net.FileConn(vm.Link().Console); err == nil {
		m.data, err = net.FileConn(vm.Link().Data)
	}
	if err == nil {
		go io.Copy(io.Discard, m.console)
		err = m.ask(request.Echo)
	}
	if err != nil {
		return nil, errors.Join(err, vm.Stop(ctx))
	}
	return m, nil
}

// wakeCrowd restores many at once; unique is the median of what each has in
// memory for itself, in KiB.
func (r *rested) wakeCrowd(ctx context.Context) (all time.Duration, unique int, err error) {
	for i := range crowd {
		if err := r.cloneFor(fmt.Sprint(i)); err != nil {
			return 0, 0, err
		}
	}
	machines := make([]*machine, crowd)
	all, err = timing.Timed(func() error {
		var work errgroup.Group
		for i := range machines {
			work.Go(func() (err error) {
				machines[i], err = r.wake(ctx, fmt.Sprint(i), false)
				return err
			})
		}
		return work.Wait()
	})
	var sizes []time.Duration
	for _, m := range machines {
		if m == nil {
			continue
		}
		kib, sizeErr := private(m.vm.PID())
		sizes = append(sizes, time.Duration(kib))
		err = errors.Join(err, sizeErr, m.stop(ctx))
	}
	if err != nil {
		return 0, 0, err
	}
	return all, int(timing.Median(sizes)), nil
}

// private is the memory that a process shares with nobody.
func private(pid int) (kib int, err error) {
	text, err := os.ReadFile(fmt.Sprintf("/proc/%d/smaps_rollup", pid))
	if err != nil {
		return 0, err
	}
	for _, name := range []string{"Private_Clean:", "Private_Dirty:"} {
		_, after, _ := strings.Cut(string(text), "\n"+name)
		var n int
		if _, err := fmt.Sscan(after, &n); err != nil {
			return 0, fmt.Errorf("read %s of process %d: %w", name, pid, err)
		}
		kib += n
	}
	return kib, nil
}
