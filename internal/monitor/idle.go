package monitor

import (
	"context"
	"time"

	"github.com/vmsan/vmsan/api"
	"github.com/vmsan/vmsan/internal/gate"
)

// A sandbox is idle while no client has a stream to its guest, its VMM does no
// work and its network carries nothing, but for what a guest does that has
// nothing to do. That is less than 1 % of a CPU where it is emulated, timers of
// its kernel and of its image's services included, and the odd packet that
// asks for a neighbour.
const (
	idleCPU   = 0.03 // CPU seconds a second
	idleBytes = 100  // a second
)

// How often it is looked at: ten times within the limit, but neither more nor
// less often than that.
const (
	shortestLook = time.Second
	longestLook  = 10 * time.Second
)

// watchIdle sends on over when the sandbox was not busy for span. It asks busy
// from time to time, until ctx ends.
func watchIdle(ctx context.Context, span time.Duration, busy func(context.Context) bool, over chan<- struct{}) {
	look := time.NewTicker(min(max(span/10, shortestLook), longestLook))
	defer look.Stop()
	last := time.Now()
	for {
		select {
		case <-look.C:
		case <-ctx.Done():
			return
		}
		if busy(ctx) {
			last = time.Now()
		}
		if time.Since(last) < span {
			continue
		}
		select {
		case over <- struct{}{}:
		case <-ctx.Done():
			return
		}
		// Whatever is done about it, it takes as long again.
		last = time.Now()
	}
}

// work is what a sandbox has done until a moment.
type work struct {
	at    time.Time
	cpu   time.Duration
	bytes uint64
}

// exceeds tells whether more was done since before than by one that is idle.
func (w work) exceeds(before work) bool {
	passed := w.at.Sub(before.at)
	return w.cpu-before.cpu > time.Duration(idleCPU*float64(passed)) || float64(w.bytes-before.bytes) > idleBytes*passed.Seconds()
}

// busyness returns what tells whether the sandbox has worked since it was asked
// last, or stands still, which is not idling. What cannot be told is busy.
func (m *monitor) busyness() func(context.Context) bool {
	var before work
	return func(ctx context.Context) bool {
		if m.status() != api.StatusRunning || m.still.Load() {
			return true
		}
		now, err := m.work()
		if err != nil {
			m.log.Warn("measure what the sandbox does", "error", err)
			return true
		}
		worked := now.exceeds(before)
		before = now
		return worked || m.hasClients(ctx)
	}
}

func (m *monitor) work() (w work, err error) {
	w.at = time.Now()
	m.mu.Lock()
	vmm := m.record.Host.VMM
	m.mu.Unlock()
	if w.cpu, err = vmm.CPUTime(); err != nil || m.network == nil {
		return w, err
	}
	w.bytes, err = m.network.Bytes()
	return w, err
}

// hasClients tells whether a client has a stream to the guest, or the gate is
// busy with something else.
func (m *monitor) hasClients(ctx context.Context) bool {
	m.mu.Lock()
	g := m.gate
	m.mu.Unlock()
	select {
	case g.turn <- struct{}{}:
		defer func() { <-g.turn }()
	default:
		return true
	}
	// Not with ctx: an order that is broken off ends the gate.
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), gateTime)
	defer cancel()
	report, err := g.exchange(ctx, gate.Order{Clients: true})
	return err != nil || report.Clients > 0
}
