package firecracker

import (
	"context"
	"errors"
	"fmt"

	"golang.org/x/sys/unix"
)

// DiskResized has Firecracker look at the size of a disk's file anew, and lets
// it write that far.
func (vm *virtualMachine) DiskResized(ctx context.Context, disk string, bytes int64) error {
	vm.turn.Lock()
	defer vm.turn.Unlock()
	if err := vm.alive(); err != nil {
		return err
	}
	if err := vm.allowFiles(bytes + slack); err != nil {
		return fmt.Errorf("let Firecracker write %d bytes to a file: %w", bytes, err)
	}
	return vm.api.each(ctx, []request{resized(disk)})
}

// allowFiles raises the limit on the size of Firecracker's files, unless that
// is higher, which takes CAP_SYS_RESOURCE. The process was alive a moment ago:
// its number is another's only if all numbers have come round since.
func (vm *virtualMachine) allowFiles(bytes int64) error {
	if bytes <= vm.largest {
		return nil
	}
	limit := unix.Rlimit{Cur: uint64(bytes), Max: uint64(bytes)}
	if err := unix.Prlimit(vm.PID(), unix.RLIMIT_FSIZE, &limit, nil); err != nil {
		return err
	}
	vm.largest = bytes
	return nil
}

// SetMemory leaves the guest so much of its memory, in MiB. The rest goes into
// its balloon and so back to the host, as soon as the guest can spare it.
func (vm *virtualMachine) SetMemory(ctx context.Context, mib int) error {
	vm.turn.Lock()
	defer vm.turn.Unlock()
	if err := vm.alive(); err != nil {
		return err
	}
	if mib < 1 || mib > vm.memory {
		return errors.New("the machine has no such memory")
	}
	return vm.api.each(ctx, []request{inflated(vm.memory - mib)})
}
