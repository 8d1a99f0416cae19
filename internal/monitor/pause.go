package monitor

import (
	"context"
	"errors"
	"fmt"
	"os"
	"time"

	"golang.org/x/sync/errgroup"

	"github.com/vmsan/vmsan/api"
	"github.com/vmsan/vmsan/internal/disk"
	"github.com/vmsan/vmsan/internal/gate"
	"github.com/vmsan/vmsan/internal/monitor/control"
	"github.com/vmsan/vmsan/internal/store"
	"github.com/vmsan/vmsan/internal/vmm"
)

// status is what the record says just now.
func (m *monitor) status() api.Status {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.record.Status
}

func (m *monitor) setStatus(s api.Status) error {
	return m.save(func(r *store.Record) { r.Status = s })
}

// Pause implements control.Monitor.
func (m *monitor) Pause(ctx context.Context) error {
	m.standing.Lock()
	defer m.standing.Unlock()
	if m.status() == api.StatusPaused {
		return nil
	}
	if err := m.vm.Pause(ctx); err != nil {
		return fmt.Errorf("pause %s: %w", m.id, err)
	}
	return m.setStatus(api.StatusPaused)
}

// Resume implements control.Monitor. The guest's clock stood still; it is told
// the time before its resumption is.
func (m *monitor) Resume(ctx context.Context) error {
	m.standing.Lock()
	defer m.standing.Unlock()
	return m.resume(ctx)
}

func (m *monitor) resume(ctx context.Context) error {
	if m.status() != api.StatusPaused {
		return nil
	}
	if err := m.vm.Resume(ctx); err != nil {
		return fmt.Errorf("resume %s: %w", m.id, err)
	}
	if err := m.setStatus(api.StatusRunning); err != nil {
		return err
	}
	ctx, cancel := context.WithTimeoutCause(ctx, guestTime, errors.New("the guest does not answer"))
	defer cancel()
	if _, err := m.orderGate(ctx, gate.Order{SetTime: true}); err != nil {
		return fmt.Errorf("set the guest's clock: %w", err)
	}
	return nil
}

// guestTime is how long a guest may take for what it is asked to do around a
// pause.
const guestTime = 20 * time.Second

// orderGate gives the gate that there is just now an order.
func (m *monitor) orderGate(ctx context.Context, o gate.Order) (gate.Report, error) {
	m.mu.Lock()
	g := m.gate
	m.mu.Unlock()
	return g.order(ctx, o)
}

// Save implements control.Monitor. The guest's commands hold still and its
// disk is frozen, unless it stays with the memory, while the machine is paused, so that a copy of it wakes up
// when it has been told that it is one.
func (m *monitor) Save(ctx context.Context, to control.SaveRequest) (answer control.SaveAnswer, err error) {
	saved, closeFiles, err := createSaved(to)
	if err != nil {
		return answer, err
	}
	defer closeFiles()
	m.standing.Lock()
	if m.status() == api.StatusPaused {
		answer, err = m.saveStanding(ctx, to, saved)
	} else {
		answer, err = m.saveRunning(ctx, to, saved)
	}
	m.standing.Unlock()
	if err == nil && to.Stop {
		return answer, m.endSaved(ctx)
	}
	return answer, err
}

// saveRunning pauses the machine for as long as it takes. With to.Stop it
// stays so.
func (m *monitor) saveRunning(ctx context.Context, to control.SaveRequest, saved vmm.Saved) (answer control.SaveAnswer, err error) {
	if !m.record.Internal {
		if err := m.freeze(ctx, to.Together); err != nil {
			return answer, err
		}
	}
	began := time.Now()
	if err = context.Cause(ctx); err == nil {
		err = m.vm.Pause(context.WithoutCancel(ctx))
	}
	if err == nil {
		answer, err = m.saveStanding(ctx, to, saved)
	}
	if err == nil && to.Stop {
		answer.Paused = time.Since(began)
		return answer, nil
	}
	// Whatever became of it, and whoever still waits for it, the source goes on.
	last, cancel := context.WithTimeoutCause(context.WithoutCancel(ctx), guestTime, errors.New("the guest does not answer"))
	defer cancel()
	err = errors.Join(err, m.vm.Resume(last))
	answer.Paused = time.Since(began)
	if m.record.Internal {
		return answer, err
	}
	if _, thawErr := m.orderGate(last, gate.Order{Thaw: true}); thawErr != nil {
		err = errors.Join(err, fmt.Errorf("let the guest go on: %w", thawErr))
	}
	return answer, err
}

// freeze has the guest hold still.
// It is not given up when whoever wants to save goes: an order that is broken
// off ends the gate.
func (m *monitor) freeze(ctx context.Context, commandsOnly bool) error {
	ctx, cancel := context.WithTimeoutCause(context.WithoutCancel(ctx), guestTime, errors.New("the guest does not answer"))
	defer cancel()
	if _, err := m.orderGate(ctx, gate.Order{Freeze: !commandsOnly, Hold: commandsOnly}); err != nil {
		return api.Errorf(api.ErrGuest, "have the guest hold still: %w", err).WithVM(m.id)
	}
	return nil
}

// saveStanding saves a machine that is paused.
func (m *monitor) saveStanding(ctx context.Context, to control.SaveRequest, saved vmm.Saved) (answer control.SaveAnswer, err error) {
	var work errgroup.Group
	work.Go(func() error {
		if err := m.vm.Save(ctx, saved); err != nil {
			return fmt.Errorf("save %s: %w", m.id, err)
		}
		return nil
	})
	if to.Overlay != "" {
		work.Go(func() error {
			method, err := disk.Clone(to.Overlay, m.layout.Overlay(m.id))
			answer.DiskMethod = string(method)
			return err
		})
	}
	err = work.Wait()
	return answer, err
}

// endSaved ends a machine that was saved, as it stands: it will go on from
// there.
func (m *monitor) endSaved(ctx context.Context) error {
	if err := m.vm.Stop(ctx); err != nil {
		return fmt.Errorf("stop %s: %w", m.id, err)
	}
	select {
	case <-m.finished:
		return m.outcome
	case <-ctx.Done():
		return context.Cause(ctx)
	}
}

// createSaved makes the files that a machine is saved to.
func createSaved(to control.SaveRequest) (saved vmm.Saved, closeFiles func(), err error) {
	var files []*os.File
	closeFiles = func() {
		for _, f := range files {
			f.Close()
		}
	}
	for _, f := range []struct {
		path string
		file **os.File
	}{{to.State, &saved.State}, {to.Memory, &saved.Memory}} {
		if f.path == "" {
			continue
		}
		file, err := os.OpenFile(f.path, os.O_RDWR|os.O_CREATE|os.O_EXCL, 0o600)
		if err != nil {
			closeFiles()
			return saved, nil, fmt.Errorf("make file to save to: %w", err)
		}
		*f.file, files = file, append(files, file)
	}
	return saved, closeFiles, nil
}

// openSaved opens the files of a machine that was saved.
func openSaved(from *store.Saved) (saved vmm.Saved, closeFiles func(), err error) {
	memory, err := os.Open(from.Memory)
	if err != nil {
		return saved, nil, fmt.Errorf("open saved memory: %w", err)
	}
	state, err := os.Open(from.State)
	if err != nil {
		memory.Close()
		return saved, nil, fmt.Errorf("open saved state: %w", err)
	}
	return vmm.Saved{Memory: memory, State: state}, func() { memory.Close(); state.Close() }, nil
}
