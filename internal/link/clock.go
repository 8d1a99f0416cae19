package link

import (
	"context"
	"errors"
	"fmt"
	"io"
	"strconv"
	"sync"
	"time"
)

// A guest's clock is as right as its answer is quick: it is behind by some part
// of the time that the answer took. What is slower than clockSlack is told
// again, for the host may be busy: first some times in a row, and then in the
// background.
const (
	clockSlack = 40 * time.Millisecond
	clockTries = 10
	clockWait  = 2 * time.Second
	clockLater = 300
)

// clock is what the host keeps of setting its guest's.
type clock struct {
	pause time.Duration // between two tries in the background

	mu    sync.Mutex // held while the time is told
	later bool       // it is told again in the background
}

// errClock is for a guest that does not answer.
var errClock = errors.New("the guest does not set its clock")

// SetClock sets the guest's clock to the host's. It is an error if the guest
// does not answer, and none if the host is too busy for an answer within
// clockSlack: the clock is then set right as soon as it can be.
func (h *Host) SetClock(ctx context.Context) error { return h.setClock(ctx, verbTime) }

func (h *Host) setClock(ctx context.Context, verb string) error {
	c := &h.clock
	c.mu.Lock()
	defer c.mu.Unlock()
	for range clockTries {
		took, err := h.tellTimeSoon(ctx, verb)
		if err != nil || took < clockSlack {
			return err
		}
		// It can only be behind, so of two such times the later is the better.
		verb = verbAdvance
	}
	if !c.later {
		c.later = true
		go h.advanceLater()
	}
	return nil
}

// advanceLater tells the time now and then until the guest answers quickly. One
// that does not answer at all stands still, and is told when it goes on.
func (h *Host) advanceLater() {
	c := &h.clock
	for range clockLater {
		select {
		case <-time.After(c.pause):
		case <-h.watch.ended:
			return
		}
		c.mu.Lock()
		took, err := h.tellTimeSoon(context.Background(), verbAdvance)
		done := err != nil || took < clockSlack
		c.later = !done
		c.mu.Unlock()
		if done {
			return
		}
	}
	c.mu.Lock()
	c.later = false
	c.mu.Unlock()
}

// tellTimeSoon is tellTime for a guest that runs.
func (h *Host) tellTimeSoon(ctx context.Context, verb string) (time.Duration, error) {
	patience := time.NewTimer(clockWait)
	defer patience.Stop()
	return h.tellTime(ctx, verb, patience.C)
}

// tellTime tells the guest what time it is, and returns how long its answer
// took. It waits until expired.
func (h *Host) tellTime(ctx context.Context, verb string, expired <-chan time.Time) (time.Duration, error) {
	began := time.Now()
	now := strconv.FormatInt(began.UnixNano(), 10)
	if err := writeMessage(h.watch.control, verb, now); err != nil {
		return 0, fmt.Errorf("tell guest the time: %w", err)
	}
	for {
		select {
		case answer := <-h.watch.timed:
			if answer == now {
				return time.Since(began), nil
			}
		case <-expired:
			return 0, errClock
		case <-h.watch.ended:
			return 0, h.watch.reason(io.EOF)
		case <-ctx.Done():
			return 0, context.Cause(ctx)
		}
	}
}
