package agent

import (
	"context"
	"fmt"
	"os"
	"time"

	"golang.org/x/sys/unix"
)

// endGrace is how long processes have between SIGTERM and SIGKILL.
const endGrace = 5 * time.Second

// resetMachine begins the end of a guest whose PID 1 is the agent. There is no ACPI
// to power off with, and the VMM was told not to reboot: both ways are one.
func resetMachine(context.Context, bool) error {
	go func() {
		endProcesses(endGrace)
		powerOff()
	}()
	return nil
}

// askInit asks the image's own init, as the kernel does at ctrl-alt-del:
// systemd, sysvinit, OpenRC and busybox all take SIGINT for a reboot, and a
// reboot is what ends the VMM.
func askInit(context.Context, bool) error {
	if err := unix.Kill(1, unix.SIGINT); err != nil {
		return fmt.Errorf("ask init to shut down: %w", err)
	}
	return nil
}

// endProcesses asks every process to end and kills those that have not
// after grace.
func endProcesses(grace time.Duration) {
	unix.Kill(-1, unix.SIGTERM)
	for deadline := time.Now().Add(grace); time.Now().Before(deadline) && anyProcess(); {
		time.Sleep(5 * time.Millisecond)
	}
	unix.Kill(-1, unix.SIGKILL)
}

// anyProcess tells whether there is a process besides PID 1 and the kernel's
// own threads, which have no command line.
func anyProcess() bool {
	dir, err := os.Open("/proc")
	if err != nil {
		return false
	}
	defer dir.Close()
	names, _ := dir.Readdirnames(-1)
	for _, name := range names {
		if name[0] < '1' || name[0] > '9' || name == "1" {
			continue
		}
		if line, err := os.ReadFile("/proc/" + name + "/cmdline"); err == nil && len(line) > 0 {
			return true
		}
	}
	return false
}

// powerOff writes everything to the disks and resets the machine, which ends
// the VMM: it was told not to reboot. There is no ACPI to power off with.
func powerOff() {
	unix.Sync()
	unix.Mount("", "/", "", unix.MS_REMOUNT|unix.MS_RDONLY, "")
	unix.Sync()
	for {
		unix.Reboot(unix.LINUX_REBOOT_CMD_RESTART)
		time.Sleep(time.Second)
	}
}
