package monitor

import (
	"context"
	"time"

	"github.com/vmsan/vmsan/internal/gate"
	"github.com/vmsan/vmsan/internal/usage"
	"github.com/vmsan/vmsan/internal/vmm"
)

// bootWatch tells a boot that hangs from one that is slow. A guest that boots
// runs, or waits for a processor or a disk of a host that is busy. One whose
// timer does not come, as happens now and then to emulated kernels on a busy
// host, does nothing, or turns in a circle.
type bootWatch struct {
	every   time.Duration // between two looks
	measure func(pid int) (usage.Runnable, error)
}

const (
	// A machine that has been still for stillLooks in a row hangs. Still is
	// what wanted less than one part in stillPart of a processor.
	stillLooks = 3
	stillPart  = 50
	// One whose processors have run for an eighth of the time that it may take to
	// boot, and for so long at least, should have been there long ago: it takes
	// 2 s. On a busy host even that part takes a while.
	busyTime = 15 * time.Second
	busyPart = 8
)

// await returns why the boot of the process pid hangs, when it does, or "" when
// ctx ends or nothing can be said. enough is how long it may run.
func (w bootWatch) await(ctx context.Context, pid int, enough time.Duration) string {
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
		// Less than nothing if a thread has ended.
		wanted := now.Ran + now.Waited - before.Ran - before.Waited
		if wanted >= 0 && wanted < w.every/stillPart && !now.Held {
			still++
		} else {
			still = 0
		}
		switch {
		case still >= stillLooks:
			return "it does nothing"
		case now.Ran > enough:
			return "it runs and runs"
		}
		before = now
	}
	return ""
}

// watchBoot begins the boot of an emulated machine anew, once, if it hangs
// before the guest's agent is up, and says so.
func (m *monitor) watchBoot(ctx context.Context) (what string) {
	s := m.record.Spec
	vm, ok := m.vm.(vmm.Rebooter)
	if !ok || m.record.Saved != nil || vmm.Accelerator(s.Accelerator) != vmm.TCG {
		return ""
	}
	enough := max(s.BootTimeout/busyPart, busyTime) * time.Duration(s.VCPUs)
	watch := m.bootWatch
	watch.measure = func(pid int) (usage.Runnable, error) {
		r, err := m.bootWatch.measure(pid)
		r.Held = r.Held || m.still.Load()
		return r, err
	}
	why := watch.await(ctx, m.vm.PID(), enough)
	if why == "" {
		return ""
	}
	booted, stood, err := vm.Reboot(ctx)
	switch {
	case ctx.Err() != nil:
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
	m.background.Go(func() { watched <- m.watchBoot(watching) })
	identity := m.identity()
	if err := m.gate.begin(ctx, gate.Begin{Identity: &identity, Network: m.networkOrder()}, m.vm); err != nil {
		return err // and a VMM that does not answer is not waited for
	}
	stop()
	t.done("guest", <-watched)
	return nil
}
