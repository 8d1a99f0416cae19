package monitor

import (
	"os"
	"testing"

	"github.com/vmsan/vmsan/api"
	"github.com/vmsan/vmsan/internal/store"
	"github.com/vmsan/vmsan/internal/vmm/fake"
)

func TestResize(t *testing.T) {
	r := run(t, func(r *store.Record) { r.Spec.DiskBytes = 64 << 20 })
	for _, bytes := range []int64{128 << 20, 128 << 20, 256 << 20} {
		if err := r.Resize(t.Context(), bytes); err != nil {
			t.Fatal(err)
		}
		wantDisk(t, r.layout, bytes, false)
	}
	if err := r.Resize(t.Context(), 128<<20); !api.HasCode(err, api.ErrValidationDiskSize) {
		t.Errorf("a disk that shrinks: %v", err)
	}
	if err := r.Pause(t.Context()); err != nil {
		t.Fatal(err)
	}
	if err := r.Resize(t.Context(), 512<<20); !api.HasCode(err, api.ErrVMNotRunning) {
		t.Errorf("a guest that stands still: %v", err)
	}
	wantDisk(t, r.layout, 256<<20, false)
}

func wantDisk(t *testing.T, layout store.Layout, bytes int64, grown bool) {
	t.Helper()
	info, err := os.Stat(layout.Overlay(testID))
	if err != nil {
		t.Fatal(err)
	}
	record, err := layout.Load(testID)
	if err != nil {
		t.Fatal(err)
	}
	if info.Size() != bytes || record.Spec.DiskBytes != bytes || record.Grown != grown {
		t.Errorf("the disk has %d bytes, in the record %d, yet to grow: %t; want %d, %t", info.Size(), record.Spec.DiskBytes, record.Grown, bytes, grown)
	}
}

// A guest that cannot grow its file system comes up, and is asked again at its
// next start.
func TestDiskYetToGrow(t *testing.T) {
	driver := &fake.Driver{}
	m := newTestMonitor(t, driver, func(r *store.Record) { r.Spec.DiskBytes, r.Grown = 64<<20, true })
	if err := os.Truncate(m.layout.Overlay(testID), 64<<20); err != nil {
		t.Fatal(err)
	}
	r := bringUp(t, m, driver)
	if r.status() != api.StatusRunning {
		t.Errorf("it is %s", r.status())
	}
	wantDisk(t, r.layout, 64<<20, true)
	if err := r.Resize(t.Context(), 64<<20); err != nil {
		t.Error(err)
	}
	wantDisk(t, r.layout, 64<<20, false)
}
