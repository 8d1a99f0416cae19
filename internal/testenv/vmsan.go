package testenv

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/vmsan/vmsan/api"
	"github.com/vmsan/vmsan/internal/store"
)

// commandLimit is for one run of the binary: longer than the slowest boot on
// a busy host, and than whatever a test lets a guest do in one command.
const commandLimit = 5 * time.Minute

// Vmsan is the built binary on a state directory of a test's own.
type Vmsan struct {
	Layout store.Layout
	binary string
	user   uint32 // whom it runs as
}

// nobody is a user without rights that every system has.
const nobody = 65534

// AsNobody returns the same binary and state directory for a user who has no
// rights on this host but owns the directory.
func (v Vmsan) AsNobody(t testing.TB) Vmsan {
	t.Helper()
	// A copy, where everybody can get at: whose a file is is one for all its
	// links, and nobody may not enter the directory of the checkout.
	dir, err := os.MkdirTemp("", "vmsan-nobody-")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(dir) })
	binary := filepath.Join(dir, "vmsan-under-test")
	state, err := store.NewLayout(filepath.Join(dir, "state"))
	if err != nil {
		t.Fatal(err)
	}
	for _, command := range [][]string{
		{"cp", "-r", "--sparse=always", v.Layout.Dir, state.Dir},
		{"cp", v.binary, binary},
		{"chown", "-R", "65534:65534", dir},
	} {
		if out, err := exec.Command(command[0], command[1:]...).CombinedOutput(); err != nil {
			t.Fatalf("%v: %v: %s", command, err, out)
		}
	}
	run := filepath.Join("/tmp", fmt.Sprintf("%s-%d", filepath.Base(state.Run), nobody))
	layout := store.Layout{Dir: state.Dir, Run: run}
	t.Cleanup(func() { checkSandboxes(t, layout) })
	return Vmsan{Layout: layout, binary: binary, user: nobody}
}

// RequireVmsan is RequireRoot and RequireVM for tests that use the binary.
func RequireVmsan(t testing.TB) Vmsan {
	t.Helper()
	RequireRoot(t)
	layout := RequireVM(t)
	binary, err := Binary()
	if err != nil {
		t.Fatal(err)
	}
	return Vmsan{Layout: layout, binary: binary}
}

// binaryVar names the binary under test. Default: the one that make build
// makes.
const binaryVar = "VMSAN_TEST_BINARY"

// Binary is the path of the binary under test.
func Binary() (string, error) {
	path := os.Getenv(binaryVar)
	if path == "" {
		root, err := moduleRoot()
		if err != nil {
			return "", err
		}
		path = filepath.Join(root, "bin", "vmsan")
	}
	if _, err := os.Stat(path); err != nil {
		return "", fmt.Errorf("the binary under test is missing; make build makes it, or %s names it: %w", binaryVar, err)
	}
	return filepath.Abs(path)
}

// moduleRoot is the nearest directory above the test with a go.mod.
func moduleRoot() (string, error) {
	dir, err := os.Getwd()
	if err != nil {
		return "", err
	}
	for ; dir != "/"; dir = filepath.Dir(dir) {
		if _, err := os.Stat(filepath.Join(dir, "go.mod")); err == nil {
			return dir, nil
		}
	}
	return "", errors.New("no go.mod above the test")
}

// Try runs the binary.
func (v Vmsan) Try(args ...string) (stdout, stderr string, err error) {
	ctx, cancel := context.WithTimeout(context.Background(), commandLimit)
	defer cancel()
	command := exec.CommandContext(ctx, v.binary, args...)
	command.Env = append(os.Environ(), "VMSAN_DIR="+v.Layout.Dir)
	if v.user != 0 {
		command.Env = append(command.Env, "HOME=/nonexistent", "XDG_RUNTIME_DIR=", "TMPDIR=/tmp")
		command.Dir = "/"
		command.SysProcAttr = &syscall.SysProcAttr{Credential: &syscall.Credential{Uid: v.user, Gid: v.user}}
	}
	var out, errors strings.Builder
	command.Stdout, command.Stderr = &out, &errors
	err = command.Run()
	return strings.TrimSpace(out.String()), errors.String(), err
}

// Run runs the binary, which must succeed, and returns what it prints.
func (v Vmsan) Run(t testing.TB, args ...string) string {
	t.Helper()
	stdout, stderr, err := v.Try(args...)
	if err != nil {
		t.Fatalf("vmsan %s: %v: %s%s", strings.Join(args, " "), err, stdout, stderr)
	}
	return stdout
}

// Create makes a sandbox and returns its id. It is removed at the end.
func (v Vmsan) Create(t testing.TB, flags ...string) string {
	t.Helper()
	id := v.Run(t, append([]string{"create", "--no-setup", "--quiet"}, flags...)...)
	t.Cleanup(func() {
		if t.Failed() {
			console, _, _ := v.Try("logs", id)
			t.Logf("the console of %s:\n%s", id, console)
		}
		v.Run(t, "rm", "-f", id)
	})
	return id
}

// Inspect returns a sandbox.
func (v Vmsan) Inspect(t testing.TB, id string) api.VM {
	t.Helper()
	var vm api.VM
	if err := json.Unmarshal([]byte(v.Run(t, "inspect", "--json", id)), &vm); err != nil {
		t.Fatalf("inspect %s: %v", id, err)
	}
	return vm
}

// Fail runs the binary, which must fail, and returns the error that it
// prints with --json.
func (v Vmsan) Fail(t testing.TB, args ...string) api.Error {
	t.Helper()
	stdout, stderr, err := v.Try(append([]string{"--json"}, args...)...)
	if err == nil {
		t.Fatalf("vmsan %s succeeded: %s%s", strings.Join(args, " "), stdout, stderr)
	}
	var failure struct{ Error api.Error }
	if err := json.Unmarshal([]byte(stdout), &failure); err != nil || failure.Error.Code == "" {
		t.Fatalf("vmsan %s: no error as JSON on stdout: %q, %q", strings.Join(args, " "), stdout, stderr)
	}
	return failure.Error
}

// Exec runs a command in a sandbox, which must succeed, and returns its
// output.
func (v Vmsan) Exec(t testing.TB, id string, args ...string) string {
	t.Helper()
	return v.Run(t, append([]string{"exec", "--no-stdin", id}, args...)...)
}
