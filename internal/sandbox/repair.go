package sandbox

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"time"

	"github.com/vmsan/vmsan/api"
	"github.com/vmsan/vmsan/internal/cgroup"
	"github.com/vmsan/vmsan/internal/fault"
	"github.com/vmsan/vmsan/internal/hooks"
	"github.com/vmsan/vmsan/internal/monitor"
	"github.com/vmsan/vmsan/internal/network"
	"github.com/vmsan/vmsan/internal/store"
)

// repaired returns the record of the sandbox id. A record that says the
// sandbox runs while nobody holds its lock is one whose monitor died: what
// that left behind is taken back first.
func (s *Service) repaired(ctx context.Context, id string) (*store.Record, error) {
	record, err := s.layout.Load(id)
	if err != nil || !unfinished(record) {
		return record, err
	}
	lock, held, err := store.TryLock(s.layout.SandboxLock(id))
	if isNotExist(err) {
		return nil, vmGone(id)
	}
	if err != nil {
		return nil, err
	}
	if held {
		return record, nil
	}
	defer lock.Release()
	if err := s.repair(ctx, id); err != nil {
		return nil, err
	}
	return s.layout.Load(id)
}

// unfinished tells whether r is a record that somebody should be working on:
// a monitor, or, for a sandbox whose first start failed, the command that
// wanted to create it and now has to remove it.
func unfinished(r *store.Record) bool {
	return r.Running() || r.Status == api.StatusError && (r.Ephemeral || r.StartedAt.IsZero())
}

func vmGone(id string) error {
	return api.Errorf(api.ErrVMNotFound, "VM not found: %s", id).WithVM(id).WithHint("vmsan list")
}

func isNotExist(err error) bool { return errors.Is(err, fs.ErrNotExist) }

// repair takes back what a dead monitor left, in the reverse order of its
// making and by the names in the record. The caller holds the lock. A
// sandbox that was ended in order, or is gone, is left as it is.
func (s *Service) repair(ctx context.Context, id string) error {
	record, err := s.layout.Load(id)
	if api.HasCode(err, api.ErrVMNotFound) {
		return nil
	}
	if err != nil || !unfinished(record) {
		return err
	}
	s.log.Warn("the monitor of a sandbox has died; cleaning up after it", "vm", id)
	reason := "its monitor died"
	if record.Host.BootID != store.BootID() {
		reason = "host restarted"
	}
	record.Interrupted = true
	before := *record
	if err := s.stopped(record, reason); err != nil {
		return err
	}
	record.Status = api.StatusStopped
	events := hooks.Ended(&before, record)
	switch {
	case record.Ephemeral:
		events = append(events, hooks.Of(api.HookAfterRemove, record))
	case record.StartedAt.IsZero():
		events = hooks.Failed("create", record, true, api.Errorf(api.ErrVMBoot, "%s", reason))
	}
	s.hooked(record).After(ctx, events...)
	return nil
}

// stopped takes back everything that r has on the host, and writes that it is
// stopped. Of one that never ran nothing is left: whoever wanted to create it
// has not heard of it. The caller holds the lock.
func (s *Service) stopped(r *store.Record, reason string) error {
	if err := fault.After("repair: taken back", s.takeBack(r)); err != nil {
		return fmt.Errorf("clean up after %s: %w", r.ID, err)
	}
	s.emitOf(r, api.EventVMStop, because(reason))
	if r.Ephemeral || r.StartedAt.IsZero() {
		return s.forget(r)
	}
	r.Status, r.Reason, r.StoppedAt = api.StatusStopped, reason, time.Now().UTC()
	// Its disk is not the one that was saved any more.
	r.Host, r.Saved = store.Host{}, nil
	r.TimeoutAt, r.TimeoutLeft = time.Time{}, 0
	return errors.Join(fault.After("repair: recorded", s.layout.Save(r)), s.forgetMemory(r.ID))
}

// takeBack removes everything that r has on the host besides its files.
func (s *Service) takeBack(r *store.Record) error {
	var errs []error
	if r.Host.BootID == store.BootID() {
		for _, p := range []store.Process{r.Host.Gate, r.Host.VMM} {
			errs = append(errs, p.Kill())
		}
	}
	for _, name := range monitor.Cgroups(r.ID) {
		errs = append(errs, cgroup.Remove(name))
	}
	if r.Spec.Networked() {
		errs = append(errs, network.CleanUp(r.ID))
	}
	errs = append(errs, os.RemoveAll(s.layout.SandboxRun(r.ID)))
	return errors.Join(errs...)
}
