package agent

import (
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// mountExt4 makes an ext4 of 8 MiB on a loop device of 64 MiB and mounts it.
func mountExt4(t *testing.T) (mount, device string) {
	t.Helper()
	requireRoot(t)
	for _, tool := range []string{"mkfs.ext4", "losetup"} {
		if _, err := exec.LookPath(tool); err != nil {
			t.Skipf("needs %s", tool)
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
		t.Skipf("losetup: %v: %s", err, text)
	}
	device = strings.TrimSpace(string(text))
	t.Cleanup(func() { exec.Command("losetup", "-d", device).Run() })
	mount = t.TempDir()
	if err := unix.Mount(device, mount, "ext4", 0, ""); err != nil {
		t.Skipf("mount ext4: %v", err)
	}
	t.Cleanup(func() {
		if err := unix.Unmount(mount, 0); err != nil {
			t.Errorf("unmount: %v", err)
		}
	})
	return mount, device
}

// requireResizing skips where even root may not resize: some containers take CAP_SYS_RESOURCE away.
func requireResizing(t *testing.T) {
	t.Helper()
	var data [2]unix.CapUserData
	header := unix.CapUserHeader{Version: unix.LINUX_CAPABILITY_VERSION_3}
	if err := unix.Capget(&header, &data[0]); err != nil {
		t.Fatal(err)
	}
	if data[0].Effective&(1<<unix.CAP_SYS_RESOURCE) == 0 {
		t.Skip("needs CAP_SYS_RESOURCE")
	}
}

func TestLinuxGrow(t *testing.T) {
	requireResizing(t)
	mount, device := mountExt4(t)
	size := func() uint64 {
		var stat unix.Statfs_t
		if err := unix.Statfs(mount, &stat); err != nil {
			t.Fatal(err)
		}
		return stat.Blocks * uint64(stat.Bsize)
	}
	before := size()
	bytes, err := linux{}.Grow(mount, "")
	if err != nil || bytes != 64<<20 {
		t.Fatalf("got %d, error %v", bytes, err)
	}
	if size() < 5*before {
		t.Errorf("grew from %d to %d", before, size())
	}
	if _, err := (linux{}).Grow(mount, device); err != nil {
		t.Errorf("a second time: %v", err)
	}
	if _, err := (linux{}).Grow("/proc", ""); err == nil || !strings.Contains(err.Error(), "not ext4") {
		t.Errorf("/proc: %v", err)
	}
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
	requireRoot(t)
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
