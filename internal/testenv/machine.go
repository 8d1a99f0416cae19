package testenv

import (
	"path/filepath"
	"testing"

	"github.com/vmsan/vmsan/internal/disk"
	"github.com/vmsan/vmsan/internal/image"
	"github.com/vmsan/vmsan/internal/kernel"
	"github.com/vmsan/vmsan/internal/setup"
	"github.com/vmsan/vmsan/internal/store"
)

// overlaySize is small, to be made quickly.
const overlaySize = 256 << 20

// Machine names the files of a guest that boots to the agent.
type Machine struct {
	Kernel, Initramfs, Image string
	layout                   store.Layout
}

// RequireMachine is RequireVM for tests of single parts: what setup made.
func RequireMachine(t testing.TB) Machine {
	t.Helper()
	layout := RequireVM(t)
	record, err := setup.Load(layout)
	if err != nil {
		t.Fatal(err)
	}
	return Machine{
		Kernel:    kernel.VmlinuxPath(layout, record.Kernel),
		Initramfs: kernel.InitramfsPath(layout, record.Kernel),
		Image:     image.Store{Layout: layout}.RootfsPath(record.Image),
		layout:    layout,
	}
}

// Overlay makes an empty disk of the test's own and returns its path.
func (m Machine) Overlay(t testing.TB) string {
	t.Helper()
	blank, err := disk.EnsureBlank(t.Context(), m.layout, overlaySize)
	if err != nil {
		t.Fatal(err)
	}
	path := filepath.Join(t.TempDir(), "overlay.ext4")
	if _, err := disk.Clone(t.Context(), path, blank); err != nil {
		t.Fatal(err)
	}
	return path
}
