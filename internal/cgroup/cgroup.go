// Package cgroup gives a process on the host its limits, on hosts with
// cgroup v1, v2 or both mounted (hybrid, where the controllers are v1's).
// Groups are found again from their names alone.
package cgroup

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/containerd/cgroups/v3"
	"github.com/containerd/cgroups/v3/cgroup1"
	"github.com/containerd/cgroups/v3/cgroup2"
	"github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"
)

// host is where a host has its cgroups, and of which version.
type host struct {
	root    string // where they are mounted
	unified bool   // v2 alone
}

// here is this host: every system mounts its cgroups there (cgroups(7)).
func here() host { return host{"/sys/fs/cgroup", cgroups.Mode() == cgroups.Unified} }

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
	host host
}

// Name is the group's name.
func (g *Group) Name() string { return g.name }

// Create makes the group name, a single path element, with limits. On error
// nothing is left behind.
func Create(name string, limits Limits) (*Group, error) { return here().create(name, limits) }

func (h host) create(name string, limits Limits) (*Group, error) {
	err := checkName(name)
	if err == nil {
		err = h.make(name, limits)
	}
	if err != nil {
		return nil, errors.Join(fmt.Errorf("create cgroup %s: %w", name, err), h.remove(name))
	}
	return &Group{name: name, host: h}, nil
}

func (h host) make(name string, limits Limits) error {
	if h.unified {
		for _, c := range controllers {
			if err := h.checkUnified(c); err != nil {
				return err
			}
		}
		_, err := cgroup2.NewManager(h.root, "/"+name, cgroup2.ToResources(limits.resources()))
		return err
	}
	_, err := cgroup1.New(cgroup1.StaticPath("/"+name), limits.resources(), cgroup1.WithHierarchy(hierarchy))
	return err
}

// check finds out whether the host has a controller.
func (h host) check(c cgroup1.Name) error {
	if h.unified {
		return h.checkUnified(c)
	}
	all, err := cgroup1.Default()
	if err != nil {
		return err
	}
	_, err = find(all, c)
	return err
}

// checkUnified finds out why limits could not be set, before the kernel says
// no more than "no such file".
func (h host) checkUnified(c cgroup1.Name) error {
	list, err := os.ReadFile(filepath.Join(h.root, "cgroup.controllers"))
	if err != nil {
		return err
	}
	if !slices.Contains(strings.Fields(string(list)), string(c)) {
		return missing(c)
	}
	return nil
}

// hierarchy is the v1 controllers we need, all of which must be there.
func hierarchy() ([]cgroup1.Subsystem, error) {
	all, err := cgroup1.Default()
	if err != nil {
		return nil, err
	}
	var ours []cgroup1.Subsystem
	for _, c := range controllers {
		s, err := find(all, c)
		if err != nil {
			return nil, err
		}
		ours = append(ours, s)
	}
	return ours, nil
}

func find(all []cgroup1.Subsystem, c cgroup1.Name) (cgroup1.Subsystem, error) {
	at := slices.IndexFunc(all, func(s cgroup1.Subsystem) bool { return s.Name() == c })
	if at < 0 {
		return nil, missing(c)
	}
	return all[at], nil
}

var errMissing = errors.New("the host has no cgroup controller")

func missing(c cgroup1.Name) error { return fmt.Errorf("%w %q", errMissing, c) }

// validName is a single path element that cannot be mistaken for another
// directory of the host's.
var validName = regexp.MustCompile(`^[a-zA-Z0-9][a-zA-Z0-9_-]*$`)

func checkName(name string) error {
	if !validName.MatchString(name) {
		return fmt.Errorf("not the name of a cgroup: %.80q", name)
	}
	return nil
}

// Entry is a way into a group for a child of the calling OS thread.
type Entry struct {
	// Directory is the group's, for clone3(2) with CLONE_INTO_CGROUP; nil on
	// v1, where the thread itself is in the group until Leave.
	Directory *os.File
	home      []*os.File
}

// Enter prepares the calling OS thread, which must be locked, to start a
// child that is born in the group. Leave must be called on the same thread,
// also if that has changed its root meanwhile.
func (g *Group) Enter() (*Entry, error) {
	if g.host.unified {
		dir, err := os.Open(g.host.directories(g.name)[0])
		return &Entry{Directory: dir}, err
	}
	e, err := openHome(g.host)
	if err != nil {
		return nil, err
	}
	for _, dir := range g.host.directories(g.name) {
		if err := os.WriteFile(filepath.Join(dir, "tasks"), []byte(thisThread), 0); err != nil {
			return nil, errors.Join(fmt.Errorf("join cgroup %s: %w", g.name, err), e.Leave())
		}
	}
	return e, nil
}

// openHome opens the way back into the thread's own groups.
func openHome(h host) (*Entry, error) {
	paths, err := cgroup1.ParseCgroupFile("/proc/thread-self/cgroup")
	if err != nil {
		return nil, fmt.Errorf("read own cgroup: %w", err)
	}
	e := &Entry{}
	for _, c := range controllers {
		file, err := os.OpenFile(filepath.Join(h.root, string(c), paths[string(c)], "tasks"), os.O_WRONLY, 0)
		if err != nil {
			e.close()
			return nil, fmt.Errorf("open own cgroup: %w", err)
		}
		e.home = append(e.home, file)
	}
	return e, nil
}

// thisThread is the calling thread, in a group's tasks. By its number it would
// be any thread to the kernel, which then keeps all others from ending first, and
// waits for that many milliseconds (cgroup_procs_write_start in
// kernel/cgroup/cgroup.c, Linux 5.6).
const thisThread = "0"

// Leave takes the thread back to the groups it came from.
func (e *Entry) Leave() error {
	defer e.close()
	for _, file := range e.home {
		if _, err := file.WriteString(thisThread); err != nil {
			return fmt.Errorf("return to own cgroup: %w", err)
		}
	}
	return nil
}

func (e *Entry) close() {
	for _, file := range append(e.home, e.Directory) {
		if file != nil {
			file.Close()
		}
	}
}

// Remove kills whatever is left in the group name and removes it. A group
// that does not exist is no error.
func Remove(name string) error { return here().remove(name) }

func (h host) remove(name string) error {
	if err := checkName(name); err != nil {
		return err
	}
	for _, dir := range h.directories(name) {
		if err := removeDirectory(dir); err != nil {
			return fmt.Errorf("remove cgroup %s: %w", name, err)
		}
	}
	return nil
}

// Exists tells whether any part of the group name is there.
func Exists(name string) bool {
	return checkName(name) == nil && slices.ContainsFunc(here().directories(name), isDirectory)
}

// List returns the names of the groups that begin with prefix, sorted.
func List(prefix string) ([]string, error) { return here().list(prefix) }

func (h host) list(prefix string) (names []string, err error) {
	for _, parent := range h.directories("") {
		entries, err := os.ReadDir(parent)
		if err != nil && !errors.Is(err, fs.ErrNotExist) {
			return nil, fmt.Errorf("list cgroups: %w", err)
		}
		for _, e := range entries {
			if e.IsDir() && strings.HasPrefix(e.Name(), prefix) && checkName(e.Name()) == nil {
				names = append(names, e.Name())
			}
		}
	}
	slices.Sort(names)
	return slices.Compact(names), nil
}

// Members are the processes in the group name. A group that does not exist has
// none.
func Members(name string) ([]int, error) { return here().members(name) }

func (h host) members(name string) (all []int, err error) {
	for _, dir := range h.directories(name) {
		pids, err := membersAt(dir)
		if err != nil {
			return nil, fmt.Errorf("read cgroup %s: %w", name, err)
		}
		all = append(all, pids...)
	}
	slices.Sort(all)
	return slices.Compact(all), nil
}

func membersAt(dir string) (pids []int, err error) {
	list, err := os.ReadFile(filepath.Join(dir, "cgroup.procs"))
	if errors.Is(err, fs.ErrNotExist) || errors.Is(err, unix.ENODEV) { // it is being removed
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	for _, field := range strings.Fields(string(list)) {
		if pid, err := strconv.Atoi(field); err == nil {
			pids = append(pids, pid)
		}
	}
	return pids, nil
}

// RemoveEmpty removes the group name unless something is in it, which the
// kernel knows. A group that does not exist is no error.
func RemoveEmpty(name string) error {
	if err := checkName(name); err != nil {
		return err
	}
	for _, dir := range here().directories(name) {
		if err := unix.Rmdir(dir); err != nil && !errors.Is(err, unix.ENOENT) {
			return fmt.Errorf("remove cgroup %s: %w", name, err)
		}
	}
	return nil
}

// Mode says how the host has its cgroups.
func Mode() string {
	switch cgroups.Mode() {
	case cgroups.Unified:
		return "cgroup v2"
	case cgroups.Hybrid:
		return "cgroup v1 and v2 (hybrid; the controllers are v1's)"
	case cgroups.Legacy:
		return "cgroup v1"
	}
	return "no cgroups"
}

// Missing lists the controllers that limits need and the host has not.
func Missing() ([]string, error) { return here().missing() }

func (h host) missing() (names []string, err error) {
	for _, c := range controllers {
		err := h.check(c)
		if errors.Is(err, errMissing) {
			names = append(names, string(c))
		} else if err != nil {
			return nil, err
		}
	}
	return names, nil
}

func isDirectory(path string) bool {
	info, err := os.Stat(path)
	return err == nil && info.IsDir()
}

// directories lists where the group is in each hierarchy, whether it exists
// or not. Controllers that share a hierarchy are links to the same directory.
func (h host) directories(name string) []string {
	if h.unified {
		return []string{filepath.Join(h.root, name)}
	}
	var list []string
	for _, c := range controllers {
		list = append(list, filepath.Join(h.root, string(c), name))
	}
	return list
}

// removeDirectory deletes one directory. The kernel says busy until the last
// task has gone through its exit, shortly after it was killed.
func removeDirectory(dir string) error {
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

// killAll kills the processes in the group at dir, except the caller, which
// may have a thread there that is starting a child.
func killAll(dir string) error {
	members, err := membersAt(dir)
	if err != nil {
		return err
	}
	for _, pid := range members {
		if pid <= 1 || pid == os.Getpid() {
			continue
		}
		if err := killMember(dir, pid); err != nil {
			return fmt.Errorf("kill process %d: %w", pid, err)
		}
	}
	return nil
}

// killMember kills pid if it is in the group at dir. It is looked up again
// once it is held, because its number may have become somebody else's.
func killMember(dir string, pid int) error {
	fd, err := unix.PidfdOpen(pid, 0)
	if errors.Is(err, unix.ESRCH) {
		return nil
	}
	if err != nil {
		return err
	}
	defer unix.Close(fd)
	groups, err := os.ReadFile(fmt.Sprintf("/proc/%d/cgroup", pid))
	if err != nil || !isMember(string(groups), filepath.Base(dir)) {
		return nil
	}
	if err := unix.PidfdSendSignal(fd, unix.SIGKILL, nil, 0); err != nil && !errors.Is(err, unix.ESRCH) {
		return err
	}
	return nil
}

// isMember tells whether a line of /proc/PID/cgroup ends in the group name.
func isMember(groups, name string) bool {
	for line := range strings.Lines(groups) {
		if strings.HasSuffix(strings.TrimSpace(line), "/"+name) {
			return true
		}
	}
	return false
}
