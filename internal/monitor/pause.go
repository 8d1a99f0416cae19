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
	"github.com/vmsan/vmsan/internal/fault"
	"github.com/vmsan/vmsan/internal/gate"
	"github.com/vmsan/vmsan/internal/monitor/control"
	"github.com/vmsan/vmsan/internal/scratch"
	"github.com/vmsan/vmsan/internal/store"
	"github.com/vmsan/vmsan/internal/vmm"
)

// status is what the record says just now.
func (m *monitor) status() api.Status {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.record.Status
}

// setStatus leaves the status as it was if it cannot be written.
func (m *monitor) setStatus(s api.Status, reason string) error {
	m.mu.Lock()
	defer m.mu.Unlock()
	status, before := m.record.Status, m.record.Reason
	m.record.Status, m.record.Reason = s, reason
	err := m.layout.Save(m.record)
	if err != nil {
		m.record.Status, m.record.Reason = status, before
	}
	return err
}

// Pause implements control.Monitor.
func (m *monitor) Pause(ctx context.Context) error { return m.pause(ctx, "") }

// pause is Pause, and says why.
func (m *monitor) pause(ctx context.Context, reason string) error {
	return m.change(ctx, func(ctx context.Context) error {
		if m.status() == api.StatusPaused {
			return nil
		}
		err := fault.After("pause: stands", m.halt(ctx))
		if err == nil {
			err = m.setStatus(api.StatusPaused, reason)
		}
		if err != nil {
			// It is not to stand while its record says that it runs.
			return fmt.Errorf("pause %s: %w", m.id, errors.Join(err, m.catchUp(ctx)))
		}
		m.limit.stand()
		m.emit(api.EventVMPause, because(reason))
		return nil
	})
}

// Resume implements control.Monitor.
func (m *monitor) Resume(ctx context.Context) error {
	return m.change(ctx, func(ctx context.Context) error {
		switch {
		case m.status() != api.StatusPaused:
			return nil
		case m.left != nil:
			return m.givingBack()
		}
		err := fault.After("resume: runs", m.release(ctx))
		if err == nil {
			err = m.setStatus(api.StatusRunning, "")
		}
		if err != nil {
			return fmt.Errorf("resume %s: %w", m.id, errors.Join(err, m.halt(ctx)))
		}
		m.limit.resume()
		m.emit(api.EventVMResume, nil)
		return m.catchUp(ctx)
	})
}

// guestTime is how long a guest may take for what it is asked to do around a
// pause.
const guestTime = 20 * time.Second

// tellGuest has the gate tell the guest something: the next gate, if this one
// dies of it. The guest gets so long.
func (m *monitor) tellGuest(ctx context.Context, limit time.Duration, o gate.Order) error {
	deadline := time.Now().Add(limit)
	ctx, cancel := context.WithTimeoutCause(ctx, limit+gateTime, errors.New("the gate does not answer"))
	defer cancel()
	for {
		m.mu.Lock()
		g := m.gate
		m.mu.Unlock()
		report, err := g.orderUntil(ctx, deadline, o)
		if err == nil || report.Error != "" || ctx.Err() != nil {
			return err
		}
		// A conversation that broke ends its gate.
		select {
		case <-g.replaced:
		case <-m.vm.Done():
			return err
		case <-ctx.Done():
			return err
		}
	}
}

// freeze has the guest hold still: its commands, and its disk, unless
// commandsOnly. It is not given up when whoever wants to save goes: an order
// that is broken off ends the gate.
func (m *monitor) freeze(ctx context.Context, commandsOnly bool) error {
	ctx, cancel := m.untilEnding(context.WithoutCancel(ctx))
	defer cancel()
	m.frozen = true
	if err := m.tellGuest(ctx, guestTime, gate.Order{Freeze: !commandsOnly, Hold: commandsOnly}); err != nil {
		return api.Errorf(api.ErrGuest, "have the guest hold still: %w", err).WithVM(m.id)
	}
	return nil
}

// Save implements control.Monitor. The guest's commands hold still and its
// disk is frozen, unless it stays with the memory, while the machine is saved,
// so that a copy of it wakes up when it has been told that it is one.
func (m *monitor) Save(ctx context.Context, to control.SaveRequest) (answer control.SaveAnswer, err error) {
	saved, closeFiles, err := createSaved(to)
	if err != nil {
		return answer, err
	}
	defer closeFiles()
	err = m.change(ctx, func(ctx context.Context) error {
		answer, err = m.saveTo(ctx, to, saved)
		return err
	})
	return answer, err
}

func (m *monitor) saveTo(ctx context.Context, to control.SaveRequest, saved vmm.Saved) (answer control.SaveAnswer, err error) {
	if m.left != nil {
		return answer, m.givingBack()
	}
	paused := m.status() == api.StatusPaused
	if paused {
		// So that its commands can be told. Some VMMs also do not save a
		// machine twice that has not moved.
		if err := m.release(ctx); err != nil {
			return answer, fmt.Errorf("wake %s: %w", m.id, err)
		}
	}
	if !m.record.Internal {
		err = fault.After("save: frozen", m.freeze(ctx, to.Together && !paused))
	}
	began := time.Now()
	if err == nil || paused {
		err = errors.Join(err, m.halt(ctx))
	}
	if err == nil {
		err = context.Cause(ctx)
	}
	if err == nil {
		answer, err = m.saveStanding(ctx, to, saved)
		err = fault.After("save: written", err)
	}
	if paused {
		// It holds still until it is resumed.
		m.rested = err == nil
		return answer, err
	}
	if err == nil && to.Stand {
		if err = m.setStatus(api.StatusPaused, "it was saved, and was to be stopped"); err == nil {
			m.rested = true
			answer.Paused = time.Since(began)
			m.limit.stand()
			return answer, nil
		}
	}
	// Whatever became of it, and whoever still waits for it, the source goes on.
	err = errors.Join(err, fault.After("save: goes on", m.release(ctx)))
	answer.Paused = time.Since(began)
	if late := m.catchUp(ctx); late != nil {
		// What was saved is good all the same.
		m.log.Warn("the guest does not go on yet", "error", late)
	}
	return answer, err
}

func (m *monitor) givingBack() error {
	return api.Errorf(api.ErrVMBusy, "VM %s is just giving its memory back", m.id).WithVM(m.id).WithHint("try again")
}

// saveStanding saves a machine that is paused.
func (m *monitor) saveStanding(ctx context.Context, to control.SaveRequest, saved vmm.Saved) (answer control.SaveAnswer, err error) {
	var work errgroup.Group
	if to.State != "" {
		work.Go(func() error {
			if err := m.vm.Save(ctx, saved); err != nil {
				return scratch.Explain(fmt.Errorf("save %s: %w", m.id, err))
			}
			return nil
		})
	}
	if to.Overlay != "" {
		work.Go(func() error {
			method, err := disk.Clone(ctx, to.Overlay, m.layout.Overlay(m.id))
			answer.DiskMethod = string(method)
			return scratch.Explain(err)
		})
	}
	err = work.Wait()
	return answer, err
}

// Leave implements control.Monitor. Once it is noted the machine ends, whoever
// still waits for that.
func (m *monitor) Leave(ctx context.Context, memory, state string) error {
	if err := m.leave(ctx, &store.Saved{Memory: memory, State: state}); err != nil {
		return err
	}
	return m.Stop(context.WithoutCancel(ctx), 0)
}

// leave notes where the machine goes on from, if it has not moved since it
// was saved.
func (m *monitor) leave(ctx context.Context, left *store.Saved) error {
	return m.change(ctx, func(context.Context) error {
		if !m.rested {
			return api.Errorf(api.ErrVMBusy, "VM %s was resumed meanwhile", m.id).WithVM(m.id)
		}
		m.left = left
		return nil
	})
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
