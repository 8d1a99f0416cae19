package guest

import (
	"bufio"
	"context"
	"encoding/json"
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

// maxAnswer bounds the head of the answer to a dial, and maxRefusal what is
// heard of why there is none, in bytes.
const (
	maxAnswer  = 16 << 10
	maxRefusal = 512
)

// DialPort connects to what listens in the guest: network is "tcp" or "unix",
// address is as for net.Dial, in the guest. The connection has a CloseWrite if
// the stream has.
func (c *Client) DialPort(ctx context.Context, network, address string) (net.Conn, error) {
	stream, err := c.dial(ctx)
	if err != nil {
		return nil, linkError(err)
	}
	// A guest that does not answer holds nobody who has given up.
	stop := context.AfterFunc(ctx, func() { stream.Close() })
	conn, _, err := upgrade(stream, "dial", url.Values{"network": {network}, "address": {address}}, dialTime)
	if !stop() && err == nil {
		err = context.Cause(ctx)
	}
	if err != nil {
		stream.Close()
		return nil, fmt.Errorf("dial %s in the guest: %w", address, err)
	}
	return conn, nil
}

// refusal is why the guest did not upgrade a stream.
type refusal struct {
	status int
	reason string
}

func (r *refusal) Error() string { return r.reason }

// upgrade asks the agent to do something with a stream, and returns what it is
// then, with the header of the answer. The answer may take as long as limit; 0
// is for ever. An error of the guest's own is api.ErrGuest and a *refusal.
func upgrade(stream net.Conn, verb string, query url.Values, limit time.Duration) (net.Conn, http.Header, error) {
	if limit > 0 {
		if err := stream.SetDeadline(time.Now().Add(limit)); err != nil {
			return nil, nil, err
		}
	}
	_, err := fmt.Fprintf(stream, "GET /vmsan/%s?%s HTTP/1.1\r\nHost: guest\r\nConnection: Upgrade\r\nUpgrade: %s\r\n\r\n",
		verb, query.Encode(), streamProtocol)
	if err != nil {
		return nil, nil, linkError(err)
	}
	// The reader may hold what comes behind the head, and no more than that:
	// the limit is lifted once the head is read.
	head := &io.LimitedReader{R: stream, N: maxAnswer}
	buffered := bufio.NewReader(head)
	response, err := http.ReadResponse(buffered, nil)
	if err != nil {
		return nil, nil, linkError(err)
	}
	if response.StatusCode != http.StatusSwitchingProtocols {
		defer response.Body.Close()
		text, _ := io.ReadAll(io.LimitReader(response.Body, maxRefusal)) // what there is of a reason
		return nil, nil, api.Errorf(api.ErrGuest, "%w", &refusal{response.StatusCode, reasonOf(response.Status, text)})
	}
	if err := stream.SetDeadline(time.Time{}); err != nil {
		return nil, nil, err
	}
	early := io.LimitReader(buffered, int64(buffered.Buffered()))
	return &upgraded{Conn: stream, r: io.MultiReader(early, stream)}, response.Header, nil
}

// reasonOf is what a guest says of why it refuses, fit to be printed.
func reasonOf(status string, body []byte) string {
	var said struct {
		Message string `json:"message"`
	}
	if json.Unmarshal(body, &said) == nil && said.Message != "" {
		return printable(said.Message)
	}
	return fmt.Sprintf("%s: %s", printable(status), printable(string(body)))
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
