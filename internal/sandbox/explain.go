package sandbox

import (
	"context"

	"github.com/vmsan/vmsan/api"
	"github.com/vmsan/vmsan/internal/store"
)

// Explain looks for a better reason of err, which a call to the guest of r
// returned: that the connection broke is most often because the sandbox
// ended.
func (s *Service) Explain(ctx context.Context, r *store.Record, err error) error {
	if !api.HasCode(err, api.ErrGuestLink) || ctx.Err() != nil {
		return err
	}
	now, getErr := s.repaired(ctx, r.ID)
	switch {
	case api.HasCode(getErr, api.ErrVMNotFound):
		return api.Errorf(api.ErrVMDied, "VM %s was removed", r.ID).WithVM(r.ID)
	case getErr == nil && !now.Running():
		return api.Errorf(api.ErrVMDied, "VM %s ended: %s", r.ID, now.Reason).WithVM(r.ID).
			WithHint("vmsan logs %s", r.ID)
	}
	return err
}
