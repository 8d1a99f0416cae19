package registry

import (
	"context"
	"errors"
	"io"
	"net/http"
	"time"
)

const (
	// An answer that brings less than pace bytes in a stall is broken off.
	pace         = 64 << 10
	defaultStall = time.Minute
)

var errStalled = errors.New("nothing comes any more")

// pacing has the bodies of all answers keep coming: those that nobody asked
// for, of errors and redirects, are read as well.
type pacing struct {
	inner http.RoundTripper
	stall time.Duration
}

func (t pacing) RoundTrip(req *http.Request) (*http.Response, error) {
	ctx, cancel := context.WithCancelCause(req.Context())
	resp, err := t.inner.RoundTrip(req.WithContext(ctx))
	if err != nil {
		cancel(nil)
		return nil, err
	}
	resp.Body = &paced{
		ReadCloser: resp.Body, ctx: ctx, cancel: cancel, stall: t.stall,
		timer: time.AfterFunc(t.stall, func() { cancel(errStalled) }),
	}
	return resp, nil
}

// paced is a body whose request ends when it stalls.
type paced struct {
	io.ReadCloser
	ctx    context.Context
	cancel context.CancelCauseFunc
	timer  *time.Timer
	stall  time.Duration
	n      int64 // since the timer was set
}

func (p *paced) Read(b []byte) (int, error) {
	n, err := p.ReadCloser.Read(b)
	if p.n += int64(n); p.n >= pace {
		p.timer.Reset(p.stall)
		p.n = 0
	}
	if err != nil && err != io.EOF && context.Cause(p.ctx) == errStalled {
		err = errStalled
	}
	return n, err
}

func (p *paced) Close() error {
	p.timer.Stop()
	err := p.ReadCloser.Close()
	p.cancel(nil)
	return err
}
