package sandbox

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"regexp"
	"strconv"
	"strings"
	"time"

	"github.com/vmsan/vmsan/api"
	"github.com/vmsan/vmsan/internal/monitor/control"
	"github.com/vmsan/vmsan/internal/store"
)

// The bounds of time limits.
const (
	minLimit = time.Second
	maxLimit = 3650 * 24 * time.Hour
)

var (
	limitForm    = regexp.MustCompile(`^(?:\s*[0-9]{1,9}\s*[dhms])+\s*$`)
	limitPart    = regexp.MustCompile(`([0-9]+)\s*([dhms])`)
	plainMinutes = regexp.MustCompile(`^[0-9]{1,9}$`)
	limitSeconds = map[string]int64{"d": 86400, "h": 3600, "m": 60, "s": 1}
)

// maxLimitText bounds a limit as it is typed, so that no sum is too large.
const maxLimitText = 64

// ParseLimit reads how long a sandbox may run as a user types it: "1h30m",
// "1d", "90s", or a bare number, which unlike in other times is minutes: so it
// was in the system that --timeout comes from. 0 is no limit. flag is where it
// was typed.
func ParseLimit(flag, text string) (time.Duration, error) {
	lower := strings.ToLower(text)
	if plainMinutes.MatchString(lower) {
		lower += "m"
	}
	if len(lower) > maxLimitText || !limitForm.MatchString(lower) {
		return 0, api.Errorf(api.ErrValidationDuration, "Invalid %s: %.80q. Use format like \"1h\", \"30m\", \"2h30m\", "+
			"or plain minutes.", flag, text).WithFlag(flag)
	}
	var seconds int64
	for _, part := range limitPart.FindAllStringSubmatch(lower, -1) {
		n, err := strconv.ParseInt(part[1], 10, 64)
		if err != nil {
			return 0, fmt.Errorf("parse %s: %w", flag, err)
		}
		seconds += n * limitSeconds[part[2]]
	}
	if seconds > int64(maxLimit/time.Second) {
		return 0, api.Errorf(api.ErrValidationDuration, "Invalid %s: %.80q. At most 3650d.", flag, text).WithFlag(flag)
	}
	return time.Duration(seconds) * time.Second, nil
}

// checkLimits checks the limits on a new sandbox's time.
func (o *CreateOptions) checkLimits() error {
	for flag, d := range map[string]time.Duration{"--timeout": o.Timeout, "--idle-timeout": o.IdleTimeout} {
		if err := checkLimit(flag, d); err != nil {
			return err
		}
	}
	if o.OnTimeout == "" {
		return nil
	}
	if o.OnTimeout == store.OnTimeoutSnapshot && len(o.Volumes) > 0 {
		return api.Errorf(api.ErrValidationFlags, "Cannot use --on-timeout snapshot and --volume together: a machine with volumes cannot be saved").
			WithFlag("--on-timeout").WithHint("use --on-timeout stop")
	}
	return checkChoice("--on-timeout", o.OnTimeout, store.OnTimeoutStop, store.OnTimeoutPause, store.OnTimeoutSnapshot, store.OnTimeoutRemove)
}

func checkLimit(flag string, d time.Duration) error {
	if d != 0 && (d < minLimit || d > maxLimit) {
		return api.Errorf(api.ErrValidationDuration, "Invalid %s: %s. Must be 0, or between 1s and 3650d.", flag, d).WithFlag(flag)
	}
	return nil
}

// Extend lets the sandbox that ref names run for d from now on, whatever limit
// it had; 0 lifts that. One that is paused has d from when it is resumed. The
// next boot has the limit that the sandbox was created with.
func (s *Service) Extend(ctx context.Context, ref string, d time.Duration) (*store.Record, error) {
	if err := checkLimit("TIME", d); err != nil {
		return nil, err
	}
	r, err := s.Get(ctx, ref)
	if err != nil {
		return nil, err
	}
	switch {
	case r.Reclaimed():
		err = s.extendReclaimed(ctx, r.ID, d)
	case r.Running():
		err = s.ask(r, func(m *control.Client) error {
			_, err := m.Extend(ctx, d)
			return err
		})
	default:
		err = notRunning(r)
	}
	if err != nil {
		return nil, fmt.Errorf("extend %s: %w", r.ID, err)
	}
	extended, err := s.layout.Load(r.ID)
	if err != nil {
		return nil, err
	}
	s.emitOf(extended, api.EventVMExtend, func(e *api.Event) { e.TimeoutAt = extended.TimeoutAt })
	return extended, nil
}

func (s *Service) extendReclaimed(ctx context.Context, id string, d time.Duration) error {
	lock, r, err := s.own(ctx, id)
	if err != nil {
		return err
	}
	defer lock.Release()
	if !r.Reclaimed() {
		return notRunning(r)
	}
	if r.TimeoutLeft = d; d == 0 {
		r.TimeoutLeft = -1
	}
	return s.layout.Save(r)
}

// Stay keeps the time limit of the sandbox r from passing until ctx ends or the
// process dies.
func (s *Service) Stay(ctx context.Context, r *store.Record) {
	err := control.Dial(s.layout.ControlSocket(r.ID)).Stay(ctx)
	if err != nil && ctx.Err() == nil && !errors.Is(err, control.ErrGone) {
		s.log.Warn("the time limit goes on", "vm", r.ID, "error", err)
	}
}

// SaveCommand is the hidden command that SaveBeside runs, with the state
// directory and the sandbox's id. It reads no settings.
const SaveCommand = "save-beside"

// SaveBeside makes a snapshot of the sandbox id, which runs, in a process of
// its own: what that takes of memory a monitor should not have.
func SaveBeside(ctx context.Context, layout store.Layout, id string) error {
	self, err := os.Executable()
	if err != nil {
		return fmt.Errorf("find own binary: %w", err)
	}
	cmd := exec.CommandContext(ctx, self, SaveCommand, layout.Dir, id)
	// It takes back what it has begun.
	cmd.Cancel = func() error { return cmd.Process.Signal(os.Interrupt) }
	cmd.WaitDelay = stopAfterCancel
	cmd.Dir = "/"
	var said bytes.Buffer
	cmd.Stderr = &said
	if err := cmd.Run(); err != nil {
		text, _, _ := strings.Cut(strings.TrimSpace(said.String()), "\n")
		return fmt.Errorf("%.300s (%w)", text, err)
	}
	return nil
}
