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
	"github.com/vmsan/vmsan/internal/policy"
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

// PolicyRequest changes what the sandbox may reach.
type PolicyRequest struct {
	Policy policy.Policy `json:"policy"`
	// Kill cuts open flows that are no longer allowed.
	Kill bool `json:"kill"`
}

// PolicyAnswer says what became of a PolicyRequest.
type PolicyAnswer struct {
	Killed int `json:"killed"` // flows
}

// SaveRequest names the files to save to, which are not there yet. Their paths
// are absolute.
type SaveRequest struct {
	// State is for the machine. Empty: its disk alone is copied.
	State string `json:"state"`
	// Memory is for drivers that keep it apart.
	Memory string `json:"memory,omitempty"`
	// Overlay is for a copy of the disk. Empty: none is made.
	Overlay string `json:"overlay,omitempty"`
	// Together says that nobody reads the disk without the memory, whose
	// writes under way go with it: its file system need not be made whole.
	Together bool `json:"together,omitempty"`
	// Stand leaves the machine paused once it is saved.
	Stand bool `json:"stand,omitempty"`
}

// ResizeRequest is the size that the sandbox's own disk is to grow to.
type ResizeRequest struct {
	Bytes int64 `json:"bytes"`
}

// ExtendRequest is how long the sandbox may still run; 0 is as long as it
// likes.
type ExtendRequest struct {
	For time.Duration `json:"for_ns"`
}

// ExtendAnswer is when that is over, zero if it never is or the sandbox stands.
type ExtendAnswer struct {
	At time.Time `json:"at,omitzero"`
}

// LeaveRequest names the files that a machine goes on from. Their paths are
// absolute.
type LeaveRequest struct {
	Memory string `json:"memory"`
	State  string `json:"state"`
}

// SaveAnswer tells of a machine that was saved.
type SaveAnswer struct {
	// Paused is how long it stood still.
	Paused     time.Duration `json:"paused_ns"`
	DiskMethod string        `json:"disk_method,omitempty"`
}

// MemoryRequest is how much of its memory the guest is to have.
type MemoryRequest struct {
	MiB int `json:"mib"`
}

// MetricsAnswer is what the VMM counts, in its own form.
type MetricsAnswer struct {
	Metrics json.RawMessage `json:"metrics"`
}

// Monitor is what a monitor does on request. Its methods are called from any
// goroutine.
type Monitor interface {
	// Stop returns when the sandbox has ended and everything is undone.
	Stop(ctx context.Context, grace time.Duration) error
	// Rename saves the new name; the caller has made sure that it is free.
	Rename(ctx context.Context, name string) error
	// SetPolicy changes what the sandbox may reach, and returns how many
	// flows were cut.
	SetPolicy(ctx context.Context, p policy.Policy, kill bool) (killed int, err error)
	// Pause stops the guest's CPUs, and Resume lets them go on. Both may be
	// called twice.
	Pause(ctx context.Context) error
	Resume(ctx context.Context) error
	// Save writes the machine to files, from which it or a copy can go on.
	Save(ctx context.Context, to SaveRequest) (SaveAnswer, error)
	// Resize grows the sandbox's own disk, and the file system that the guest
	// has on it.
	Resize(ctx context.Context, bytes int64) error
	// Leave is Stop for a machine that has stood since it was saved: the
	// sandbox stays paused, and goes on from these files.
	Leave(ctx context.Context, memory, state string) error
	// SetMemory leaves the guest so much of its memory, in MiB.
	SetMemory(ctx context.Context, mib int) error
	// Metrics returns what the VMM counts.
	Metrics(ctx context.Context) (json.RawMessage, error)
	// Extend changes how long the sandbox may still run, and returns when that
	// is over; see ExtendAnswer.
	Extend(ctx context.Context, d time.Duration) (at time.Time, err error)
	// Stay keeps its time limit from passing until ctx ends.
	Stay(ctx context.Context) error
	// Hold ends an ephemeral sandbox when ctx ends.
	Hold(ctx context.Context) error
}

// Handler answers requests to m.
func Handler(m Monitor, log *slog.Logger) http.Handler {
	mux := http.NewServeMux()
	handle(mux, log, "POST /stop", func(ctx context.Context, r StopRequest) (none, error) {
		return none{}, m.Stop(ctx, r.Grace)
	})
	handle(mux, log, "POST /rename", func(ctx context.Context, r RenameRequest) (none, error) {
		return none{}, m.Rename(ctx, r.Name)
	})
	handle(mux, log, "POST /policy", func(ctx context.Context, r PolicyRequest) (PolicyAnswer, error) {
		killed, err := m.SetPolicy(ctx, r.Policy, r.Kill)
		return PolicyAnswer{Killed: killed}, err
	})
	handle(mux, log, "POST /pause", func(ctx context.Context, _ none) (none, error) { return none{}, m.Pause(ctx) })
	handle(mux, log, "POST /resume", func(ctx context.Context, _ none) (none, error) { return none{}, m.Resume(ctx) })
	handle(mux, log, "POST /save", m.Save)
	handle(mux, log, "POST /resize", func(ctx context.Context, r ResizeRequest) (none, error) {
		return none{}, m.Resize(ctx, r.Bytes)
	})
	handle(mux, log, "POST /leave", func(ctx context.Context, r LeaveRequest) (none, error) {
		return none{}, m.Leave(ctx, r.Memory, r.State)
	})
	handle(mux, log, "POST /memory", func(ctx context.Context, r MemoryRequest) (none, error) {
		return none{}, m.SetMemory(ctx, r.MiB)
	})
	handle(mux, log, "POST /metrics", func(ctx context.Context, _ none) (MetricsAnswer, error) {
		text, err := m.Metrics(ctx)
		return MetricsAnswer{text}, err
	})
	handle(mux, log, "POST /extend", func(ctx context.Context, r ExtendRequest) (ExtendAnswer, error) {
		at, err := m.Extend(ctx, r.For)
		return ExtendAnswer{at}, err
	})
	handle(mux, log, "POST /stay", func(ctx context.Context, _ none) (none, error) { return none{}, m.Stay(ctx) })
	handle(mux, log, "POST /hold", func(ctx context.Context, _ none) (none, error) { return none{}, m.Hold(ctx) })
	return mux
}

// none is a request or an answer in which there is nothing to say.
type none struct{}

func handle[R, A any](mux *http.ServeMux, log *slog.Logger, pattern string, verb func(context.Context, R) (A, error)) {
	mux.HandleFunc(pattern, func(w http.ResponseWriter, r *http.Request) {
		var request R
		err := json.NewDecoder(http.MaxBytesReader(w, r.Body, maxBody)).Decode(&request)
		// Once the body is read the server notices when the caller goes.
		io.Copy(io.Discard, r.Body)
		var answer A
		if err == nil {
			answer, err = verb(r.Context(), request)
		}
		if err == nil {
			json.NewEncoder(w).Encode(answer)
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
	return c.post(ctx, "/stop", StopRequest{Grace: grace}, &none{})
}

// Rename renames the sandbox; see Monitor.
func (c *Client) Rename(ctx context.Context, name string) error {
	return c.post(ctx, "/rename", RenameRequest{Name: name}, &none{})
}

// SetPolicy changes what the sandbox may reach; see Monitor.
func (c *Client) SetPolicy(ctx context.Context, p policy.Policy, kill bool) (killed int, err error) {
	var answer PolicyAnswer
	err = c.post(ctx, "/policy", PolicyRequest{Policy: p, Kill: kill}, &answer)
	return answer.Killed, err
}

// Pause stops the guest's CPUs; see Monitor.
func (c *Client) Pause(ctx context.Context) error { return c.post(ctx, "/pause", none{}, &none{}) }

// Resume lets them go on; see Monitor.
func (c *Client) Resume(ctx context.Context) error { return c.post(ctx, "/resume", none{}, &none{}) }

// Save writes the machine to files; see Monitor.
func (c *Client) Save(ctx context.Context, to SaveRequest) (answer SaveAnswer, err error) {
	err = c.post(ctx, "/save", to, &answer)
	return answer, err
}

// Resize grows the sandbox's own disk; see Monitor.
func (c *Client) Resize(ctx context.Context, bytes int64) error {
	return c.post(ctx, "/resize", ResizeRequest{Bytes: bytes}, &none{})
}

// Leave ends a machine that was saved and goes on later; see Monitor.
func (c *Client) Leave(ctx context.Context, memory, state string) error {
	return c.post(ctx, "/leave", LeaveRequest{Memory: memory, State: state}, &none{})
}

// SetMemory leaves the guest so much of its memory; see Monitor.
func (c *Client) SetMemory(ctx context.Context, mib int) error {
	return c.post(ctx, "/memory", MemoryRequest{MiB: mib}, &none{})
}

// Metrics returns what the VMM counts; see Monitor.
func (c *Client) Metrics(ctx context.Context) (json.RawMessage, error) {
	var answer MetricsAnswer
	err := c.post(ctx, "/metrics", none{}, &answer)
	return answer.Metrics, err
}

// Extend changes how long the sandbox may still run; see Monitor.
func (c *Client) Extend(ctx context.Context, d time.Duration) (at time.Time, err error) {
	var answer ExtendAnswer
	err = c.post(ctx, "/extend", ExtendRequest{d}, &answer)
	return answer.At, err
}

// Stay keeps the sandbox's time limit from passing until ctx ends or the caller
// dies. It returns when the sandbox has ended.
func (c *Client) Stay(ctx context.Context) error { return c.post(ctx, "/stay", none{}, &none{}) }

// Hold keeps an ephemeral sandbox alive until ctx ends or the caller dies.
// It returns when the sandbox has ended.
func (c *Client) Hold(ctx context.Context) error {
	return c.post(ctx, "/hold", none{}, &none{})
}

func (c *Client) post(ctx context.Context, path string, request, answer any) error {
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
	var failure api.Error
	ok := response.StatusCode == http.StatusOK
	if !ok {
		answer = &failure
	}
	if err := json.NewDecoder(io.LimitReader(response.Body, maxBody)).Decode(answer); err != nil {
		return gone(ctx, fmt.Errorf("the monitor answers %s: %w", response.Status, err))
	}
	if !ok {
		return &failure
	}
	return nil
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
