package guest

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"

	"github.com/vmsan/vmsan/api"
)

// Stats is what the guest sees of itself, as far as it is to be believed. Sizes
// are in bytes, and what is used is no more than there is.
type Stats struct {
	MemoryTotal, MemoryUsed int64
	DiskTotal, DiskUsed     int64
	Processes               int
}

// Machine is what the guest was given, which it cannot have more of.
type Machine struct{ Memory, Disk int64 } // bytes

// Stats asks the guest for what it sees of itself. A guest that claims to have
// more than m is not believed.
func (c *Client) Stats(ctx context.Context, m Machine) (Stats, error) {
	body, err := c.ask(ctx, "/vmsan/stats")
	if err != nil {
		return Stats{}, fmt.Errorf("measure guest: %w", err)
	}
	s, err := parseStats(body, m)
	if err != nil {
		return Stats{}, api.Errorf(api.ErrGuest, "measure guest: %w", err)
	}
	return s, nil
}

func parseStats(body []byte, m Machine) (s Stats, err error) {
	var told struct {
		MemoryTotal int64 `json:"mem_total"`
		MemoryUsed  int64 `json:"mem_used"`
		DiskTotal   int64 `json:"disk_total"`
		DiskUsed    int64 `json:"disk_used"`
		Processes   int   `json:"processes"`
	}
	if err := json.Unmarshal(body, &told); err != nil {
		return s, fmt.Errorf("the guest's answer is malformed: %s", printable(err.Error()))
	}
	possible := told.MemoryTotal <= m.Memory && told.DiskTotal <= m.Disk && told.Processes >= 0 && told.Processes <= maxPID &&
		told.MemoryUsed >= 0 && told.MemoryUsed <= told.MemoryTotal && told.DiskUsed >= 0 && told.DiskUsed <= told.DiskTotal
	if !possible {
		return s, errors.New("the guest tells of more than it has")
	}
	return Stats(told), nil
}
