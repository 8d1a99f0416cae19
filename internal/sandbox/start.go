package sandbox

import (
	"context"
	"errors"
	"fmt"

	"github.com/vmsan/vmsan/api"
	"github.com/vmsan/vmsan/internal/fault"
	"github.com/vmsan/vmsan/internal/hooks"
	"github.com/vmsan/vmsan/internal/store"
)

// Start boots a stopped sandbox, or one whose last start failed, from its own
// disk; one whose memory is on the disk goes on. It returns when the guest
// answers.
func (s *Service) Start(ctx context.Context, ref string) (*store.Record, error) {
	lock, record, err := s.own(ctx, ref)
	if err != nil {
		return nil, err
	}
	defer lock.Release()
	return s.startOwned(ctx, record, lock)
}

// startOwned starts a sandbox whose lock the caller holds.
func (s *Service) startOwned(ctx context.Context, record *store.Record, lock *store.Lock) (*store.Record, error) {
	hooked, before := s.hooked(record), record.Status
	// Without a program nothing is begun, which could not go back to where its
	// memory is on the disk.
	_, err := s.program()
	if err == nil {
		err = s.admit(record.Spec)
	}
	if err == nil {
		err = hooked.Before(ctx, hooks.Of(api.HookBeforeStart, record))
	}
	if err != nil {
		err = fmt.Errorf("start %s: %w", record.ID, err)
	} else {
		err = s.startHooked(ctx, record, lock)
	}
	if err != nil {
		hooked.After(ctx, hooks.Failed("start", record, record.Status == api.StatusCreating, err)...)
		return nil, err
	}
	started, err := s.layout.Load(record.ID)
	if err != nil {
		return nil, err
	}
	lock.Release() // hooks may do things to it
	hooked.After(ctx, hooks.CameUp(api.HookAfterStart, before, started)...)
	return started, nil
}

// startHooked is startOwned without its hooks.
func (s *Service) startHooked(ctx context.Context, record *store.Record, lock *store.Lock) error {
	record.Status, record.Reason, record.Interrupted, record.Trace = api.StatusCreating, "", false, nil
	if record.Saved == nil {
		record.Spec.Release, record.Spec.MemoryLeftMiB = s.release(record.Spec.Driver), 0
	}
	if err := fault.After("start: recorded", s.layout.Save(record)); err != nil {
		return err
	}
	if err := s.launch(ctx, record, lock, nil); err != nil {
		return errors.Join(fmt.Errorf("start %s: %w", record.ID, err), s.abandon(record.ID))
	}
	return fault.After("start: memory forgotten", s.forgetMemory(record.ID))
}

// forgetMemory removes the memory that a sandbox gave back to the host. A VMM
// that goes on from it has mapped it, and needs no name. The caller holds the
// lock, or the sandbox runs.
func (s *Service) forgetMemory(id string) error {
	files := s.layout.Reclaimed(id)
	return errors.Join(removeFile(files.Memory), removeFile(files.State))
}

// abandon takes back what a monitor that was ended before it was ready has
// left. One that failed by itself has left nothing. The caller holds the lock.
func (s *Service) abandon(id string) error {
	record, err := s.layout.Load(id)
	if err != nil || !record.Running() {
		return err
	}
	return s.stopped(record, "its start was interrupted")
}

// own takes the lock of a sandbox that does not run.
func (s *Service) own(ctx context.Context, ref string) (*store.Lock, *store.Record, error) {
	record, err := s.Get(ctx, ref)
	if err != nil {
		return nil, nil, err
	}
	lock, held, err := store.TryLock(s.layout.SandboxLock(record.ID))
	if err != nil {
		return nil, nil, err
	}
	if held {
		return nil, nil, notStopped(record)
	}
	// Between the look and the lock it may have changed.
	if record, err = s.layout.Load(record.ID); err != nil {
		lock.Release()
		return nil, nil, err
	}
	return lock, record, nil
}

func notStopped(r *store.Record) *api.Error {
	if r.Status == api.StatusStopped || r.Status == api.StatusError {
		return api.Errorf(api.ErrVMBusy, "another command is changing VM %s", r.ID).WithVM(r.ID).WithHint("try again")
	}
	return api.Errorf(api.ErrVMNotStopped, "VM %s is not stopped (current status: %s)", r.ID, r.Status).WithVM(r.ID).
		WithHint("vmsan stop %s", r.ID)
}
