package guest

import (
	"context"

	"connectrpc.com/connect"

	"github.com/vmsan/vmsan/internal/guest/proto/guestv1"
)

// Freeze makes the sandbox's own disk whole and still, for a copy of it:
// commands that write to it wait until Thaw. It may be called twice.
func (c *Client) Freeze(ctx context.Context) error {
	_, err := c.host.Freeze(ctx, connect.NewRequest(&guestv1.FreezeRequest{}))
	return callError("freeze disk", err)
}

// Hold makes commands hold still as Freeze does, and lets the disk be.
func (c *Client) Hold(ctx context.Context) error {
	_, err := c.host.Freeze(ctx, connect.NewRequest(&guestv1.FreezeRequest{CommandsOnly: true}))
	return callError("hold commands", err)
}

// Thaw ends Freeze and Hold. It may be called twice.
func (c *Client) Thaw(ctx context.Context) error {
	_, err := c.host.Thaw(ctx, connect.NewRequest(&guestv1.ThawRequest{}))
	return callError("thaw disk", err)
}

// Resize grows the file system on the sandbox's own disk to the size of the
// disk, which it returns, and which the guest waits for to be least; both are
// in bytes.
func (c *Client) Resize(ctx context.Context, least int64) (int64, error) {
	response, err := c.host.Resize(ctx, connect.NewRequest(&guestv1.ResizeRequest{Bytes: uint64(least)}))
	if err != nil {
		return 0, callError("grow disk", err)
	}
	return int64(response.Msg.GetBytes()), nil
}
