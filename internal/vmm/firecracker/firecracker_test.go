package firecracker

import (
	"os"
	"path/filepath"
	"testing"

	"github.com/vmsan/vmsan/internal/jail"
	"github.com/vmsan/vmsan/internal/testenv"
	"github.com/vmsan/vmsan/internal/vmm"
	"github.com/vmsan/vmsan/internal/vmm/firecracker/contract"
	"github.com/vmsan/vmsan/internal/vmm/vmmtest"
)

func TestMain(m *testing.M) { os.Exit(testenv.Main(m)) }

// testUser is not one that anything runs as.
var testUser = jail.User{UID: 1_599_998_001, GID: 1_599_998_002}

func TestConformance(t *testing.T) {
	testenv.RequireRoot(t)
	parts := testenv.RequireMachine(t)
	contract.Install(t)
	vmmtest.Run(t, Driver{}, func(t *testing.T) vmm.Spec { return machineSpec(t, parts) })
}

// TestConformanceKVM is for the real programs, in the search path.
func TestConformanceKVM(t *testing.T) {
	testenv.RequireKVM(t)
	testenv.RequireRoot(t)
	parts := testenv.RequireMachine(t)
	vmmtest.Run(t, Driver{}, func(t *testing.T) vmm.Spec { return machineSpec(t, parts) })
}

func machineSpec(t *testing.T, parts testenv.Machine) vmm.Spec {
	t.Helper()
	return vmm.Spec{
		ID: "vmtest", VCPUs: 1, MemoryMiB: 128, Accelerator: vmm.KVM,
		Kernel: parts.Kernel, Initramfs: parts.Initramfs,
		Disks: []vmm.Disk{
			{Name: "image", File: open(t, parts.Image, os.O_RDONLY), ReadOnly: true},
			{Name: "overlay", File: open(t, parts.Overlay(t), os.O_RDWR)},
		},
		Jail: vmm.Jail{User: &testUser, Root: t.TempDir()},
		Log:  create(t, filepath.Join(t.TempDir(), "log")),
	}
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
			t.Logf("Firecracker said: %s", text)
		}
		file.Close()
	})
	return file
}
