package firecracker

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"

	"github.com/vmsan/vmsan/internal/jail"
	"github.com/vmsan/vmsan/internal/sparse"
	"github.com/vmsan/vmsan/internal/vmm"
)

// Save has Firecracker write its machine to files of its own, which are then
// cloned: it may still have them open, and what others are restored from must
// not change.
func (vm *virtualMachine) Save(ctx context.Context, to vmm.Saved) error {
	vm.turn.Lock()
	defer vm.turn.Unlock()
	if err := vm.save(ctx, to); err != nil {
		return fmt.Errorf("save machine: %w", err)
	}
	return nil
}

func (vm *virtualMachine) save(ctx context.Context, to vmm.Saved) (err error) {
	switch {
	case ctx.Err() != nil:
		return context.Cause(ctx)
	case vm.alive() != nil:
		return errEnded
	case vm.running.Load():
		return errors.New("it is not paused")
	}
	parts := []struct {
		to   *os.File
		path string
		lent *os.File
	}{{to: to.State, path: jailNewState}, {to: to.Memory, path: jailNewMemory}}
	for i, p := range parts {
		if parts[i].lent, err = vm.lend(p.to, p.path); err != nil {
			return err
		}
		defer parts[i].lent.Close()
		defer func() { err = errors.Join(err, vm.takeBack(p.path)) }()
	}
	// How long that takes depends on the memory, and on the host's disk.
	if err := vm.api.do(ctx, saving()); err != nil {
		if vm.alive() != nil {
			return errEnded
		}
		return err
	}
	vm.reset()
	for _, p := range parts {
		if _, err := sparse.Clone(ctx, p.to, p.lent); err != nil {
			return fmt.Errorf("copy what was saved: %w", err)
		}
	}
	return sparse.Punch(to.Memory)
}

// lend makes a nameless file beside to and hands it to Firecracker.
func (vm *virtualMachine) lend(to *os.File, path string) (*os.File, error) {
	info, err := to.Stat()
	if err == nil && !info.Mode().IsRegular() {
		err = fmt.Errorf("%s is no file to save to", to.Name())
	}
	if err != nil {
		return nil, err
	}
	lent, err := os.CreateTemp(filepath.Dir(to.Name()), "saving-")
	if err != nil {
		return nil, err
	}
	err = lent.Chown(int(vm.user.UID), int(vm.user.GID))
	if err == nil {
		err = jail.Lend(vm.mounts, lent, path)
	}
	// The mount holds it.
	if err = errors.Join(err, os.Remove(lent.Name())); err != nil {
		lent.Close()
		return nil, err
	}
	return lent, nil
}

// takeBack is no error for a machine that has ended: its jail went with it.
func (vm *virtualMachine) takeBack(path string) error {
	if vm.alive() != nil {
		return nil
	}
	return jail.TakeBack(vm.mounts, path)
}

// Restore starts a machine on from's memory, which Firecracker maps for
// itself alone.
func (d Driver) Restore(ctx context.Context, spec vmm.Spec, from vmm.Saved) (vmm.VM, error) {
	vm, err := d.restore(ctx, spec, from)
	if err != nil {
		return nil, fmt.Errorf("restore machine: %w", err)
	}
	return vm, nil
}

func (d Driver) restore(ctx context.Context, spec vmm.Spec, from vmm.Saved) (*virtualMachine, error) {
	o, err := d.newOrder(spec)
	if err != nil {
		return nil, err
	}
	info, err := from.Memory.Stat()
	if err != nil {
		return nil, err
	}
	if info.Size() != int64(spec.MemoryMiB)<<20 {
		return nil, fmt.Errorf("its memory is %d bytes, not %d MiB", info.Size(), spec.MemoryMiB)
	}
	for _, f := range []struct {
		file *os.File
		path string
	}{{from.State, jailState}, {from.Memory, jailMemory}} {
		if err := readable(f.file); err != nil {
			return nil, err
		}
		o.add(f.file, f.path, false)
	}
	vm, err := start(ctx, o, loading(spec.Disks))
	if err != nil {
		return nil, err
	}
	vm.run(false)
	return vm, nil
}
