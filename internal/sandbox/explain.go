package sandbox

import (
	"context"
	"time"

	"github.com/vmsan/vmsan/api"
	"github.com/vmsan/vmsan/internal/store"
)

// newsTime is how long a monitor may take to notice that its VMM is gone, and
// to clean up, when the connection to the guest shows it already.
const newsTime = 2 * time.Second

// awaitNews waits until the sandbox id has ended, for newsTime at most.
func (s *Service) awaitNews(ctx context.Context, id string) {
	ctx, cancel := context.WithTimeout(ctx, newsTime)
	defer cancel()
	store.AwaitLock(ctx, s.layout.SandboxLock(id))
}

// Explain looks for a better reason of err, which a call to the guest of r
// returned: that the connection broke is most often because the sandbox
// ended.
func (s *Service) Explain(ctx context.Context, r *store.Record, err error) error {
	if !api.HasCode(err, api.ErrGuestLink) || ctx.Err() != nil {
		return err
	}
	s.awaitNews(ctx, r.ID)
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
