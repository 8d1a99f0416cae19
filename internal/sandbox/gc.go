package sandbox

import (
	"context"

	"github.com/vmsan/vmsan/api"
)

// CollectLeftovers removes what is there for nobody, or with dryRun says what it
// would remove. What was done is returned beside the error about the rest.
func (s *Service) CollectLeftovers(ctx context.Context, dryRun bool) (api.Collection, error) {
	c := api.Collection{Removed: []api.Leftover{}, Kept: []api.Leftover{}, Failed: []api.Leftover{}}
	for {
		found, err := s.Leftovers(ctx)
		before := len(c.Removed)
		c.Kept = []api.Leftover{}
		for _, l := range found {
			collect(ctx, &c, l, dryRun)
		}
		// Of some things it is certain only when others are gone that they are
		// left.
		if err != nil || dryRun || len(c.Removed) == before || len(c.Failed) > 0 {
			return c, err
		}
	}
}

func collect(ctx context.Context, c *api.Collection, l Leftover, dryRun bool) {
	shown := api.Leftover{What: l.What, VM: l.VM, Kept: l.Kept}
	if l.Kept != "" {
		c.Kept = append(c.Kept, shown)
		return
	}
	if !dryRun {
		if err := l.Remove(ctx); err != nil {
			shown.Error = err.Error()
			c.Failed = append(c.Failed, shown)
			return
		}
	}
	c.Removed = append(c.Removed, shown)
}
