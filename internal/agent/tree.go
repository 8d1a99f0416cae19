package agent

import (
	"errors"
	"fmt"
	"io"
	"io/fs"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// A forest gives each command a tree of its own: a way to reach every process it led to.
type forest interface {
	// plant makes the tree of a command about to start and adds to attr what makes the command begin in it.
	plant(attr *syscall.SysProcAttr) (tree, error)
	// sweep removes what ended trees left. It is called when an orphan has been reaped.
	sweep()
	// name is "cgroup" or "proc".
	name() string
	// begin waits while commands hold still, and keeps them from being told to until done is called. A command
	// is started between the two: a thread that starts one waits for its first program, and with it the only
	// CPU's share of Go, which a process that is frozen before that never lets go of.
	begin() (done func())
	// hold makes all commands hold still, or lets them go on. Either may be called twice. It is for cgroups
	// alone: processes found in /proc run on.
	hold(still bool) error
	// holds tells whether hold does.
	holds() bool
	// clear removes what is left, at the end of the agent.
	clear()
}

// A tree is every process of one command. Its methods may be called at any time, from any goroutine.
type tree interface {
	// root tells the pid of the command, once it has been started.
	root(pid int)
	// signal reaches each process of the tree. It is no error if there is none.
	signal(number syscall.Signal) error
	// fell says that the command itself has ended, or was never started. Others of its tree may live on.
	fell()
}

// newForest prefers cgroups, which nothing can leave; a kernel without version 2 of them, or older than
// 5.14, gets the walk over /proc.
func newForest(directory string, signalLeader func(pid int, number syscall.Signal) error) forest {
	f, err := newCgroupForest(directory)
	if err != nil {
		return &procForest{signalLeader: signalLeader}
	}
	return f
}

type cgroupForest struct {
	directory string
	next      atomic.Uint64

	holding  sync.Mutex   // serializes hold
	starting sync.RWMutex // read by who starts a command, written while they hold still
	held     bool         // starting is written; guarded by holding

	mu    sync.Mutex
	spare *cgroupTree              // made ahead, to keep mkdir off the way of a start
	left  map[*cgroupTree]struct{} // ended with processes still in them
}

func newCgroupForest(directory string) (*cgroupForest, error) {
	if directory == "" {
		return nil, errors.New("no cgroup directory given")
	}
	// Its parent is a cgroup or there are none: nothing is made elsewhere.
	if err := os.Mkdir(directory, 0o755); err != nil && !errors.Is(err, fs.ErrExist) {
		return nil, fmt.Errorf("make cgroup %s: %w", directory, err)
	}
	if _, err := os.Stat(filepath.Join(directory, "cgroup.kill")); err != nil {
		os.Remove(directory)
		return nil, fmt.Errorf("look for cgroup.kill (cgroup v2, requires >= 5.14): %w", err)
	}
	f := &cgroupForest{directory: directory, left: map[*cgroupTree]struct{}{}}
	spare, err := f.grow()
	if err != nil {
		return nil, err
	}
	f.spare = spare
	return f, nil
}

func (f *cgroupForest) name() string { return "cgroup" }

// grow makes one cgroup and opens it.
func (f *cgroupForest) grow() (*cgroupTree, error) {
	directory := filepath.Join(f.directory, strconv.FormatUint(f.next.Add(1), 10))
	// One of that name is of an agent before this one.
	if err := os.Mkdir(directory, 0o755); err != nil && !errors.Is(err, fs.ErrExist) {
		return nil, fmt.Errorf("make cgroup %s: %w", directory, err)
	}
	fd, err := syscall.Open(directory, syscall.O_RDONLY|syscall.O_DIRECTORY|syscall.O_CLOEXEC, 0)
	if err != nil {
		os.Remove(directory)
		return nil, fmt.Errorf("open cgroup %s: %w", directory, err)
	}
	return &cgroupTree{forest: f, directory: directory, fd: fd}, nil
}

func (f *cgroupForest) plant(attr *syscall.SysProcAttr) (tree, error) {
	f.mu.Lock()
	t := f.spare
	f.spare = nil
	f.mu.Unlock()
	if t == nil {
		made, err := f.grow()
		if err != nil {
			return nil, err
		}
		t = made
	}
	attr.UseCgroupFD = true
	attr.CgroupFD = t.fd
	return t, nil
}

// restock makes the next spare.
func (f *cgroupForest) restock() {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.spare != nil {
		return
	}
	// Without a spare the next start makes its own and reports what is wrong.
	f.spare, _ = f.grow()
}

func (f *cgroupForest) sweep() {
	f.mu.Lock()
	left := make([]*cgroupTree, 0, len(f.left))
	for t := range f.left {
		left = append(left, t)
	}
	f.mu.Unlock()
	for _, t := range left {
		t.remove()
	}
}

func (f *cgroupForest) begin() (done func()) {
	f.starting.RLock()
	return f.starting.RUnlock
}

// hold returns when the kernel has stopped every process (cgroup-v2.rst, "cgroup.freeze"). If it cannot, they
// go on.
func (f *cgroupForest) hold(still bool) error {
	f.holding.Lock()
	defer f.holding.Unlock()
	switch {
	case !still && !f.held:
		return nil
	case still && !f.held:
		if err := f.keepStarts(); err != nil {
			return err
		}
	}
	f.held = true
	if !still {
		return f.letGo()
	}
	if err := freeze(f.directory, true, holdTime); err != nil {
		return errors.Join(err, f.letGo())
	}
	return nil
}

func (f *cgroupForest) letGo() error {
	if err := freeze(f.directory, false, holdTime); err != nil {
		return err
	}
	f.held = false
	f.starting.Unlock()
	return nil
}

// keepStarts waits for commands that are being started, which takes the kernel no time but where a program
// comes from a file system that does not answer.
func (f *cgroupForest) keepStarts() error {
	for deadline := time.Now().Add(holdTime); !f.starting.TryLock(); time.Sleep(time.Millisecond) {
		if time.Now().After(deadline) {
			return errors.New("a command is still being started")
		}
	}
	return nil
}

func (f *cgroupForest) holds() bool { return true }

// holdTime is how long commands may take to hold still: one that waits for a disk cannot at once.
const holdTime = 5 * time.Second

func (f *cgroupForest) clear() {
	f.sweep()
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.spare != nil {
		syscall.Close(f.spare.fd)
		syscall.Rmdir(f.spare.directory)
		f.spare = nil
	}
	// Stays while a process a command left behind is in it.
	syscall.Rmdir(f.directory)
}

type cgroupTree struct {
	forest    *cgroupForest
	directory string
	fd        int // open until the command runs
}

func (t *cgroupTree) root(int) {
	syscall.Close(t.fd)
}

func (t *cgroupTree) signal(number syscall.Signal) error {
	if number == syscall.SIGKILL {
		return t.kill()
	}
	// While they stand still none is forked that would be missed. One that waits for a disk cannot stand still, nor
	// fork: it is no reason not to signal the others.
	freeze(t.directory, true, time.Second)
	pids, err := t.pids()
	for _, pid := range pids {
		if killErr := syscall.Kill(pid, number); killErr != nil && killErr != syscall.ESRCH {
			err = errors.Join(err, fmt.Errorf("signal process %d: %w", pid, killErr))
		}
	}
	// It is not waited for: all commands may have to hold still just now.
	return errors.Join(err, unlessGone(setFrozen(t.directory, false)))
}

// unlessGone is err, unless that is of a cgroup which was removed.
func unlessGone(err error) error {
	if errors.Is(err, fs.ErrNotExist) || errors.Is(err, syscall.ENODEV) {
		return nil
	}
	return err
}

// freeze stops the processes of a cgroup and those below it, or lets them go on. It returns when it is done, after
// limit at the latest.
func freeze(cgroup string, still bool, limit time.Duration) error {
	events, err := os.Open(filepath.Join(cgroup, "cgroup.events"))
	if err != nil {
		return err
	}
	defer events.Close()
	if err := setFrozen(cgroup, still); err != nil {
		return err
	}
	for deadline := time.Now().Add(limit); ; {
		text := make([]byte, 256)
		n, err := events.ReadAt(text, 0)
		if err != nil && !errors.Is(err, io.EOF) {
			return err
		}
		if strings.Contains(string(text[:n]), "frozen "+digit(still)) {
			return nil
		}
		left := time.Until(deadline)
		if left <= 0 {
			return errors.New("commands do not hold still")
		}
		// A change is told as an exception (cgroup-v2.rst, "cgroup.events").
		poll := []unix.PollFd{{Fd: int32(events.Fd()), Events: unix.POLLPRI}}
		if _, err := unix.Poll(poll, int(left.Milliseconds())+1); err != nil && err != unix.EINTR {
			return err
		}
	}
}

// setFrozen orders what freeze waits for.
func setFrozen(cgroup string, still bool) error {
	return os.WriteFile(filepath.Join(cgroup, "cgroup.freeze"), []byte(digit(still)), 0)
}

func digit(yes bool) string {
	if yes {
		return "1"
	}
	return "0"
}

// kill reaches cgroups below as well, and processes that are being forked.
func (t *cgroupTree) kill() error {
	return unlessGone(os.WriteFile(filepath.Join(t.directory, "cgroup.kill"), []byte("1"), 0))
}

// pids lists the processes of the cgroup and of those the command made below it.
func (t *cgroupTree) pids() ([]int, error) {
	var pids []int
	err := filepath.WalkDir(t.directory, func(path string, entry fs.DirEntry, err error) error {
		if errors.Is(err, fs.ErrNotExist) {
			return nil
		}
		if err != nil {
			return err
		}
		if entry.Name() != "cgroup.procs" {
			return nil
		}
		text, err := os.ReadFile(path)
		if err != nil {
			return nil // removed meanwhile, or threaded: its processes are listed above it
		}
		for _, field := range strings.Fields(string(text)) {
			if pid, err := strconv.Atoi(field); err == nil && pid > 0 {
				pids = append(pids, pid)
			}
		}
		return nil
	})
	return pids, err
}

func (t *cgroupTree) fell() {
	t.forest.mu.Lock()
	t.forest.left[t] = struct{}{}
	t.forest.mu.Unlock()
	t.remove()
	t.forest.restock()
}

// remove removes the cgroup unless a process is left in it. Then a later sweep does.
func (t *cgroupTree) remove() {
	err := syscall.Rmdir(t.directory)
	if err == syscall.EBUSY && t.removeBelow() {
		err = syscall.Rmdir(t.directory)
	}
	if err != nil && err != syscall.ENOENT {
		return
	}
	t.forest.mu.Lock()
	delete(t.forest.left, t)
	t.forest.mu.Unlock()
}

// removeBelow removes empty cgroups the command made inside its own, deepest first, and tells if there were any.
func (t *cgroupTree) removeBelow() bool {
	var below []string
	filepath.WalkDir(t.directory, func(path string, entry fs.DirEntry, err error) error {
		if err == nil && entry.IsDir() && path != t.directory {
			below = append(below, path)
		}
		return nil
	})
	for i := len(below) - 1; i >= 0; i-- {
		syscall.Rmdir(below[i])
	}
	return len(below) > 0
}

// procForest finds trees by walking /proc. A process that both starts a session of its own and loses its
// parent gets away from it.
type procForest struct {
	// signalLeader signals the command itself, unless its end was reaped.
	signalLeader func(pid int, number syscall.Signal) error
}

func (f *procForest) begin() func()   { return func() {} }
func (f *procForest) hold(bool) error { return nil }
func (f *procForest) holds() bool     { return false }

func (f *procForest) name() string { return "proc" }
func (f *procForest) sweep()       {}
func (f *procForest) clear()       {}

func (f *procForest) plant(*syscall.SysProcAttr) (tree, error) {
	return &procTree{forest: f}, nil
}

type procTree struct {
	forest *procForest
	leader atomic.Int64
	ended  atomic.Bool
}

func (t *procTree) root(pid int) { t.leader.Store(int64(pid)) }
func (t *procTree) fell()        { t.ended.Store(true) }

// killRounds bounds the hunt for processes that fork while they are being killed.
const killRounds = 16

func (t *procTree) signal(number syscall.Signal) error {
	leader := int(t.leader.Load())
	if leader == 0 {
		return nil
	}
	if number != syscall.SIGKILL {
		_, err := t.signalOnce(leader, number)
		return err
	}
	for range killRounds {
		found, err := t.signalOnce(leader, number)
		if err != nil || !found {
			return err
		}
	}
	return nil
}

// signalOnce signals each process of the tree and tells if there was one.
func (t *procTree) signalOnce(leader int, number syscall.Signal) (bool, error) {
	all, err := processes()
	if err != nil {
		return false, err
	}
	if _, reused := all[leader]; reused && t.ended.Load() {
		// The kernel gives a number out again only when no session or group bears it any more.
		return false, nil
	}
	found := false
	// The leader first: one that saw a child killed could still end as if all were well.
	for _, pid := range append([]int{leader}, slices.Collect(maps.Keys(all))...) {
		if pid == os.Getpid() || !all.belongs(pid, leader) || found && pid == leader {
			continue
		}
		found = true
		if pid == leader {
			err = t.forest.signalLeader(pid, number)
		} else {
			err = syscall.Kill(pid, number)
		}
		if err != nil && err != syscall.ESRCH {
			return true, fmt.Errorf("signal process %d: %w", pid, err)
		}
	}
	return found, nil
}

// processTable is what /proc says of who came from whom.
type processTable map[int]processStat

type processStat struct {
	state           byte
	parent, session int
}

// processes reads the table of all processes but the dead.
func processes() (processTable, error) {
	directory, err := os.Open("/proc")
	if err != nil {
		return nil, err
	}
	defer directory.Close()
	names, err := directory.Readdirnames(-1)
	if err != nil {
		return nil, fmt.Errorf("list /proc: %w", err)
	}
	table := processTable{}
	for _, name := range names {
		pid, err := strconv.Atoi(name)
		if err != nil {
			continue
		}
		text, err := os.ReadFile("/proc/" + name + "/stat")
		if err != nil {
			continue // gone
		}
		if stat, ok := parseStat(string(text)); ok && stat.state != 'Z' && stat.state != 'X' {
			table[pid] = stat
		}
	}
	return table, nil
}

// parseStat reads the line of /proc/PID/stat: the name in parentheses may hold anything, also parentheses.
func parseStat(text string) (processStat, bool) {
	end := strings.LastIndexByte(text, ')')
	if end < 0 {
		return processStat{}, false
	}
	fields := strings.Fields(text[end+1:]) // state ppid pgrp session ...
	if len(fields) < 4 || len(fields[0]) != 1 {
		return processStat{}, false
	}
	parent, parentErr := strconv.Atoi(fields[1])
	session, sessionErr := strconv.Atoi(fields[3])
	if parentErr != nil || sessionErr != nil {
		return processStat{}, false
	}
	return processStat{state: fields[0][0], parent: parent, session: session}, true
}

// belongs tells if a process is in the session of leader, or descends from a process that is.
func (p processTable) belongs(pid, leader int) bool {
	for range len(p) {
		stat, ok := p[pid]
		if !ok {
			return false
		}
		if pid == leader || stat.session == leader {
			return true
		}
		pid = stat.parent
	}
	return false
}
