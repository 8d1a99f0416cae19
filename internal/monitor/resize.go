package monitor

import (
	"context"
	"fmt"
	"time"

	"github.com/vmsan/vmsan/api"
	"github.com/vmsan/vmsan/internal/disk"
	"github.com/vmsan/vmsan/internal/gate"
	"github.com/vmsan/vmsan/internal/store"
)

// Names of disks, by which a VMM knows them.
const (
	imageDisk   = "image"
	overlayDisk = "overlay"
)

// Resize implements control.Monitor. Once the file has grown and that is
// noted, whatever goes wrong is made good by the next start, or by asking
// again.
func (m *monitor) Resize(ctx context.Context, bytes int64) error {
	return m.change(ctx, func(context.Context) error {
		if status := m.status(); status != api.StatusRunning {
			return api.Errorf(api.ErrVMNotRunning, "VM %s is %s meanwhile", m.id, status).WithVM(m.id).WithHint("vmsan resume %s", m.id)
		}
		if err := disk.Grow(m.layout.Overlay(m.id), bytes); err != nil {
			return err
		}
		if err := m.save(func(r *store.Record) { r.Spec.DiskBytes, r.Grown = bytes, true }); err != nil {
			return err
		}
		ctx, cancel := m.untilEnding(context.WithoutCancel(ctx))
		defer cancel()
		if err := m.vm.DiskResized(ctx, overlayDisk, bytes); err != nil {
			return fmt.Errorf("tell the machine: %w", err)
		}
		return m.growGuest(ctx)
	})
}

// growTime is how long it may take to grow a file system: a busy guest that is
// emulated writes the tables of a hundred thousand groups of blocks.
const growTime = 5 * time.Minute

// growGuest has the guest grow the file system on its disk to the size of the
// disk.
func (m *monitor) growGuest(ctx context.Context) error {
	if err := m.tellGuest(ctx, growTime, gate.Order{Resize: m.record.Spec.DiskBytes}); err != nil {
		return api.Errorf(api.ErrGuest, "the disk has grown, and the guest cannot use it yet: %w", err).WithVM(m.id).
			WithHint("vmsan restart %s", m.id)
	}
	return m.save(func(r *store.Record) { r.Grown = false })
}
