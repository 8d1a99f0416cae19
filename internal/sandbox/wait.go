package sandbox

import (
	"context"
	"errors"
	"fmt"

	"github.com/vmsan/vmsan/api"
	"github.com/vmsan/vmsan/internal/monitor/control"
	"github.com/vmsan/vmsan/internal/store"
)

// Wait returns when the sandbox does not run, with its record. It is
// api.ErrVMNotFound if the sandbox was removed meanwhile.
func (s *Service) Wait(ctx context.Context, ref string) (*store.Record, error) {
	id, err := s.layout.Find(ref)
	if err != nil {
		return nil, err
	}
	if err := store.AwaitLock(ctx, s.layout.SandboxLock(id)); err != nil && !isNotExist(err) {
		return nil, fmt.Errorf("wait for %s: %w", id, err)
	}
	return s.repaired(ctx, id)
}

// Hold keeps an ephemeral sandbox running until ctx ends or the process dies;
// then it is stopped and removed. It returns when it has ended.
func (s *Service) Hold(ctx context.Context, r *store.Record) error {
	err := control.Dial(s.layout.ControlSocket(r.ID)).Hold(ctx)
	if errors.Is(err, control.ErrGone) || api.HasCode(err, api.ErrVMNotFound) {
		return nil
	}
	return err
}
