package usage

import (
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"time"
)

// Runnable is what a process's threads wanted of the host's processors since
// they were started.
type Runnable struct {
	Ran    time.Duration // on a processor
	Waited time.Duration // for one
}

// RunnableOf measures the process pid; see schedstats in the kernel's
// Documentation/scheduler/sched-stats.rst. Threads that have ended do not count.
func RunnableOf(pid int) (r Runnable, err error) {
	files, err := filepath.Glob("/proc/" + strconv.Itoa(pid) + "/task/*/schedstat")
	if err == nil && len(files) == 0 {
		err = os.ErrNotExist
	}
	if err != nil {
		return r, fmt.Errorf("measure process %d: %w", pid, err)
	}
	for _, file := range files {
		text, err := os.ReadFile(file)
		if err != nil {
			continue // the thread has ended
		}
		var ran, waited int64
		if _, err := fmt.Sscan(strings.TrimSpace(string(text)), &ran, &waited); err != nil {
			return Runnable{}, fmt.Errorf("measure process %d: %s: %w", pid, file, err)
		}
		r.Ran += time.Duration(ran)
		r.Waited += time.Duration(waited)
	}
	return r, nil
}
