package sandbox

import (
	"context"
	"errors"
	"fmt"

	"github.com/vmsan/vmsan/api"
	"github.com/vmsan/vmsan/internal/fault"
	"github.com/vmsan/vmsan/internal/hooks"
	"github.com/vmsan/vmsan/internal/monitor/control"
	"github.com/vmsan/vmsan/internal/snapshot"
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
	paused, err := s.layout.Load(r.ID)
	if err == nil {
		s.hooked(r).After(ctx, hooks.Paused(r, paused)...)
	}
	return paused, err
}

// ask has the monitor of r do something.
func (s *Service) ask(r *store.Record, what func(*control.Client) error) error {
	err := what(control.Dial(s.layout.ControlSocket(r.ID)))
	if errors.Is(err, control.ErrGone) {
		return died(r.ID)
	}
	return err
}

func died(id string) error {
	return api.Errorf(api.ErrVMDied, "VM %s ended meanwhile", id).WithVM(id).WithHint("vmsan logs %s", id)
}

// reclaim saves the machine beside its disk and ends it. If it cannot be
// saved it is as it was before.
func (s *Service) reclaim(ctx context.Context, r *store.Record) error {
	if err := checkSavable(r, "reclaim"); err != nil {
		return err
	}
	draft, err := s.snapshots().New()
	if err != nil {
		return err
	}
	defer draft.Close()
	files := vmmFiles{draft.Path(snapshot.MemoryFile), draft.Path(snapshot.StateFile)}
	_, err = s.saveTo(ctx, r, control.SaveRequest{Stand: true}, draft.Join(streamFile), files)
	if err == nil {
		err = s.leave(ctx, r, files)
	}
	if err != nil && r.Status == api.StatusRunning {
		err = errors.Join(err, s.goOn(ctx, r))
	}
	return err
}

// leave ends a machine that was saved to files, which become the sandbox's
// own.
func (s *Service) leave(ctx context.Context, r *store.Record, files vmmFiles) error {
	to := s.layout.Reclaimed(r.ID)
	for from, to := range map[string]string{files.memory: to.Memory, files.state: to.State} {
		if err := syncFile(from); err != nil {
			return err
		}
		if err := fault.After("reclaim: moved", renameFile(from, to)); err != nil {
			return err
		}
	}
	// It takes no time, and half of it would lose the memory.
	ctx = context.WithoutCancel(ctx)
	err := control.Dial(s.layout.ControlSocket(r.ID)).Leave(ctx, to.Memory, to.State)
	switch {
	case api.HasCode(err, api.ErrVMBusy):
		return errors.Join(err, removeFile(to.Memory), removeFile(to.State))
	case errors.Is(err, control.ErrGone):
		err = nil
	}
	return errors.Join(err, s.left(ctx, r.ID, to))
}

// left waits until a machine has ended that was to be left, and checks that
// its memory is what the sandbox goes on from. Whatever was heard of it, the
// record tells.
func (s *Service) left(ctx context.Context, id string, at store.Saved) error {
	lock, err := s.awaitEnd(ctx, id)
	if err != nil {
		return err
	}
	defer lock.Release()
	r, err := s.layout.Load(id)
	if err == nil && (r.Saved == nil || *r.Saved != at) {
		err = errors.Join(died(id), s.repair(ctx, id), s.forgetMemory(id))
	}
	return err
}

// goOn resumes a machine that was to be stopped once it was saved, which went
// wrong.
func (s *Service) goOn(ctx context.Context, r *store.Record) error {
	ctx = context.WithoutCancel(ctx)
	return s.ask(r, func(m *control.Client) error { return m.Resume(ctx) })
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
		resumed, err := s.layout.Load(r.ID)
		if err == nil {
			s.hooked(r).After(ctx, hooks.StatusChange(r.Status, resumed))
		}
		return resumed, err
	}
	return s.Start(ctx, r.ID)
}
