package sandbox

import (
	"context"
	"encoding/json"

	"github.com/vmsan/vmsan/internal/monitor/control"
	"github.com/vmsan/vmsan/internal/store"
)

// Metrics returns what the VMM of a sandbox that runs counts, as JSON in its
// own form.
func (s *Service) Metrics(ctx context.Context, r *store.Record) (metrics json.RawMessage, err error) {
	if !r.Running() {
		return nil, notRunning(r)
	}
	err = s.ask(r, func(m *control.Client) error {
		metrics, err = m.Metrics(ctx)
		return err
	})
	return metrics, err
}
