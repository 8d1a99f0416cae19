package attack

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"slices"
	"strconv"
	"strings"
	"unsafe"

	"golang.org/x/sys/unix"

	"github.com/vmsan/vmsan/internal/link"
)

// ends are attacks after which the guest does not answer any more. Each says on
// the console that it begins.
var ends = []attack{
	{"agent-held", announced("agent-held", holdAgent)},
	{"agent-killed", announced("agent-killed", killAgent)},
	{"data-garbage", announced("data-garbage", func(ctx context.Context) (int, error) {
		return floodPort(ctx, link.DataPort, random(16<<10))
	})},
	{"data-swallowed", announced("data-swallowed", swallow)},
	{"control-failed", announced("control-failed", func(context.Context) (int, error) {
		port, err := takePort(link.ControlPort)
		if err != nil {
			return 0, err
		}
		defer port.Close()
		return port.WriteString("\nfailed " + Escapes + "\n")
	})},
	{"driver-unbound", announced("driver-unbound", unbind)},
	{"fork-bomb", announced("fork-bomb", forkBomb)},
	{"kernel-panic", announced("kernel-panic", func(context.Context) (int, error) {
		return 1, os.WriteFile("/proc/sysrq-trigger", []byte("c"), 0)
	})},
	{"kernel-reboot", announced("kernel-reboot", func(context.Context) (int, error) {
		return 1, unix.Reboot(unix.LINUX_REBOOT_CMD_RESTART)
	})},
	{"kernel-halt", announced("kernel-halt", func(context.Context) (int, error) {
		return 1, unix.Reboot(unix.LINUX_REBOOT_CMD_HALT)
	})},
	{"device-registers", announced("device-registers", pokeDevices)},
	{"own-disk-overwritten", announced("own-disk-overwritten", overwriteDisk)},
}

// Announcement is what an attack on the guest itself says on its console.
func Announcement(name string) string { return "the attack begins: " + name }

func announced(name string, do func(context.Context) (int, error)) func(context.Context, []string) (int, error) {
	return func(ctx context.Context, _ []string) (int, error) {
		console, err := os.OpenFile(consolePath, os.O_WRONLY|unix.O_NOCTTY, 0)
		if err != nil {
			return 0, err
		}
		defer console.Close()
		if _, err := fmt.Fprintln(console, Announcement(name)); err != nil {
			return 0, err
		}
		return do(ctx)
	}
}

// agentThreads traces all threads of PID 1, each from a thread of our own that
// stays.
func agentThreads() (threads []int, err error) {
	runtime.LockOSThread()
	found, err := filepath.Glob("/proc/1/task/*")
	if err != nil {
		return nil, err
	}
	for _, path := range found {
		thread, err := strconv.Atoi(filepath.Base(path))
		if err != nil {
			return nil, err
		}
		const seize = 0x4206 // PTRACE_SEIZE
		if _, _, errno := unix.Syscall6(unix.SYS_PTRACE, seize, uintptr(thread), 0, 0, 0, 0); errno != 0 {
			return nil, fmt.Errorf("trace thread %d: %w", thread, errno)
		}
		threads = append(threads, thread)
	}
	return threads, nil
}

// holdAgent has the agent stand still: it never answers anybody again.
func holdAgent(context.Context) (int, error) {
	threads, err := agentThreads()
	if err != nil {
		return 0, err
	}
	for _, thread := range threads {
		if err := unix.PtraceInterrupt(thread); err != nil {
			return 0, err
		}
	}
	select {} // the end of the tracer would let it go on
}

// killAgent has no instruction of PID 1's be one that a program may use: no
// signal ends it, and what runs there has handlers for faults.
func killAgent(context.Context) (int, error) {
	maps, err := os.ReadFile("/proc/1/maps")
	if err != nil {
		return 0, err
	}
	memory, err := os.OpenFile("/proc/1/mem", os.O_WRONLY, 0)
	if err != nil {
		return 0, err
	}
	defer memory.Close()
	written := 0
	for line := range strings.Lines(string(maps)) {
		var from, to int64
		var mode, rest string
		if n, _ := fmt.Sscanf(line, "%x-%x %s %s", &from, &to, &mode, &rest); n < 3 || mode != "r-xp" || strings.Contains(line, "[") {
			continue
		}
		const halt = 0xf4 // of amd64; no instruction of arm64 either
		n, err := memory.WriteAt(bytes.Repeat([]byte{halt}, int(to-from)), from)
		if written += n; err != nil {
			return written, err
		}
	}
	return written, nil
}

// swallow reads what the host says to the agent.
func swallow(ctx context.Context) (int, error) {
	port, err := takePort(link.DataPort)
	if err != nil {
		return 0, err
	}
	buffer := make([]byte, 1<<16)
	for {
		if _, err := port.Read(buffer); err != nil {
			return 0, err
		}
	}
}

// unbind takes the ports away under the agent.
func unbind(context.Context) (n int, err error) {
	const driver = "/sys/bus/virtio/drivers/virtio_console"
	devices, err := filepath.Glob(driver + "/virtio*")
	if err != nil {
		return 0, err
	}
	for _, device := range devices {
		if err := os.WriteFile(driver+"/unbind", []byte(filepath.Base(device)), 0); err != nil {
			return n, err
		}
		n++
	}
	return n, nil
}

func forkBomb(context.Context) (int, error) {
	return 1, exec.Command("/bin/sh", "-c", "bomb() { bomb | bomb & }; bomb; wait").Run()
}

// pokeDevices writes to the registers of the machine's devices, past all
// drivers: queues anywhere in memory and beyond it, of any size, and notices
// that there is something in them (virtio 1.2, section 4.2.2).
func pokeDevices(ctx context.Context) (int, error) {
	// What is read from the disk later may not come any more.
	if err := unix.Mlockall(unix.MCL_CURRENT | unix.MCL_FUTURE); err != nil {
		return 0, err
	}
	const drivers = "/sys/bus/platform/drivers/virtio-mmio"
	devices, err := filepath.Glob(drivers + "/*:*")
	if err != nil {
		return 0, err
	}
	ranges, err := os.ReadFile("/proc/iomem")
	if err != nil {
		return 0, err
	}
	memory, err := os.OpenFile("/dev/mem", os.O_RDWR|unix.O_SYNC, 0)
	if err != nil {
		return 0, err
	}
	defer memory.Close()
	const page = 4096
	at := func(device string) (address int64) {
		for line := range strings.Lines(string(ranges)) {
			if strings.Contains(line, filepath.Base(device)) {
				fmt.Sscanf(strings.TrimSpace(line), "%x-", &address)
			}
		}
		return address
	}
	// The agent's ports stay, to tell what became of it, and what is in one page
	// with them: nobody may write to that of a device which has a driver.
	all := slices.Clone(devices)
	devices = slices.DeleteFunc(devices, func(device string) bool {
		return slices.ContainsFunc(all, func(other string) bool {
			ports, _ := filepath.Glob(filepath.Join(other, "virtio*", "virtio-ports"))
			return len(ports) > 0 && at(other)/page == at(device)/page
		})
	})
	for _, device := range devices {
		if err := os.WriteFile(drivers+"/unbind", []byte(filepath.Base(device)), 0); err != nil {
			return 0, err
		}
	}
	var registers [][]byte
	for _, device := range devices {
		mapped, err := unix.Mmap(int(memory.Fd()), at(device)&^(page-1), page, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_SHARED)
		if err != nil {
			return 0, fmt.Errorf("map registers of %s: %w", filepath.Base(device), err)
		}
		registers = append(registers, mapped[at(device)&(page-1):][:0x200])
	}
	if len(registers) == 0 {
		return 0, errors.New("there is no device but the agent's")
	}
	set := func(r []byte, offset int, value uint32) {
		*(*uint32)(unsafe.Pointer(&r[offset])) = value
	}
	return repeat(ctx, func(i int) error {
		r := registers[i%len(registers)]
		const selectQueue, size, ready, notify, status = 0x30, 0x38, 0x44, 0x50, 0x70
		set(r, status, 0)
		set(r, status, 0xb) // acknowledged, a driver, features chosen
		for queue := range uint32(3) {
			set(r, selectQueue, queue)
			set(r, size, rand.Uint32N(1024))
			for _, address := range []int{0x80, 0x90, 0xa0} { // descriptors, and both rings
				set(r, address, rand.Uint32())
				set(r, address+4, rand.Uint32N(2))
			}
			set(r, ready, 1)
		}
		set(r, status, 0xf)
		for queue := range uint32(5) {
			set(r, notify, queue)
		}
		// Whatever else there is.
		set(r, 4*rand.IntN(len(r)/4), rand.Uint32())
		return nil
	})
}

// overwriteDisk writes garbage where the file system is that it runs on.
func overwriteDisk(context.Context) (int, error) {
	disk, err := os.OpenFile("/dev/vdb", os.O_WRONLY|unix.O_SYNC, 0)
	if err != nil {
		return 0, err
	}
	defer disk.Close()
	return disk.WriteAt(random(8<<20), 0)
}
