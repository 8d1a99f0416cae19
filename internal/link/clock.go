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
// again, for the host may be busy: up to clockTries times within clockWait, and
// then clockLater times in the background.
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
	// plain is a guest of an earlier version, as snapshots may have: it does
	// not repeat what it was told, and does not know verbAdvance.
	plain bool
}

// errClock is for a guest that does not answer.
var errClock = errors.New("the guest does not set its clock")

// SetClock sets the guest's clock to the host's. It is an error if the guest
// does not answer, and none if the host is too busy for an answer within
// clockSlack: the clock is then set right as soon as it can be.
func (h *Host) SetClock(ctx context.Context) error { return h.setClock(ctx, verbTime) }

func (h *Host) setClock(ctx context.Context, verb string) error {
	h.clock.mu.Lock()
	defer h.clock.mu.Unlock()
	result := errClock
	deadline := time.Now().Add(clockWait)
	for range clockTries {
		took, err := h.tellTime(ctx, verb, time.Until(deadline))
		if errors.Is(err, errClock) {
			break
		}
		if err != nil || took < clockSlack {
			return err
		}
		// It can only be behind, so of two such times the later is the better.
		result, verb = nil, verbAdvance
	}
	if !h.clock.later {
		h.clock.later = true
		go h.advanceLater()
	}
	return result
}

// advanceLater tells the time now and then until the guest answers quickly.
func (h *Host) advanceLater() {
	for range clockLater {
		select {
		case <-time.After(h.clock.pause):
		case <-h.watch.ended:
			return
		}
		if h.advance() {
			return
		}
	}
	h.clock.mu.Lock()
	defer h.clock.mu.Unlock()
	h.clock.later = false
}

// advance tells the time once, and whether that was the last time.
func (h *Host) advance() (last bool) {
	h.clock.mu.Lock()
	defer h.clock.mu.Unlock()
	took, err := h.tellTime(context.Background(), verbAdvance, clockWait)
	h.clock.later = errors.Is(err, errClock) || err == nil && took >= clockSlack
	return !h.clock.later
}

// awaitGuest tells the time until there is an answer, and returns how long that
// took.
func (h *Host) awaitGuest(ctx context.Context) (took time.Duration, err error) {
	h.clock.mu.Lock()
	defer h.clock.mu.Unlock()
	for {
		if took, err = h.tellTime(ctx, verbTime, bootWait); !errors.Is(err, errClock) {
			return took, err
		}
	}
}

// tellTime tells the guest what time it is, and returns how long its answer
// took. It is errClock if there is none within patience. The clock's lock is
// held.
func (h *Host) tellTime(ctx context.Context, verb string, patience time.Duration) (time.Duration, error) {
	if h.clock.plain {
		verb = verbTime
	}
	began := time.Now()
	now := strconv.FormatInt(began.UnixNano(), 10)
	if err := writeMessage(h.watch.control, verb, now); err != nil {
		return 0, h.watch.reason(fmt.Errorf("tell guest the time: %w", err))
	}
	expired := time.NewTimer(patience)
	defer expired.Stop()
	for {
		select {
		case answer := <-h.watch.timed:
			if answer == "" {
				h.clock.plain = true
			}
			if answer == now || answer == "" {
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
