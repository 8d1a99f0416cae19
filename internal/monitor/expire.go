package monitor

import (
	"context"
	"fmt"
	"time"

	"github.com/vmsan/vmsan/internal/store"
)

// How long what is done when a limit has passed may take. What takes longer is
// given up, and the sandbox stopped: a limit holds.
const (
	limitPauseTime = time.Minute
	limitSaveTime  = 15 * time.Minute
)

// Extend implements control.Monitor.
func (m *monitor) Extend(_ context.Context, d time.Duration) (at time.Time, err error) {
	return m.limit.set(d), nil
}

// Stay implements control.Monitor.
func (m *monitor) Stay(ctx context.Context) error {
	defer m.limit.stay()()
	select {
	case <-ctx.Done():
	case <-m.finished:
	}
	return nil
}

// noteLimit writes down when the limit passes.
func (m *monitor) noteLimit(at time.Time, left time.Duration) {
	m.mu.Lock()
	same := m.record.TimeoutAt.Equal(at) && m.record.TimeoutLeft == left
	m.mu.Unlock()
	if same {
		return
	}
	if err := m.save(func(r *store.Record) { r.TimeoutAt, r.TimeoutLeft = at, left }); err != nil {
		m.log.Error("write down the time limit", "error", err)
	}
}

// expire does what is to be done when a limit has passed. ends is true if the
// sandbox is shut down by that; else done gets how the rest went, which is given
// up when ctx ends.
func (m *monitor) expire(ctx context.Context, reason string, done chan<- error) (ends bool) {
	m.log.Info("a limit has passed", "limit", reason, "action", m.record.Spec.OnTimeout)
	var act func(context.Context) error
	switch m.record.Spec.OnTimeout {
	case store.OnTimeoutPause:
		act = func(ctx context.Context) error {
			ctx, cancel := context.WithTimeout(ctx, limitPauseTime)
			defer cancel()
			return m.pause(ctx, reason)
		}
	case store.OnTimeoutSnapshot:
		act = func(ctx context.Context) error {
			ctx, cancel := context.WithTimeout(ctx, limitSaveTime)
			defer cancel()
			return m.helpers.Snapshot(ctx, m.layout, m.id)
		}
	case store.OnTimeoutRemove:
		// From here on it is removed by whoever finds it stopped.
		if err := m.save(func(r *store.Record) { r.Ephemeral = true }); err != nil {
			m.log.Error("write down that the sandbox is to be removed", "error", err)
		}
		m.shutDown(m.lastGrace())
		return true
	default:
		m.shutDown(DefaultGrace)
		return true
	}
	// Beside the watch over the VMM and the gate, which both may need.
	m.background.Go(func() {
		ctx, cancel := m.untilEnding(ctx)
		defer cancel()
		done <- act(ctx)
	})
	return false
}

// expired is what is to be said of a sandbox that is stopped once something was
// done about its limit.
func (m *monitor) expired(reason string, err error) (text string, stop bool) {
	switch {
	case err != nil:
		m.log.Error("act on a limit that has passed", "error", err)
		return fmt.Sprintf("%s; %s: %v", reason, m.record.Spec.OnTimeout, err), true
	case m.record.Spec.OnTimeout == store.OnTimeoutSnapshot:
		return reason, true
	}
	return "", false
}
