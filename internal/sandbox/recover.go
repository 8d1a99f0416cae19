package sandbox

import (
	"context"
	"fmt"

	"golang.org/x/sys/unix"

	"github.com/vmsan/vmsan/api"
	"github.com/vmsan/vmsan/internal/store"
)

// Interrupted are the ids of the sandboxes that are to be started with the host:
// those created so that nobody has stopped since. Records of sandboxes that ran
// when the host went down are repaired.
func (s *Service) Interrupted(ctx context.Context) ([]string, error) {
	return s.ids(ctx, func(r *store.Record) bool {
		return r.Status == api.StatusStopped && r.Interrupted && r.Spec.Restart == "always"
	})
}

// Running are the ids of the sandboxes that have a monitor.
func (s *Service) Running(ctx context.Context) ([]string, error) {
	return s.ids(ctx, (*store.Record).Running)
}

func (s *Service) ids(ctx context.Context, wanted func(*store.Record) bool) (ids []string, err error) {
	records, err := s.List(ctx, Filter{})
	for _, r := range records {
		if wanted(r) {
			ids = append(ids, r.ID)
		}
	}
	return ids, err
}

// Interrupt shuts a sandbox down as the host does when it goes down, so that one
// that is to be started with it then is.
func (s *Service) Interrupt(ctx context.Context, id string) (*store.Record, error) {
	record, err := s.Get(ctx, id)
	if err != nil || !record.Running() {
		return record, err
	}
	if err := record.Host.Monitor.Signal(unix.SIGTERM); err != nil {
		return nil, fmt.Errorf("stop %s: %w", id, err)
	}
	lock, err := s.awaitEnd(ctx, id)
	if err != nil {
		return nil, fmt.Errorf("stop %s: %w", id, err)
	}
	defer lock.Release()
	if err := s.repair(ctx, id); err != nil {
		return nil, err
	}
	record, err = s.layout.Load(id)
	if api.HasCode(err, api.ErrVMNotFound) {
		return nil, nil // ephemeral ones are gone now
	}
	return record, err
}
