package guest

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"net/netip"
	"time"

	"connectrpc.com/connect"
	"google.golang.org/protobuf/types/known/timestamppb"

	"github.com/vmsan/vmsan/api"
	"github.com/vmsan/vmsan/internal/guest/proto/guestv1"
)

// Identity is who a guest is: told to it after each boot.
type Identity struct {
	Hostname  string            `json:"hostname"`
	MachineID string            `json:"machine_id"` // 32 hex digits
	Env       map[string]string `json:"env,omitempty"`
	User      string            `json:"user,omitempty"`
	Workdir   string            `json:"workdir,omitempty"`
	Network   *Network          `json:"network,omitempty"`
}

// Network is what a guest has to know of its network.
type Network struct {
	Address netip.Prefix `json:"address"`
	// Gateway is also the resolver.
	Gateway netip.Addr `json:"gateway"`
}

// entropyBytes is how much randomness a guest is given: the kernel's
// generator holds 32 bytes.
const entropyBytes = 64

// Configure tells the guest its identity, the time, and gives it fresh
// randomness. It fails if the guest could not take one of them.
func (c *Client) Configure(ctx context.Context, id Identity) error {
	entropy := make([]byte, entropyBytes)
	rand.Read(entropy)
	request := &guestv1.ConfigureRequest{
		Hostname:    &id.Hostname,
		MachineId:   &id.MachineID,
		Time:        timestamppb.New(time.Now()),
		Entropy:     entropy,
		Environment: &guestv1.Environment{Variables: id.Env},
	}
	if n := id.Network; n != nil {
		request.Network = &guestv1.Network{Address: n.Address.String(), Gateway: n.Gateway.String()}
		request.Resolver = &guestv1.Resolver{Servers: []string{n.Gateway.String()}}
	}
	if id.User != "" {
		request.DefaultUser = &id.User
	}
	if id.Workdir != "" {
		request.DefaultWorkdir = &id.Workdir
	}
	response, err := c.host.Configure(ctx, connect.NewRequest(request))
	if err != nil {
		return callError("configure guest", err)
	}
	var failed []error
	for _, step := range response.Msg.GetSteps() {
		if step.GetError() != "" {
			failed = append(failed, fmt.Errorf("%s: %s", printable(step.GetName()), printable(step.GetError())))
		}
	}
	if err := errors.Join(failed...); err != nil {
		return api.Errorf(api.ErrGuest, "configure guest: %w", err)
	}
	return nil
}

// PowerOff asks the guest to end in order: processes first, then its disks
// are synced. It returns when the guest has begun.
func (c *Client) PowerOff(ctx context.Context) error {
	_, err := c.host.PowerOff(ctx, connect.NewRequest(&guestv1.PowerOffRequest{}))
	return callError("power guest off", err)
}
