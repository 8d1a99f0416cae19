package sandbox

import (
	"context"
	"errors"
	"fmt"
	"os"
	"time"

	"github.com/vmsan/vmsan/api"
	"github.com/vmsan/vmsan/internal/cgroup"
	"github.com/vmsan/vmsan/internal/fault"
	"github.com/vmsan/vmsan/internal/hooks"
	"github.com/vmsan/vmsan/internal/monitor"
	"github.com/vmsan/vmsan/internal/network"
	"github.com/vmsan/vmsan/internal/scratch"
	"github.com/vmsan/vmsan/internal/store"
)

// Remove deletes a sandbox with its disk. One that runs is refused unless
// force is given, which ends it without asking the guest, if it does not write
// to volumes.
func (s *Service) Remove(ctx context.Context, ref string, force bool) (id string, err error) {
	id, err = s.layout.Find(ref)
	if err != nil {
		return "", err
	}
	if err := s.remove(ctx, id, force); err != nil {
		return id, fmt.Errorf("remove %s: %w", id, err)
	}
	return id, nil
}

func (s *Service) remove(ctx context.Context, id string, force bool) error {
	record, err := s.repaired(ctx, id)
	if api.HasCode(err, api.ErrVMRecord) && force {
		return s.removeBroken(id)
	}
	if err != nil {
		return err
	}
	if !force && (record.Running() || record.Reclaimed()) {
		return notStopped(record).WithHint("vmsan rm -f %s, or vmsan stop %s first", id, id)
	}
	hooked, event := s.hooked(record), hooks.Of(api.HookBeforeRemove, record)
	event.Force = force
	err = hooked.Before(ctx, event)
	if err == nil && record.Running() {
		err = s.stop(ctx, record, lastGrace(record))
	}
	if err == nil {
		err = s.delete(ctx, id)
	}
	if err != nil {
		hooked.After(ctx, hooks.Failed("remove", record, false, err)...)
		return err
	}
	if !record.Ephemeral || !record.Running() {
		// The end of an ephemeral one is its removal, and was told of.
		hooked.After(ctx, hooks.Of(api.HookAfterRemove, record))
	}
	return nil
}

// lastGrace is how long the guest of a sandbox that is to be removed has to
// end: none, unless it has yet to write something that outlives it.
func lastGrace(r *store.Record) time.Duration {
	if r.Spec.Writes() {
		return monitor.DefaultGrace
	}
	return 0
}

// delete removes a sandbox that does not run.
func (s *Service) delete(ctx context.Context, id string) error {
	lock, err := store.AcquireLock(ctx, s.layout.SandboxLock(id))
	if isNotExist(err) {
		return nil
	}
	if err != nil {
		return err
	}
	defer lock.Release()
	record, err := s.layout.Load(id)
	if api.HasCode(err, api.ErrVMNotFound) {
		return nil
	}
	if err != nil {
		return err
	}
	// Whatever the record says it may still have, it has no more.
	if err := fault.After("remove: taken back", s.takeBack(record)); err != nil {
		return err
	}
	return s.forget(record)
}

// forget deletes the files of a sandbox that has nothing else any more. The
// caller holds the lock.
func (s *Service) forget(r *store.Record) error {
	if err := s.layout.Delete(r.ID); err != nil {
		return err
	}
	s.emitOf(r, api.EventVMRemove, nil)
	return nil
}

// removeBroken deletes a sandbox whose record nobody can read: what follows
// from its id alone.
func (s *Service) removeBroken(id string) error {
	lock, held, err := store.TryLock(s.layout.SandboxLock(id))
	if err != nil && !isNotExist(err) {
		return err
	}
	if held {
		return api.Errorf(api.ErrVMBusy, "the record of %s cannot be read, and its monitor runs", id).WithVM(id).
			WithHint("vmsan stop %s", id)
	}
	defer lock.Release()
	if err := s.takeBackByID(id); err != nil {
		return err
	}
	return s.forget(&store.Record{ID: id})
}

// takeBackByID removes everything that follows from a sandbox's id alone,
// besides its files, where nobody knows more of it.
func (s *Service) takeBackByID(id string) error {
	var errs []error
	for _, name := range monitor.Cgroups(id) {
		errs = append(errs, cgroup.Remove(name))
	}
	if os.Geteuid() == 0 {
		errs = append(errs, network.CleanUp(id))
	}
	run := s.layout.SandboxRun(id)
	return errors.Join(append(errs, scratch.UnmountBelow(run), os.RemoveAll(run))...)
}
