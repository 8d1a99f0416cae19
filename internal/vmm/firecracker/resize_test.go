package firecracker

import (
	"errors"
	"os"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/vmsan/vmsan/internal/testenv"
)

func TestResize(t *testing.T) { onEach(t, resize) }

// resize grows a disk beyond what Firecracker was let write at first, and takes
// memory and gives it back.
func resize(t *testing.T, parts testenv.Machine) {
	spec := machineSpec(t, parts)
	vm := boot(t, spec)
	info, err := spec.Disks[1].File.Stat()
	if err != nil {
		t.Fatal(err)
	}
	size := info.Size()
	for range 2 {
		if err := vm.DiskResized(t.Context(), "overlay", size); err != nil {
			t.Fatal(err)
		}
	}
	checkGrown(t, vm, spec.Disks[1].File)
	if err := vm.DiskResized(t.Context(), "nosuchdisk", size); err == nil {
		t.Error("a disk that is not there was resized")
	}
	for _, c := range []struct {
		mib int
		ok  bool
	}{{spec.MemoryMiB - 32, true}, {spec.MemoryMiB, true}, {spec.MemoryMiB + 1, false}, {0, false}} {
		err := vm.SetMemory(t.Context(), c.mib)
		// A guest that does not come up has no driver for a balloon.
		if (err == nil) != c.ok && !(c.ok && strings.Contains(err.Error(), "Device not activated yet")) {
			t.Errorf("%d MiB: %v", c.mib, err)
		}
	}
	if err := vm.Stop(t.Context()); err != nil {
		t.Fatal(err)
	}
	if vm.DiskResized(t.Context(), "overlay", size) == nil || vm.SetMemory(t.Context(), spec.MemoryMiB) == nil {
		t.Error("what has ended was resized")
	}
}

// checkGrown grows a disk by more than Firecracker was let write at first, if
// this process may raise limits.
func checkGrown(t *testing.T, vm *virtualMachine, file *os.File) {
	t.Helper()
	const size = 8 << 30
	if err := file.Truncate(size); err != nil {
		t.Fatal(err)
	}
	err := vm.DiskResized(t.Context(), "overlay", size)
	if !capable(t, unix.CAP_SYS_RESOURCE) {
		if !errors.Is(err, unix.EPERM) {
			t.Errorf("without the right to raise limits: %v", err)
		}
		return
	}
	var limit unix.Rlimit
	if limitErr := unix.Prlimit(vm.PID(), unix.RLIMIT_FSIZE, nil, &limit); err != nil || limitErr != nil || limit.Max != size+slack {
		t.Errorf("it may write %d bytes, %v, %v", limit.Max, err, limitErr)
	}
}

func capable(t *testing.T, capability uint) bool {
	t.Helper()
	header := unix.CapUserHeader{Version: unix.LINUX_CAPABILITY_VERSION_3}
	var sets [2]unix.CapUserData
	if err := unix.Capget(&header, &sets[0]); err != nil {
		t.Fatal(err)
	}
	return sets[capability/32].Effective>>(capability%32)&1 != 0
}
