package monitor

import (
	"time"

	"github.com/vmsan/vmsan/api"
)

// trace measures the stages of a start.
type trace struct {
	stages []api.Stage
	last   time.Time
}

func newTrace() *trace { return &trace{last: time.Now()} }

// done ends a stage that began when the one before it ended.
func (t *trace) done(name, detail string) {
	now := time.Now()
	t.add(name, now.Sub(t.last), detail)
	t.last = now
}

func (t *trace) add(name string, took time.Duration, detail string) {
	t.stages = append(t.stages, api.Stage{Name: name, Milliseconds: float64(took.Microseconds()) / 1000, Detail: detail})
}
