package qemu

import (
	"os"
	"path/filepath"
	"testing"

	"github.com/vmsan/vmsan/internal/jail"
	"github.com/vmsan/vmsan/internal/testenv"
	"github.com/vmsan/vmsan/internal/vmm"
	"github.com/vmsan/vmsan/internal/vmm/vmmtest"
)

func TestMain(m *testing.M) { os.Exit(testenv.Main(m)) }

func TestConformance(t *testing.T) {
	testenv.RequireRoot(t)
	parts := testenv.RequireMachine(t)
	vmmtest.Run(t, Driver{}, func(t *testing.T) vmm.Spec {
		return vmm.Spec{
			ID: "vmtest", VCPUs: 1, MemoryMiB: 128, Accelerator: vmm.TCG,
			Kernel: parts.Kernel, Initramfs: parts.Initramfs,
			Disks: []vmm.Disk{
				{Name: "image", File: open(t, parts.Image, os.O_RDONLY), ReadOnly: true},
				{Name: "overlay", File: open(t, parts.Overlay(t), os.O_RDWR)},
			},
			Jail: vmm.Jail{User: &jail.User{UID: 65534, GID: 65534}, Root: t.TempDir()},
			Log:  create(t, filepath.Join(t.TempDir(), "log")),
		}
	})
}

func open(t *testing.T, path string, flag int) *os.File {
	t.Helper()
	file, err := os.OpenFile(path, flag, 0)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { file.Close() })
	return file
}

func create(t *testing.T, path string) *os.File {
	t.Helper()
	file, err := os.Create(path)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if t.Failed() {
			text, _ := os.ReadFile(path)
			t.Logf("QEMU said: %s", text)
		}
		file.Close()
	})
	return file
}
