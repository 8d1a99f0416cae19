// Package cgroup gives a process on the host its limits, on hosts with
// cgroup v1, v2 or both mounted (hybrid, where the controllers are v1's).
// Groups are found again from their names alone.
package cgroup

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/containerd/cgroups/v3"
	"github.com/containerd/cgroups/v3/cgroup1"
	"github.com/containerd/cgroups/v3/cgroup2"
	"github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"
)

// root is where every system mounts its cgroups (cgroups(7)).
const root = "/sys/fs/cgroup"

// controllers are those that Limits needs.
var controllers = []cgroup1.Name{cgroup1.Cpu, cgroup1.Memory, cgroup1.Pids}

// period is the accounting period of the CPU limit, in microseconds, the
// kernel's default.
const period = 100_000

// Limits bound what all processes of a group may use together. All are
// required.
type Limits struct {
	CPUs   float64 // CPU seconds a second
	Memory int64   // bytes, page cache included
	PIDs   int64   // processes and threads
}

func (l Limits) resources() *specs.LinuxResources {
	quota, per := int64(l.CPUs*period), uint64(period)
	return &specs.LinuxResources{
		CPU:    &specs.LinuxCPU{Quota: &quota, Period: &per},
		Memory: &specs.LinuxMemory{Limit: &l.Memory},
		Pids:   &specs.LinuxPids{Limit: &l.PIDs},
	}
}

// Group is a cgroup that exists.
type Group struct {
	name string
	v1   cgroup1.Cgroup
}

// unified tells whether the host has cgroup v2 alone.
func unified() bool { return cgroups.Mode() == cgroups.Unified }

// Create makes the group name, a single path element, with limits.
func Create(name string, limits Limits) (*Group, error) {
	if unified() {
		_, err := cgroup2.NewManager(root, "/"+name, cgroup2.ToResources(limits.resources()))
		if err != nil {
			return nil, fmt.Errorf("create cgroup %s: %w", name, err)
		}
		return &Group{name: name}, nil
	}
	v1, err := cgroup1.New(cgroup1.StaticPath("/"+name), limits.resources(), cgroup1.WithHierarchy(hierarchy))
	if err != nil {
		return nil, fmt.Errorf("create cgroup %s: %w", name, err)
	}
	return &Group{name: name, v1: v1}, nil
}

// hierarchy is the v1 controllers we need, all of which must be there.
func hierarchy() ([]cgroup1.Subsystem, error) {
	all, err := cgroup1.Default()
	if err != nil {
		return nil, err
	}
	ours := slices.DeleteFunc(all, func(s cgroup1.Subsystem) bool { return !slices.Contains(controllers, s.Name()) })
	if len(ours) != len(controllers) {
		return nil, fmt.Errorf("the host lacks one of the cgroup controllers %v", controllers)
	}
	return ours, nil
}

// Name is the group's name.
func (g *Group) Name() string { return g.name }

// Enter prepares the calling OS thread, which must be locked, to start a
// child that is born in the group. On v2 the returned directory is for
// clone3(2) with CLONE_INTO_CGROUP; on v1 it is nil, and the thread itself
// is in the group until leave is called. leave is never nil.
func (g *Group) Enter() (dir *os.File, leave func() error, err error) {
	if g.v1 == nil {
		dir, err := os.Open(filepath.Join(root, g.name))
		return dir, dir.Close, err
	}
	home, err := cgroup1.ParseCgroupFile("/proc/thread-self/cgroup")
	if err != nil {
		return nil, nil, fmt.Errorf("read own cgroup: %w", err)
	}
	leave = func() error { return joinThread(home) }
	if err := g.v1.AddTask(cgroup1.Process{Pid: unix.Gettid()}); err != nil {
		return nil, nil, errors.Join(fmt.Errorf("join cgroup %s: %w", g.name, err), leave())
	}
	return nil, leave, nil
}

// joinThread puts the calling thread into the v1 groups that home names by
// controller.
func joinThread(home map[string]string) error {
	tid := fmt.Appendf(nil, "%d", unix.Gettid())
	for _, c := range controllers {
		tasks := filepath.Join(root, string(c), home[string(c)], "tasks")
		if err := os.WriteFile(tasks, tid, 0); err != nil {
			return fmt.Errorf("return to own cgroup: %w", err)
		}
	}
	return nil
}

// Remove kills whatever is left in the group name and removes it. A group
// that does not exist is no error.
func Remove(name string) error {
	for _, dir := range directories(name) {
		if err := remove(dir); err != nil {
			return fmt.Errorf("remove cgroup %s: %w", name, err)
		}
	}
	return nil
}

// Exists tells whether any part of the group name is there.
func Exists(name string) bool { return len(directories(name)) > 0 }

// directories lists the group's directory in each hierarchy that has it.
// Controllers that share a hierarchy are links to the same directory.
func directories(name string) []string {
	candidates := []string{filepath.Join(root, name)}
	if !unified() {
		candidates = nil
		for _, c := range controllers {
			candidates = append(candidates, filepath.Join(root, string(c), name))
		}
	}
	return slices.DeleteFunc(candidates, func(dir string) bool {
		_, err := os.Stat(dir)
		return err != nil
	})
}

// remove deletes one directory. The kernel says busy until the last task has
// gone through its exit, shortly after it was killed.
func remove(dir string) error {
	for wait := time.Millisecond; ; wait *= 2 {
		err := unix.Rmdir(dir)
		if err == nil || errors.Is(err, unix.ENOENT) {
			return nil
		}
		if !errors.Is(err, unix.EBUSY) || wait > time.Second {
			return err
		}
		if err := killAll(dir); err != nil {
			return err
		}
		time.Sleep(wait)
	}
}

func killAll(dir string) error {
	list, err := os.ReadFile(filepath.Join(dir, "cgroup.procs"))
	if err != nil {
		return err
	}
	for _, pid := range strings.Fields(string(list)) {
		var n int
		if _, err := fmt.Sscan(pid, &n); err != nil || n <= 1 {
			continue
		}
		if err := unix.Kill(n, unix.SIGKILL); err != nil && !errors.Is(err, unix.ESRCH) {
			return fmt.Errorf("kill process %d: %w", n, err)
		}
	}
	return nil
}
