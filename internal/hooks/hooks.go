// Package hooks runs what users have hooked to what happens to sandboxes: code
// of a program that vmsan is a library of, and then executables in the
// directory of hooks, in the order of their names. docs/hooks.md has the
// contract.
package hooks

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"time"

	"github.com/vmsan/vmsan/api"
)

// Timeout is how long one hook may take.
const Timeout = 30 * time.Second

// Hook is something to run.
type Hook interface {
	// Name is for errors and logs.
	Name() string
	// Run returns when the hook is done, or soon after ctx has ended. An error
	// of a hook before something happens keeps it from happening.
	Run(ctx context.Context, event api.HookEvent) error
}

// Set is all that is hooked on one state directory.
type Set struct {
	// Code is what the program itself has hooked. It runs first.
	Code []Hook
	// Dir is the directory of hooks. It need not exist.
	Dir string
	// State is the state directory, which executables are told.
	State string
	Log   *slog.Logger
	// Timeout is for one hook. Default: the package's.
	Timeout time.Duration
}

// Before runs the hooks of something that is about to happen, until one fails:
// that error is returned, and it is not to happen.
func (s Set) Before(ctx context.Context, event api.HookEvent) error {
	all, err := s.of(event.Hook)
	if err != nil {
		return err
	}
	for _, hook := range all {
		if err := s.run(ctx, hook, event); err != nil {
			return err
		}
	}
	return nil
}

// After runs the hooks of something that has happened, whatever becomes of ctx.
// Those that fail are logged, and change nothing.
func (s Set) After(ctx context.Context, events ...api.HookEvent) {
	ctx = context.WithoutCancel(ctx)
	for _, event := range events {
		all, err := s.of(event.Hook)
		s.warn(event, err)
		for _, hook := range all {
			s.warn(event, s.run(ctx, hook, event))
		}
	}
}

func (s Set) warn(event api.HookEvent, err error) {
	if err == nil {
		return
	}
	attrs := []any{"vm", event.VM}
	if hint := api.AsError(err).Hint; hint != "" {
		attrs = append(attrs, "hint", hint)
	}
	s.Log.Warn(err.Error(), attrs...)
}

// of returns what runs for a hook. Executables that cannot be run safely are an
// error beside the others.
func (s Set) of(hook api.Hook) (all []Hook, err error) {
	all = append(all, s.Code...)
	executables, err := find(s.Dir, hook)
	for _, path := range executables {
		all = append(all, executable{path: path, state: s.State, log: s.Log})
	}
	return all, err
}

func (s Set) run(ctx context.Context, hook Hook, event api.HookEvent) error {
	limit := s.Timeout
	if limit == 0 {
		limit = Timeout
	}
	limited, cancel := context.WithTimeout(ctx, limit)
	defer cancel()
	err := hook.Run(limited, event)
	switch {
	case err == nil:
		return nil
	case ctx.Err() != nil:
		return fmt.Errorf("hook %s of %s: %w", hook.Name(), event.Hook, context.Cause(ctx))
	case errors.Is(limited.Err(), context.DeadlineExceeded):
		err = fmt.Errorf("it took longer than %s", limit)
	}
	failure := api.Errorf(api.ErrHook, "hook %s of %s: %w", hook.Name(), event.Hook, err).WithVM(event.VM)
	if event.Hook.Before() {
		return failure.WithHint("do what the hook asks for, or mend or remove %s", hook.Name())
	}
	return failure
}
