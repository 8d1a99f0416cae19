package monitor

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"sync"
	"time"

	"github.com/vmsan/vmsan/internal/gate"
	"github.com/vmsan/vmsan/internal/jail"
	"github.com/vmsan/vmsan/internal/store"
	"github.com/vmsan/vmsan/internal/vmm"
)

// gateProcess is a running gate and the way to it.
type gateProcess struct {
	*jail.Process
	spec gate.StartSpec
	conn net.Conn
	// turn holds the order that is under way. A gate is born with it taken,
	// by begin, which comes before all others.
	turn  chan struct{}
	lines *gate.Conn
	// replaced is closed once there is another one in its place.
	replaced chan struct{}
}

// newGate starts a gate, and answers what it asks for.
func (m *monitor) newGate(spec gate.StartSpec) (*gateProcess, error) {
	started, err := gate.Start(spec)
	if err != nil {
		return nil, err
	}
	defer started.Orders.Close()
	conn, err := net.FileConn(started.Orders)
	if err == nil && started.Requests != nil {
		err = m.attend(started.Requests)
	}
	if err != nil {
		return nil, errors.Join(err, started.Kill())
	}
	g := &gateProcess{
		Process: started.Process, spec: spec, conn: conn, turn: make(chan struct{}, 1), lines: gate.NewConn(conn),
		replaced: make(chan struct{}),
	}
	g.turn <- struct{}{}
	return g, nil
}

// attend answers what a gate asks for, until the gate has ended.
func (m *monitor) attend(requests *os.File) error {
	defer requests.Close()
	conn, err := net.FileConn(requests)
	if err != nil {
		return err
	}
	m.background.Go(func() {
		defer conn.Close()
		if err := gate.Attend(conn.(*net.UnixConn), broker{m}); err != nil {
			m.log.Warn("attend to gate", "error", err)
		}
	})
	return nil
}

// begin waits until the guest is there, and fails as soon as its VMM is not.
// It is called once.
func (g *gateProcess) begin(ctx context.Context, b gate.Begin, vm vmm.VM) error {
	defer func() { <-g.turn }()
	ctx, cancel := context.WithCancelCause(ctx)
	var watcher sync.WaitGroup
	defer watcher.Wait()
	defer cancel(nil)
	watcher.Go(func() {
		select {
		case <-vm.Done():
			cancel(endedEarly(vm))
		case <-ctx.Done():
		}
	})
	b.First = g.spec.First != nil
	report, err := g.exchange(ctx, gate.Order{Begin: &b})
	if err != nil && !report.Failed && ctx.Err() == nil {
		// The link breaks before the VMM has ended.
		select {
		case <-vm.Done():
			return endedEarly(vm)
		case <-time.After(lastMoment):
		}
	}
	return err
}

// lastMoment is how long a VMM may take to end after its guest's link broke, and
// a gate after its conversation did.
const lastMoment = 500 * time.Millisecond

func endedEarly(vm vmm.VM) error {
	return fmt.Errorf("the guest ended before it said ready: %s", vm.Exit().Reason)
}

// ended tells whether the gate has died.
func (g *gateProcess) ended() bool {
	select {
	case <-g.Done():
		return true
	default:
		return false
	}
}

// order has the gate do something.
func (g *gateProcess) order(ctx context.Context, o gate.Order) (gate.Report, error) {
	return g.orderUntil(ctx, time.Time{}, o)
}

// orderUntil is order for what the guest has time for until then.
func (g *gateProcess) orderUntil(ctx context.Context, deadline time.Time, o gate.Order) (gate.Report, error) {
	select {
	case g.turn <- struct{}{}:
		defer func() { <-g.turn }()
	case <-ctx.Done():
	}
	if ctx.Err() != nil {
		return gate.Report{}, context.Cause(ctx)
	}
	if !deadline.IsZero() {
		o.Limit = max(time.Until(deadline), time.Millisecond)
	}
	return g.exchange(ctx, o)
}

// exchange gives an order and waits for its report.
func (g *gateProcess) exchange(ctx context.Context, o gate.Order) (report gate.Report, err error) {
	// A report that comes after ctx would be taken for the next order's, so
	// the conversation ends here: the gate ends with it, and is replaced.
	defer context.AfterFunc(ctx, func() { g.conn.Close() })()
	if err := g.lines.Send(o); err != nil {
		return report, g.explain(ctx, err)
	}
	if err := g.lines.Receive(&report); err != nil {
		return report, g.explain(ctx, err)
	}
	if report.Error != "" {
		return report, errors.New(vmm.Printable(report.Error[:min(len(report.Error), maxReason)]))
	}
	return report, nil
}

// maxReason bounds what is told of a gate's reasons, in bytes.
const maxReason = 2 << 10

// explain says why the conversation with g broke.
func (g *gateProcess) explain(ctx context.Context, err error) error {
	// What ended the conversation most often ends the guest or the gate too.
	select {
	case <-ctx.Done():
	case <-g.Done():
	case <-time.After(lastMoment):
	}
	if cause := context.Cause(ctx); cause != nil {
		return cause
	}
	if g.ended() {
		return fmt.Errorf("the gate ended: %s", g.Exit())
	}
	return fmt.Errorf("talk to gate: %w", err)
}

// stop lets the gate read what the guest said last and ends it.
func (g *gateProcess) stop() error {
	g.conn.Close()
	select {
	case <-g.Done():
		return nil
	case <-time.After(time.Second):
	}
	err := g.Kill()
	<-g.Done()
	return err
}

// pause is the time until a gate that died is replaced. It grows while gates
// die young, so that one which cannot live does not keep the host busy.
type pause struct {
	last  time.Duration
	began time.Time
}

const (
	shortestPause = 50 * time.Millisecond
	longestPause  = 10 * time.Second
	youth         = time.Minute
)

func (p *pause) next() time.Duration {
	if time.Since(p.began) > youth+p.last {
		p.last = 0
	}
	p.last = min(max(2*p.last, shortestPause), longestPause)
	p.began = time.Now()
	return p.last
}

// replaceGate starts a gate in the place of one that died. The sandbox lives
// on; streams that went through the old one are broken. It does not wait for
// the guest. If it fails, the dead gate stays, so that it is tried again.
func (m *monitor) replaceGate() {
	m.gate.conn.Close()
	spec := m.gate.spec
	spec.First = nil // it ended with the first gate
	next, err := m.newGate(spec)
	if err != nil {
		m.log.Error("start gate again", "error", err)
		return
	}
	m.mu.Lock()
	dead := m.gate
	m.gate = next
	m.mu.Unlock()
	close(dead.replaced)
	if err := m.save(func(r *store.Record) { r.Host.Gate = store.ProcessOf(next.PID()) }); err != nil {
		m.log.Error("write record", "error", err)
	}
	begin := gate.Begin{Network: m.networkOrder()}
	m.background.Go(func() {
		// A guest that is paused answers when it goes on, however late.
		if err := next.begin(context.Background(), begin, m.vm); err != nil {
			m.log.Error("connect to guest again", "error", err)
			next.stop()
		}
	})
}
