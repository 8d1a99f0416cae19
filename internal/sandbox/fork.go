package sandbox

import (
	"context"
	"errors"
	"fmt"
	"time"

	"golang.org/x/sync/errgroup"

	"github.com/vmsan/vmsan/api"
	"github.com/vmsan/vmsan/internal/fault"
	"github.com/vmsan/vmsan/internal/monitor/control"
	"github.com/vmsan/vmsan/internal/snapshot"
	"github.com/vmsan/vmsan/internal/store"
)

// maxForks is how many copies are made at once.
const maxForks = 256

// Fork makes count running copies of the sandbox that ref names: memory,
// commands and disk. They are named after prefix and a number, if it is not
// empty, and publish nothing. The source goes on but for a pause, which is
// returned. If one fails, none is left.
func (s *Service) Fork(ctx context.Context, ref string, count int, prefix string) (forks []*store.Record, pause time.Duration, err error) {
	if err := checkInteger("--count", count, 1, maxForks, ""); err != nil {
		return nil, 0, err
	}
	if prefix != "" {
		if err := checkName("--name", fmt.Sprintf("%s-%d", prefix, count)); err != nil {
			return nil, 0, err
		}
	}
	r, err := s.Get(ctx, ref)
	if err != nil {
		return nil, 0, err
	}
	if r.Status != api.StatusRunning && (r.Status != api.StatusPaused || r.Reclaimed()) {
		return nil, 0, notRunning(r)
	}
	if err := checkSavable(r, "fork"); err != nil {
		return nil, 0, err
	}
	draft, err := s.snapshots().New()
	if err != nil {
		return nil, 0, err
	}
	// The copies have mapped its memory by then.
	defer draft.Close()
	answer, err := s.saveInto(ctx, r, draft, control.SaveRequest{Together: true})
	if err = fault.After("fork: saved", err); err != nil {
		return nil, 0, fmt.Errorf("fork %s: %w", r.ID, err)
	}
	saved := &store.Saved{Memory: draft.Path(snapshot.MemoryFile), State: draft.Path(snapshot.StateFile)}
	forks, err = s.copies(ctx, r, saved, count, prefix)
	if err != nil {
		return nil, answer.Paused, fmt.Errorf("fork %s: %w", r.ID, err)
	}
	s.emitOf(r, api.EventVMFork, func(e *api.Event) {
		for _, fork := range forks {
			e.Copies = append(e.Copies, fork.ID)
		}
	})
	return forks, answer.Paused, nil
}

// copies starts them side by side.
func (s *Service) copies(ctx context.Context, r *store.Record, saved *store.Saved, count int, prefix string) ([]*store.Record, error) {
	forks := make([]*store.Record, count)
	var all errgroup.Group
	all.SetLimit(16)
	for i := range count {
		all.Go(func() (err error) {
			spec := r.Spec
			spec.Publications = nil
			o := CreateOptions{Project: r.Project, Labels: r.Labels}
			if prefix != "" {
				o.Name = fmt.Sprintf("%s-%d", prefix, i+1)
			}
			record := o.record(spec)
			record.Saved, record.Grown = saved, r.Grown
			forks[i], err = s.bring(ctx, record, nil)
			return fault.After("fork: copied", err)
		})
	}
	err := all.Wait()
	if err == nil {
		return forks, nil
	}
	for _, fork := range forks {
		if fork != nil {
			_, removeErr := s.Remove(context.WithoutCancel(ctx), fork.ID, true)
			err = errors.Join(err, removeErr)
		}
	}
	return nil, err
}
