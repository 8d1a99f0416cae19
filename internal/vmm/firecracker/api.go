package firecracker

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

// apiTime is how long Firecracker may take to answer, but for what depends on
// the size of the machine.
const apiTime = 10 * time.Second

// maxAnswer bounds an answer of the API, and maxFault what is told of a
// fault, in bytes.
const (
	maxAnswer = 256 << 10
	maxFault  = 500
)

// FaultError is what Firecracker answers to a request that it does not carry
// out.
type FaultError struct {
	Method, Path string
	Status       int
	Message      string // Firecracker's fault_message, safe to print
}

func (e *FaultError) Error() string {
	return fmt.Sprintf("Firecracker refuses %s %s: %s", e.Method, e.Path, e.Message)
}

// Unwrap is the cause, where it is one that callers know.
func (e *FaultError) Unwrap() error {
	// It has errors as text alone; this is how Rust writes ENOSPC.
	if strings.Contains(e.Message, "os error 28") {
		return unix.ENOSPC
	}
	return nil
}

// request is a call of the API.
type request struct {
	method, path string
	body         any
}

// client speaks to the API of one Firecracker.
type client struct{ http http.Client }

func newClient(connect func(context.Context) (net.Conn, error)) *client {
	return &client{http.Client{Transport: &http.Transport{
		DialContext:        func(ctx context.Context, _, _ string) (net.Conn, error) { return connect(ctx) },
		DisableCompression: true,
		MaxConnsPerHost:    1,
	}}}
}

func (c *client) close() { c.http.CloseIdleConnections() }

// each makes requests one after the other, each within apiTime.
func (c *client) each(ctx context.Context, requests []request) error {
	for _, r := range requests {
		bounded, cancel := context.WithTimeoutCause(ctx, apiTime, fmt.Errorf("no answer from Firecracker within %s", apiTime))
		err := c.do(bounded, r)
		cancel()
		if err != nil {
			return err
		}
	}
	return nil
}

// do makes a request, for as long as ctx lets it.
func (c *client) do(ctx context.Context, r request) error {
	err := c.exchange(ctx, r)
	if cause := context.Cause(ctx); err != nil && cause != nil {
		return fmt.Errorf("%s %s: %w", r.method, r.path, cause)
	}
	return err
}

func (c *client) exchange(ctx context.Context, r request) error {
	body, err := json.Marshal(r.body)
	if err != nil {
		return err
	}
	call, err := http.NewRequestWithContext(ctx, r.method, "http://localhost"+r.path, bytes.NewReader(body))
	if err != nil {
		return err
	}
	call.Header.Set("Content-Type", "application/json")
	call.Header.Set("Accept", "application/json")
	answer, err := c.http.Do(call)
	if err != nil {
		return fmt.Errorf("call Firecracker: %w", err)
	}
	defer answer.Body.Close()
	text, err := io.ReadAll(io.LimitReader(answer.Body, maxAnswer))
	if answer.StatusCode/100 == 2 {
		return err
	}
	return &FaultError{r.method, r.path, answer.StatusCode, faultMessage(text)}
}

// faultMessage takes the message out of an answer. It comes from a process
// that a guest may have taken over.
func faultMessage(answer []byte) string {
	var fault struct {
		Message string `json:"fault_message"`
	}
	if json.Unmarshal(answer, &fault) != nil || fault.Message == "" {
		fault.Message = string(answer)
	}
	return oneLine([]byte(fault.Message))
}

// isFault tells whether err is an answer, and not the want of one.
func isFault(err error) bool {
	var fault *FaultError
	return errors.As(err, &fault)
}
