package usage

import (
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"time"
)

// Runnable is what a process's threads want of the host's processors.
type Runnable struct {
	Ran    time.Duration // on a processor, since they were started
	Waited time.Duration // for one
	// Held is true if a thread waits for a disk, or was stopped.
	Held bool
}

// RunnableOf measures the threads that the process pid has now; see proc(5), and
// schedstats in the kernel's Documentation/scheduler/sched-stats.rst.
func RunnableOf(pid int) (r Runnable, err error) {
	threads, err := filepath.Glob("/proc/" + strconv.Itoa(pid) + "/task/*")
	if err == nil && len(threads) == 0 {
		err = os.ErrNotExist
	}
	if err != nil {
		return r, fmt.Errorf("measure process %d: %w", pid, err)
	}
	for _, thread := range threads {
		times, err := os.ReadFile(thread + "/schedstat")
		stat, statErr := os.ReadFile(thread + "/stat")
		if err != nil || statErr != nil {
			continue // it has ended
		}
		var ran, waited int64
		if _, err := fmt.Sscan(string(times), &ran, &waited); err != nil {
			return Runnable{}, fmt.Errorf("measure process %d: %s/schedstat: %w", pid, thread, err)
		}
		r.Ran += time.Duration(ran)
		r.Waited += time.Duration(waited)
		if fields := statFields(string(stat)); len(fields) > 0 {
			r.Held = r.Held || strings.Contains("DTt", fields[0])
		}
	}
	return r, nil
}
