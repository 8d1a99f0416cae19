package monitor

import (
	"context"

	"github.com/vmsan/vmsan/api"
	"github.com/vmsan/vmsan/internal/store"
	"github.com/vmsan/vmsan/internal/vmm"
)

// SetMemory implements control.Monitor. A guest that stands still gives nothing
// back.
func (m *monitor) SetMemory(ctx context.Context, mib int) error {
	return m.change(ctx, func(ctx context.Context) error {
		if status := m.status(); status != api.StatusRunning {
			return api.Errorf(api.ErrVMNotRunning, "VM %s is %s meanwhile", m.id, status).WithVM(m.id).WithHint("vmsan resume %s", m.id)
		}
		ballooned, ok := m.vm.(vmm.Ballooned)
		if !ok {
			return api.Errorf(api.ErrUnsupported, "resizing memory is not supported by the driver %s", m.driver.Features().Name).
				WithFlag("--memory").WithVM(m.id)
		}
		if err := ballooned.SetMemory(ctx, mib); err != nil {
			return err
		}
		return m.save(func(r *store.Record) { r.Spec.MemoryLeftMiB = mib })
	})
}
