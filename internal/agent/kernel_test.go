package agent

import (
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/vmsan/vmsan/internal/testenv"
)

// mountExt4 makes an ext4 of 8 MiB on a loop device of 64 MiB and mounts it.
func mountExt4(t *testing.T) (mount, device string) {
	t.Helper()
	testenv.RequireRoot(t)
	for _, tool := range []string{"mkfs.ext4", "losetup"} {
		if _, err := exec.LookPath(tool); err != nil {
			t.Fatalf("needs %s", tool)
		}
	}
	file := filepath.Join(t.TempDir(), "disk")
	if err := os.WriteFile(file, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	if err := os.Truncate(file, 64<<20); err != nil {
		t.Fatal(err)
	}
	if text, err := exec.Command("mkfs.ext4", "-q", "-E", "resize=65536", file, "8M").CombinedOutput(); err != nil {
		t.Fatalf("mkfs.ext4: %v\n%s", err, text)
	}
	text, err := exec.Command("losetup", "--find", "--show", file).CombinedOutput()
	if err != nil {
		t.Fatalf("losetup: %v: %s", err, text)
	}
	device = strings.TrimSpace(string(text))
	t.Cleanup(func() { exec.Command("losetup", "-d", device).Run() })
	mount = t.TempDir()
	if err := unix.Mount(device, mount, "ext4", 0, ""); err != nil {
		t.Fatalf("mount ext4: %v", err)
	}
	t.Cleanup(func() {
		if err := unix.Unmount(mount, 0); err != nil {
			t.Errorf("unmount: %v", err)
		}
	})
	return mount, device
}

func TestLinuxFreeze(t *testing.T) {
	mount, _ := mountExt4(t)
	for range 2 {
		if err := (linux{}).Freeze(mount); err != nil {
			t.Fatal(err)
		}
	}
	wrote := make(chan error, 1)
	go func() { wrote <- os.WriteFile(filepath.Join(mount, "x"), []byte("x"), 0o600) }()
	select {
	case err := <-wrote:
		t.Errorf("a write went through, error %v", err)
	case <-time.After(200 * time.Millisecond):
	}
	for range 2 {
		if err := (linux{}).Thaw(mount); err != nil {
			t.Fatal(err)
		}
	}
	select {
	case err := <-wrote:
		if err != nil {
			t.Error(err)
		}
	case <-time.After(20 * time.Second):
		t.Error("the write still waits")
	}
}

func TestLinuxEntropy(t *testing.T) {
	testenv.RequireRoot(t)
	if err := (linux{}).AddEntropy([]byte("some bytes, not a multiple of four")); err != nil {
		t.Error(err)
	}
}

func TestLinuxRelease(t *testing.T) {
	want, err := os.ReadFile("/proc/sys/kernel/osrelease")
	if err != nil {
		t.Fatal(err)
	}
	if got, err := (linux{}).Release(); err != nil || got != strings.TrimSpace(string(want)) {
		t.Errorf("got %q, error %v", got, err)
	}
}
