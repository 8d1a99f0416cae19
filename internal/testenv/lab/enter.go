package lab

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"runtime"

	"golang.org/x/sys/unix"
)

// outsideVar holds the name of the network namespace that a process which is
// starting anew came from.
const outsideVar = "VMSAN_TEST_LAB_OUTSIDE"

// Enter makes this process one of a lab's host: it starts the program anew,
// as the same process, in a network and a mount namespace of its own, and
// returns the lab around it. What it starts is in them too, and so cut off
// from the machine's network. It needs root and belongs at the start of main.
func Enter() (*Lab, error) {
	outside := os.Getenv(outsideVar)
	if outside == "" {
		return nil, fmt.Errorf("start anew in a lab: %w", startAnew())
	}
	// What it starts may enter a lab of its own.
	os.Unsetenv(outsideVar)
	inside, err := networkNamespace()
	if err != nil {
		return nil, err
	}
	if inside == outside {
		return nil, errors.New("enter lab: this is still the namespace outside it")
	}
	if err := nameResolver(); err != nil {
		return nil, fmt.Errorf("enter lab: %w", err)
	}
	return Open()
}

// Entering tells whether this process was started anew by Enter, and is to
// call it again.
func Entering() bool { return os.Getenv(outsideVar) != "" }

// startAnew does not return if it succeeds. Namespaces are a thread's, and
// the thread that executes a program becomes the process.
func startAnew() error {
	runtime.LockOSThread()
	outside, err := networkNamespace()
	if err != nil {
		return err
	}
	if err := unix.Unshare(unix.CLONE_NEWNET | unix.CLONE_NEWNS); err != nil {
		return fmt.Errorf("make namespaces: %w", err)
	}
	if err := unix.Mount("", "/", "", unix.MS_REC|unix.MS_PRIVATE, ""); err != nil {
		return fmt.Errorf("keep mounts private: %w", err)
	}
	return unix.Exec("/proc/self/exe", os.Args, append(os.Environ(), outsideVar+"="+outside))
}

// nameResolver makes the lab's resolver the host's, in the mount namespace of
// this process.
func nameResolver() error {
	dir, err := os.MkdirTemp("", "vmsan-lab-")
	if err != nil {
		return err
	}
	defer os.RemoveAll(dir) // the mount holds the file
	file := filepath.Join(dir, "resolv.conf")
	if err := os.WriteFile(file, []byte("nameserver "+Resolver.String()+"\n"), 0o644); err != nil {
		return err
	}
	const target = "/etc/resolv.conf"
	if err := unix.Mount(file, target, "", unix.MS_BIND, ""); err != nil {
		return fmt.Errorf("mount over %s: %w", target, err)
	}
	return nil
}

func networkNamespace() (string, error) {
	return os.Readlink("/proc/thread-self/ns/net")
}
