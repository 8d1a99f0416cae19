package guest

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/url"
	"time"

	"github.com/vmsan/vmsan/api"
)

// streamProtocol is what the agent's dial call upgrades a stream to.
const streamProtocol = "vmsan-stream"

// dialTime is how long the guest may take to connect to a port of its own.
const dialTime = 15 * time.Second

// maxAnswer bounds the head of the answer to a dial, in bytes.
const maxAnswer = 16 << 10

// DialPort connects to what listens in the guest: network is "tcp" or "unix",
// address is as for net.Dial, in the guest. The connection has a CloseWrite if
// the stream has.
func (c *Client) DialPort(ctx context.Context, network, address string) (net.Conn, error) {
	stream, err := c.dial(ctx)
	if err != nil {
		return nil, linkError(err)
	}
	conn, err := upgrade(stream, network, address)
	if err != nil {
		stream.Close()
		return nil, fmt.Errorf("dial %s in the guest: %w", address, err)
	}
	return conn, nil
}

func upgrade(stream net.Conn, network, address string) (net.Conn, error) {
	if err := stream.SetDeadline(time.Now().Add(dialTime)); err != nil {
		return nil, err
	}
	query := url.Values{"network": {network}, "address": {address}}
	_, err := fmt.Fprintf(stream, "GET /vmsan/dial?%s HTTP/1.1\r\nHost: guest\r\nConnection: Upgrade\r\nUpgrade: %s\r\n\r\n",
		query.Encode(), streamProtocol)
	if err != nil {
		return nil, linkError(err)
	}
	// The reader may hold what comes behind the head, and no more than that:
	// the limit is lifted once the head is read.
	head := &io.LimitedReader{R: stream, N: maxAnswer}
	buffered := bufio.NewReader(head)
	response, err := http.ReadResponse(buffered, nil)
	if err != nil {
		return nil, linkError(err)
	}
	if response.StatusCode != http.StatusSwitchingProtocols {
		defer response.Body.Close()
		text, _ := io.ReadAll(io.LimitReader(response.Body, 512)) // what there is of a reason
		return nil, api.Errorf(api.ErrGuest, "%s: %s", response.Status, printable(string(text)))
	}
	if err := stream.SetDeadline(time.Time{}); err != nil {
		return nil, err
	}
	early := io.LimitReader(buffered, int64(buffered.Buffered()))
	return &upgraded{Conn: stream, r: io.MultiReader(early, stream)}, nil
}

// upgraded is a stream of which a part was read already.
type upgraded struct {
	net.Conn
	r io.Reader
}

func (u *upgraded) Read(b []byte) (int, error) { return u.r.Read(b) }

func (u *upgraded) CloseWrite() error {
	if half, ok := u.Conn.(interface{ CloseWrite() error }); ok {
		return half.CloseWrite()
	}
	return errors.ErrUnsupported
}
