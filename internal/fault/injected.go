//go:build faults

// Package fault marks the moments between the steps of what vmsan does to the
// host. This build can be told to die, fail or hang at each of them.
package fault

import (
	"fmt"
	"os"
	"strings"
	"sync"
	"time"

	"golang.org/x/sys/unix"
)

const (
	// orderVar names a file with POINT=ACTION: what is to happen when a process
	// comes there. Actions are kill, hang, and the names of errors. A point
	// that a process passes for the second time is called POINT#2, and so on.
	orderVar = "VMSAN_FAULT_ORDER"
	// logVar names a file that gets a line for each point that is passed.
	logVar = "VMSAN_FAULT_LOG"
)

// errors are those that the kernel has for a host that lacks something.
var errors = map[string]unix.Errno{"ENOSPC": unix.ENOSPC, "EIO": unix.EIO, "EMFILE": unix.EMFILE, "EPERM": unix.EPERM}

var (
	mu     sync.Mutex
	passed = map[string]int{} // how often each point was
)

// After is err, the outcome of the step that point is named after; or, where
// the step was done, what this process was told to have happen then.
func After(point string, err error) error {
	if err != nil {
		return err
	}
	point = count(point)
	order, _ := os.ReadFile(os.Getenv(orderVar)) // none: nothing is to happen
	note(point)                                  // what is to happen here is decided
	at, action, _ := strings.Cut(string(order), "=")
	if at != point {
		return nil
	}
	return act(point, action)
}

// Here is a point where nothing can fail: only the process can die or hang.
func Here(point string) { After(point, nil) }

func count(point string) string {
	mu.Lock()
	defer mu.Unlock()
	passed[point]++
	if n := passed[point]; n > 1 {
		return fmt.Sprintf("%s#%d", point, n)
	}
	return point
}

func note(point string) {
	log, err := os.OpenFile(os.Getenv(logVar), os.O_WRONLY|os.O_APPEND, 0)
	if err != nil {
		return // nobody asked, or this process may open no file
	}
	defer log.Close()
	fmt.Fprintln(log, point)
}

func act(point, action string) error {
	switch action {
	case "kill":
		unix.Kill(os.Getpid(), unix.SIGKILL)
	case "hang":
		time.Sleep(time.Hour)
	}
	errno, ok := errors[action]
	if !ok {
		panic("no such fault: " + action)
	}
	return fmt.Errorf("fault at %s: %w", point, errno)
}
