package link

import (
	"errors"
	"net"
	"testing"
	"testing/synctest"
	"time"
)

// recordingSelf keeps what the guest is told, and does what a test says.
type recordingSelf struct {
	identify func(Identity) error
	setClock func() error
	times    []toldTime
}

type toldTime struct {
	at      time.Time
	advance bool
}

func (s *recordingSelf) Identify(id Identity) error { return s.identify(id) }

func (s *recordingSelf) SetClock(to time.Time, advance bool) error {
	s.times = append(s.times, toldTime{to, advance})
	if s.setClock == nil {
		return nil
	}
	return s.setClock()
}

// connectTo connects to a guest that knows who it is.
func connectTo(t *testing.T, self Self) *Host {
	t.Helper()
	control, data := newWire(t), newWire(t)
	guest := Listen(control.guest, data.guest, self)
	t.Cleanup(func() { guest.Close() })
	host, err := Connect(t.Context(), control.open(t), data.open(t), nil)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { host.Close() })
	return host
}

func TestSetClock(t *testing.T) {
	var self recordingSelf
	host := connectTo(t, &self)
	before := time.Now()
	if err := host.SetClock(t.Context()); err != nil {
		t.Fatal(err)
	}
	if told := self.times; len(told) != 1 || told[0].advance || told[0].at.Before(before) || told[0].at.After(time.Now()) {
		t.Errorf("told %+v", told)
	}
}

// A guest has the right time before it is told who it is, however long it took
// to boot, and also if what it was told first was lost.
func TestClockOfABootedGuest(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var up, known time.Time
		self := &recordingSelf{}
		self.setClock = func() error {
			if len(self.times) == 1 {
				return errors.New("lost")
			}
			if up.IsZero() {
				time.Sleep(4 * clockSlack)
				up = time.Now()
			}
			return nil
		}
		self.identify = func(Identity) error {
			known = self.times[len(self.times)-1].at
			return nil
		}
		control, theirControl := net.Pipe()
		data, theirData := net.Pipe()
		guest := Listen(theirControl, theirData, self)
		host, err := Connect(t.Context(), control, data, &testIdentity)
		guest.Close()
		if err != nil {
			t.Fatal(err)
		}
		host.Close()
		time.Sleep(time.Second) // the guest may be waiting for a port's other side
		if !known.Equal(up) {
			t.Errorf("a guest that was up at %s was told at last that it is %s", up, known)
		}
	})
}

// The clock of a guest that is slow for a while is set when it no longer is,
// and not set back until then.
func TestSetClockOfASlowGuest(t *testing.T) {
	const slow = clockTries + 3
	self := &recordingSelf{}
	self.setClock = func() error {
		if len(self.times) <= slow {
			time.Sleep(clockSlack + clockSlack/4)
		}
		return nil
	}
	host := connectTo(t, self)
	host.clock.pause = time.Millisecond
	if err := host.SetClock(t.Context()); err != nil {
		t.Fatal(err)
	}
	later := func() bool {
		host.clock.mu.Lock()
		defer host.clock.mu.Unlock()
		return host.clock.later
	}
	if !later() {
		t.Error("a clock that may be wrong is left so")
	}
	for deadline := time.Now().Add(10 * time.Second); later(); time.Sleep(time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatal("the time is still told to a guest that answers quickly")
		}
	}
	if len(self.times) <= slow {
		t.Errorf("told %d times, though the answers were slow", len(self.times))
	}
	for i, told := range self.times {
		if told.advance != (i > 0) {
			t.Errorf("told %+v the time number %d", told, i)
		}
	}
}

func TestSetClockOfASilentGuest(t *testing.T) {
	self := &recordingSelf{setClock: func() error { return errors.New("this clock stands") }}
	if err := connectTo(t, self).SetClock(t.Context()); !errors.Is(err, errClock) {
		t.Errorf("got %v", err)
	}
}
