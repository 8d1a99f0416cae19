package guest

import (
	"context"
	"encoding/json"
	"fmt"
	"net/netip"

	"github.com/vmsan/vmsan/api"
)

// Listening is a socket of the guest's that takes connections or packets, as
// far as the guest is to be believed.
type Listening struct {
	Protocol string // "tcp" or "udp"
	At       netip.AddrPort
	// PID and Process are those of one process that has it; 0 and empty if
	// that is not known.
	PID     int
	Process string // printable
}

// maxListening is how many the agent tells of.
const maxListening = 4096

// maxPID is the most that a kernel has (PID_MAX_LIMIT).
const maxPID = 1 << 22

// Ports lists what listens in the guest.
func (c *Client) Ports(ctx context.Context) ([]Listening, error) {
	body, err := c.ask(ctx, "/vmsan/ports")
	if err != nil {
		return nil, fmt.Errorf("list ports: %w", err)
	}
	list, err := parsePorts(body)
	if err != nil {
		return nil, api.Errorf(api.ErrGuest, "list ports: %w", err)
	}
	return list, nil
}

func parsePorts(body []byte) ([]Listening, error) {
	var told []struct {
		Protocol string
		Address  netip.Addr
		Port     uint16
		PID      int
		Process  string
	}
	if err := json.Unmarshal(body, &told); err != nil {
		return nil, fmt.Errorf("the guest's answer is malformed: %s", printable(err.Error()))
	}
	if len(told) > maxListening {
		return nil, fmt.Errorf("the guest tells of %d ports, more than %d", len(told), maxListening)
	}
	list := make([]Listening, 0, len(told))
	for _, p := range told {
		// A zone would be text of the guest's own.
		if (p.Protocol != "tcp" && p.Protocol != "udp") || !p.Address.IsValid() || p.Address.Zone() != "" || p.PID < 0 || p.PID > maxPID {
			return nil, fmt.Errorf("the guest tells of a port that there cannot be: %s", printable(fmt.Sprintf("%+v", p)))
		}
		list = append(list, Listening{
			Protocol: p.Protocol, At: netip.AddrPortFrom(p.Address, p.Port), PID: p.PID, Process: printable(p.Process),
		})
	}
	return list, nil
}
