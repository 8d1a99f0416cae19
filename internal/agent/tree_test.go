package agent

import (
	"bytes"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/vmsan/vmsan/internal/testenv"
)

func fscan(text []byte, into ...any) (int, error) {
	return fmt.Fscan(bytes.NewReader(text), into...)
}

// eachForest runs a test with trees in /proc, and, as root, in cgroups.
func eachForest(t *testing.T, test func(t *testing.T, g *guest)) {
	t.Run("proc", func(t *testing.T) {
		g := newGuest(t)
		if g.agent.forest.name() != "proc" {
			t.Fatalf("the forest is %s", g.agent.forest.name())
		}
		test(t, g)
	})
	t.Run("cgroup", func(t *testing.T) {
		directory := mountCgroups(t)
		g := newGuest(t, func(c *Config) { c.CgroupDirectory = directory })
		if g.agent.forest.name() != "cgroup" {
			t.Fatal("needs a kernel with cgroup.kill (>= 5.14)")
		}
		t.Cleanup(func() { // before the agent closes, which removes the rest
			eventually(t, "the cgroups of ended commands to go", func() bool {
				g.agent.forest.sweep()
				below, err := filepath.Glob(directory + "/*/cgroup.procs")
				return err == nil && len(below) <= 1+len(g.agent.table.list(false))
			})
		})
		test(t, g)
	})
}

// mountCgroups mounts cgroup v2 for one test: a host may have version 1 where they usually are.
func mountCgroups(t *testing.T) string {
	t.Helper()
	testenv.RequireRoot(t)
	mount := t.TempDir()
	if err := syscall.Mount("none", mount, "cgroup2", 0, ""); err != nil {
		t.Fatalf("mount cgroup2: %v", err)
	}
	t.Cleanup(func() {
		if err := syscall.Unmount(mount, syscall.MNT_DETACH); err != nil {
			t.Errorf("unmount cgroup2: %v", err)
		}
	})
	// All mounts show one hierarchy: what an agent of another test still ends
	// must not be ours.
	directory := filepath.Join(mount, "vmsan-test-"+itoa(os.Getpid())+"-"+itoa(int(cgroupTests.Add(1))))
	t.Cleanup(func() { removeGroup(t, directory) })
	return directory
}

var cgroupTests atomic.Int64

// removeGroup waits for processes that were killed a moment ago: they are in
// their group until the kernel has taken them apart, and after the agent has
// closed nobody sweeps up what they leave.
func removeGroup(t *testing.T, directory string) {
	t.Helper()
	for deadline := time.Now().Add(5 * time.Second); ; time.Sleep(10 * time.Millisecond) {
		below, _ := filepath.Glob(directory + "/*")
		for _, tree := range below {
			syscall.Rmdir(tree) // nothing happens to what is no directory
		}
		err := syscall.Rmdir(directory)
		if err == nil || errors.Is(err, syscall.ENOENT) {
			return
		}
		if time.Now().After(deadline) {
			t.Errorf("cgroups are left: %v", err)
			return
		}
	}
}

func TestParseStat(t *testing.T) {
	got, ok := parseStat("12 (a ) b) S 7 12 3 0 -1 4194560")
	if want := (processStat{state: 'S', parent: 7, session: 3}); !ok || got != want {
		t.Errorf("got %v, %v; want %v", got, ok, want)
	}
	for _, text := range []string{"", "12 (x", "12 (x)", "12 (x) S a 1 2", "12 (x) SS 1 1 2"} {
		if _, ok := parseStat(text); ok {
			t.Errorf("%q was read", text)
		}
	}
}

func FuzzParseStat(f *testing.F) {
	f.Add("12 (a ) b) S 7 12 3 0 -1")
	f.Add(")")
	f.Fuzz(func(t *testing.T, text string) {
		parseStat(text)
	})
}

func TestBelongs(t *testing.T) {
	table := processTable{
		1: {parent: 0, session: 1},
		5: {parent: 1, session: 5},
		6: {parent: 5, session: 6}, // a session of its own, but of that parent
		7: {parent: 6, session: 6},
		8: {parent: 1, session: 5}, // an orphan that stayed in the session
		9: {parent: 10, session: 9},
		// A circle cannot be, but /proc is not read at one moment.
		10: {parent: 9, session: 9},
	}
	for pid, want := range map[int]bool{1: false, 5: true, 6: true, 7: true, 8: true, 9: false, 10: false, 11: false} {
		if got := table.belongs(pid, 5); got != want {
			t.Errorf("%d: got %v", pid, got)
		}
	}
}
