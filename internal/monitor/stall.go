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
// as with quotas, it is tried each stallTry.
const (
	stallPause = time.Second
	stallRoom  = 16 << 20 // bytes
	stallTry   = 30 * time.Second
)

// stalls is word of a machine that stands still; nil if it never does.
func (m *monitor) stalls() <-chan struct{} {
	if vm, ok := m.vm.(vmm.Stalling); ok {
		return vm.Stalled()
	}
	return nil
}

// beginStall says that the machine stands still.
func (m *monitor) beginStall() {
	m.log.Warn("the machine stands still: " + store.StalledReason)
	if err := os.WriteFile(m.layout.Stalled(m.id), nil, 0o600); err != nil {
		m.log.Warn("say so", "error", err)
	}
	m.emit(api.EventVMPause, because(store.StalledReason))
}

// endStall lets the machine go on if that makes sense, and tells whether it
// does. One that is paused goes on when it is resumed.
func (m *monitor) endStall(since time.Time) bool {
	if !hasRoom(m.layout.Sandbox(m.id)) && time.Since(since) < stallTry {
		return false
	}
	m.standing.Lock()
	defer m.standing.Unlock()
	running := m.status() == api.StatusRunning
	if running {
		ctx, cancel := context.WithTimeout(context.Background(), guestTime)
		defer cancel()
		if err := m.vm.Resume(ctx); err != nil {
			m.log.Warn("let the machine go on", "error", err)
			return false
		}
	}
	if err := os.Remove(m.layout.Stalled(m.id)); err != nil && !errors.Is(err, fs.ErrNotExist) {
		m.log.Warn("say that the machine goes on", "error", err)
	}
	if running {
		m.emit(api.EventVMResume, nil)
	}
	return true
}

func hasRoom(dir string) bool {
	var fs unix.Statfs_t
	err := unix.Statfs(dir, &fs)
	return err == nil && fs.Bavail*uint64(fs.Bsize) >= stallRoom
}
