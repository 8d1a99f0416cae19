// Package contract stands in for Firecracker and its jailer on hosts where KVM
// does not work. The jailer takes the real one's arguments and does what that
// does with them: the jail, its owners, limits and devices are real. Firecracker
// takes the real one's requests, in the states in which that takes them, and
// answers the rest with its faults. Its guest is a real agent, in a process of
// its own that stands still while the machine is paused, behind a vsock that
// is reset when the machine is saved, as the real one's is.
package contract

import (
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"sync"
	"testing"
)

// Version is what both programs say, unless they were built to say another.
var Version = "1.16.0"

// guestVar makes the program the guest.
const guestVar = "VMSAN_CONTRACT_GUEST"

// Main is the program.
func Main() {
	run, name := runServer, filepath.Base(os.Args[0])
	switch {
	case os.Getenv(guestVar) != "":
		run = runGuest
	case name == "jailer":
		run = runJailer
	}
	if err := run(os.Args[1:]); err != nil {
		fmt.Fprintln(os.Stderr, err)
		var code exitError
		if errors.As(err, &code) {
			os.Exit(code.code)
		}
		os.Exit(1)
	}
}

// faultf is the real programs' own words, which are not in the form of ours.
func faultf(format string, args ...any) error { return fmt.Errorf(format, args...) }

// exitError ends the program with a code of the real one's.
type exitError struct {
	error
	code int
}

// Install puts a directory with both programs in front of the search path.
func Install(t testing.TB) {
	t.Helper()
	t.Setenv("PATH", Programs(t, Version)+":"+os.Getenv("PATH"))
}

// Programs returns a directory with both programs, which say a version.
func Programs(t testing.TB, version string) string {
	t.Helper()
	building.Lock()
	defer building.Unlock()
	dir, err := built[version], error(nil)
	if dir == "" {
		dir, err = Build(version)
	}
	if err != nil {
		t.Fatal(err)
	}
	built[version] = dir
	return dir
}

// A version is built once in a process.
var (
	building sync.Mutex
	built    = map[string]string{}
)

// Build builds both programs, which say a version, in a directory of their own
// in the process's one for temporary files, which testenv.Main removes.
func Build(version string) (dir string, err error) {
	if dir, err = os.MkdirTemp("", "contract-"); err != nil {
		return "", err
	}
	if err := os.Chmod(dir, 0o755); err != nil {
		return "", err
	}
	firecracker := filepath.Join(dir, "firecracker")
	const path = "github.com/vmsan/vmsan/internal/vmm/firecracker/contract"
	command := exec.Command("go", "build", "-trimpath", "-ldflags", "-s -w -X "+path+".Version="+version, "-o", firecracker, path+"/vmsan-contract")
	command.Env = append(os.Environ(), "CGO_ENABLED=0")
	if out, err := command.CombinedOutput(); err != nil {
		return "", fmt.Errorf("build contract server: %w: %s", err, out)
	}
	return dir, os.Link(firecracker, filepath.Join(dir, "jailer"))
}
