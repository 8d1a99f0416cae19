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
	// bootWait is for a guest that boots: what is on its way to a port that
	// nobody reads yet depends on many being woken in time, and saying it twice
	// costs nothing.
	bootWait = 5 * time.Second
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
		took, err := h.tellTime(ctx, verb, clockWait)
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
		took, err := h.tellTime(context.Background(), verbAdvance, clockWait)
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

// awaitGuest tells the time until there is an answer.
func (h *Host) awaitGuest(ctx context.Context) error {
	for {
		if _, err := h.tellTime(ctx, verbTime, bootWait); !errors.Is(err, errClock) {
			return err
		}
	}
}

// tellTime tells the guest what time it is, and returns how long its answer
// took. It is errClock if there is none within patience.
func (h *Host) tellTime(ctx context.Context, verb string, patience time.Duration) (time.Duration, error) {
	began := time.Now()
	now := strconv.FormatInt(began.UnixNano(), 10)
	if err := writeMessage(h.watch.control, verb, now); err != nil {
		return 0, fmt.Errorf("tell guest the time: %w", err)
	}
	expired := time.NewTimer(patience)
	defer expired.Stop()
	for {
		select {
		case answer := <-h.watch.timed:
			if answer == now {
				return time.Since(began), nil
			}
		case <-expired.C:
			return 0, errClock
		case <-h.watch.ended:
			return 0, h.watch.reason(io.EOF)
		case <-ctx.Done():
			return 0, context.Cause(ctx)
		}
	}
}
