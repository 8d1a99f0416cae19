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

// startField is where proc(5) has a process's start time in /proc/PID/stat,
// counted from the field after the command's closing parenthesis.
const startField = 22 - 3

// ProcessOf names the process pid, or nothing if there is none.
func ProcessOf(pid int) Process {
	ticks, err := startTicks(pid)
	if err != nil {
		return Process{}
	}
	return Process{PID: pid, StartTicks: ticks}
}

func startTicks(pid int) (uint64, error) {
	stat, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
	if err != nil {
		return 0, err
	}
	fields := bytes.Fields(stat[bytes.LastIndexByte(stat, ')')+1:])
	if len(fields) <= startField {
		return 0, fmt.Errorf("/proc/%d/stat has %d fields", pid, len(fields))
	}
	return strconv.ParseUint(string(fields[startField]), 10, 64)
}

// Kill kills the process that p names, if it still is that process.
func (p Process) Kill() error { return p.Signal(unix.SIGKILL) }

// Signal sends the process that p names a signal, if it still is that process.
// The file descriptor keeps the number from being reused between the check and
// the signal.
func (p Process) Signal(number unix.Signal) error {
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
	// What it holds is free only when it is gone.
	if err := awaitEnd(fd, killWait); err != nil {
		return fmt.Errorf("process %d was killed: %w", p.PID, err)
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
			return errors.New("it does not end")
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
