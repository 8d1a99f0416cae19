package store

import (
	"bytes"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"

	"github.com/vmsan/vmsan/api"
)

// lockTimeout is the error of one who has waited for the lock at path for too
// long. It names who holds it, if that can be found out.
func lockTimeout(path string) error {
	late := api.Errorf(api.ErrTimeoutLock, "it was not free for %s", lockWait).WithHint("try again")
	var pids, named []string
	for _, pid := range lockHolders(path) {
		pids = append(pids, strconv.Itoa(pid))
		named = append(named, fmt.Sprintf("%d (%s)", pid, commandOf(pid)))
	}
	if len(pids) > 0 {
		late.Message += ": now held by process " + strings.Join(named, " and ")
		late.WithHint("try again, or, if it hangs: kill -9 %s", strings.Join(pids, " "))
	}
	return late
}

// lockHolders are the other processes that hold the lock at path, which may be
// several, since it can be handed down. Of other users' processes only root
// sees it.
func lockHolders(path string) (pids []int) {
	path, err := filepath.EvalSymlinks(path)
	if err != nil {
		return nil
	}
	all, err := filepath.Glob("/proc/[0-9]*/fd/*")
	if err != nil {
		return nil
	}
	for _, fd := range all {
		if target, err := os.Readlink(fd); err != nil || target != path || !locks(fd) {
			continue
		}
		pid, err := strconv.Atoi(strings.Split(fd, "/")[2])
		if err == nil && pid != os.Getpid() && !slices.Contains(pids, pid) {
			pids = append(pids, pid)
		}
	}
	return pids
}

// HoldsRemoved tells whether a process, a path like /proc/1290, holds the lock
// of a sandbox that was removed, or was moved away for that.
func (l Layout) HoldsRemoved(proc string) bool {
	graves, err := filepath.EvalSymlinks(l.Tmp())
	if err != nil {
		return false
	}
	graves = filepath.Join(graves, gravePrefix+"-")
	all, err := filepath.Glob(proc + "/fd/*")
	if err != nil {
		return false
	}
	return slices.ContainsFunc(all, func(fd string) bool {
		target, err := os.Readlink(fd)
		moved := strings.HasPrefix(target, graves) && filepath.Base(target) == lockName
		return err == nil && (moved || strings.HasSuffix(target, "/"+lockName+" (deleted)")) && locks(fd)
	})
}

// locks tells whether a descriptor, a path like /proc/1290/fd/5, holds a lock,
// and does not wait for it: its fdinfo, proc_pid_fdinfo(5), has a line such as
//
//	lock:	1: FLOCK  ADVISORY  WRITE 1290 fe:00:3932174 0 EOF
func locks(fd string) bool {
	process, number, _ := strings.Cut(fd, "/fd/")
	info, _ := os.ReadFile(process + "/fdinfo/" + number) // it may have been closed
	return bytes.Contains(info, []byte("\nlock:\t"))
}

// commandOf is the program and the first argument that the process pid was
// started with. What follows may be secret.
func commandOf(pid int) string {
	text, _ := os.ReadFile(fmt.Sprintf("/proc/%d/cmdline", pid)) // it may have ended
	words := strings.SplitN(string(text), "\x00", 3)
	quoted := strconv.QuoteToASCII(strings.Join(words[:min(len(words), 2)], " "))
	return quoted[1 : len(quoted)-1]
}
