package testenv

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/vmsan/vmsan/internal/store"
)

// Main runs a package's tests, for its TestMain, and fails them if they leave
// a file open, a child process, a mount or a cgroup behind. What they make
// in temporary directories is in one that is theirs alone. As root the tests
// and all that they start are in a lab, cut off from the machine's network:
// what needs that, prepare does before. It is called when tests that boot
// machines were asked for, with the state directory that theirs are made of.
func Main(m *testing.M, prepare ...func(store.Layout) error) int {
	before := openFiles()
	if err := enterLab(prepare); err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	return run(m, before)
}

func run(m *testing.M, before map[string]int) int {
	tmp, err := os.MkdirTemp("", "vmsan-test-")
	if err == nil {
		// Users that a test becomes have to get through.
		err = os.Chmod(tmp, 0o755)
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	defer os.RemoveAll(tmp)
	os.Setenv("TMPDIR", tmp)
	// Beside each first sandbox of a kind another would boot; tests of that
	// turn it on again.
	os.Setenv("VMSAN_TEMPLATES", "off")
	code := m.Run()
	// Before the count: its servers keep connections of guests that are gone.
	if err := leaveLab(); err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	if code != 0 {
		return code
	}
	if err := awaitTidy(tmp, before); err != nil {
		fmt.Fprintf(os.Stderr, "the tests passed, but left something behind:\n%v\n", err)
		return 1
	}
	return 0
}

// settle is how long what a test has ended may take to be gone.
const settle = 5 * time.Second

func awaitTidy(tmp string, before map[string]int) error {
	for deadline := time.Now().Add(settle); ; time.Sleep(10 * time.Millisecond) {
		err := errors.Join(leakedFiles(before), leakedChildren(), leakedMounts(tmp), leakedCgroups())
		if err == nil || time.Now().After(deadline) {
			return err
		}
	}
}

// openFiles counts this process's descriptors by what they refer to.
func openFiles() map[string]int {
	files := map[string]int{}
	entries, err := os.ReadDir("/proc/self/fd")
	if err != nil {
		return files
	}
	for _, e := range entries {
		// The runtime's own, made when they are first needed; and sockets
		// and pipes, which are counted together since each has a number.
		target, err := os.Readlink("/proc/self/fd/" + e.Name())
		if err != nil || target == "anon_inode:[eventpoll]" || target == "anon_inode:[eventfd]" {
			continue
		}
		kind, _, numbered := strings.Cut(target, ":[")
		if kind == "pipe" && pooled(e.Name()) {
			continue
		}
		if numbered {
			target = kind
		}
		files[target]++
	}
	return files
}

// pooled tells whether a pipe is one that copies between sockets go through,
// which the runtime keeps for the next until its collector meets them. They
// are told by their size, which no pipe of ours has: maxSpliceSize in Go's
// internal/poll/splice_linux.go.
func pooled(descriptor string) bool {
	fd, err := strconv.Atoi(descriptor)
	if err != nil {
		return false
	}
	size, err := unix.FcntlInt(uintptr(fd), unix.F_GETPIPE_SZ, 0)
	return err == nil && size == 1<<20
}

func leakedFiles(before map[string]int) error {
	var errs []error
	for target, n := range openFiles() {
		if n > before[target] {
			errs = append(errs, fmt.Errorf("open: %s (%d, before %d)", target, n, before[target]))
		}
	}
	return errors.Join(errs...)
}

func leakedChildren() error {
	var info unix.Siginfo
	err := unix.Waitid(unix.P_ALL, 0, &info, unix.WEXITED|unix.WNOHANG|unix.WNOWAIT, nil)
	if errors.Is(err, unix.ECHILD) {
		return nil
	}
	return errors.New("a child process")
}

func leakedMounts(dir string) error {
	table, err := os.ReadFile("/proc/self/mountinfo")
	if err != nil {
		return err
	}
	var errs []error
	for line := range strings.Lines(string(table)) {
		if fields := strings.Fields(line); len(fields) > 4 && strings.HasPrefix(fields[4], dir) {
			errs = append(errs, fmt.Errorf("mounted: %s", fields[4]))
		}
	}
	return errors.Join(errs...)
}

// CgroupPrefix is how the names of a test's cgroups begin, so that they are
// missed when they are left behind: other tests run on the same machine.
func CgroupPrefix() string { return fmt.Sprintf("vmsan-test-%d-", os.Getpid()) }

func leakedCgroups() error {
	var errs []error
	for _, pattern := range []string{"/sys/fs/cgroup/", "/sys/fs/cgroup/*/"} {
		found, err := filepath.Glob(pattern + CgroupPrefix() + "*")
		if err != nil {
			return err
		}
		for _, dir := range found {
			errs = append(errs, fmt.Errorf("cgroup: %s", dir))
		}
	}
	return errors.Join(errs...)
}
