package link

import (
	"bytes"
	"encoding/hex"
	"errors"
	"io"
	"net"
	"slices"
	"sync"
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

// boots connects to a guest that boots, over ports of which through may be
// another, and in time that passes only while everybody waits.
func boots(t *testing.T, self Self, through func(io.ReadWriteCloser) io.ReadWriteCloser, then func(*Host, error)) {
	t.Helper()
	synctest.Test(t, func(t *testing.T) {
		control, theirControl := net.Pipe()
		data, theirData := net.Pipe()
		guest := Listen(theirControl, theirData, self)
		host, err := Connect(t.Context(), through(newBacklog(control)), data, &testIdentity)
		then(host, err)
		guest.Close()
		if host != nil {
			host.Close()
		}
		time.Sleep(time.Second) // the guest may be waiting for a port's other side
	})
}

func whole(port io.ReadWriteCloser) io.ReadWriteCloser { return port }

// backlog is a port that takes what is written before anybody reads it, as a
// socket does.
type backlog struct {
	net.Conn
	waiting chan []byte
	closed  chan struct{}
	close   func()
}

func newBacklog(port net.Conn) *backlog {
	b := &backlog{Conn: port, waiting: make(chan []byte, 1000), closed: make(chan struct{})}
	b.close = sync.OnceFunc(func() { close(b.closed) })
	go func() {
		for {
			select {
			case written := <-b.waiting:
				port.Write(written)
			case <-b.closed:
				return
			}
		}
	}()
	return b
}

func (b *backlog) Write(p []byte) (int, error) {
	b.waiting <- bytes.Clone(p)
	return len(p), nil
}

func (b *backlog) Close() error {
	b.close()
	return b.Conn.Close()
}

// losing is a port on which the first write is lost.
type losing struct {
	io.ReadWriteCloser
	lost bool
}

func (l *losing) Write(b []byte) (int, error) {
	if !l.lost {
		l.lost = true
		return len(b), nil
	}
	return l.ReadWriteCloser.Write(b)
}

// A guest has the right time before it is told who it is, however long it took
// to boot, and also if what it was told first was lost.
func TestClockOfABootedGuest(t *testing.T) {
	for name, through := range map[string]func(io.ReadWriteCloser) io.ReadWriteCloser{
		"slow": whole,
		"lost": func(port io.ReadWriteCloser) io.ReadWriteCloser { return &losing{ReadWriteCloser: port} },
	} {
		t.Run(name, func(t *testing.T) {
			var up, known time.Time
			self := &recordingSelf{}
			self.setClock = func() error {
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
			boots(t, self, through, func(_ *Host, err error) {
				if err != nil {
					t.Error(err)
				}
				if !known.Equal(up) {
					t.Errorf("a guest that was up at %s was told at last that it is %s", up, known)
				}
			})
		})
	}
}

// A guest that boots says why its clock cannot be set.
func TestClockThatFails(t *testing.T) {
	self := &recordingSelf{setClock: func() error { return errors.New("no such clock") }}
	boots(t, self, whole, func(_ *Host, err error) {
		var failed *FailedError
		if !errors.As(err, &failed) || failed.Reason != "set the clock: no such clock" {
			t.Errorf("got %v", err)
		}
	})
}

// A guest that is too slow for its clock is told who it is all the same, and
// the time when it can be.
func TestClockOfAStarvedGuest(t *testing.T) {
	self := &recordingSelf{identify: func(Identity) error { return nil }}
	self.setClock = func() error {
		switch len(self.times) {
		case 1:
			time.Sleep(2 * clockSlack)
		case 2, 3:
			time.Sleep(2 * clockWait)
		}
		return nil
	}
	boots(t, self, whole, func(host *Host, err error) {
		if err != nil {
			t.Fatal(err)
		}
		time.Sleep(time.Minute)
		host.clock.mu.Lock()
		defer host.clock.mu.Unlock()
		if last := self.times[len(self.times)-1]; host.clock.later || !last.advance || len(self.times) < 4 {
			t.Errorf("told %d times, at last %+v; to be told again: %v", len(self.times), last, host.clock.later)
		}
	})
}

// Guests of earlier versions, as snapshots have them, answer without a number,
// know of no advancing, and take the time from their identity as well.
func TestClockOfAnEarlierVersion(t *testing.T) {
	control, theirControl := net.Pipe()
	data, theirData := net.Pipe()
	var verbs []string
	answered := make(chan struct{})
	go func() {
		defer close(answered)
		readMessages(theirControl, maxHostLine, func(m message) bool {
			if verbs = append(verbs, m.verb); m.verb == verbTime {
				time.Sleep(2 * clockSlack)
				writeMessage(theirControl, verbTimed, "")
			}
			if m.verb == verbIdentity {
				raw, _ := hex.DecodeString(m.text)
				if !bytes.HasPrefix(raw, []byte("time\x001")) {
					t.Errorf("the identity begins with %.20q", raw)
				}
			}
			if n, ok := m.reset(); ok {
				go theirData.Write(n[:])
				go io.ReadFull(theirData, make([]byte, nonceSize))
				return false
			}
			return true
		})
	}()
	host, err := Connect(t.Context(), control, data, &testIdentity)
	if err != nil {
		t.Fatal(err)
	}
	defer host.Close()
	<-answered
	if len(verbs) < 4 || slices.Contains(verbs, verbAdvance) {
		t.Errorf("told %q", verbs)
	}
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
