package sandbox

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"time"

	"github.com/vmsan/vmsan/internal/monitor"
	"github.com/vmsan/vmsan/internal/store"
)

// lastStep is how long a monitor may take to end once its sandbox is gone with
// all that it had: it removes the disk, and waits for others to give its number
// back.
const lastStep = 10 * time.Second

// endlessMonitors finds monitors that outlive their sandbox: they hang on their
// last step.
func (s *Service) endlessMonitors(context.Context) (found []Leftover, err error) {
	all, err := filepath.Glob("/proc/[0-9]*")
	if err != nil {
		return nil, err
	}
	for _, proc := range all {
		pid, err := strconv.Atoi(filepath.Base(proc))
		if err != nil {
			continue
		}
		p := store.ProcessOf(pid) // before it is looked at
		if id := s.outlived(proc, pid); id != "" {
			found = append(found, Leftover{VM: id, What: fmt.Sprintf("a monitor that outlives its sandbox, process %d", pid),
				remove: func(context.Context) error {
					err := p.Await(lastStep)
					if errors.Is(err, store.ErrLives) && s.outlived(proc, pid) == id {
						err = p.Kill()
					}
					return err
				}})
		}
	}
	return found, nil
}

// outlived returns the id of the sandbox whose monitor a process is, if that is
// gone. The process is ours by its user, command line and the state directory
// that it sees, and holds the lock of a sandbox that was removed: one that runs
// the hooks after that does not.
func (s *Service) outlived(proc string, pid int) (id string) {
	text, _ := os.ReadFile(proc + "/cmdline") // it may have ended
	words := strings.Split(string(text), "\x00")
	if len(words) < 4 || words[1] != monitor.Command || !store.ValidID(words[2]) || words[3] != s.layout.Dir {
		return ""
	}
	theirs, err := os.Stat(filepath.Join(proc, "root", s.layout.Dir))
	if err != nil {
		return ""
	}
	ours, err := os.Stat(s.layout.Dir)
	if err != nil || !os.SameFile(theirs, ours) {
		return "" // in a container, say
	}
	if uid, ok := userOf(pid); !ok || int(uid) != os.Geteuid() || !s.layout.HoldsRemoved(proc) || s.has(words[2]) {
		return ""
	}
	return words[2]
}

// has tells whether there are files of a sandbox, or it cannot be known.
func (s *Service) has(id string) bool {
	for _, path := range []string{s.layout.Sandbox(id), s.layout.SandboxRun(id)} {
		if _, err := os.Lstat(path); !errors.Is(err, os.ErrNotExist) {
			return true
		}
	}
	return false
}
