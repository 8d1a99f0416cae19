package fake

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"maps"
	"os"

	"github.com/vmsan/vmsan/internal/vmm"
)

// stream is a machine that was saved and not sealed.
type stream struct {
	Devices devices
	Memory  map[string]string
}

// devices are what has to be the same when a machine is restored.
type devices struct {
	VCPUs, MemoryMiB int
	Disks            []string
	NIC              string
}

func devicesOf(s vmm.Spec) devices {
	d := devices{VCPUs: s.VCPUs, MemoryMiB: s.MemoryMiB}
	for _, one := range s.Disks {
		d.Disks = append(d.Disks, one.Name)
	}
	if s.NIC != nil {
		d.NIC = s.NIC.MAC.String()
	}
	return d
}

// CPU is the fake's own.
func (*Driver) CPU(vmm.Accelerator) (vmm.CPU, error) { return vmm.CPU{Model: "fake"}, nil }

// Save writes what the guest keeps in its memory, with the devices in front.
func (vm *Machine) Save(ctx context.Context, to vmm.Saved) error {
	select {
	case <-vm.gone:
		return errEnded
	default:
	}
	switch {
	case !vm.gate.isShut():
		return errors.New("save machine: it is not paused")
	case vm.saved.Load():
		return errors.New("save machine: it has been saved already since it was paused")
	case ctx.Err() != nil:
		return fmt.Errorf("save machine: %w", context.Cause(ctx))
	}
	if do := vm.onSave.Swap(nil); do != nil {
		(*do)()
		<-ctx.Done()
		return fmt.Errorf("save machine: %w", context.Cause(ctx))
	}
	vm.guest.mu.Lock()
	s := stream{devicesOf(vm.spec), maps.Clone(vm.guest.files)}
	vm.guest.mu.Unlock()
	if err := writeJSON(to.State, s); err != nil {
		return fmt.Errorf("save machine: %w", err)
	}
	vm.saved.Store(true)
	return nil
}

// Seal takes devices and memory apart.
func (*Driver) Seal(ctx context.Context, spec vmm.Spec, from, to vmm.Saved) error {
	if ctx.Err() != nil {
		return fmt.Errorf("seal saved machine: %w", context.Cause(ctx))
	}
	var s stream
	if err := readJSON(from.State, &s); err != nil {
		return fmt.Errorf("seal saved machine: %w", err)
	}
	if err := s.Devices.check(spec); err != nil {
		return fmt.Errorf("seal saved machine: %w", err)
	}
	err := errors.Join(writeJSON(to.State, s.Devices), writeJSON(to.Memory, s.Memory), to.Memory.Truncate(memoryBytes(spec)))
	if err != nil {
		return fmt.Errorf("seal saved machine: %w", err)
	}
	return nil
}

// Restore starts a guest that has in its memory what was saved.
func (d *Driver) Restore(ctx context.Context, spec vmm.Spec, from vmm.Saved) (vmm.VM, error) {
	if ctx.Err() != nil {
		return nil, fmt.Errorf("restore machine: %w", context.Cause(ctx))
	}
	memory, err := load(spec, from)
	if err != nil {
		return nil, fmt.Errorf("restore machine: %w", err)
	}
	vm, theirs, err := newMachine(spec)
	if err != nil {
		return nil, err
	}
	vm.guest.files = memory
	vm.gate.shut()
	d.keep(vm, "restored "+Describe(spec))
	vm.run(theirs, d.Silent)
	return vm, nil
}

func load(spec vmm.Spec, from vmm.Saved) (memory map[string]string, err error) {
	info, err := from.Memory.Stat()
	if err != nil {
		return nil, err
	}
	if info.Size() != memoryBytes(spec) {
		return nil, fmt.Errorf("its memory is %d bytes, not %d MiB", info.Size(), spec.MemoryMiB)
	}
	var saved devices
	if err := readJSON(from.State, &saved); err != nil {
		return nil, err
	}
	if err := saved.check(spec); err != nil {
		return nil, err
	}
	return memory, readJSON(from.Memory, &memory)
}

func memoryBytes(spec vmm.Spec) int64 { return int64(spec.MemoryMiB) << 20 }

func (d devices) check(spec vmm.Spec) error {
	if got, want := fmt.Sprint(d), fmt.Sprint(devicesOf(spec)); got != want {
		return fmt.Errorf("another machine was saved: %s instead of %s", got, want)
	}
	return nil
}

// end is behind what is written, so that a file that was cut short is noticed.
const end = "\n.\n"

func writeJSON(f *os.File, v any) error {
	text, err := json.Marshal(v)
	if err != nil {
		return err
	}
	_, err = f.Write(append(text, end...))
	return err
}

// maxSaved bounds what is read, in bytes.
const maxSaved = 16 << 20

func readJSON(f *os.File, v any) error {
	text, err := io.ReadAll(io.NewSectionReader(f, 0, maxSaved))
	if err != nil {
		return err
	}
	text, _, complete := bytes.Cut(text, []byte(end))
	if !complete {
		return fmt.Errorf("read %s: %w", f.Name(), io.ErrUnexpectedEOF)
	}
	return json.Unmarshal(text, v)
}
