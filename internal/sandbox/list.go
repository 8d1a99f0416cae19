package sandbox

import (
	"context"
	"maps"
	"slices"

	"github.com/vmsan/vmsan/api"
	"github.com/vmsan/vmsan/internal/store"
)

// Filter chooses sandboxes. Zero fields choose all.
type Filter struct {
	Name    string
	Project string
	Labels  map[string]string
	Status  api.Status
}

func (f Filter) matches(r *store.Record) bool {
	for key, value := range f.Labels {
		if got, ok := r.Labels[key]; !ok || got != value {
			return false
		}
	}
	return !r.Internal && (f.Name == "" || r.Name == f.Name) &&
		(f.Project == "" || r.Project == f.Project) &&
		(f.Status == "" || r.Status == f.Status)
}

// List returns the sandboxes that f chooses, the oldest first. Those whose
// monitor died are repaired. A record that cannot be read is logged, and
// does not keep the others from being listed.
func (s *Service) List(ctx context.Context, f Filter) ([]*store.Record, error) {
	records, broken, err := s.layout.List()
	if err != nil {
		return nil, err
	}
	for _, id := range slices.Sorted(maps.Keys(broken)) {
		s.log.Warn(broken[id].Error(), "hint", "vmsan rm -f "+id)
	}
	for i, r := range records {
		if !unfinished(r) {
			continue
		}
		repaired, err := s.repaired(ctx, r.ID)
		switch {
		case api.HasCode(err, api.ErrVMNotFound):
			records[i] = nil
		case err != nil:
			s.log.Warn("look after a sandbox", "vm", r.ID, "error", err)
		default:
			records[i] = repaired
		}
	}
	return slices.DeleteFunc(records, func(r *store.Record) bool { return r == nil || !f.matches(r) }), nil
}
