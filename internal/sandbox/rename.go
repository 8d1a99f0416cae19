package sandbox

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/vmsan/vmsan/api"
	"github.com/vmsan/vmsan/internal/hooks"
	"github.com/vmsan/vmsan/internal/monitor/control"
	"github.com/vmsan/vmsan/internal/store"
)

// Rename gives a sandbox another name; an empty one takes the name away.
func (s *Service) Rename(ctx context.Context, ref, name string) (*store.Record, error) {
	if err := checkName("NAME", name); err != nil {
		return nil, err
	}
	record, err := s.Get(ctx, ref)
	if err != nil {
		return nil, err
	}
	old := record.Name
	err = s.layout.WithName(ctx, record.ID, name, func() error { return s.rename(ctx, record, name) })
	if err != nil {
		return nil, fmt.Errorf("rename %s: %w", record.ID, err)
	}
	renamed, err := s.layout.Load(record.ID)
	if err != nil {
		return nil, err
	}
	s.emitOf(renamed, api.EventVMRename, func(e *api.Event) { e.PreviousName = old })
	s.hooked(renamed).After(ctx, hooks.Changed("name", old, name, renamed))
	return renamed, nil
}

// renameTime is how long a monitor may take to write a name.
const renameTime = 5 * time.Second

// rename changes the record: through the monitor, which is the only writer
// while it lives, or under the lock.
func (s *Service) rename(ctx context.Context, r *store.Record, name string) error {
	if r.Running() {
		// Nobody else can take an id or a name meanwhile.
		ctx, cancel := context.WithTimeoutCause(ctx, renameTime,
			api.Errorf(api.ErrVMBusy, "VM %s is still being started", r.ID).WithVM(r.ID).WithHint("try again"))
		defer cancel()
		err := control.Dial(s.layout.ControlSocket(r.ID)).Rename(ctx, name)
		if !errors.Is(err, control.ErrGone) {
			return err
		}
	}
	lock, record, err := s.own(ctx, r.ID)
	if err != nil {
		return err
	}
	defer lock.Release()
	record.Name = name
	return s.layout.Save(record)
}
