package registry

import (
	"context"
	"errors"
	"io"
	"math/rand/v2"
	"net"
	"net/http"
	"strconv"
	"syscall"
	"time"
)

const (
	// maxTries bounds how often one request is made, mirrorTries how often if
	// there is another to ask.
	maxTries    = 5
	mirrorTries = 2
	// maxWait bounds what a registry may have us wait before the next try.
	maxWait = time.Minute
)

// retrying makes a request again that a registry had no time for.
type retrying struct {
	inner http.RoundTripper
	// first is how long to wait before the second try of all tries.
	first time.Duration
	tries int
}

func (t retrying) RoundTrip(req *http.Request) (*http.Response, error) {
	for try := 1; ; try++ {
		resp, err := t.inner.RoundTrip(req)
		if try == t.tries || req.Context().Err() != nil || !passing(resp, err) || req.Body != nil && req.GetBody == nil {
			return resp, err
		}
		wait := backoff(t.first, try)
		if resp != nil {
			asked, ok := retryAfter(resp.Header.Get("Retry-After"), time.Now())
			if ok && asked > maxWait {
				return resp, err
			}
			wait = max(wait, asked)
			resp.Body.Close()
		}
		if err := sleep(req.Context(), wait); err != nil {
			return nil, err
		}
		if req, err = again(req); err != nil {
			return nil, err
		}
	}
}

// again is the request with its body to be read from the beginning.
func again(req *http.Request) (*http.Request, error) {
	if req.Body == nil {
		return req, nil
	}
	body, err := req.GetBody()
	if err != nil {
		return nil, err
	}
	req = req.Clone(req.Context())
	req.Body = body
	return req, nil
}

// passing tells whether the next try may go better.
func passing(resp *http.Response, err error) bool {
	if err != nil {
		return passingError(err)
	}
	return passingStatus(resp.StatusCode)
}

func passingStatus(code int) bool {
	switch code {
	case http.StatusRequestTimeout, http.StatusTooManyRequests, http.StatusInternalServerError,
		http.StatusBadGateway, http.StatusServiceUnavailable, http.StatusGatewayTimeout:
		return true
	}
	return false
}

func passingError(err error) bool {
	var timeout net.Error
	return errors.As(err, &timeout) && timeout.Timeout() || errors.Is(err, errStalled) ||
		errors.Is(err, io.EOF) || errors.Is(err, io.ErrUnexpectedEOF) ||
		errors.Is(err, syscall.ECONNRESET) || errors.Is(err, syscall.EPIPE)
}

// backoff is how long to wait after the try with that number: twice as long
// each time, and not all callers the same.
func backoff(first time.Duration, try int) time.Duration {
	wait := min(first<<min(try-1, 16), maxWait)
	return wait/2 + rand.N(wait/2+1)
}

// retryAfter reads the header of that name: seconds, or a date.
func retryAfter(header string, now time.Time) (time.Duration, bool) {
	if seconds, err := strconv.ParseUint(header, 10, 31); err == nil {
		return time.Duration(seconds) * time.Second, true
	}
	if at, err := http.ParseTime(header); err == nil {
		return max(at.Sub(now), 0), true
	}
	return 0, false
}

func sleep(ctx context.Context, d time.Duration) error {
	select {
	case <-ctx.Done():
		return ctx.Err()
	case <-time.After(d):
		return nil
	}
}
