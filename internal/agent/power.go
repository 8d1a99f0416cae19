package agent

import (
	"context"
	"fmt"
	"os"
	"os/signal"
	"time"

	"golang.org/x/sys/unix"
)

// endGrace is how long processes have between SIGTERM and SIGKILL.
const endGrace = 5 * time.Second

// end begins the end of the guest and returns. There is no ACPI to power off
// with, and the VMM was told not to reboot: both ways are one.
func (m *machine) end(context.Context, bool) error {
	go func() {
		endProcesses(endGrace)
		m.powerOff()
	}()
	return nil
}

// takeSignals keeps signals from ending PID 1: by default the Go runtime
// exits on most of them, and a kernel whose PID 1 exits panics. What is
// caught, unlike what is ignored, is as usual again after an exec.
func takeSignals() <-chan os.Signal {
	var all []os.Signal
	for number := unix.Signal(1); number <= lastSignal; number++ {
		switch number {
		case unix.SIGKILL, unix.SIGSTOP: // cannot be caught
		case unix.SIGCHLD, unix.SIGURG: // of the reaper, and of the runtime
		default:
			all = append(all, number)
		}
	}
	signals := make(chan os.Signal, 1)
	signal.Notify(signals, all...)
	return signals
}

// obey ends the guest in order on the signals by which other programs ask an
// init to: those of sysvinit, busybox and ctrl-alt-del.
func (m *machine) obey(signals <-chan os.Signal) {
	for s := range signals {
		switch s {
		case unix.SIGTERM, unix.SIGINT, unix.SIGPWR, unix.SIGUSR1, unix.SIGUSR2:
			endProcesses(endGrace)
			m.powerOff()
		}
	}
}

// askInit asks the image's own init, as the kernel does at ctrl-alt-del:
// systemd, sysvinit, OpenRC and busybox all take SIGINT for a reboot, and a
// reboot is what ends the VMM.
//
// It may take longer than the host waits, so that what was written until now
// is put on the disks first.
func askInit(context.Context, bool) error {
	unix.Sync()
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

// powerOff writes everything to the disks, closes those that outlive the guest
// so that they have no journal to replay, and resets the machine, which ends the VMM.
func (m *machine) powerOff() {
	unix.Sync()
	for _, path := range append(mountedVolumes(), "/", m.disk) {
		// A disk that is in use in a way that forbids it is synced all the same.
		_ = unix.Mount("", path, "", unix.MS_REMOUNT|unix.MS_RDONLY, "")
	}
	unix.Sync()
	for {
		unix.Reboot(unix.LINUX_REBOOT_CMD_RESTART)
		time.Sleep(time.Second)
	}
}
