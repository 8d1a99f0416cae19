package agent

import (
	"fmt"
	"net/http"
	"os"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"
)

// stats is what the guest sees of itself. Sizes are in bytes.
type stats struct {
	MemTotal  uint64 `json:"mem_total"`
	MemUsed   uint64 `json:"mem_used"`
	DiskTotal uint64 `json:"disk_total"`
	DiskUsed  uint64 `json:"disk_used"`
	Processes int    `json:"processes"`
}

// serveStats is what the host asks for over and over:
//
//	GET /vmsan/stats
//
// It is not the contract's /metrics, for which each question ends the span of time that the next one's answer is about.
func (a *Agent) serveStats(w http.ResponseWriter, _ *http.Request) {
	s, err := a.stats()
	if err != nil {
		writeHTTPError(w, err)
		return
	}
	writeJSON(w, http.StatusOK, s)
}

func (a *Agent) stats() (s stats, err error) {
	memory, err := os.ReadFile("/proc/meminfo")
	if err != nil {
		return s, fmt.Errorf("measure memory: %w", err)
	}
	total, available, _ := parseMeminfo(memory)
	s.MemTotal, s.MemUsed = total, total-min(available, total)
	if s.DiskTotal, s.DiskUsed, err = a.measureDisk(); err != nil {
		return s, err
	}
	if s.Processes, err = countProcesses("/proc"); err != nil {
		return s, fmt.Errorf("count processes: %w", err)
	}
	return s, nil
}

// measureDisk returns the size of the sandbox's own disk and what of it is in use.
func (a *Agent) measureDisk() (total, used uint64, err error) {
	var disk unix.Statfs_t
	if err := unix.Statfs(a.config.SystemRoot, &disk); err != nil {
		return 0, 0, fmt.Errorf("measure disk: %w", err)
	}
	return disk.Blocks * uint64(disk.Bsize), (disk.Blocks - disk.Bfree) * uint64(disk.Bsize), nil
}

// kthreadd is the process id of the parent of the kernel's own threads.
const kthreadd = 2

// countProcesses counts all but the kernel's threads.
func countProcesses(proc string) (int, error) {
	pids, err := processIDs(proc)
	if err != nil {
		return 0, err
	}
	id := strconv.Itoa(kthreadd)
	threads, err := os.ReadFile(proc + "/" + id + "/task/" + id + "/children")
	if err != nil {
		return len(pids), nil // there is none to be seen
	}
	return max(len(pids)-len(strings.Fields(string(threads)))-1, 0), nil
}
