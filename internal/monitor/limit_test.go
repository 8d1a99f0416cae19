package monitor

import (
	"context"
	"errors"
	"net"
	"os"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/vmsan/vmsan/api"
	"github.com/vmsan/vmsan/internal/events"
	"github.com/vmsan/vmsan/internal/monitor/control"
	"github.com/vmsan/vmsan/internal/store"
)

// limited is a limit under a clock of its own, with what was noted of it.
type limited struct {
	*limit
	t    *testing.T
	at   time.Time
	left time.Duration
}

func newLimited(t *testing.T) *limited {
	l := &limited{t: t}
	l.limit = newLimit(func(at time.Time, left time.Duration) { l.at, l.left = at, left })
	t.Cleanup(l.end)
	return l
}

// passesAfter fails unless the limit passes in d, and not before.
func (l *limited) passesAfter(d time.Duration) {
	l.t.Helper()
	began := time.Now()
	if l.at.IsZero() || !l.at.Equal(began.Add(d)) {
		l.t.Errorf("it was noted that it passes in %s, not %s", l.at.Sub(began), d)
	}
	select {
	case <-l.over:
	case <-time.After(d + 1000*time.Hour):
	}
	if took := time.Since(began); took != d {
		l.t.Errorf("it passed after %s, not %s", took, d)
	}
	if _, passed := l.passed(); !passed {
		l.t.Error("it has passed, and says no")
	}
}

// lasts fails if the limit passes in d.
func (l *limited) lasts(d time.Duration) {
	l.t.Helper()
	began := time.Now()
	select {
	case <-l.over:
		l.t.Errorf("it passed after %s", time.Since(began))
	case <-time.After(d):
	}
}

const (
	second = time.Second
	hour   = time.Hour
)

func TestLimits(t *testing.T) {
	for name, test := range map[string]func(*limited){
		"passes": func(l *limited) {
			l.begin(hour, 0)
			l.passesAfter(hour)
		},
		"none": func(l *limited) {
			l.begin(0, 0)
			l.lasts(10000 * hour)
		},
		"what was left": func(l *limited) {
			l.begin(hour, 5*second)
			l.passesAfter(5 * second)
		},
		"lifted before": func(l *limited) {
			l.begin(hour, -1)
			l.lasts(10000 * hour)
		},
		"extended": func(l *limited) {
			l.begin(hour, 0)
			l.lasts(59 * time.Minute)
			if at := l.set(2 * hour); !at.Equal(time.Now().Add(2 * hour)) {
				l.t.Errorf("it passes at %s", at)
			}
			l.passesAfter(2 * hour)
		},
		"shortened": func(l *limited) {
			l.begin(hour, 0)
			l.set(second)
			l.passesAfter(second)
		},
		"set where none was": func(l *limited) {
			l.begin(0, 0)
			l.set(hour)
			l.passesAfter(hour)
		},
		"lifted": func(l *limited) {
			l.begin(hour, 0)
			l.set(0)
			l.lasts(10000 * hour)
			if l.remaining() >= 0 {
				l.t.Error("something is left of no limit")
			}
		},
		"extended as it passes": func(l *limited) {
			l.begin(hour, 0)
			time.Sleep(hour)
			synctest.Wait()
			l.set(hour) // before anybody has looked
			<-l.over
			if _, passed := l.passed(); passed {
				l.t.Error("it has an hour more and says that it has passed")
			}
			l.passesAfter(hour)
		},
		"paused": func(l *limited) {
			l.begin(hour, 0)
			l.lasts(20 * time.Minute)
			l.stand()
			l.stand()
			if !l.at.IsZero() || l.left != 40*time.Minute || l.remaining() != l.left {
				l.t.Errorf("it was noted that %s are left, until %s", l.left, l.at)
			}
			l.lasts(1000 * hour)
			l.limit.resume()
			l.limit.resume()
			l.passesAfter(40 * time.Minute)
		},
		"paused by itself": func(l *limited) {
			l.begin(hour, 0)
			l.passesAfter(hour)
			l.stand()
			l.lasts(1000 * hour)
			l.limit.resume()
			l.passesAfter(hour)
		},
		"extended while paused": func(l *limited) {
			l.begin(hour, 0)
			l.stand()
			l.set(5 * hour)
			l.lasts(1000 * hour)
			l.limit.resume()
			l.passesAfter(5 * hour)
		},
		"lifted while paused": func(l *limited) {
			l.begin(hour, 0)
			l.stand()
			l.set(0)
			l.limit.resume()
			l.lasts(1000 * hour)
		},
		"a session": func(l *limited) {
			l.begin(hour, 0)
			l.lasts(59 * time.Minute)
			leave := l.stay()
			l.lasts(10 * hour)
			leave()
			l.passesAfter(hour)
		},
		"two sessions": func(l *limited) {
			l.begin(hour, 0)
			first, second := l.stay(), l.stay()
			l.lasts(10 * hour)
			first()
			l.lasts(10 * hour)
			second()
			l.passesAfter(hour)
		},
		"a session takes nothing away": func(l *limited) {
			l.begin(hour, 0)
			l.set(5 * hour)
			l.span = hour
			l.stay()()
			l.passesAfter(5 * hour)
		},
		"a session without a limit": func(l *limited) {
			l.begin(0, 0)
			leave := l.stay()
			l.lasts(hour)
			leave()
			l.lasts(hour)
		},
		"a session over a pause": func(l *limited) {
			l.begin(hour, 0)
			leave := l.stay()
			l.lasts(30 * time.Minute)
			l.stand()
			leave()
			if l.left != 30*time.Minute {
				l.t.Errorf("%s are left", l.left)
			}
			l.limit.resume()
			l.passesAfter(30 * time.Minute)
		},
		"ended": func(l *limited) {
			l.begin(hour, 0)
			l.end()
			l.lasts(10 * hour)
		},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) { test(newLimited(t)) })
		})
	}
}

func TestIdling(t *testing.T) {
	const span = 30 * time.Minute
	for name, c := range map[string]struct {
		busy func(since time.Duration) bool
		want time.Duration
	}{
		"always":            {func(time.Duration) bool { return false }, span},
		"never":             {func(time.Duration) bool { return true }, 0},
		"after an hour":     {func(d time.Duration) bool { return d <= time.Hour }, time.Hour + span},
		"with breaks":       {func(d time.Duration) bool { return d < 10*time.Hour && d%(29*time.Minute) < longestLook }, 580*time.Minute + span},
		"with a long break": {func(d time.Duration) bool { return d%(31*time.Minute) < longestLook }, span},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				ctx, cancel := context.WithTimeout(t.Context(), 100*time.Hour)
				defer cancel()
				began, over := time.Now(), make(chan struct{})
				go watchIdle(ctx, span, func(context.Context) bool { return c.busy(time.Since(began)) }, over)
				got := time.Duration(0)
				select {
				case <-over:
					got = time.Since(began)
				case <-ctx.Done():
				}
				if d := got - c.want; d < 0 || d > 2*longestLook {
					t.Errorf("idle after %s, want %s", got, c.want)
				}
			})
		})
	}
}

func TestWork(t *testing.T) {
	began := time.Now()
	for _, c := range []struct {
		cpu   time.Duration
		bytes uint64
		want  bool
	}{
		{0, 0, false}, {100 * time.Millisecond, 500, false}, {500 * time.Millisecond, 0, true}, {0, 2000, true}, {10 * time.Second, 1 << 30, true},
	} {
		now := work{began.Add(10 * time.Second), time.Minute + c.cpu, 1000 + c.bytes}
		if got := now.exceeds(work{began, time.Minute, 1000}); got != c.want {
			t.Errorf("%s and %d bytes in 10 s: busy %v", c.cpu, c.bytes, got)
		}
	}
}

const tenth = 100 * time.Millisecond

// types are those of the events of a sandbox, and the reason of the last.
func (r *running) events() (types, reason string) {
	r.t.Helper()
	all, err := events.Journal{Dir: r.layout.Events()}.Read(context.Background())
	if err != nil {
		r.t.Fatal(err)
	}
	var list []string
	for _, e := range all {
		list, reason = append(list, string(e.Type)), e.Reason
	}
	return strings.Join(list, " "), reason
}

const tenthPassed = "timeout: its limit of 100ms has passed"

func TestLimitStops(t *testing.T) {
	r := run(t, func(record *store.Record) { record.Spec.Timeout = tenth })
	r.await(tenthPassed)
	record, err := r.layout.Load(testID)
	if err != nil || !record.TimeoutAt.IsZero() || record.TimeoutLeft != 0 {
		t.Errorf("the record still has a limit: %s, %s, %v", record.TimeoutAt, record.TimeoutLeft, err)
	}
	if types, reason := r.events(); types != "vm.start vm.running vm.stop" || reason != tenthPassed {
		t.Errorf("got events %s, %s", types, reason)
	}
	if got := r.vm.Exit().Reason; got != "the guest shut down" {
		t.Errorf("the machine ended because: %s", got)
	}
}

func TestLimitRemoves(t *testing.T) {
	r := run(t, func(record *store.Record) { record.Spec.Timeout, record.Spec.OnTimeout = tenth, store.OnTimeoutRemove })
	if err := <-r.ended; err != nil {
		t.Error(err)
	}
	if _, err := os.Stat(r.layout.Sandbox(testID)); !os.IsNotExist(err) {
		t.Errorf("the sandbox is still there: %v", err)
	}
	if types, _ := r.events(); types != "vm.start vm.running vm.stop vm.remove" {
		t.Errorf("got events %s", types)
	}
}

// awaitRecord waits until the record is as it should be.
func (r *running) awaitRecord(what string, is func(*store.Record) bool) *store.Record {
	r.t.Helper()
	for deadline := time.Now().Add(patience); ; time.Sleep(time.Millisecond) {
		record, err := r.layout.Load(testID)
		if err == nil && is(record) {
			return record
		}
		if time.Now().After(deadline) {
			r.t.Fatalf("not %s: %+v, %v", what, record, err)
		}
	}
}

func isPaused(r *store.Record) bool { return r.Status == api.StatusPaused }

// A sandbox that its limit has paused goes on for as long again.
func TestLimitPauses(t *testing.T) {
	r := run(t, func(record *store.Record) { record.Spec.Timeout, record.Spec.OnTimeout = tenth, store.OnTimeoutPause })
	for range 3 {
		record := r.awaitRecord("paused", isPaused)
		if record.Reason != tenthPassed {
			t.Errorf("the reason is %q", record.Reason)
		}
		if err := control.Dial(r.layout.ControlSocket(testID)).Resume(t.Context()); err != nil {
			t.Fatal(err)
		}
	}
	r.awaitRecord("paused", isPaused)
	r.stop(0)
	r.await("stopped")
}

func TestLimitSaves(t *testing.T) {
	for name, c := range map[string]struct {
		err  error
		want string
	}{
		"well":  {nil, tenthPassed},
		"badly": {errors.New("the disk is full"), tenthPassed + "; snapshot: the disk is full"},
	} {
		t.Run(name, func(t *testing.T) {
			saved := make(chan string, 1)
			r := run(t, func(record *store.Record) {
				record.Spec.Timeout, record.Spec.OnTimeout = time.Hour, store.OnTimeoutSnapshot
			})
			r.helpers.Snapshot = func(_ context.Context, _ store.Layout, id string) error {
				saved <- id
				return c.err
			}
			if _, err := control.Dial(r.layout.ControlSocket(testID)).Extend(t.Context(), tenth); err != nil {
				t.Fatal(err)
			}
			r.await(c.want)
			if id := <-saved; id != testID {
				t.Errorf("%s was saved", id)
			}
		})
	}
}

// One who stops a sandbox does not wait for it to be saved first.
func TestStopWhileLimitSaves(t *testing.T) {
	saving := make(chan struct{})
	r := run(t, func(record *store.Record) {
		record.Spec.Timeout, record.Spec.OnTimeout = time.Hour, store.OnTimeoutSnapshot
	})
	r.helpers.Snapshot = func(ctx context.Context, _ store.Layout, _ string) error {
		close(saving)
		<-ctx.Done()
		return ctx.Err()
	}
	r.limit.set(tenth)
	<-saving
	r.stop(0)
	r.await("stopped")
}

// A session keeps the sandbox alive until its client is gone, however that
// went.
func TestSessionHoldsLimit(t *testing.T) {
	r := run(t, func(record *store.Record) { record.Spec.Timeout = time.Hour })
	monitor := control.Dial(r.layout.ControlSocket(testID))
	ctx, leave := context.WithCancel(t.Context())
	stayed := make(chan error, 1)
	go func() { stayed <- monitor.Stay(ctx) }()
	for deadline := time.Now().Add(patience); r.stays() == 0; time.Sleep(time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatal("the monitor does not hear of the session")
		}
	}
	at, err := monitor.Extend(t.Context(), tenth)
	if err != nil {
		t.Fatal(err)
	}
	// The limit has passed more than once.
	r.awaitRecord("extended", func(record *store.Record) bool { return record.TimeoutAt.After(at.Add(2 * tenth)) })
	if status := r.status(); status != api.StatusRunning {
		t.Errorf("it is %s", status)
	}
	leave()
	<-stayed
	r.await(tenthPassed)
}

func (r *running) stays() int {
	r.limit.mu.Lock()
	defer r.limit.mu.Unlock()
	return r.limit.stays
}

// The record has the time that is left while the sandbox is paused.
func TestPauseKeepsTime(t *testing.T) {
	r := run(t, func(record *store.Record) { record.Spec.Timeout = time.Hour })
	record := r.awaitRecord("limited", func(record *store.Record) bool { return !record.TimeoutAt.IsZero() })
	if d := time.Until(record.TimeoutAt); d > time.Hour || d < time.Hour-patience {
		t.Errorf("the limit passes in %s", d)
	}
	monitor := control.Dial(r.layout.ControlSocket(testID))
	if err := monitor.Pause(t.Context()); err != nil {
		t.Fatal(err)
	}
	record = r.awaitRecord("paused", func(record *store.Record) bool { return record.TimeoutLeft > 0 })
	if !record.TimeoutAt.IsZero() || record.TimeoutLeft > time.Hour || record.TimeoutLeft < time.Hour-patience {
		t.Errorf("%s are left, until %s", record.TimeoutLeft, record.TimeoutAt)
	}
	if err := monitor.Resume(t.Context()); err != nil {
		t.Fatal(err)
	}
	r.awaitRecord("limited", func(record *store.Record) bool { return !record.TimeoutAt.IsZero() && record.TimeoutLeft == 0 })
	r.stop(0)
	r.await("stopped")
}

// Clients of the guest are counted while they are there, whoever they are.
func TestClientsAreCounted(t *testing.T) {
	r := run(t, nil)
	if r.hasClients(t.Context()) {
		t.Error("nobody is a client")
	}
	conn, err := net.Dial("unix", r.layout.GuestSocket(testID))
	if err != nil {
		t.Fatal(err)
	}
	for _, want := range []bool{true, false} {
		for deadline := time.Now().Add(patience); r.hasClients(t.Context()) != want; time.Sleep(time.Millisecond) {
			if time.Now().After(deadline) {
				t.Fatalf("there are no clients: %v", want)
			}
		}
		conn.Close()
	}
	r.gate.turn <- struct{}{}
	if !r.hasClients(t.Context()) {
		t.Error("a sandbox whose gate is busy is idle")
	}
	<-r.gate.turn
}
