package monitor

import (
	"context"
	"log/slog"
	"os"
	"time"

	"github.com/vmsan/vmsan/api"
	"github.com/vmsan/vmsan/internal/hooks"
)

// commands is the monitor as commands see it, which run the hooks of an end
// that they ask for. All other ends are for the monitor to tell of.
type commands struct{ *monitor }

// Stop is the monitor's. A command that is gone by the end tells nobody.
func (c commands) Stop(ctx context.Context, grace time.Duration) error {
	c.asked.Add(1)
	err := c.monitor.Stop(ctx, grace)
	if ctx.Err() != nil {
		c.asked.Add(-1)
	}
	return err
}

// tellHooks runs the executables that are hooked to the end of the sandbox, if
// no command does. It is called after the end.
func (m *monitor) tellHooks(ctx context.Context) {
	before, now := &m.before, m.record
	if m.asked.Load() > 0 || m.left != nil || now.Internal {
		return
	}
	// Our own log is closed by now.
	log := slog.New(slog.NewTextHandler(os.Stderr, nil))
	hooked := hooks.Set{Dir: m.layout.Hooks(), State: m.layout.Dir, Log: log}
	if !m.removed {
		hooked.After(ctx, hooks.Ended(before, now)...)
		return
	}
	gone := *now
	gone.Status = api.StatusStopped
	hooked.After(ctx, append(hooks.Ended(before, &gone), hooks.Of(api.HookAfterRemove, &gone))...)
}
