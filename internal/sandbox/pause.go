package sandbox

import (
	"context"
	"errors"
	"fmt"
	"path/filepath"

	"github.com/vmsan/vmsan/api"
	"github.com/vmsan/vmsan/internal/monitor/control"
	"github.com/vmsan/vmsan/internal/store"
)

// Pause stops the CPUs of the sandbox that ref names; its memory stays. With
// reclaim its memory goes to the disk, and nothing of it runs until Resume.
func (s *Service) Pause(ctx context.Context, ref string, reclaim bool) (*store.Record, error) {
	r, err := s.Get(ctx, ref)
	if err != nil {
		return nil, err
	}
	switch {
	case r.Reclaimed(), r.Status == api.StatusPaused && !reclaim:
		return r, nil
	case !r.Running():
		return nil, notRunning(r)
	case reclaim:
		err = s.reclaim(ctx, r)
	default:
		err = s.ask(r, func(m *control.Client) error { return m.Pause(ctx) })
	}
	if err != nil {
		return nil, fmt.Errorf("pause %s: %w", r.ID, err)
	}
	return s.layout.Load(r.ID)
}

// ask has the monitor of r do something.
func (s *Service) ask(r *store.Record, what func(*control.Client) error) error {
	err := what(control.Dial(s.layout.ControlSocket(r.ID)))
	if errors.Is(err, control.ErrGone) {
		return api.Errorf(api.ErrVMDied, "VM %s ended meanwhile", r.ID).WithVM(r.ID).WithHint("vmsan logs %s", r.ID)
	}
	return err
}

// reclaim saves the machine beside its disk and ends it.
func (s *Service) reclaim(ctx context.Context, r *store.Record) error {
	saved := s.reclaimed(r.ID)
	stream := s.layout.Overlay(r.ID) + ".stream"
	for _, left := range []string{saved.Memory, saved.State, stream} {
		if err := removeFile(left); err != nil {
			return err
		}
	}
	_, err := s.saveTo(ctx, r, control.SaveRequest{Stop: true}, stream, vmmFiles{saved.Memory, saved.State})
	if err != nil {
		return errors.Join(err, removeFile(saved.Memory), removeFile(saved.State), removeFile(stream))
	}
	lock, record, err := s.own(ctx, r.ID)
	if err != nil {
		return err
	}
	defer lock.Release()
	record.Status, record.Reason, record.Saved = api.StatusPaused, "its memory is on the disk", saved
	return s.layout.Save(record)
}

// reclaimed names the files of a sandbox that gave its memory back.
func (s *Service) reclaimed(id string) *store.Saved {
	dir := s.layout.Sandbox(id)
	return &store.Saved{Memory: filepath.Join(dir, "memory"), State: filepath.Join(dir, "state")}
}

// Resume lets the sandbox that ref names go on. One that runs is left as it
// is.
func (s *Service) Resume(ctx context.Context, ref string) (*store.Record, error) {
	r, err := s.Get(ctx, ref)
	switch {
	case err != nil:
		return nil, err
	case r.Status == api.StatusRunning:
		return r, nil
	case r.Status != api.StatusPaused:
		return nil, api.Errorf(api.ErrVMNotRunning, "VM %s is not paused (current status: %s)", r.ID, r.Status).WithVM(r.ID).
			WithHint("vmsan start %s", r.ID)
	}
	if !r.Reclaimed() {
		if err := s.ask(r, func(m *control.Client) error { return m.Resume(ctx) }); err != nil {
			return nil, fmt.Errorf("resume %s: %w", r.ID, err)
		}
		return s.layout.Load(r.ID)
	}
	return s.unreclaim(ctx, r)
}

// unreclaim starts a sandbox from its memory on the disk, which is mapped by
// its VMM from then on and needs no name.
func (s *Service) unreclaim(ctx context.Context, r *store.Record) (*store.Record, error) {
	lock, r, err := s.own(ctx, r.ID)
	if err != nil {
		return nil, err
	}
	defer lock.Release()
	saved := r.Saved
	started, err := s.startOwned(ctx, r, lock)
	if err != nil {
		return nil, err
	}
	return started, errors.Join(removeFile(saved.Memory), removeFile(saved.State))
}
