package store

import (
	"bufio"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"golang.org/x/sys/unix"
)

// TestMain makes the test binary a process that takes or waits for the lock
// that holdVar names, and has it until its stdin ends.
func TestMain(m *testing.M) {
	if path := os.Getenv(holdVar); path != "" {
		file, err := openLock(path)
		if err == nil {
			os.Stdout.WriteString("opened\n")
			err = flock(file, unix.LOCK_EX)
		}
		if err != nil {
			panic(err)
		}
		os.Stdout.WriteString("taken\n")
		io.Copy(io.Discard, os.Stdin)
		return
	}
	os.Exit(m.Run())
}

const holdVar = "VMSAN_TEST_HOLD"

// hold starts such a process and waits until it says so.
func hold(t *testing.T, path, until string) *exec.Cmd {
	t.Helper()
	cmd := exec.Command(os.Args[0], "hold")
	cmd.Env = append(os.Environ(), holdVar+"="+path)
	stdin, err := cmd.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	stdout, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		stdin.Close()
		cmd.Process.Kill()
		cmd.Wait()
	})
	for lines := bufio.NewScanner(stdout); lines.Scan(); {
		if lines.Text() == until {
			return cmd
		}
	}
	t.Fatalf("the process that was to say %q has ended", until)
	return nil
}

func TestLockHolders(t *testing.T) {
	path := filepath.Join(t.TempDir(), "lock")
	holder := hold(t, path, "taken")
	hold(t, path, "opened") // and waits
	if pids := lockHolders(path); !slices.Equal(pids, []int{holder.Process.Pid}) {
		t.Errorf("%v hold it, not %d", pids, holder.Process.Pid)
	}
	text := lockTimeout(path).Error()
	if want := fmt.Sprintf("now held by process %d (%s hold)", holder.Process.Pid, os.Args[0]); !strings.HasSuffix(text, want) {
		t.Errorf("%q does not end with %q", text, want)
	}
	if pids := lockHolders(filepath.Join(t.TempDir(), "none")); pids != nil {
		t.Errorf("%v hold what is not there", pids)
	}
}

func TestHoldsRemoved(t *testing.T) {
	const id = "vm0123456789"
	l := Layout{Dir: t.TempDir()}
	grave := filepath.Join(l.Tmp(), gravePrefix+"-1.scratch")
	for _, dir := range []string{l.Sandbox(id), grave} {
		if err := os.MkdirAll(dir, 0o700); err != nil {
			t.Fatal(err)
		}
	}
	lock, err := AcquireLock(t.Context(), l.SandboxLock(id))
	if err != nil {
		t.Fatal(err)
	}
	for _, step := range []struct {
		name string
		do   func() error
		want bool
	}{
		{"there", func() error { return nil }, false},
		{"moved away", func() error { return os.Rename(l.Sandbox(id), filepath.Join(grave, id)) }, true},
		{"removed", func() error { return os.RemoveAll(grave) }, true},
		{"released", func() error { lock.Release(); return nil }, false},
	} {
		if err := step.do(); err != nil {
			t.Fatal(err)
		}
		if got := l.HoldsRemoved("/proc/self"); got != step.want {
			t.Errorf("%s: got %t, want %t", step.name, got, step.want)
		}
	}
}
