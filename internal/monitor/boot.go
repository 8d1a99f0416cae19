package monitor

import (
	"context"
	"time"

	"github.com/vmsan/vmsan/internal/gate"
	"github.com/vmsan/vmsan/internal/usage"
	"github.com/vmsan/vmsan/internal/vmm"
)

// bootWatch tells a boot that hangs from one that is slow. A kernel that boots
// always has something to do, or waits for a processor of a host that is busy.
// One whose timer does not come, as happens now and then to emulated kernels
// on a busy host, does nothing, or turns in a circle.
type bootWatch struct {
	every   time.Duration // between two looks
	measure func(pid int) (usage.Runnable, error)
}

const (
	// A machine that has been still for stillLooks in a row hangs. Still is
	// what wanted less than one part in stillPart of a processor.
	stillLooks = 3
	stillPart  = 50
	// One that has run for half the time that it may take to boot, and for so
	// long at least, should have been there long ago: it takes 2 s.
	busyTime = 30 * time.Second
)

// await returns why the boot of the process pid hangs, when it does, or "" when
// ctx ends or nothing can be said.
func (w bootWatch) await(ctx context.Context, pid int, limit time.Duration) string {
	ticker := time.NewTicker(w.every)
	defer ticker.Stop()
	before, err := w.measure(pid)
	for still := 0; err == nil; {
		select {
		case <-ticker.C:
		case <-ctx.Done():
			return ""
		}
		var now usage.Runnable
		if now, err = w.measure(pid); err != nil {
			break
		}
		if wanted := now.Ran + now.Waited - before.Ran - before.Waited; wanted < w.every/stillPart {
			still++
		} else {
			still = 0
		}
		switch {
		case still >= stillLooks:
			return "it does nothing"
		case now.Ran > max(limit/2, busyTime):
			return "it runs and runs"
		}
		before = now
	}
	return ""
}

// watchBoot begins the boot of an emulated machine anew, once, if it hangs
// before the guest's agent is up, and says so.
func (m *monitor) watchBoot(ctx context.Context) (what string) {
	vm, ok := m.vm.(vmm.Rebooter)
	if !ok || m.record.Saved != nil || vmm.Accelerator(m.record.Spec.Accelerator) != vmm.TCG {
		return ""
	}
	why := m.bootWatch.await(ctx, m.vm.PID(), m.record.Spec.BootTimeout)
	if why == "" {
		return ""
	}
	booted, stood, err := vm.Reboot(ctx)
	switch {
	case err != nil:
		m.log.Warn("begin a boot anew that hangs", "why", why, "error", err)
	case !booted:
		m.log.Warn("a boot hangs and begins anew", "why", why, "at", stood)
		return "its boot hung and began anew: " + why
	}
	return ""
}

// awaitGuest tells the guest who it is, when it is there.
func (m *monitor) awaitGuest(ctx context.Context, t *trace) error {
	watching, stop := context.WithCancel(ctx)
	defer stop()
	watched := make(chan string, 1)
	go func() { watched <- m.watchBoot(watching) }()
	identity := m.identity()
	err := m.gate.begin(ctx, gate.Begin{Identity: &identity, Network: m.networkOrder()}, m.vm)
	stop()
	t.done("guest", <-watched)
	return err
}
