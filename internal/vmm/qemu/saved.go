package qemu

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"math"
	"os"
	"slices"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"github.com/vmsan/vmsan/internal/sparse"
	"github.com/vmsan/vmsan/internal/vmm"
)

// A machine is saved as a stream with all of its memory, because the memory
// of one that runs must not be a file that is shared: the host would write it
// to the disk all the time. The stream is sealed by a second QEMU, which has
// a file for its memory, loads the stream, never runs, and saves all but the
// memory. From then on, machines have that file for their memory,
// copy-on-write (QEMU's docs/devel/migration.rst and, for the capability, its
// qapi/migration.json).

// ignoreShared leaves memory that is in a shared file out of a saved state.
const ignoreShared = "x-ignore-shared"

// bandwidth is as good as none, which cannot be asked for: the limit would
// otherwise be 128 MiB/s.
const bandwidth = math.MaxInt64 / 1024

// maxStates is how many states of a migration are kept until somebody looks.
// A migration has less than ten.
const maxStates = 64

// migrationEvent keeps the state, unless a VMM that was taken over has more
// of them than there are.
func (vm *virtualMachine) migrationEvent(data json.RawMessage) {
	var event struct{ Status string }
	if json.Unmarshal(data, &event) != nil {
		return
	}
	select {
	case vm.migration <- event.Status:
	default:
	}
}

// Save writes a stream to to.State.
func (vm *virtualMachine) Save(ctx context.Context, to vmm.Saved) error {
	if err := vm.save(ctx, to.State, false); err != nil {
		return fmt.Errorf("save machine: %w", err)
	}
	return nil
}

// save writes all of the machine, or all but the memory that is a shared
// file.
func (vm *virtualMachine) save(ctx context.Context, to *os.File, sealed bool) error {
	if ctx.Err() != nil {
		return context.Cause(ctx)
	}
	bounded, cancel := commandContext(ctx)
	defer cancel()
	if err := vm.checkPaused(bounded); err != nil {
		return err
	}
	if err := vm.capabilities(bounded, sealed); err != nil {
		return err
	}
	if err := vm.monitor.run(bounded, "migrate-set-parameters", map[string]any{"max-bandwidth": int64(bandwidth)}, nil); err != nil {
		return err
	}
	return vm.outgoing(ctx, to)
}

// checkPaused also refuses a machine that was saved since it was paused:
// QEMU does not save it again.
func (vm *virtualMachine) checkPaused(ctx context.Context) error {
	state, err := vm.state(ctx)
	switch {
	case err != nil:
		return err
	case state.Running:
		return errors.New("it is not paused")
	case state.Status == "postmigrate":
		return errors.New("it has been saved already since it was paused")
	}
	return nil
}

// commandTime bounds commands that QEMU answers at once.
const commandTime = 30 * time.Second

// commandContext is for commands to a machine that has to outlive them: one
// that is broken off takes the monitor with it, so that only waiting for a
// migration may end with ctx.
func commandContext(ctx context.Context) (context.Context, context.CancelFunc) {
	return context.WithTimeout(context.WithoutCancel(ctx), commandTime)
}

// capabilities says what the next migration is like. They are part of what is
// saved, and have to be the same when it is loaded.
func (vm *virtualMachine) capabilities(ctx context.Context, sealed bool) error {
	type capability struct {
		Name  string `json:"capability"`
		State bool   `json:"state"`
	}
	return vm.monitor.run(ctx, "migrate-set-capabilities", map[string]any{
		"capabilities": []capability{{"events", true}, {ignoreShared, sealed}},
	}, nil)
}

// outgoing writes the machine to a file, and ends the attempt if ctx ends.
func (vm *virtualMachine) outgoing(ctx context.Context, to *os.File) error {
	bounded, cancel := commandContext(ctx)
	defer cancel()
	vm.forgetStates()
	if err := vm.monitor.runWith(bounded, to, "getfd", map[string]any{"fdname": "saved"}, nil); err != nil {
		return err
	}
	if err := vm.monitor.run(bounded, "migrate", map[string]any{"uri": "fd:saved"}, nil); err != nil {
		return err
	}
	end, err := vm.migrationEnd(ctx)
	if err != nil && ctx.Err() != nil {
		return errors.Join(err, vm.cancelMigration(ctx))
	}
	if err != nil {
		return err
	}
	if err := vm.settle(ctx); err != nil {
		return err
	}
	return vm.migrationError(ctx, end)
}

// settle returns when a machine that was saved can be resumed. That a
// migration has ended is told a few instructions before that, by another
// thread than the one that takes commands, and there is no event for it.
func (vm *virtualMachine) settle(ctx context.Context) error {
	bounded, cancel := commandContext(ctx)
	defer cancel()
	for {
		state, err := vm.state(bounded)
		if err != nil || state.Status != "finish-migrate" {
			return err
		}
	}
}

// runState is QEMU's word for what a machine does.
type runState struct {
	Status  string
	Running bool
}

func (vm *virtualMachine) state(ctx context.Context) (s runState, err error) {
	return s, vm.monitor.run(ctx, "query-status", nil, &s)
}

func (vm *virtualMachine) forgetStates() {
	for {
		select {
		case <-vm.migration:
		default:
			return
		}
	}
}

// cancelMigration returns when QEMU no longer writes and the machine can be
// resumed; that it had come to an end by itself is fine.
func (vm *virtualMachine) cancelMigration(ctx context.Context) error {
	bounded, cancel := commandContext(ctx)
	defer cancel()
	if err := vm.monitor.run(bounded, "migrate_cancel", nil, nil); err != nil {
		return err
	}
	if _, err := vm.migrationEnd(bounded); err != nil {
		return err
	}
	return vm.settle(ctx)
}

// completed is how a migration ends that was done.
const completed = "completed"

// migrationEnd waits for the end of a migration, in or out.
func (vm *virtualMachine) migrationEnd(ctx context.Context) (end string, err error) {
	for {
		select {
		case state := <-vm.migration:
			if slices.Contains([]string{completed, "failed", "cancelled"}, state) {
				return state, nil
			}
		case <-vm.monitor.done:
			return "", errMonitorClosed
		case <-ctx.Done():
			return "", context.Cause(ctx)
		}
	}
}

// migrationError asks why a migration has ended, if it was not done.
func (vm *virtualMachine) migrationError(ctx context.Context, end string) error {
	if end == completed {
		return nil
	}
	var info struct {
		Reason string `json:"error-desc"`
	}
	bounded, cancel := commandContext(ctx)
	defer cancel()
	if err := vm.monitor.run(bounded, "query-migrate", nil, &info); err != nil {
		return err
	}
	reason := vmm.Printable(info.Reason[:min(len(info.Reason), maxDesc)])
	// QEMU has errors as text alone.
	if strings.HasSuffix(reason, "No space left on device") {
		return fmt.Errorf("QEMU: %w", unix.ENOSPC)
	}
	return fmt.Errorf("QEMU: migration %s: %s", end, reason)
}

// Seal loads the stream into a machine that never runs and whose memory is
// to.Memory.
func (Driver) Seal(ctx context.Context, spec vmm.Spec, from, to vmm.Saved) error {
	if err := seal(ctx, spec, from.State, to); err != nil {
		return fmt.Errorf("seal saved machine: %w", err)
	}
	return nil
}

func seal(ctx context.Context, spec vmm.Spec, from *os.File, to vmm.Saved) (err error) {
	if err := to.Memory.Truncate(memoryBytes(spec)); err != nil {
		return err
	}
	if spec.NIC != nil {
		tap, err := deadTap()
		if err != nil {
			return err
		}
		defer tap.Close()
		spec.NIC = &vmm.NIC{Tap: tap, MAC: spec.NIC.MAC}
	}
	vm, err := load(ctx, build{spec: spec, parts: sealerParts, memory: to.Memory}, from, false)
	if err != nil {
		return noRoom(err)
	}
	if err := vm.save(ctx, to.State, true); err != nil {
		return noRoom(vm.abandon(err))
	}
	if err := vm.abandon(nil); err != nil {
		return err
	}
	return sparse.Punch(to.Memory)
}

// noRoom explains the end of a machine whose memory is a file in a file
// system that has no room for it: the kernel can tell only by a signal.
func noRoom(err error) error {
	if err != nil && strings.Contains(err.Error(), unix.SIGBUS.String()) {
		return fmt.Errorf("write memory: %w", unix.ENOSPC)
	}
	return err
}

func memoryBytes(spec vmm.Spec) int64 { return int64(spec.MemoryMiB) << 20 }

// Restore starts a machine on from's memory, copy-on-write.
func (Driver) Restore(ctx context.Context, spec vmm.Spec, from vmm.Saved) (vmm.VM, error) {
	vm, err := restore(ctx, spec, from)
	if err != nil {
		return nil, fmt.Errorf("restore machine: %w", err)
	}
	return vm, nil
}

func restore(ctx context.Context, spec vmm.Spec, from vmm.Saved) (*virtualMachine, error) {
	info, err := from.Memory.Stat()
	if err != nil {
		return nil, err
	}
	if info.Size() != memoryBytes(spec) {
		return nil, fmt.Errorf("its memory is %d bytes, not %d MiB", info.Size(), spec.MemoryMiB)
	}
	memory, err := reopen(from.Memory)
	if err != nil {
		return nil, err
	}
	defer memory.Close()
	vm, err := load(ctx, build{spec: spec, parts: restoredParts, memory: memory}, from.State, true)
	if err != nil {
		return nil, err
	}
	go vm.wait()
	return vm, nil
}

// reopen opens a file again, for reading: several machines that are loaded at
// a time must not share a place in it, and none may write.
func reopen(file *os.File) (*os.File, error) {
	return os.Open(fmt.Sprintf("/proc/self/fd/%d", file.Fd()))
}

// load starts a machine in the state that was saved, with its CPUs standing
// still.
func load(ctx context.Context, b build, state *os.File, sealed bool) (*virtualMachine, error) {
	// Neither is needed: both are in the memory.
	b.spec.Kernel, b.spec.Initramfs = "", ""
	source, err := reopen(state)
	if err != nil {
		return nil, err
	}
	defer source.Close()
	vm, err := start(ctx, b)
	if err != nil {
		return nil, err
	}
	if err := vm.incoming(ctx, source, sealed); err != nil {
		return nil, vm.abandon(err)
	}
	return vm, nil
}

// incoming reads the state. A QEMU that cannot make sense of it ends.
func (vm *virtualMachine) incoming(ctx context.Context, state *os.File, sealed bool) error {
	if err := vm.capabilities(ctx, sealed); err != nil {
		return err
	}
	if err := vm.monitor.runWith(ctx, state, "getfd", map[string]any{"fdname": "saved"}, nil); err != nil {
		return err
	}
	if err := vm.monitor.run(ctx, "migrate-incoming", map[string]any{"uri": "fd:saved"}, nil); err != nil {
		return err
	}
	end, err := vm.migrationEnd(ctx)
	if err != nil {
		return err
	}
	return vm.migrationError(ctx, end)
}

// restoredParts lists what a machine that goes on is made of.
func restoredParts(spec vmm.Spec, e ends) []device {
	return slices.Concat(
		board(spec, e),
		[]device{fileRAM{mib: spec.MemoryMiB}, incoming{}},
		disks(spec), network(spec), filter(spec))
}

// sealerParts lists what a machine is made of that only stands in for the one
// that was saved.
func sealerParts(spec vmm.Spec, e ends) []device {
	return slices.Concat(
		board(spec, e),
		[]device{fileRAM{mib: spec.MemoryMiB, shared: true}, incoming{}},
		blankDisks(spec), network(spec), filter(spec))
}

func blankDisks(spec vmm.Spec) (list []device) {
	for i, d := range spec.Disks {
		list = append(list, blankDisk{disk{d, diskBus(i)}})
	}
	return list
}
