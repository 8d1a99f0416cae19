package monitor

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/vmsan/vmsan/api"
	"github.com/vmsan/vmsan/internal/gate"
	"github.com/vmsan/vmsan/internal/store"
)

// A machine's record says that it runs or that it is paused. The machine and
// its guest follow, whoever is killed meanwhile and whatever takes long: what is
// still missing is done by catchUp, sooner or later.

// motion is how far the machine and its guest have followed. It is guarded by
// monitor.standing.
type motion struct {
	halted bool         // the machine's CPUs may stand
	frozen bool         // the guest was asked to hold still, and not yet to go on
	stood  bool         // the guest's clock may be behind
	rested bool         // the machine was saved and has not moved since
	left   *store.Saved // where the machine goes on from once this has ended; nil: it boots
}

// errEnding is why what is under way is given up once the sandbox begins to end.
func (m *monitor) errEnding() error {
	return api.Errorf(api.ErrVMNotRunning, "VM %s is just being stopped", m.id).WithVM(m.id).WithHint("vmsan start %s", m.id)
}

// change does something to the machine while nobody else does, unless whoever
// wants it is gone when its turn comes, or the sandbox has begun to end: then
// nothing is to stand or to hold still any more. The context of do ends when
// either comes to pass.
func (m *monitor) change(ctx context.Context, do func(ctx context.Context) error) error {
	ctx, cancel := m.untilEnding(ctx)
	defer cancel()
	if err := m.standing.Acquire(ctx, 1); err != nil {
		return fmt.Errorf("wait for what else is done to %s: %w", m.id, context.Cause(ctx))
	}
	defer m.standing.Release(1)
	if m.isEnding() { // of which ctx need not have heard yet
		return m.errEnding()
	}
	if ctx.Err() != nil {
		return context.Cause(ctx)
	}
	return do(ctx)
}

// untilEnding is a context that ends when the sandbox begins to: whoever stops
// it waits for no answer of a guest or a VMM that gives none.
func (m *monitor) untilEnding(ctx context.Context) (context.Context, context.CancelFunc) {
	ctx, cancel := context.WithCancelCause(ctx)
	if m.isEnding() {
		cancel(m.errEnding())
		return ctx, func() {}
	}
	go func() {
		select {
		case <-m.ending:
			cancel(m.errEnding())
		case <-ctx.Done():
		}
	}()
	return ctx, func() { cancel(nil) }
}

func (m *monitor) isEnding() bool {
	select {
	case <-m.ending:
		return true
	default:
		return false
	}
}

// halt stops the machine's CPUs. A command to a VMM that was broken off leaves
// open what became of it, so it is done to its end.
func (m *monitor) halt(ctx context.Context) error {
	m.halted, m.stood = true, true
	return m.vm.Pause(context.WithoutCancel(ctx))
}

// release lets them go on.
func (m *monitor) release(ctx context.Context) error {
	m.rested = false
	err := m.vm.Resume(context.WithoutCancel(ctx))
	m.halted = m.halted && err != nil
	return err
}

// catchUp has the machine of a sandbox that is said to run do so, and the guest
// go on: it is told the time, and its commands no longer hold still. That is
// done whoever still waits for it, and where it does not work now, as on a busy
// host, it is tried again until it does: nobody else would.
func (m *monitor) catchUp(ctx context.Context) error {
	ctx, cancel := m.untilEnding(context.WithoutCancel(ctx))
	defer cancel()
	err := m.tryCatchUp(ctx, guestTime)
	if err == nil {
		return nil
	}
	select {
	case m.behind <- struct{}{}:
	default: // there is word already
	}
	return api.Errorf(api.ErrGuest, "%w; it is tried again until it does", err).WithVM(m.id)
}

// tryCatchUp is catchUp once. The guest gets so long.
func (m *monitor) tryCatchUp(ctx context.Context, limit time.Duration) error {
	if m.halted {
		if err := m.release(ctx); err != nil {
			return fmt.Errorf("let the machine go on: %w", err)
		}
	}
	if !m.frozen && !m.stood {
		return nil
	}
	// To thaw a guest sets its clock, too.
	if err := m.tellGuest(ctx, limit, gate.Order{Thaw: m.frozen, SetTime: !m.frozen}); err != nil {
		return fmt.Errorf("let the guest go on: %w", err)
	}
	m.frozen, m.stood = false, false
	return nil
}

// From one try to the next, and how long the guest gets for one.
const (
	catchUpPause = 500 * time.Millisecond
	catchUpTime  = 30 * time.Second
)

// keepCatchingUp tries again what catchUp could not do, until the sandbox ends.
func (m *monitor) keepCatchingUp() {
	for {
		select {
		case <-m.behind:
		case <-m.vm.Done():
			return
		}
		for again := true; again; {
			select {
			case <-time.After(catchUpPause):
			case <-m.ending: // which wakes the guest by itself
				return
			case <-m.vm.Done():
				return
			}
			err := m.change(context.Background(), func(ctx context.Context) error {
				if m.status() == api.StatusPaused {
					return nil // until it is resumed
				}
				return m.tryCatchUp(ctx, catchUpTime)
			})
			if again = err != nil; again {
				m.log.Warn("try again", "error", err)
			}
		}
	}
}

// quitTime is how long a VMM has to end in order before it is killed.
const quitTime = 5 * time.Second

// wakeTime is how long a guest gets to go on before it is to shut down.
const wakeTime = 5 * time.Second

// wake lets a guest that is paused or holds still go on, so that it can shut
// down, and tells whether it is to: one whose memory was saved for good is not.
func (m *monitor) wake() bool {
	ctx, cancel := context.WithTimeout(context.Background(), m.wakeTime)
	defer cancel()
	woken := make(chan error, 1)
	go func() { woken <- m.wakeGuest(ctx) }()
	for {
		m.reviveGate()
		select {
		case err := <-woken:
			if err != nil {
				m.log.Error("wake guest for its shutdown", "error", err)
			}
			return !errors.Is(err, errLeft)
		case <-m.gate.Done():
			time.Sleep(shortestPause)
		case <-ctx.Done():
			// It may be asked all the same, and else is ended by force.
			m.log.Error("the machine is not to be had to be woken for its shutdown")
			return true
		}
	}
}

var errLeft = errors.New("its memory is on the disk")

func (m *monitor) wakeGuest(ctx context.Context) error {
	if err := m.standing.Acquire(ctx, 1); err != nil {
		return fmt.Errorf("wait for what else is done to it: %w", err)
	}
	defer m.standing.Release(1)
	if m.left != nil {
		return errLeft
	}
	// It is the gate that gives up: it goes on then.
	deadline, _ := ctx.Deadline()
	return m.tryCatchUp(context.WithoutCancel(ctx), time.Until(deadline))
}
