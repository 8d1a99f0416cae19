// Package guest is the host's side of the guest API: it runs commands and
// turns the guest off, over byte streams that somebody else dials.
//
// Everything that comes back was written by the guest, and is bounded.
package guest

import (
	"context"
	"errors"
	"fmt"
	"io"
	"math"
	"net"
	"net/http"
	"time"

	"connectrpc.com/connect"

	"github.com/vmsan/vmsan/api"
	"github.com/vmsan/vmsan/internal/guest/proto/filesystem/filesystemconnect"
	"github.com/vmsan/vmsan/internal/guest/proto/guestv1"
	"github.com/vmsan/vmsan/internal/guest/proto/guestv1/guestv1connect"
	"github.com/vmsan/vmsan/internal/guest/proto/process/processconnect"
)

// maxMessage bounds one message from the guest, in bytes.
const maxMessage = 4 << 20

// baseURL is only there because HTTP wants one; streams are dialled.
const baseURL = "http://guest"

// Dial opens a byte stream to the guest's agent.
type Dial func(ctx context.Context) (net.Conn, error)

// Client calls the guest API. Its methods may be called from any goroutine.
type Client struct {
	dial  Dial
	http  *http.Client
	proc  processconnect.ProcessClient
	files filesystemconnect.FilesystemClient
	host  guestv1connect.HostClient
}

// New returns a client whose streams dial opens. A command that Run runs has
// one of its own; those of other calls are kept for the next until Close.
func New(dial Dial) *Client {
	h := &http.Client{Transport: &http.Transport{
		DialContext:            func(ctx context.Context, _, _ string) (net.Conn, error) { return dial(ctx) },
		DisableCompression:     true,
		MaxIdleConnsPerHost:    8,
		MaxResponseHeaderBytes: 64 << 10,
		ReadBufferSize:         64 << 10,
		WriteBufferSize:        256 << 10, // of what is copied, one frame of the link
	}}
	calls := &http.Client{Transport: bounded{h.Transport}}
	options := []connect.ClientOption{connect.WithReadMaxBytes(maxMessage)}
	return &Client{
		dial:  dial,
		http:  h,
		proc:  processconnect.NewProcessClient(calls, baseURL, options...),
		files: filesystemconnect.NewFilesystemClient(calls, baseURL, options...),
		host:  guestv1connect.NewHostClient(calls, baseURL, options...),
	}
}

// DialSocket returns a Dial to the gate's socket at path.
func DialSocket(path string) Dial {
	return func(ctx context.Context) (net.Conn, error) {
		var d net.Dialer
		return d.DialContext(ctx, "unix", path)
	}
}

// Close lets the kept streams go.
func (c *Client) Close() { c.http.CloseIdleConnections() }

// Health asks whether the agent answers.
func (c *Client) Health(ctx context.Context) error {
	request, err := http.NewRequestWithContext(ctx, http.MethodGet, baseURL+"/health", nil)
	if err != nil {
		return err
	}
	response, err := c.http.Do(request)
	if err != nil {
		return linkError(err)
	}
	io.Copy(io.Discard, io.LimitReader(response.Body, maxMessage))
	response.Body.Close()
	if response.StatusCode != http.StatusNoContent {
		return api.Errorf(api.ErrGuest, "the guest's agent says %s", response.Status)
	}
	return nil
}

// ask returns the body of what the agent answers to a plain call.
func (c *Client) ask(ctx context.Context, path string) ([]byte, error) {
	request, err := http.NewRequestWithContext(ctx, http.MethodGet, baseURL+path, nil)
	if err != nil {
		return nil, err
	}
	response, err := c.http.Do(request)
	if err != nil {
		return nil, linkError(err)
	}
	defer response.Body.Close()
	body, err := io.ReadAll(io.LimitReader(response.Body, maxMessage+1))
	switch {
	case err != nil:
		return nil, linkError(err)
	case len(body) > maxMessage:
		return nil, api.Errorf(api.ErrGuest, "the guest's agent answers with more than %d bytes", maxMessage)
	case response.StatusCode != http.StatusOK:
		return nil, api.Errorf(api.ErrGuest, "the guest's agent says %s: %s", printable(response.Status), printable(string(body)))
	}
	return body, nil
}

// PowerOff asks the guest to end in order: processes first, then its disks
// are synced. It returns when the guest has begun. grace is how long it has
// before it is ended by force.
func (c *Client) PowerOff(ctx context.Context, grace time.Duration) error {
	milliseconds := uint32(min(max(grace.Milliseconds(), 0), math.MaxUint32))
	_, err := c.host.PowerOff(ctx, connect.NewRequest(&guestv1.PowerOffRequest{GraceMilliseconds: milliseconds}))
	return callError("power guest off", err)
}

// linkError names a failure that is not the guest's answer but the lack of
// one.
func linkError(err error) error {
	if errors.Is(err, context.Canceled) || errors.Is(err, context.DeadlineExceeded) {
		return err
	}
	// What the library says first, "internal: protocol error", is its own
	// view of a stream that was cut.
	var wrapped *connect.Error
	if errors.As(err, &wrapped) && wrapped.Unwrap() != nil {
		err = wrapped.Unwrap()
	}
	return api.Errorf(api.ErrGuestLink, "the connection to the guest broke: %w", err).
		WithHint("vmsan logs VM, to see what became of the guest")
}

// callError turns what a call returned into an error of ours.
func callError(doing string, err error) error {
	if err == nil {
		return nil
	}
	var remote *connect.Error
	if !errors.As(err, &remote) || !connect.IsWireError(err) {
		return fmt.Errorf("%s: %w", doing, linkError(err))
	}
	return fmt.Errorf("%s: %w", doing, api.Errorf(codeOf(remote), "%s", printable(remote.Message())))
}

func codeOf(err *connect.Error) api.Code {
	switch err.Code() {
	case connect.CodeUnavailable, connect.CodeAborted:
		return api.ErrGuestLink
	case connect.CodeDeadlineExceeded:
		return api.ErrTimeout
	}
	return api.ErrGuest
}
