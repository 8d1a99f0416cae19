package monitor

import (
	"context"
	"errors"
	"io/fs"
	"os"
	"time"

	"golang.org/x/sys/unix"

	"github.com/vmsan/vmsan/api"
	"github.com/vmsan/vmsan/internal/store"
	"github.com/vmsan/vmsan/internal/vmm"
)

// A machine stands still while the host has no room for what its guest writes.
// It goes on, and what it was about to write is written, when there is room
// again; that is looked for each stallPause. Where only the file system knows,
// trying shows it, each stallTry.
const (
	stallPause = time.Second
	stallRoom  = 16 << 20 // bytes
	stallTry   = 30 * time.Second
)

// watchStalls has the machine go on each time that it stands still, until it has
// ended. It is a goroutine of its own: others may be waiting for the guest just
// then.
func (m *monitor) watchStalls(vm vmm.Stalling) {
	for ended := (time.Time{}); ; ended = time.Now() {
		select {
		case <-vm.Stalled():
		case <-m.vm.Done():
			return
		}
		// Else a VMM that stalls all the time would fill the journal.
		first := time.Since(ended) > stallTry
		since := time.Now()
		m.beginStall(first)
		went := m.goOn(vm)
		m.endStall(first, went, time.Since(since))
		if !went {
			return
		}
	}
}

// goOn returns when the machine has gone on for a while, or was paused, or
// false when it has ended.
func (m *monitor) goOn(vm vmm.Stalling) bool {
	stalled, tried := true, time.Now()
	for pause := stallPause; ; {
		select {
		case <-time.After(pause):
		case <-vm.Stalled():
			// There is less room than it seemed.
			stalled, pause = true, min(2*pause, stallTry)
			continue
		case <-m.vm.Done():
			return false
		}
		if !stalled {
			return true
		}
		if !hasRoom(m.layout.Sandbox(m.id)) && time.Since(tried) < stallTry {
			continue
		}
		ctx, cancel := context.WithTimeout(context.Background(), guestTime)
		err := vm.GoOn(ctx)
		cancel()
		if err != nil {
			m.log.Warn("let the machine go on", "error", err)
		}
		stalled, tried = err != nil, time.Now()
	}
}

// beginStall says that the machine stands still, and for the first time in a
// while in the journal, too.
func (m *monitor) beginStall(first bool) {
	m.still.Store(true)
	m.log.Warn("the machine stands still: " + store.StalledReason)
	if err := os.WriteFile(m.layout.Stalled(m.id), nil, 0o600); err != nil {
		m.log.Warn("say so", "error", err)
	}
	if first {
		m.emit(api.EventVMPause, because(store.StalledReason))
	}
}

// endStall says that it does not any more. The guest's clock stood, too.
func (m *monitor) endStall(first, went bool, took time.Duration) {
	m.still.Store(false)
	if err := os.Remove(m.layout.Stalled(m.id)); err != nil && !errors.Is(err, fs.ErrNotExist) {
		m.log.Warn("say that the machine goes on", "error", err)
	}
	// One that is still to come up is told the time then, and one that is
	// paused when it is resumed.
	if !went || m.status() != api.StatusRunning {
		return
	}
	if first {
		m.emit(api.EventVMResume, nil)
	}
	err := m.change(context.Background(), func(ctx context.Context) error {
		if m.status() == api.StatusPaused {
			return nil
		}
		m.stood = true
		return m.catchUp(ctx)
	})
	if err != nil {
		m.log.Warn("set the guest's clock", "stood", took, "error", err)
	}
}

func hasRoom(dir string) bool {
	var fs unix.Statfs_t
	err := unix.Statfs(dir, &fs)
	return err == nil && fs.Bavail*uint64(fs.Bsize) >= stallRoom
}
