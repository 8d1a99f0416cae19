package scratch

import (
	"context"
	"errors"
	"os"
	"path/filepath"
	"slices"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"golang.org/x/sys/unix"

	"github.com/vmsan/vmsan/api"
)

func TestSweepKeepsWhatIsAlive(t *testing.T) {
	parent := filepath.Join(t.TempDir(), "tmp")
	alive, err := New(parent, "alive")
	if err != nil {
		t.Fatal(err)
	}
	defer alive.Close()
	dead := filepath.Join(parent, "dead-1.scratch")
	foreign := filepath.Join(parent, "somebody's") // who has a tmp, too
	if err := errors.Join(os.MkdirAll(filepath.Join(dead, "sub"), 0o755), os.Mkdir(foreign, 0o755)); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(dead, "sub", "file"), []byte("x"), 0o444); err != nil {
		t.Fatal(err)
	}
	if err := os.Chmod(filepath.Join(dead, "sub"), 0o555); err != nil {
		t.Fatal(err)
	}
	if found, err := Dead(parent); err != nil || !slices.Equal(found, []string{"dead-1.scratch"}) {
		t.Errorf("dead are %v, %v", found, err)
	}
	swept, err := Sweep(parent)
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff([]string{"dead-1.scratch"}, swept); diff != "" {
		t.Errorf("swept (-want +got):\n%s", diff)
	}
	for _, path := range []string{alive.Path, foreign} {
		if _, err := os.Stat(path); err != nil {
			t.Error(err)
		}
	}
}

func TestSweepOfNothing(t *testing.T) {
	if swept, err := Sweep(filepath.Join(t.TempDir(), "missing")); err != nil || len(swept) > 0 {
		t.Errorf("swept %v, error %v", swept, err)
	}
}

// TestNewBesideSweep has both at it at once: New must never return a directory
// that Sweep takes.
func TestNewBesideSweep(t *testing.T) {
	parent := t.TempDir()
	done := make(chan error, 1)
	stop := make(chan struct{})
	go func() {
		for {
			select {
			case <-stop:
				done <- nil
				return
			default:
			}
			if _, err := Sweep(parent); err != nil {
				done <- err
				return
			}
		}
	}()
	for range 200 {
		d, err := New(parent, "x")
		if err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(d.Join("file"), nil, 0o600); err != nil {
			t.Fatal(err)
		}
		if err := d.Close(); err != nil {
			t.Fatal(err)
		}
	}
	close(stop)
	if err := <-done; err != nil {
		t.Error(err)
	}
}

func TestCloseTwice(t *testing.T) {
	d, err := New(t.TempDir(), "x")
	if err != nil {
		t.Fatal(err)
	}
	for range 2 {
		if err := d.Close(); err != nil {
			t.Error(err)
		}
	}
	if _, err := os.Stat(d.Path); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("after Close: %v", err)
	}
}

func TestPublishReplaces(t *testing.T) {
	parent := t.TempDir()
	target := filepath.Join(parent, "made", "thing")
	for _, content := range []string{"first", "second"} {
		d, err := New(filepath.Join(parent, "tmp"), "x")
		if err != nil {
			t.Fatal(err)
		}
		if err := os.Mkdir(d.Join("new"), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(filepath.Join(d.Join("new"), "file"), []byte(content), 0o444); err != nil {
			t.Fatal(err)
		}
		if err := d.Publish("new", target); err != nil {
			t.Fatal(err)
		}
		if err := d.Close(); err != nil {
			t.Fatal(err)
		}
		got, err := os.ReadFile(filepath.Join(target, "file"))
		if err != nil || string(got) != content {
			t.Errorf("got %q, error %v, want %q", got, err, content)
		}
	}
}

func TestMountPointsBelow(t *testing.T) {
	const info = `22 1 254:0 / / rw - ext4 /dev/vda rw
23 22 0:21 / /state/tmp/build-1/chroot/dev rw - devtmpfs udev rw
24 23 0:25 / /state/tmp/build-1/chroot/dev/pts rw - devpts devpts rw
25 22 0:22 / /state/tmp/with\040space/proc rw - proc proc rw
`
	for path, want := range map[string][]string{
		"/state/tmp/build-1":    {"/state/tmp/build-1/chroot/dev", "/state/tmp/build-1/chroot/dev/pts"},
		"/state/tmp/build-11":   nil,
		"/state/tmp/build":      nil,
		"/state/tmp/with space": {"/state/tmp/with space/proc"},
	} {
		if diff := cmp.Diff(want, mountPointsBelow(info, path)); diff != "" {
			t.Errorf("below %s (-want +got):\n%s", path, diff)
		}
	}
}

func TestLock(t *testing.T) {
	dir := t.TempDir()
	unlock, err := Lock(t.Context(), dir)
	if err != nil {
		t.Fatal(err)
	}
	short, cancel := context.WithTimeout(t.Context(), 30*time.Millisecond)
	defer cancel()
	if _, err := Lock(short, dir); !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("second lock: got error %v, want that time ran out", err)
	}
	unlock()
	again, err := Lock(t.Context(), dir)
	if err != nil {
		t.Fatal(err)
	}
	again()
}

func TestExplain(t *testing.T) {
	full := &os.PathError{Op: "write", Path: "x", Err: unix.ENOSPC}
	if err := Explain(full); !api.HasCode(err, api.ErrDiskFull) || !errors.Is(err, unix.ENOSPC) {
		t.Errorf("full disk: got %v", err)
	}
	if err := Explain(os.ErrExist); err != os.ErrExist {
		t.Errorf("another error: got %v", err)
	}
	if err := Explain(nil); err != nil {
		t.Errorf("no error: got %v", err)
	}
}
