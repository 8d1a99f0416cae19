package sandbox

import (
	"context"
	"slices"
	"strings"
	"time"

	"github.com/vmsan/vmsan/api"
	"github.com/vmsan/vmsan/internal/events"
	"github.com/vmsan/vmsan/internal/store"
)

func (s *Service) journal() events.Journal { return events.Journal{Dir: s.layout.Events()} }

// emit writes an event to the journal. That it cannot be written keeps nobody
// from anything.
func (s *Service) emit(e api.Event) {
	if err := s.journal().Append(e); err != nil {
		s.log.Warn("write event", "error", err)
	}
}

// emitOf writes an event about the sandbox r, unless that is vmsan's own.
func (s *Service) emitOf(r *store.Record, t api.EventType, fill func(*api.Event)) {
	if r.Internal {
		return
	}
	e := events.Of(r, t)
	if fill != nil {
		fill(&e)
	}
	s.emit(e)
}

// because fills in why something happened.
func because(reason string) func(*api.Event) { return func(e *api.Event) { e.Reason = reason } }

// EventFilter chooses events. Zero fields choose all.
type EventFilter struct {
	Since time.Time
	// VM is an id, the beginning of one, or a name, also of a sandbox that is
	// gone.
	VM string
	// Type is one, or the noun that it begins with.
	Type string
}

// Check fails if there is no such type.
func (f EventFilter) Check() error {
	if f.Type == "" {
		return nil
	}
	var known []string
	for _, t := range api.EventTypes {
		if f.isType(t) {
			return nil
		}
		known = append(known, string(t))
	}
	return api.Errorf(api.ErrValidationChoice, "Invalid --type: %.80q. Must be one of: %s; or what is before the dot.", f.Type,
		strings.Join(known, ", ")).WithFlag("--type")
}

func (f EventFilter) isType(t api.EventType) bool {
	noun, _, _ := strings.Cut(string(t), ".")
	return f.Type == "" || f.Type == string(t) || f.Type == noun
}

// matches tells whether f chooses e; id is that of the sandbox VM, if it is
// still there.
func (f EventFilter) matches(e api.Event, id string) bool {
	if !f.isType(e.Type) || e.Time.Before(f.Since) {
		return false
	}
	if f.VM == "" {
		return true
	}
	if id != "" {
		return e.VM == id || slices.Contains(e.Copies, id)
	}
	return e.Name == f.VM || strings.HasPrefix(e.VM, f.VM)
}

// Events returns the events that f chooses, the oldest first, of those that the
// journal still has.
func (s *Service) Events(ctx context.Context, f EventFilter) ([]api.Event, error) {
	all, err := s.journal().Read(ctx)
	if err != nil {
		return nil, err
	}
	id, unknown := s.sandboxOf(f)
	chosen := slices.DeleteFunc(all, func(e api.Event) bool { return !f.matches(e, id) })
	if len(chosen) == 0 && unknown != nil {
		return nil, unknown
	}
	return chosen, nil
}

// FollowEvents calls show for the events that f chooses, and for those that
// come, until ctx ends or show fails.
func (s *Service) FollowEvents(ctx context.Context, f EventFilter, show func(api.Event) error) error {
	id, _ := s.sandboxOf(f)
	return s.journal().Follow(ctx, func(e api.Event) error {
		if !f.matches(e, id) {
			return nil
		}
		return show(e)
	})
}

// sandboxOf is the id of the sandbox that f names. One that is gone may have
// left events.
func (s *Service) sandboxOf(f EventFilter) (id string, err error) {
	if f.VM == "" {
		return "", nil
	}
	return s.layout.Find(f.VM)
}
