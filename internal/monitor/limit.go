package monitor

import (
	"sync"
	"time"
)

// limit is how long the sandbox may still run. It counts by a clock that
// nobody can set, and which stands while the sandbox is paused or the host
// sleeps. Its methods may be called from any goroutine.
type limit struct {
	// over gets word when the time may have passed; see passed.
	over chan struct{}
	// note is told of each change: the host's time at which the limit passes,
	// zero if it does not, and what is left while the clock stands. It is
	// called in the order of the changes.
	note func(at time.Time, left time.Duration)

	mu       sync.Mutex
	span     time.Duration // what there is anew after a session, or after the limit had passed; 0: no limit
	at       time.Time     // when it passes, unless it stands
	standing bool
	left     time.Duration // while it stands
	stays    int           // sessions that keep it from passing
	timer    *time.Timer
}

func newLimit(note func(at time.Time, left time.Duration)) *limit {
	return &limit{over: make(chan struct{}, 1), note: note}
}

// set gives the sandbox d from now on; 0 lifts the limit. It returns when the
// limit passes, if it does not stand.
func (l *limit) set(d time.Duration) time.Time {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.span = d
	l.give(d)
	if d == 0 || l.standing {
		return time.Time{}
	}
	return l.at.Round(0).UTC()
}

// begin is set for a sandbox that has just come up. It has left of its time: 0
// is all of it, and less says that its limit was lifted.
func (l *limit) begin(span, left time.Duration) {
	l.mu.Lock()
	defer l.mu.Unlock()
	switch {
	case left > 0:
		l.span = max(span, left)
		l.give(left)
	case left == 0:
		l.span = span
		l.give(span)
	}
}

// give has the limit pass in d. The caller holds mu.
func (l *limit) give(d time.Duration) {
	if l.timer != nil {
		l.timer.Stop()
	}
	switch {
	case l.span == 0:
		l.left = 0
		l.note(time.Time{}, 0)
	case l.standing:
		l.left = d
		l.note(time.Time{}, d)
	default:
		l.at = time.Now().Add(d)
		l.timer = time.AfterFunc(d, l.ring)
		l.note(l.at.Round(0).UTC(), 0)
	}
}

// ring tells that the time has passed, unless a session is open.
func (l *limit) ring() {
	l.mu.Lock()
	defer l.mu.Unlock()
	if !l.isOver() {
		return
	}
	if l.stays > 0 {
		l.give(l.span)
		return
	}
	select {
	case l.over <- struct{}{}:
	default:
	}
}

// passed tells whether what over told still holds, and what limit it was.
func (l *limit) passed() (span time.Duration, passed bool) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.span, l.isOver() && l.stays == 0
}

func (l *limit) isOver() bool { return l.span > 0 && !l.standing && !time.Now().Before(l.at) }

// stand stops the clock, and resume lets it go on. Where nothing was left the
// sandbox has all of its time anew.
func (l *limit) stand() {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.standing {
		return
	}
	l.standing = true
	l.give(max(time.Until(l.at), 0))
}

func (l *limit) resume() {
	l.mu.Lock()
	defer l.mu.Unlock()
	if !l.standing {
		return
	}
	l.standing = false
	if l.left == 0 {
		l.left = l.span
	}
	l.give(l.left)
}

// remaining is what is left while the clock stands; negative if there is no
// limit.
func (l *limit) remaining() time.Duration {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.span == 0 {
		return -1
	}
	return l.left
}

// stay keeps the limit from passing until leave is called, which has to be,
// once. Then all of its time begins anew, unless there is more left.
func (l *limit) stay() (leave func()) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.stays++
	l.renew()
	return func() {
		l.mu.Lock()
		defer l.mu.Unlock()
		l.stays--
		l.renew()
	}
}

func (l *limit) renew() {
	if l.span > 0 && !l.standing && time.Until(l.at) < l.span {
		l.give(l.span)
	}
}

// end stops the clock for good.
func (l *limit) end() {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.timer != nil {
		l.timer.Stop()
	}
	l.note = func(time.Time, time.Duration) {}
}
