package sandbox

import (
	"bytes"
	"fmt"
	"os"

	"golang.org/x/sys/unix"

	"github.com/vmsan/vmsan/api"
	"github.com/vmsan/vmsan/internal/store"
)

const (
	// reserve is memory that a start leaves to the host: what a VMM and its
	// monitor and gate need, and some for everybody else.
	reserve = 192 << 20
	// minRoom is how much has to be free for disks to grow, and for records.
	minRoom = 64 << 20
)

// admit refuses a start for which the host has no room now, rather than have
// it fail in the middle, or somebody else. It counts what is free, not what
// others may still come to use: memory that a guest has not touched yet, the
// host has.
func (s *Service) admit(spec store.Spec) error {
	if spec.Overcommit {
		return nil
	}
	free, err := freeMemory()
	if err != nil {
		return err
	}
	if needed := int64(spec.MemoryMiB)<<20 + reserve; free < needed {
		return api.Errorf(api.ErrHostMemory, "the host has %d MiB of memory left, and the sandbox is to have %d MiB, with %d MiB beside it",
			free>>20, spec.MemoryMiB, reserve>>20).WithFlag("--memory").
			WithHint("vmsan stop or vmsan pause --reclaim another, give it less with --memory, or use --overcommit")
	}
	var fs unix.Statfs_t
	if err := unix.Statfs(s.layout.Dir, &fs); err != nil {
		return fmt.Errorf("look for room in %s: %w", s.layout.Dir, err)
	}
	if room := int64(fs.Bavail) * fs.Bsize; room < minRoom {
		return api.Errorf(api.ErrDiskFull, "%s has %d MiB left, and a sandbox needs %d MiB to start", s.layout.Dir, room>>20, minRoom>>20).
			WithHint("vmsan df says what takes the room; or use --overcommit")
	}
	return nil
}

// freeMemory is how many bytes the host can give without swapping: MemAvailable
// of proc_meminfo(5).
func freeMemory() (int64, error) {
	text, err := os.ReadFile("/proc/meminfo")
	if err != nil {
		return 0, fmt.Errorf("look for free memory: %w", err)
	}
	for line := range bytes.Lines(text) {
		var kib int64
		if _, err := fmt.Sscanf(string(line), "MemAvailable: %d kB", &kib); err == nil {
			return kib << 10, nil
		}
	}
	return 0, fmt.Errorf("look for free memory: /proc/meminfo has no MemAvailable")
}
