// Package jail starts a process with as little of the host as it needs: a
// user id of its own, new namespaces, a root file system of named files and
// nothing else, a cgroup, no capabilities and no way to gain any.
//
// All of it is arranged on an OS thread that is used for nothing else, from
// which the child is then forked, so that no program of ours runs between
// fork and exec.
package jail

import (
	"errors"
	"fmt"
	"math"
	"os"
	"runtime"
	"syscall"

	"golang.org/x/sys/unix"

	"github.com/vmsan/vmsan/internal/cgroup"
)

// Spec says what to start, and what it may see. The zero values of the
// optional fields take nothing away.
type Spec struct {
	// Path and Args are the program and its argv, as seen inside Root.
	Path string
	Args []string
	// Env is the whole environment: nothing of the caller's is added.
	Env []string
	// Stdin, Stdout and Stderr default to /dev/null.
	Stdin, Stdout, Stderr *os.File
	// Files become the descriptors from 3 up.
	Files []*os.File
	// Opens are files that the child gets when it opens a path for reading
	// and writing, instead of whatever is there, with the rights that they
	// were opened with. Optional; needs Linux 5.14.
	Opens map[string]*os.File

	// Root is the child's root file system. Optional; needs root.
	Root *Root
	// Tree is instead of Root and User for a program that is a jailer itself.
	// Optional; needs root.
	Tree *Tree
	// User is who the child runs as, with no supplementary groups. Optional;
	// needs root.
	User *User
	// Namespaces are CLONE_NEW* flags besides the mount namespace, which
	// comes with Root. Optional; needs root.
	Namespaces uintptr
	// Network is an existing network namespace to be born in, in the place of
	// CLONE_NEWNET. Optional; needs root.
	Network *os.File
	// Cgroup the child is born in. Optional.
	Cgroup *cgroup.Group
}

// User is a numeric user and group id.
type User struct{ UID, GID uint32 }

// Root is a read-only file system made for one process.
type Root struct {
	// Mount is an existing directory to build it on. On the host it stays
	// empty: the mount is seen by the child alone.
	Mount string
	Binds []Bind
	// Devices are made afresh, owned by the child's user.
	Devices []Device
	// Links are symbolic links, name to target.
	Links map[string]string
}

// Bind is a file or directory of the host, seen read-only at Target.
type Bind struct{ Source, Target string }

// Device is a character device.
type Device struct {
	Path         string
	Major, Minor uint32
}

// Process is a child that was started. It is killed when the caller dies.
type Process struct {
	process *os.Process
	done    chan struct{}
	state   *os.ProcessState
	err     error
}

// Start starts what spec says. On error nothing is left behind.
func Start(spec Spec) (*Process, error) {
	p := &Process{done: make(chan struct{})}
	started := make(chan error, 1)
	go onThreadOfItsOwn(func() {
		process, beside, err := fork(spec)
		p.process = process
		if err != nil {
			beside.close()
			started <- err
			return
		}
		started <- nil
		// The thread has to live as long as the child, which gets its
		// parent-death signal when the thread that forked it ends
		// (prctl(2), PR_SET_PDEATHSIG).
		p.state, p.err = process.Wait()
		beside.close()
		close(p.done)
	})
	if err := <-started; err != nil {
		return nil, fmt.Errorf("start %s: %w", spec.Path, err)
	}
	return p, nil
}

// onThreadOfItsOwn calls f on an OS thread that ends with it, because f
// changes things about the thread that cannot be taken back. The process's
// first thread cannot end before the process does, so it is passed over.
func onThreadOfItsOwn(f func()) {
	runtime.LockOSThread()
	if unix.Gettid() != unix.Getpid() {
		f()
		return
	}
	defer runtime.UnlockOSThread()
	other := make(chan struct{})
	go func() {
		defer close(other)
		onThreadOfItsOwn(f)
	}()
	<-other
}

// PID is the child's process id, in the caller's namespace.
func (p *Process) PID() int { return p.process.Pid }

// Kill kills the child; it is no error if it has ended.
func (p *Process) Kill() error {
	if err := p.process.Kill(); err != nil && !errors.Is(err, os.ErrProcessDone) {
		return err
	}
	return nil
}

// Done is closed when the child has ended and was reaped.
func (p *Process) Done() <-chan struct{} { return p.done }

// Exit says how the child ended: "exit status 1", "signal: killed". Only
// after Done.
func (p *Process) Exit() string {
	if p.err != nil {
		return p.err.Error()
	}
	return p.state.String()
}

// KeepFiles keeps every file that this process has open, besides the first
// three, from the programs that it starts and does not pass them to. Go opens
// its files so; what is meant are those that the process was born with, like
// the lock that a shell script holds.
func KeepFiles() error {
	err := unix.CloseRange(3, math.MaxUint32, unix.CLOSE_RANGE_CLOEXEC)
	if err != nil {
		return fmt.Errorf("keep own files from children (needs Linux 5.11): %w", err)
	}
	return nil
}

// beside is what a child has with it, for as long as it lives.
type beside struct {
	opens *opens   // answers its opens
	first *Process // of its process namespace
}

func (b beside) close() {
	b.opens.close()
	if b.first != nil {
		b.first.end()
	}
}

// fork starts the child from the calling thread. What is beside it is returned
// on error too.
func fork(spec Spec) (process *os.Process, with beside, err error) {
	if err := KeepFiles(); err != nil {
		return nil, with, err
	}
	null, err := os.OpenFile(os.DevNull, os.O_RDWR, 0)
	if err != nil {
		return nil, with, err
	}
	defer null.Close()
	attr := &os.ProcAttr{
		Env:   append([]string{}, spec.Env...), // nil would mean the caller's
		Files: append([]*os.File{orNull(spec.Stdin, null), orNull(spec.Stdout, null), orNull(spec.Stderr, null)}, spec.Files...),
		Sys:   &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL, Cloneflags: spec.Namespaces, Setsid: true},
	}
	if spec.User != nil {
		attr.Sys.Credential = &syscall.Credential{Uid: spec.User.UID, Gid: spec.User.GID}
	}
	if spec.Network != nil {
		if err := unix.Setns(int(spec.Network.Fd()), unix.CLONE_NEWNET); err != nil {
			return nil, with, fmt.Errorf("enter network namespace: %w", err)
		}
	}
	if spec.Cgroup != nil {
		entry, err := spec.Cgroup.Enter()
		if err != nil {
			return nil, with, err
		}
		// A thread that stayed behind would be limited, and counted, with
		// the child.
		defer func() { process, err = afterLeaving(process, err, entry.Leave()) }()
		if entry.Directory != nil {
			attr.Sys.UseCgroupFD, attr.Sys.CgroupFD = true, int(entry.Directory.Fd())
		}
	}
	if spec.Root != nil {
		if err := spec.Root.enter(spec.User); err != nil {
			return nil, with, err
		}
		attr.Dir = "/"
	}
	if spec.Tree != nil {
		err = spec.Tree.enter()
	} else {
		err = dropPrivileges()
	}
	if err != nil {
		return nil, with, err
	}
	if spec.Tree != nil && spec.Namespaces&unix.CLONE_NEWPID != 0 {
		if with.first, err = spec.startIdle(); err != nil {
			return nil, with, err
		}
		if err := with.first.enterPIDs(); err != nil {
			return nil, with, err
		}
		attr.Sys.Cloneflags &^= unix.CLONE_NEWPID
		// os.StartProcess looks for the parent's number, which is another one
		// in there.
		attr.Sys.Pdeathsig = 0
	}
	if len(spec.Opens) > 0 {
		if with.opens, err = watchOpens(spec.Opens); err != nil {
			return nil, with, err
		}
	}
	process, err = os.StartProcess(spec.Path, append([]string{spec.Path}, spec.Args...), attr)
	return process, with, err
}

// afterLeaving ends a child whose cgroup its parent could not leave.
func afterLeaving(process *os.Process, err, leaveErr error) (*os.Process, error) {
	if leaveErr == nil {
		return process, err
	}
	if process != nil {
		process.Kill()
		process.Wait()
	}
	return nil, errors.Join(err, leaveErr)
}

func orNull(f, null *os.File) *os.File {
	if f == nil {
		return null
	}
	return f
}

// dropPrivileges makes sure that the child cannot gain what it was not given:
// no set-user-id program, and no capability beyond the bounding set, works
// for it (prctl(2), capabilities(7)). The child loses what it still has when
// its user changes from root, except what is inheritable, which is dropped
// here.
func dropPrivileges() error {
	if err := unix.Prctl(unix.PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0); err != nil {
		return fmt.Errorf("set no_new_privs: %w", err)
	}
	if os.Geteuid() != 0 {
		return nil
	}
	if err := dropBoundingSet(); err != nil {
		return err
	}
	return dropInheritable()
}

// dropBoundingSet drops every capability the kernel knows, which may be more
// than this program does.
func dropBoundingSet() error {
	for c := uintptr(0); ; c++ {
		err := unix.Prctl(unix.PR_CAPBSET_DROP, c, 0, 0, 0)
		if errors.Is(err, unix.EINVAL) {
			return nil
		}
		if err != nil {
			return fmt.Errorf("drop capability %d: %w", c, err)
		}
	}
}

func dropInheritable() error {
	header := unix.CapUserHeader{Version: unix.LINUX_CAPABILITY_VERSION_3}
	var sets [2]unix.CapUserData
	if err := unix.Capget(&header, &sets[0]); err != nil {
		return fmt.Errorf("read capabilities: %w", err)
	}
	sets[0].Inheritable, sets[1].Inheritable = 0, 0
	if err := unix.Capset(&header, &sets[0]); err != nil {
		return fmt.Errorf("drop inheritable capabilities: %w", err)
	}
	return nil
}
