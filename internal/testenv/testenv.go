// Package testenv says what a test needs of its machine, and makes it. A rung
// of tests that was asked for fails where it cannot run; one that was not is
// skipped (docs/testing.md).
package testenv

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"testing"

	"github.com/vmsan/vmsan/internal/store"
)

// The variables that ask for a rung.
const (
	// rootVar asks for the tests that need root.
	rootVar = "VMSAN_TEST_ROOT"
	// stateVar asks for the tests that boot machines, and names a state
	// directory that `vmsan setup` has filled.
	stateVar = "VMSAN_TEST_STATE"
	// kvmVar asks for the tests that need KVM to work.
	kvmVar = "VMSAN_TEST_KVM"
	// firecrackerVar asks for the tests with a real Firecracker, and names a
	// directory with that and its jailer.
	firecrackerVar = "VMSAN_TEST_FIRECRACKER_DIR"
)

// RequireRoot skips t unless tests for root were asked for.
func RequireRoot(t testing.TB) {
	t.Helper()
	if os.Getenv(rootVar) == "" {
		t.Skipf("needs root: not asked for with %s=1", rootVar)
	}
	if os.Geteuid() != 0 {
		t.Fatalf("%s asks for tests that need root, and this is user %d", rootVar, os.Geteuid())
	}
}

// RequireKVM skips t unless tests on KVM were asked for.
func RequireKVM(t testing.TB) {
	t.Helper()
	if os.Getenv(kvmVar) == "" {
		t.Skipf("needs KVM: not asked for with %s=1", kvmVar)
	}
}

// RequireFirecracker skips t unless tests with a real Firecracker were asked
// for. It is first in the search path then.
func RequireFirecracker(t testing.TB) {
	t.Helper()
	dir := os.Getenv(firecrackerVar)
	if dir == "" {
		t.Skipf("needs a real Firecracker: not asked for with %s=DIR", firecrackerVar)
	}
	for _, name := range []string{"firecracker", "jailer"} {
		if _, err := exec.LookPath(filepath.Join(dir, name)); err != nil {
			t.Fatalf("%s asks for a real Firecracker: %v", firecrackerVar, err)
		}
	}
	for _, other := range []string{rootVar, stateVar} {
		if os.Getenv(other) == "" {
			t.Fatalf("%s asks for tests that need %s too", firecrackerVar, other)
		}
	}
	t.Setenv("PATH", dir+":"+os.Getenv("PATH"))
}

// RequireVM skips t unless tests that boot machines were asked for. It
// returns a state directory of the test's own, with the kernel and images of
// the one that was set up, and checks at the end that no sandbox is left.
func RequireVM(t testing.TB) store.Layout {
	t.Helper()
	from := os.Getenv(stateVar)
	if from == "" {
		t.Skipf("boots a machine: not asked for with %s=DIR", stateVar)
	}
	if os.Geteuid() == 0 {
		Lab(t)
	}
	layout, err := store.NewLayout(CopyState(t, from))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { checkSandboxes(t, layout) })
	return layout
}

// checkSandboxes fails t if it leaves a sandbox, or what one had on the host.
func checkSandboxes(t testing.TB, layout store.Layout) {
	t.Helper()
	for _, dir := range []string{layout.Sandboxes(), layout.Run} {
		left, err := filepath.Glob(filepath.Join(dir, "vm*"))
		if err != nil {
			t.Error(err)
		}
		for _, path := range left {
			t.Errorf("the test leaves %s", path)
		}
	}
	if err := os.RemoveAll(layout.Run); err != nil {
		t.Error(err)
	}
}

// CopyState makes a state directory that shares the immutable files of from
// by hard links.
func CopyState(t testing.TB, from string) string {
	t.Helper()
	dir, err := LinkState(from)
	t.Cleanup(func() { os.RemoveAll(dir) })
	if err != nil {
		t.Fatal(err)
	}
	return dir
}

// LinkState is CopyState for what is no test. The caller removes the directory,
// also after an error.
func LinkState(from string) (dir string, err error) {
	// Beside the original: hard links do not cross file systems.
	if dir, err = os.MkdirTemp(filepath.Dir(from), "vmsan-test-"); err != nil {
		return "", err
	}
	for _, name := range []string{"setup.json", "kernels", "images", "images.json", "templates"} {
		source := filepath.Join(from, name)
		if _, err := os.Stat(source); err != nil {
			return dir, fmt.Errorf("%s does not name a state directory that was set up: %w", stateVar, err)
		}
		if out, err := exec.Command("cp", "-al", source, dir).CombinedOutput(); err != nil {
			return dir, fmt.Errorf("copy state: %w: %s", err, out)
		}
	}
	return dir, nil
}
