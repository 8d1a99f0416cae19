// Package fake is a driver without a VMM: its machine is a guest in this
// process, which speaks the guest link over socket pairs like the agent does
// over virtio-serial. It needs no root, no kernel and no network.
package fake

import (
	"context"
	"errors"
	"fmt"
	"os"
	"slices"
	"strings"
	"sync"
	"sync/atomic"

	"github.com/vmsan/vmsan/internal/link"
	"github.com/vmsan/vmsan/internal/vmm"
)

// Driver starts machines without a VMM and keeps what it was given, as text.
// Its zero value is ready; it is not copied after its first use.
type Driver struct {
	// Silent guests never say that they are ready.
	Silent bool

	mu      sync.Mutex
	started []string
	vms     []*Machine
}

// Features says what the driver can do.
func (*Driver) Features() vmm.Features {
	return vmm.Features{Name: "fake", Accelerators: []vmm.Accelerator{vmm.TCG}, MinMemoryMiB: 64, Snapshots: true, Seals: true}
}

// Version is the fake's own.
func (*Driver) Version(context.Context) (string, error) { return "1.0", nil }

// Start starts a guest. The kernel and the initramfs have to be there, but
// need not be any.
func (d *Driver) Start(ctx context.Context, spec vmm.Spec) (vmm.VM, error) {
	if ctx.Err() != nil {
		return nil, fmt.Errorf("start guest: %w", context.Cause(ctx))
	}
	for _, path := range []string{spec.Kernel, spec.Initramfs} {
		if _, err := os.Stat(path); err != nil {
			return nil, fmt.Errorf("start guest: %w", err)
		}
	}
	vm, theirs, err := newMachine(spec)
	if err != nil {
		return nil, err
	}
	d.keep(vm, Describe(spec))
	vm.run(theirs, d.Silent)
	return vm, nil
}

func (d *Driver) keep(vm *Machine, described string) {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.started = append(d.started, described)
	d.vms = append(d.vms, vm)
}

// Started is what each Start was given, in the form of Describe; a Restore
// has "restored" in front.
func (d *Driver) Started() []string {
	d.mu.Lock()
	defer d.mu.Unlock()
	return slices.Clone(d.started)
}

// Machines are the machines that were started.
func (d *Driver) Machines() []*Machine {
	d.mu.Lock()
	defer d.mu.Unlock()
	return slices.Clone(d.vms)
}

// Describe writes a spec as a person would: a line for each part, with the
// names of files but not their places.
func Describe(s vmm.Spec) string {
	var b strings.Builder
	line := func(format string, args ...any) { fmt.Fprintf(&b, format+"\n", args...) }
	line("machine %s: %d CPUs, %d MiB, %s", s.ID, s.VCPUs, s.MemoryMiB, s.Accelerator)
	line("kernel: %s", strings.Join(s.Cmdline, " "))
	for _, d := range s.Disks {
		line("disk %s: %s", d.Name, map[bool]string{true: "read-only", false: "writable"}[d.ReadOnly])
	}
	if s.NIC != nil {
		line("network device: %s", s.NIC.MAC)
	}
	if s.Jail.User != nil {
		line("jail: user %d, group %d", s.Jail.User.UID, s.Jail.User.GID)
	}
	if s.Jail.Cgroup != nil {
		line("jail: cgroup %s", s.Jail.Cgroup.Name())
	}
	if s.Jail.NoSeccomp {
		line("jail: no seccomp")
	}
	return b.String()
}

// Machine is a guest that runs in this process. Its methods besides vmm.VM's
// are what a test can do to it.
type Machine struct {
	spec     vmm.Spec
	link     vmm.Link
	gate     *pausable
	guest    *guest
	saved    atomic.Bool  // since it was paused
	refusals atomic.Int32 // how often Resume is to fail
	onResume atomic.Pointer[func()]
	onSave   atomic.Pointer[func()]

	up   sync.Once
	end  sync.Once
	exit vmm.Exit
	gone chan struct{} // closed when the guest is to end
	done chan struct{}
}

func newMachine(spec vmm.Spec) (vm *Machine, theirs vmm.Link, err error) {
	vm = &Machine{spec: spec, gate: newPausable(), gone: make(chan struct{}), done: make(chan struct{})}
	vm.guest = &guest{powerOff: func() { vm.finish(vmm.Exit{Reason: "the guest shut down", Clean: true}) }}
	for _, s := range []struct {
		name         string
		ours, theirs **os.File
	}{
		{"control", &vm.link.Control, &theirs.Control},
		{"data", &vm.link.Data, &theirs.Data},
		{"console", &vm.link.Console, &theirs.Console},
	} {
		if *s.ours, *s.theirs, err = vmm.SocketPair(s.name); err != nil {
			vm.link.Close()
			theirs.Close()
			return nil, vmm.Link{}, err
		}
	}
	if spec.Linked != nil {
		spec.Linked(vm.link)
	}
	return vm, theirs, nil
}

// run runs the guest on its ends of the link, until Stop or its own end.
func (vm *Machine) run(theirs vmm.Link, silent bool) {
	vm.guest.link = theirs
	fmt.Fprintf(theirs.Console, "fake guest: it has no kernel that could print anything at boot\r\n")
	if !silent {
		vm.boot()
	}
	go func() {
		<-vm.gone
		vm.gate.open()
		vm.guest.close()
		vm.link.Close()
		close(vm.done)
	}()
}

// boot lets the guest come up, if it is not.
func (vm *Machine) boot() (begun bool) {
	vm.up.Do(func() {
		begun = true
		theirs := vm.guest.link
		vm.guest.serve(link.Listen(vm.gate.port(theirs.Control), vm.gate.port(theirs.Data), vm.guest))
	})
	return begun
}

// Reboot implements vmm.Rebooter: also a guest that was silent comes up.
func (vm *Machine) Reboot(context.Context) (booted bool, stood string, err error) {
	return !vm.boot(), "nowhere", nil
}

// finish ends the guest; the first reason counts.
func (vm *Machine) finish(exit vmm.Exit) {
	vm.end.Do(func() {
		vm.exit = exit
		close(vm.gone)
	})
}

// Crash ends the machine as a VMM that was killed does.
func (vm *Machine) Crash(reason string) {
	vm.finish(vmm.Exit{Reason: reason})
	<-vm.done
}

// Print writes to the guest's console.
func (vm *Machine) Print(text []byte) error {
	_, err := vm.guest.link.Console.Write(text)
	return err
}

// PID is this process's.
func (vm *Machine) PID() int { return os.Getpid() }

// Link is the way to the guest.
func (vm *Machine) Link() vmm.Link { return vm.link }

// Done is closed when the guest has ended.
func (vm *Machine) Done() <-chan struct{} { return vm.done }

// Exit says how the guest ended.
func (vm *Machine) Exit() vmm.Exit { return vm.exit }

// errEnded is what commands get after the end.
var errEnded = errors.New("the machine has ended")

// Pause keeps the guest from reading and writing.
func (vm *Machine) Pause(context.Context) error {
	select {
	case <-vm.gone:
		return errEnded
	default:
		vm.gate.shut()
		return nil
	}
}

// RefuseResume has the next calls of Resume fail.
func (vm *Machine) RefuseResume(times int) { vm.refusals.Store(int32(times)) }

// OnResume has do be called when the guest goes on the next time.
func (vm *Machine) OnResume(do func()) { vm.onResume.Store(&do) }

// OnSave has do be called by the next Save, which then goes on until its context
// ends.
func (vm *Machine) OnSave(do func()) { vm.onSave.Store(&do) }

// Stands tells whether the guest's CPUs stand still.
func (vm *Machine) Stands() bool { return vm.gate.isShut() }

// Resume lets it go on.
func (vm *Machine) Resume(context.Context) error {
	if vm.refusals.Add(-1) >= 0 {
		return errors.New("not now")
	}
	select {
	case <-vm.gone:
		return errEnded
	default:
		vm.saved.Store(false)
		vm.gate.open()
		if do := vm.onResume.Swap(nil); do != nil {
			(*do)()
		}
		return nil
	}
}

// DiskResized looks whether there is such a disk.
func (vm *Machine) DiskResized(_ context.Context, disk string, bytes int64) error {
	select {
	case <-vm.gone:
		return errEnded
	default:
	}
	if !slices.ContainsFunc(vm.spec.Disks, func(d vmm.Disk) bool { return d.Name == disk && !d.ReadOnly }) {
		return fmt.Errorf("there is no writable disk %s", disk)
	}
	vm.guest.disk.Store(bytes)
	return nil
}

// Stop ends the guest without asking it.
func (vm *Machine) Stop(context.Context) error {
	vm.finish(vmm.Exit{Reason: "stopped", Clean: true})
	<-vm.done
	return nil
}
