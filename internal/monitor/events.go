package monitor

import (
	"sync"
	"time"

	"golang.org/x/time/rate"

	"github.com/vmsan/vmsan/api"
	"github.com/vmsan/vmsan/internal/events"
	"github.com/vmsan/vmsan/internal/vmm"
)

// emit writes an event about the sandbox to the journal. That it cannot be
// written keeps nobody from anything.
func (m *monitor) emit(t api.EventType, fill func(*api.Event)) {
	m.mu.Lock()
	e, internal := events.Of(m.record, t), m.record.Internal
	m.mu.Unlock()
	if internal {
		return
	}
	if fill != nil {
		fill(&e)
	}
	if err := (events.Journal{Dir: m.layout.Events()}).Append(e); err != nil {
		m.log.Warn("write event", "error", err)
	}
}

// because fills in why something happened.
func because(reason string) func(*api.Event) { return func(e *api.Event) { e.Reason = reason } }

// emitEnd writes how the sandbox ended, as its record has it.
func (m *monitor) emitEnd() {
	t := api.EventVMStop
	switch m.record.Status {
	case api.StatusPaused:
		t = api.EventVMPause
	case api.StatusError:
		t = api.EventVMError
	}
	m.emit(t, because(m.record.Reason))
}

// from says what the machine goes on from; before it does, because then it is
// forgotten.
func (m *monitor) from() string {
	switch saved := m.record.Saved; {
	case saved == nil:
		return "boot"
	case *saved == m.layout.Reclaimed(m.id):
		return "memory"
	case m.layout.IsTemplate(*saved):
		return "template"
	case saved.Snapshot != "":
		return "snapshot"
	}
	return "fork"
}

// Each sandbox may write so many events of denials at once, and one more each
// denialPause. Its network log has all of them, as long as it can.
const (
	denialBurst = 20
	denialPause = 10 * time.Second
)

// denials are those of a sandbox on their way to the journal. The sandbox
// decides how many there are.
type denials struct {
	rate *rate.Limiter

	mu        sync.Mutex // guards what follows
	unwritten int
}

func newDenials() *denials {
	return &denials{rate: rate.NewLimiter(rate.Every(denialPause), denialBurst)}
}

// take tells whether an event may be written, and how many were not since the
// last that was.
func (d *denials) take() (unwritten int, ok bool) {
	d.mu.Lock()
	defer d.mu.Unlock()
	if !d.rate.Allow() {
		d.unwritten++
		return 0, false
	}
	unwritten, d.unwritten = d.unwritten, 0
	return unwritten, true
}

// Denied implements gate.Broker. The gate does not wait for the journal.
func (b broker) Denied(e api.NetworkEvent) {
	unwritten, ok := b.denials.take()
	if !ok {
		return
	}
	e.Time = time.Now().UTC()
	for _, text := range []*string{&e.Protocol, &e.Name, &e.Rule} {
		*text = vmm.Printable(*text)
	}
	b.background.Go(func() {
		b.emit(api.EventNetworkDenied, func(event *api.Event) { event.Network, event.Unwritten = &e, unwritten })
	})
}
