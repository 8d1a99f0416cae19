package monitor

import (
	"context"
	"errors"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/vmsan/vmsan/internal/store"
	"github.com/vmsan/vmsan/internal/usage"
	"github.com/vmsan/vmsan/internal/vmm/fake"
)

func TestBootWatch(t *testing.T) {
	const every, limit = 5 * time.Second, 2 * time.Minute
	for name, c := range map[string]struct {
		ran, waited time.Duration                // in each second of the watch
		until       time.Duration                // then it stands still
		held        bool                         // by a disk
		want        string                       // "" if the watch ends with its context
		at          time.Duration                // when it says so
		err         func(look int) (failed bool) // of the measurement
	}{
		"boots":                    {ran: time.Second, until: 2 * time.Second, want: "it does nothing", at: 20 * time.Second},
		"waits for a processor":    {waited: time.Second, until: time.Hour},
		"gets little of processor": {ran: 5 * time.Millisecond, waited: 990 * time.Millisecond, until: time.Hour},
		"waits for a disk":         {held: true},
		"never runs":               {want: "it does nothing", at: 15 * time.Second},
		"stands still later":       {ran: time.Second, until: 12 * time.Second, want: "it does nothing", at: 30 * time.Second},
		"runs and runs":            {ran: time.Second, until: time.Hour, want: "it runs and runs", at: 65 * time.Second},
		"cannot be measured":       {err: func(look int) bool { return look > 1 }},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				ctx, cancel := context.WithTimeout(t.Context(), limit)
				defer cancel()
				begun, looks := time.Now(), 0
				watch := bootWatch{every: every, measure: func(int) (r usage.Runnable, err error) {
					looks++
					if c.err != nil && c.err(looks) {
						return r, errors.New("no such process")
					}
					seconds := min(time.Since(begun), c.until).Seconds()
					return usage.Runnable{
						Ran: time.Duration(seconds * float64(c.ran)), Waited: time.Duration(seconds * float64(c.waited)), Held: c.held,
					}, nil
				}}
				if got := watch.await(ctx, 1, limit/2); got != c.want {
					t.Errorf("got %q, want %q", got, c.want)
				}
				if at := time.Since(begun); c.want != "" && at != c.at {
					t.Errorf("it says so after %s, want %s", at, c.at)
				}
			})
		})
	}
}

// A guest that hangs while it boots is begun anew, once.
func TestBootThatHangs(t *testing.T) {
	driver := &fake.Driver{Silent: true}
	m := newTestMonitor(t, driver, nil)
	m.bootWatch = bootWatch{every: time.Millisecond, measure: func(int) (usage.Runnable, error) { return usage.Runnable{}, nil }}
	r := bringUp(t, m, driver)
	if err := r.health(); err != nil {
		t.Error(err)
	}
	record, err := r.layout.Load(testID)
	if err != nil {
		t.Fatal(err)
	}
	var details []string
	for _, stage := range record.Trace {
		details = append(details, stage.Detail)
	}
	if text := strings.Join(details, "\n"); !strings.Contains(text, "its boot hung and began anew: it does nothing") {
		t.Errorf("the trace says nothing of it: %q", text)
	}
}

// Only machines that are emulated are watched.
func TestNoBootToWatch(t *testing.T) {
	m := newTestMonitor(t, &fake.Driver{Silent: true}, func(r *store.Record) {
		r.Spec.BootTimeout, r.Spec.Accelerator = 300*time.Millisecond, "kvm"
	})
	m.bootWatch = bootWatch{every: time.Millisecond, measure: func(int) (usage.Runnable, error) { return usage.Runnable{}, nil }}
	if err := m.bringUp(t.Context()); err == nil {
		t.Error("a machine that is not emulated was begun anew")
	}
}
