package sandbox

import (
	"context"
	"fmt"

	"github.com/vmsan/vmsan/api"
	"github.com/vmsan/vmsan/internal/monitor/control"
	"github.com/vmsan/vmsan/internal/store"
)

// ResizeMemory leaves the guest of the running sandbox that ref names so much
// of the memory that it was made with, in MiB, until it boots again.
func (s *Service) ResizeMemory(ctx context.Context, ref string, mib int) (*store.Record, error) {
	r, err := s.Get(ctx, ref)
	if err != nil {
		return nil, err
	}
	if r.Status != api.StatusRunning {
		return nil, notRunning(r)
	}
	if mib > r.Spec.MemoryMiB {
		return nil, api.Errorf(api.ErrValidationMemory, "VM %s was made with %d MiB of memory and cannot have more", r.ID, r.Spec.MemoryMiB).
			WithFlag("--memory").WithVM(r.ID)
	}
	if err := s.ask(r, func(m *control.Client) error { return m.SetMemory(ctx, mib) }); err != nil {
		return nil, fmt.Errorf("resize memory of %s: %w", r.ID, err)
	}
	s.emitOf(r, api.EventVMResize, func(e *api.Event) { e.MemoryMiB = mib })
	return s.layout.Load(r.ID)
}
