// Package control is how a command talks to a sandbox's monitor: HTTP with
// JSON over a socket that only the sandbox's owner can open.
package control

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"syscall"
	"time"

	"github.com/vmsan/vmsan/api"
)

// maxBody bounds a request and an answer, in bytes.
const maxBody = 1 << 20

// StopRequest asks for the end of the sandbox.
type StopRequest struct {
	// Grace is how long the guest has to shut down before the VMM is ended.
	Grace time.Duration `json:"grace_ns"`
}

// RenameRequest changes what the user calls the sandbox.
type RenameRequest struct {
	Name string `json:"name"`
}

// Monitor is what a monitor does on request. Its methods are called from any
// goroutine.
type Monitor interface {
	// Stop returns when the sandbox has ended and everything is undone.
	Stop(ctx context.Context, grace time.Duration) error
	// Rename saves the new name; the caller has made sure that it is free.
	Rename(ctx context.Context, name string) error
	// Hold ends an ephemeral sandbox when ctx ends.
	Hold(ctx context.Context) error
}

// Handler answers requests to m.
func Handler(m Monitor, log *slog.Logger) http.Handler {
	mux := http.NewServeMux()
	handle(mux, log, "POST /stop", func(ctx context.Context, r StopRequest) error { return m.Stop(ctx, r.Grace) })
	handle(mux, log, "POST /rename", func(ctx context.Context, r RenameRequest) error { return m.Rename(ctx, r.Name) })
	handle(mux, log, "POST /hold", func(ctx context.Context, _ struct{}) error { return m.Hold(ctx) })
	return mux
}

func handle[R any](mux *http.ServeMux, log *slog.Logger, pattern string, verb func(context.Context, R) error) {
	mux.HandleFunc(pattern, func(w http.ResponseWriter, r *http.Request) {
		var request R
		err := json.NewDecoder(http.MaxBytesReader(w, r.Body, maxBody)).Decode(&request)
		// Once the body is read the server notices when the caller goes.
		io.Copy(io.Discard, r.Body)
		if err == nil {
			err = verb(r.Context(), request)
		}
		if err == nil {
			w.WriteHeader(http.StatusNoContent)
			return
		}
		log.Warn("request failed", "request", pattern, "error", err)
		w.WriteHeader(http.StatusInternalServerError)
		json.NewEncoder(w).Encode(api.AsError(err))
	})
}

// Client calls a monitor.
type Client struct{ http http.Client }

// Dial returns a client of the monitor whose socket is at path. Nothing is
// connected yet.
func Dial(path string) *Client {
	return &Client{http.Client{Transport: &http.Transport{
		DisableKeepAlives: true,
		DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
			var d net.Dialer
			return d.DialContext(ctx, "unix", path)
		},
	}}}
}

// ErrGone is what a call returns when there is no monitor, or it ended
// during the call.
var ErrGone = errors.New("the sandbox's monitor is gone")

// Stop stops the sandbox; see Monitor.
func (c *Client) Stop(ctx context.Context, grace time.Duration) error {
	return c.post(ctx, "/stop", StopRequest{Grace: grace})
}

// Rename renames the sandbox; see Monitor.
func (c *Client) Rename(ctx context.Context, name string) error {
	return c.post(ctx, "/rename", RenameRequest{Name: name})
}

// Hold keeps an ephemeral sandbox alive until ctx ends or the caller dies.
// It returns when the sandbox has ended.
func (c *Client) Hold(ctx context.Context) error {
	return c.post(ctx, "/hold", struct{}{})
}

func (c *Client) post(ctx context.Context, path string, request any) error {
	body, err := json.Marshal(request)
	if err != nil {
		return err
	}
	r, err := http.NewRequestWithContext(ctx, http.MethodPost, "http://monitor"+path, bytes.NewReader(body))
	if err != nil {
		return err
	}
	response, err := c.http.Do(r)
	if err != nil {
		return gone(ctx, err)
	}
	defer response.Body.Close()
	if response.StatusCode == http.StatusNoContent {
		return nil
	}
	var failure api.Error
	if err := json.NewDecoder(io.LimitReader(response.Body, maxBody)).Decode(&failure); err != nil {
		return gone(ctx, fmt.Errorf("the monitor answers %s: %w", response.Status, err))
	}
	return &failure
}

func gone(ctx context.Context, err error) error {
	if ctx.Err() != nil {
		return context.Cause(ctx)
	}
	for _, sign := range []error{syscall.ENOENT, syscall.ECONNREFUSED, syscall.ECONNRESET, syscall.EPIPE, io.EOF, io.ErrUnexpectedEOF} {
		if errors.Is(err, sign) {
			return fmt.Errorf("%w: %w", ErrGone, err)
		}
	}
	return err
}
