package store

import (
	"bytes"
	"errors"
	"fmt"
	"os"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

// Where proc(5) has the CPU time of a process, in user mode and in the kernel,
// and its start time in /proc/PID/stat, counted from the field after the
// command's closing parenthesis.
const (
	userField   = 14 - 3
	systemField = 15 - 3
	startField  = 22 - 3
)

// tick is the unit of times in /proc, which is the same on every architecture
// that we know (USER_HZ).
const tick = time.Second / 100

// ProcessOf names the process pid, or nothing if there is none.
func ProcessOf(pid int) Process {
	ticks, err := startTicks(pid)
	if err != nil {
		return Process{}
	}
	return Process{PID: pid, StartTicks: ticks}
}

func startTicks(pid int) (uint64, error) {
	ticks, err := statFields(pid, startField)
	return ticks[0], err
}

// CPUTime is how much time the process that p names has had on CPUs.
func (p Process) CPUTime() (time.Duration, error) {
	ticks, err := statFields(p.PID, startField, userField, systemField)
	if err == nil && ticks[0] != p.StartTicks {
		err = fmt.Errorf("process %d is another one", p.PID)
	}
	if err != nil {
		return 0, fmt.Errorf("read CPU time of process %d: %w", p.PID, err)
	}
	return time.Duration(ticks[1]+ticks[2]) * tick, nil
}

// statFields reads fields of /proc/PID/stat that are numbers; of three at most.
func statFields(pid int, wanted ...int) (values [3]uint64, err error) {
	stat, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
	if err != nil {
		return values, err
	}
	fields := bytes.Fields(stat[bytes.LastIndexByte(stat, ')')+1:])
	for i, at := range wanted {
		if len(fields) <= at {
			return values, fmt.Errorf("/proc/%d/stat has %d fields", pid, len(fields))
		}
		if values[i], err = strconv.ParseUint(string(fields[at]), 10, 64); err != nil {
			return values, fmt.Errorf("/proc/%d/stat: %w", pid, err)
		}
	}
	return values, nil
}

// Kill kills the process that p names, if it still is that process, and waits
// until it is gone: what it holds is free only then.
func (p Process) Kill() error {
	if err := p.signal(unix.SIGKILL, func(fd int) error { return awaitEnd(fd, killWait) }); err != nil {
		return fmt.Errorf("kill: %w", err)
	}
	return nil
}

// ErrLives is what Await returns of a process that has not ended in time.
var ErrLives = errors.New("it does not end")

// Await waits until the process that p names has ended, for limit at most.
func (p Process) Await(limit time.Duration) error {
	return p.signal(0, func(fd int) error { return awaitEnd(fd, limit) })
}

// Signal sends the process that p names a signal, if it still is that process.
func (p Process) Signal(number unix.Signal) error {
	return p.signal(number, func(int) error { return nil })
}

// signal calls wait when the signal is sent. The file descriptor keeps the
// number from being reused between the check and the signal.
func (p Process) signal(number unix.Signal, wait func(fd int) error) error {
	if p.PID <= 1 {
		return nil
	}
	fd, err := unix.PidfdOpen(p.PID, 0)
	if errors.Is(err, unix.ESRCH) {
		return nil
	}
	if err != nil {
		return fmt.Errorf("open process %d: %w", p.PID, err)
	}
	defer unix.Close(fd)
	if ticks, err := startTicks(p.PID); err != nil || ticks != p.StartTicks {
		return nil
	}
	err = unix.PidfdSendSignal(fd, number, nil, 0)
	if err != nil && !errors.Is(err, unix.ESRCH) {
		return fmt.Errorf("send process %d signal %d: %w", p.PID, number, err)
	}
	if err := wait(fd); err != nil {
		return fmt.Errorf("process %d: %w", p.PID, err)
	}
	return nil
}

// killWait is how long a process may take to end once it was killed.
const killWait = 5 * time.Second

// awaitEnd waits until the process behind a pidfd has ended.
func awaitEnd(fd int, limit time.Duration) error {
	for deadline := time.Now().Add(limit); ; {
		left := time.Until(deadline)
		if left <= 0 {
			return ErrLives
		}
		n, err := unix.Poll([]unix.PollFd{{Fd: int32(fd), Events: unix.POLLIN}}, int(left.Milliseconds())+1)
		if err != nil && !errors.Is(err, unix.EINTR) {
			return fmt.Errorf("wait for its end: %w", err)
		}
		if err == nil && n > 0 {
			return nil
		}
	}
}

// BootID names the host's current boot (random(4)).
func BootID() string {
	id, err := os.ReadFile("/proc/sys/kernel/random/boot_id")
	if err != nil {
		return ""
	}
	return strings.TrimSpace(string(id))
}
