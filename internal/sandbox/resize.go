package sandbox

import (
	"context"
	"fmt"

	"github.com/vmsan/vmsan/api"
	"github.com/vmsan/vmsan/internal/disk"
	"github.com/vmsan/vmsan/internal/monitor/control"
	"github.com/vmsan/vmsan/internal/store"
)

// Resize grows the disk of the sandbox that ref names to bytes. A guest that
// runs has the room when it returns; of one that is stopped, at its next
// start.
func (s *Service) Resize(ctx context.Context, ref string, bytes int64) (*store.Record, error) {
	if err := checkDisk(bytes); err != nil {
		return nil, err
	}
	r, err := s.Get(ctx, ref)
	if err != nil {
		return nil, err
	}
	if err := checkGrows(r, bytes); err != nil {
		return nil, err
	}
	switch r.Status {
	case api.StatusRunning:
		err = s.ask(r, func(m *control.Client) error { return m.Resize(ctx, bytes) })
	case api.StatusPaused:
		// The guest has to do its part.
		err = notRunning(r)
	default:
		err = s.resizeStopped(ctx, r.ID, bytes)
	}
	if err != nil {
		return nil, fmt.Errorf("resize %s: %w", r.ID, err)
	}
	s.emitOf(r, api.EventVMResize, func(e *api.Event) { e.DiskBytes = bytes })
	return s.layout.Load(r.ID)
}

// checkGrows refuses to shrink a disk.
func checkGrows(r *store.Record, bytes int64) error {
	if bytes >= r.Spec.DiskBytes {
		return nil
	}
	return api.Errorf(api.ErrValidationDiskSize, "VM %s has a disk of %d bytes, and disks only grow: a mounted file system cannot give back "+
		"what it may have written to", r.ID, r.Spec.DiskBytes).WithFlag("--disk").WithVM(r.ID)
}

func (s *Service) resizeStopped(ctx context.Context, id string, bytes int64) error {
	lock, r, err := s.own(ctx, id)
	if err != nil {
		return err
	}
	defer lock.Release()
	if err := checkGrows(r, bytes); err != nil {
		return err
	}
	if r.Status == api.StatusPaused {
		return notRunning(r)
	}
	if bytes == r.Spec.DiskBytes {
		return nil
	}
	if err := disk.Grow(s.layout.Overlay(id), bytes); err != nil {
		return err
	}
	r.Spec.DiskBytes, r.Grown = bytes, true
	return s.layout.Save(r)
}
