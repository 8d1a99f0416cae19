package agent

import (
	"errors"
	"fmt"
	"os"
	"runtime"
	"slices"
	"strconv"
	"strings"
)

// The Go runtime's monitor is a thread that looks every 20 µs, for as long as
// anything happens, whether a system call takes long and others could run
// meanwhile. A boot is made of system calls that an emulated CPU translates
// first, and nothing else waits to run; with one CPU each look stops the boot
// for longer than 20 µs. That was a tenth of a cold start.
//
// bootSlack is by how much the kernel may let the monitor oversleep until the
// guest is up.
const bootSlack = "10000000" // ns

// delayMonitor returns what lets the monitor be on time again. With more CPUs
// the monitor is in nobody's way.
func delayMonitor() (resume func() error, err error) {
	if runtime.NumCPU() > 1 {
		return func() error { return nil }, nil
	}
	threads, err := threads()
	if err != nil || len(threads) < 2 {
		return nil, fmt.Errorf("find the runtime's monitor among %d threads: %w", len(threads), err)
	}
	// The runtime starts it before all other threads.
	slack, err := os.ReadFile(slackFile(threads[1]))
	if err != nil {
		return nil, err
	}
	resume = func() error { return setSlack(strings.TrimSpace(string(slack))) }
	return resume, os.WriteFile(slackFile(threads[1]), []byte(bootSlack), 0)
}

// setSlack sets it for all threads: those that the monitor has started have
// its own, and commands that they start would.
func setSlack(slack string) error {
	threads, err := threads()
	for _, thread := range threads {
		err = errors.Join(err, os.WriteFile(slackFile(thread), []byte(slack), 0))
	}
	return err
}

// threads are this process's, in the order of their start.
func threads() (ids []int, err error) {
	entries, err := os.ReadDir("/proc/self/task")
	for _, entry := range entries {
		id, err := strconv.Atoi(entry.Name())
		if err != nil {
			return nil, err
		}
		ids = append(ids, id)
	}
	slices.Sort(ids)
	return ids, err
}

// slackFile is described in proc(5). The kernel shows it for a thread as it
// does for a process.
func slackFile(thread int) string { return fmt.Sprintf("/proc/%d/timerslack_ns", thread) }
