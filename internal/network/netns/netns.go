// Package netns makes network namespaces without a name and runs functions in
// them.
package netns

import (
	"fmt"
	"os"
	"runtime"

	"golang.org/x/sys/unix"
)

// Namespace is a network namespace. It lives as long as somebody holds a
// file of it, a socket in it or a process in it.
type Namespace struct{ file *os.File }

// New makes an empty namespace.
func New() (*Namespace, error) {
	n := &Namespace{}
	err := onThreadOfItsOwn(func() (err error) {
		if err := unix.Unshare(unix.CLONE_NEWNET); err != nil {
			return err
		}
		n.file, err = os.Open("/proc/thread-self/ns/net")
		return err
	})
	if err != nil {
		return nil, fmt.Errorf("make network namespace: %w", err)
	}
	return n, nil
}

// Of opens the namespace of a process.
func Of(pid int) (*Namespace, error) {
	file, err := os.Open(fmt.Sprintf("/proc/%d/ns/net", pid))
	if err != nil {
		return nil, fmt.Errorf("open network namespace: %w", err)
	}
	return &Namespace{file}, nil
}

// File refers to the namespace, and is the namespace's to close.
func (n *Namespace) File() *os.File { return n.file }

// Do calls f in the namespace, on a thread that nothing else runs on: what f
// opens is of the namespace, and so is /proc/sys/net. What f starts with go is
// not.
func (n *Namespace) Do(f func() error) error {
	return onThreadOfItsOwn(func() error {
		if err := unix.Setns(int(n.file.Fd()), unix.CLONE_NEWNET); err != nil {
			return fmt.Errorf("enter network namespace: %w", err)
		}
		return f()
	})
}

// Close lets go of the namespace.
func (n *Namespace) Close() error { return n.file.Close() }

// onThreadOfItsOwn calls f on an OS thread that ends with it, since a thread
// in another namespace must not run anything else. The process's first thread
// cannot end before the process does, so it is passed over.
func onThreadOfItsOwn(f func() error) error {
	done := make(chan error, 1)
	go func() {
		runtime.LockOSThread()
		if unix.Gettid() != unix.Getpid() {
			done <- f()
			return
		}
		defer runtime.UnlockOSThread()
		done <- onThreadOfItsOwn(f)
	}()
	return <-done
}
