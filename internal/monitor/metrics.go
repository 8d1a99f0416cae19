package monitor

import (
	"context"
	"encoding/json"

	"github.com/vmsan/vmsan/api"
	"github.com/vmsan/vmsan/internal/vmm"
)

// Metrics implements control.Monitor.
func (m *monitor) Metrics(ctx context.Context) (json.RawMessage, error) {
	metered, ok := m.vm.(vmm.Metered)
	if !ok {
		return nil, api.Errorf(api.ErrUnsupported, "the driver %s has no metrics", m.driver.Features().Name).WithVM(m.id)
	}
	return metered.Metrics(ctx)
}
