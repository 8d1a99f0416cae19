package monitor

import (
	"context"
	"errors"
	"fmt"
	"net"
	"sync"
	"time"

	"github.com/vmsan/vmsan/internal/gate"
	"github.com/vmsan/vmsan/internal/guest"
	"github.com/vmsan/vmsan/internal/jail"
	"github.com/vmsan/vmsan/internal/store"
	"github.com/vmsan/vmsan/internal/vmm"
)

// gateProcess is a running gate and the way to it.
type gateProcess struct {
	*jail.Process
	spec  gate.StartSpec
	conn  net.Conn
	mu    sync.Mutex // held from an order to its report
	lines *gate.Conn
}

func startGate(spec gate.StartSpec) (*gateProcess, error) {
	process, orders, err := gate.Start(spec)
	if err != nil {
		return nil, err
	}
	defer orders.Close()
	conn, err := net.FileConn(orders)
	if err != nil {
		return nil, errors.Join(err, process.Kill())
	}
	return &gateProcess{Process: process, spec: spec, conn: conn, lines: gate.NewConn(conn)}, nil
}

// begin waits until the guest is there, and fails as soon as its VMM is not.
func (g *gateProcess) begin(ctx context.Context, identity *guest.Identity, vmmGone <-chan struct{}, t *trace) error {
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	watched := make(chan struct{})
	go func() {
		defer close(watched)
		select {
		case <-vmmGone:
			cancel(errors.New("the guest ended before it said ready"))
		case <-ctx.Done():
		}
	}()
	report, err := g.ask(ctx, gate.Order{Begin: &gate.Begin{Identity: identity}})
	if err != nil {
		return err
	}
	cancel(nil)
	<-watched
	if t != nil {
		t.done("guest", "")
		t.add("guest: boot", fromMilliseconds(report.Linked), "")
		t.add("guest: configure", fromMilliseconds(report.Configured), "")
	}
	return nil
}

func fromMilliseconds(ms float64) time.Duration { return time.Duration(ms * float64(time.Millisecond)) }

// order has the gate do something that needs no answer but how it went.
func (g *gateProcess) order(ctx context.Context, o gate.Order) error {
	_, err := g.ask(ctx, o)
	return err
}

func (g *gateProcess) ask(ctx context.Context, o gate.Order) (report gate.Report, err error) {
	g.mu.Lock()
	defer g.mu.Unlock()
	// A report that comes after ctx would be taken for the next order's, so
	// the conversation ends here: the gate ends with it, and is replaced.
	defer context.AfterFunc(ctx, func() { g.conn.Close() })()
	if err := g.lines.Send(o); err != nil {
		return report, gateError(ctx, err)
	}
	if err := g.lines.Receive(&report); err != nil {
		return report, gateError(ctx, err)
	}
	if report.Error != "" {
		return report, fmt.Errorf("gate: %s", vmm.Printable(report.Error))
	}
	return report, nil
}

func gateError(ctx context.Context, err error) error {
	if cause := context.Cause(ctx); cause != nil {
		return cause
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

// restartPause is between two restarts of a gate, so that one which dies at
// once does not keep the host busy.
const restartPause = 200 * time.Millisecond

// replaceGate starts a gate in the place of one that died. The sandbox lives
// on; streams that went through the old one are broken.
func (m *monitor) replaceGate() {
	m.log.Warn("gate died", "exit", m.gate.Exit())
	m.gate.conn.Close()
	time.Sleep(restartPause)
	next, err := startGate(m.gate.spec)
	if err != nil {
		// Done stays closed, so this is tried again.
		m.log.Error("start gate again", "error", err)
		return
	}
	m.gate = next
	if err := m.save(func(r *store.Record) { r.Host.Gate = store.ProcessOf(next.PID()) }); err != nil {
		m.log.Error("write record", "error", err)
	}
	ctx, cancel := context.WithTimeout(context.Background(), DefaultGrace)
	defer cancel()
	if err := next.begin(ctx, nil, m.vm.Done(), nil); err != nil {
		m.log.Error("connect to guest again", "error", err)
		next.stop()
	}
}
