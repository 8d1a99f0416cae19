package sandbox

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/vmsan/vmsan/api"
	"github.com/vmsan/vmsan/internal/fault"
	"github.com/vmsan/vmsan/internal/hooks"
	"github.com/vmsan/vmsan/internal/monitor/control"
	"github.com/vmsan/vmsan/internal/store"
)

// Stop shuts a sandbox down: the guest has grace to end in order, then its
// VMM is ended. It returns the record from before. A sandbox that does not
// run is left as it is.
func (s *Service) Stop(ctx context.Context, ref string, grace time.Duration) (*store.Record, error) {
	record, err := s.Get(ctx, ref)
	if err != nil {
		return nil, err
	}
	if record.Reclaimed() {
		return record, s.stopReclaimed(ctx, record, grace)
	}
	if record.Running() {
		err = s.stop(ctx, record, grace)
	}
	if err == nil {
		err = s.settle(ctx, record.ID)
	}
	if err != nil {
		return record, fmt.Errorf("stop %s: %w", record.ID, err)
	}
	return record, nil
}

// settle notes that somebody wants a sandbox to be stopped, so that it is not
// started with the host, however it came to its end.
func (s *Service) settle(ctx context.Context, id string) error {
	record, err := s.layout.Load(id)
	if err != nil || !record.Interrupted {
		return ignoreGone(err)
	}
	lock, record, err := s.own(ctx, id)
	if err != nil {
		return ignoreGone(err)
	}
	defer lock.Release()
	record.Interrupted = false
	return s.layout.Save(record)
}

// ignoreGone is err, unless that is of a sandbox which went with its end.
func ignoreGone(err error) error {
	if api.HasCode(err, api.ErrVMNotFound) {
		return nil
	}
	return err
}

// monitorTime is how long a monitor may take to end a sandbox, besides what the
// guest has to end in order.
const monitorTime = 20 * time.Second

// stop ends a sandbox that runs and returns when its lock is free, and so
// everything it had on the host.
func (s *Service) stop(ctx context.Context, r *store.Record, grace time.Duration) error {
	return s.hookedStop(ctx, r, func() (bool, error) {
		gone, err := s.endMonitor(ctx, r, grace)
		if err != nil {
			return false, err
		}
		if err := fault.After("stop: ended", nil); err != nil {
			return false, err
		}
		lock, err := s.awaitEnd(ctx, r.ID)
		if gone && api.HasCode(err, api.ErrTimeoutLock) {
			lock, gone, err = s.endAgain(ctx, r, grace, err)
		}
		if err != nil {
			return false, err
		}
		defer lock.Release()
		return !gone, s.repair(ctx, r.ID)
	})
}

// endMonitor has the monitor of r end the sandbox, and kills one that does not
// in its time. gone tells whether it was not there, or was killed: repair then
// tells hooks of its end.
func (s *Service) endMonitor(ctx context.Context, r *store.Record, grace time.Duration) (gone bool, err error) {
	patience, cancel := context.WithTimeout(ctx, grace+monitorTime)
	defer cancel()
	err = control.Dial(s.layout.ControlSocket(r.ID)).Stop(patience, grace)
	if errors.Is(err, control.ErrGone) {
		return true, nil
	}
	if err != nil && patience.Err() != nil && ctx.Err() == nil {
		s.log.Warn("the monitor of a sandbox does not answer; ending it", "vm", r.ID)
		err = r.Host.Monitor.Kill()
		return err == nil, err
	}
	return false, err
}

// endAgain ends a sandbox that nobody listened for, though its lock, held, says
// that it lives: by now one that was coming up does listen. A monitor that still
// does not hangs, before it listens or when it has stopped to. held is why the
// lock could not be had.
func (s *Service) endAgain(ctx context.Context, r *store.Record, grace time.Duration, held error) (lock *store.Lock, gone bool, err error) {
	now, err := s.layout.Load(r.ID)
	if err == nil && now.Host.Monitor.PID != 0 {
		r = now
	}
	gone, err = s.endMonitor(ctx, r, grace)
	if err != nil {
		return nil, false, err
	}
	if gone {
		if r.Host.Monitor.PID == 0 {
			return nil, false, held
		}
		s.log.Warn("the monitor of a sandbox neither answers nor ends; ending it", "vm", r.ID)
		if err := r.Host.Monitor.Kill(); err != nil {
			return nil, false, err
		}
	}
	lock, err = s.awaitEnd(ctx, r.ID)
	return lock, gone, err
}

// hookedStop runs the hooks around the end of r. end tells whether it was the
// one who ended it: whoever else did has run the hooks of that.
func (s *Service) hookedStop(ctx context.Context, r *store.Record, end func() (bool, error)) error {
	hooked := s.hooked(r)
	err := hooked.Before(ctx, hooks.Of(api.HookBeforeStop, r))
	ended := false
	if err == nil {
		ended, err = end()
	}
	if err != nil {
		hooked.After(ctx, hooks.Failed("stop", r, false, err)...)
		return err
	}
	if !ended {
		return nil
	}
	now, err := s.layout.Load(r.ID)
	if api.HasCode(err, api.ErrVMNotFound) {
		// It went with its end.
		gone := *r
		gone.Status = api.StatusStopped
		hooked.After(ctx, append(hooks.Ended(r, &gone), hooks.Of(api.HookAfterRemove, &gone))...)
		return nil
	}
	if err == nil {
		hooked.After(ctx, hooks.Ended(r, now)...)
	}
	return err
}

// stopReclaimed has a sandbox whose memory is on the disk go on, so that it can
// shut down. Without grace the memory is forgotten.
func (s *Service) stopReclaimed(ctx context.Context, r *store.Record, grace time.Duration) error {
	if grace > 0 {
		started, err := s.Start(ctx, r.ID)
		if err != nil {
			return err
		}
		return s.stop(ctx, started, grace)
	}
	return s.hookedStop(ctx, r, func() (bool, error) {
		lock, r, err := s.own(ctx, r.ID)
		if err != nil {
			return false, err
		}
		defer lock.Release()
		return true, s.stopped(r, "stopped")
	})
}

// awaitEnd waits until the monitor of the sandbox id is gone. It returns the
// lock, or nil if the sandbox was removed with its monitor.
func (s *Service) awaitEnd(ctx context.Context, id string) (*store.Lock, error) {
	lock, err := store.AcquireLock(ctx, s.layout.SandboxLock(id))
	if api.HasCode(err, api.ErrVMNotFound) || isNotExist(err) {
		return nil, nil
	}
	return lock, err
}

// Restart stops a sandbox that runs and starts it.
func (s *Service) Restart(ctx context.Context, ref string, grace time.Duration) (*store.Record, error) {
	record, err := s.Stop(ctx, ref, grace)
	if err != nil {
		return nil, err
	}
	return s.Start(ctx, record.ID)
}
