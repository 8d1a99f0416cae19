// Package monitor is the process that owns one running sandbox: it brings
// the sandbox up, waits, and takes everything back. It is the parent of the
// VMM and of the gate, and the only writer of the sandbox's record.
//
// It runs with the rights of whoever started it, so it parses nothing that a
// guest has written; that is the gate's work.
package monitor

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"os"
	"runtime/debug"
	"sync"
	"sync/atomic"
	"time"

	"golang.org/x/sync/semaphore"
	"golang.org/x/sys/unix"

	"github.com/vmsan/vmsan/api"
	"github.com/vmsan/vmsan/internal/fault"
	"github.com/vmsan/vmsan/internal/gate"
	"github.com/vmsan/vmsan/internal/monitor/control"
	"github.com/vmsan/vmsan/internal/store"
	"github.com/vmsan/vmsan/internal/undo"
	"github.com/vmsan/vmsan/internal/usage"
	"github.com/vmsan/vmsan/internal/vmm"
)

// Command is the hidden command of the vmsan binary that is the monitor.
const Command = "monitor"

// WithFirst is the word on a monitor's command line that says that it
// inherits a first stream to the guest.
const WithFirst = "first"

// The files that a monitor inherits, by descriptor.
const (
	fdReport = 3 + iota
	fdLock
	fdFirst
)

// DefaultGrace is how long a guest has to shut down by itself.
const DefaultGrace = 10 * time.Second

// monitor is the state of the process.
type monitor struct {
	layout store.Layout
	id     string
	driver vmm.Driver
	log    *slog.Logger
	// root is true if users, namespaces and cgroups can be made.
	root bool

	undo            undo.Stack
	vm              vmm.VM
	link            vmm.Link // to the guest, for one gate after the other
	controlListener net.Listener
	listener        *os.File // the guest socket
	console         *os.File // the console log
	vmmLog          *os.File
	overlay         *os.File // the sandbox's disk, while it is ephemeral
	first           *os.File // a client of the guest that came before it; nil without
	gate            *gateProcess
	network         *sandboxNetwork // nil without one
	nic             *vmm.NIC        // nil without one
	policyTurn      sync.Mutex      // held while the policy changes
	denials         *denials
	limit           *limit
	idle            chan struct{} // gets word when the sandbox was idle for its limit
	helpers         Helpers
	bootWatch       bootWatch
	still           atomic.Bool // the machine stands still for want of the host's disk

	standing *semaphore.Weighted // held while the machine is paused, resumed, saved or changed
	motion
	behind   chan struct{} // gets word when the guest has to be let go on later
	wakeTime time.Duration // what tests raise of that constant

	background sync.WaitGroup // conversations with gates

	mu     sync.Mutex // guards record, and changes of gate
	record *store.Record

	stop     chan time.Duration // requests to stop, with their grace
	ending   chan struct{}      // closed when the end has begun
	held     chan struct{}      // closed when somebody holds the sandbox
	holdOnce sync.Once          // closes held
	finished chan struct{}      // closed when everything is undone
	outcome  error              // of the end; read after finished
	removed  bool               // with the end; read after finished
	before   store.Record       // from before the end; read after finished
	asked    atomic.Int32       // commands that wait for the end that they asked for

	interrupted bool // it ends though nobody asked for that; the watching goroutine's
}

// Helpers are what a monitor needs of those who know more than it. All are
// required.
type Helpers struct {
	// Driver returns the driver of a sandbox.
	Driver func(store.Layout, store.Spec) (vmm.Driver, error)
	// Snapshot saves a sandbox that runs, through its monitor.
	Snapshot func(ctx context.Context, l store.Layout, id string) error
}

// Main runs the monitor of the sandbox id until the sandbox has ended, or
// until ctx ends, which is an order to stop it. The lock on the sandbox and
// the pipe to report on are inherited, and withFirst a stream to the guest.
func Main(ctx context.Context, layout store.Layout, id string, withFirst bool, helpers Helpers) error {
	lock := store.InheritLock(os.NewFile(fdLock, "lock"))
	defer lock.Release()
	report := os.NewFile(fdReport, "report")
	unix.CloseOnExec(fdReport)
	unix.CloseOnExec(fdLock)
	m, err := newMonitor(layout, id, helpers)
	if err == nil && withFirst {
		unix.CloseOnExec(fdFirst)
		m.first = os.NewFile(fdFirst, "first stream")
	}
	if err == nil {
		err = m.bringUp(ctx)
	}
	if err != nil {
		return errors.Join(Report{Error: api.AsError(err)}.write(report), err)
	}
	if err := (Report{}).write(report); err != nil {
		// The command is gone, which harms nobody: the sandbox runs.
		m.log.Warn("report", "error", err)
	}
	// Bringing a machine up takes memory that waiting for its end does not.
	debug.FreeOSMemory()
	err = m.wait(ctx)
	// Hooks may want to start the sandbox again.
	lock.Release()
	m.tellHooks(ctx)
	return err
}

func newMonitor(layout store.Layout, id string, helpers Helpers) (*monitor, error) {
	record, err := layout.Load(id)
	if err != nil {
		return nil, err
	}
	log, err := os.OpenFile(layout.MonitorLog(id), os.O_WRONLY|os.O_CREATE|os.O_TRUNC|os.O_APPEND, 0o600)
	if err != nil {
		return nil, fmt.Errorf("open log: %w", err)
	}
	m := &monitor{
		layout: layout, id: id, record: record, root: os.Geteuid() == 0,
		log:      slog.New(slog.NewTextHandler(&boundedWriter{w: log, left: maxLog}, nil)),
		stop:     make(chan time.Duration),
		standing: semaphore.NewWeighted(1),
		behind:   make(chan struct{}, 1),
		wakeTime: wakeTime,
		ending:   make(chan struct{}),
		held:     make(chan struct{}),
		finished: make(chan struct{}),
		denials:  newDenials(),
		idle:     make(chan struct{}),
		helpers:  helpers,

		bootWatch: bootWatch{every: 5 * time.Second, measure: usage.RunnableOf},
	}
	m.limit = newLimit(m.noteLimit)
	m.undo.Add(log.Close)
	m.driver, err = helpers.Driver(layout, record.Spec)
	return m, err
}

// save changes the record under its lock and writes it.
func (m *monitor) save(change func(*store.Record)) error {
	m.mu.Lock()
	defer m.mu.Unlock()
	change(m.record)
	return m.layout.Save(m.record)
}

// wait runs until the sandbox has ended, by itself or on request, and takes
// everything back.
func (m *monitor) wait(ctx context.Context) error {
	server := m.serve()
	if m.record.Ephemeral {
		go m.awaitHold()
	}
	reason := m.watchAll(ctx)
	m.mu.Lock()
	m.before = *m.record
	m.mu.Unlock()
	m.outcome = m.end(reason)
	close(m.finished)
	// Whoever waits for the end gets the answer before the process is gone.
	last, cancel := context.WithTimeout(context.WithoutCancel(ctx), time.Second)
	defer cancel()
	return errors.Join(m.outcome, server.Shutdown(last))
}

// watchAll is watch, with what it needs while it does.
func (m *monitor) watchAll(ctx context.Context) string {
	limits, cancel := context.WithCancel(ctx)
	defer cancel()
	if span := m.record.Spec.IdleTimeout; span > 0 {
		m.background.Go(func() { watchIdle(limits, span, m.busyness(), m.idle) })
	}
	return m.watch(ctx, limits)
}

// watch returns why the sandbox ended. What is done about its limits ends with
// limits.
func (m *monitor) watch(ctx, limits context.Context) string {
	var pause pause
	dead, again := m.gate.Done(), (<-chan time.Time)(nil)
	acting, acted := "", make(chan error, 1)
	for {
		reached := ""
		select {
		case <-m.vm.Done():
			return m.vm.Exit().Reason
		case <-dead:
			m.log.Warn("gate died", "exit", m.gate.Exit())
			dead, again = nil, time.After(pause.next())
		case <-again:
			m.replaceGate()
			dead = m.gate.Done()
		case <-m.limit.over:
			if span, passed := m.limit.passed(); passed {
				reached = fmt.Sprintf("timeout: its limit of %s has passed", span)
			}
		case <-m.idle:
			reached = fmt.Sprintf("timeout: it was idle for %s", m.record.Spec.IdleTimeout)
		case err := <-acted:
			if reason, stop := m.expired(acting, err); stop {
				m.shutDown(DefaultGrace)
				return reason
			}
			acting = ""
		case grace := <-m.stop:
			m.shutDown(grace)
			return "stopped"
		case <-ctx.Done():
			// By a signal, as all processes get at the host's end.
			m.log.Info("told to stop", "cause", context.Cause(ctx))
			m.interrupted = true
			m.shutDown(DefaultGrace)
			return "stopped with the host"
		}
		if reached == "" || acting != "" {
			continue
		}
		if m.expire(limits, reached, acted) {
			return reached
		}
		acting = reached
	}
}

// shutDown ends the guest in order, and by force after grace. Without grace
// the guest is not asked.
func (m *monitor) shutDown(grace time.Duration) {
	close(m.ending)
	if grace > 0 && m.wake() && m.askGuest(grace) {
		return
	}
	quit, cancel := context.WithTimeout(context.Background(), quitTime)
	defer cancel()
	if m.ephemeral() {
		// Nobody will read its disk, or what it said last.
		cancel()
		if err := m.gate.Kill(); err != nil {
			m.log.Error("kill gate", "error", err)
		}
	}
	if err := m.vm.Stop(quit); err != nil {
		m.log.Error("stop VMM", "error", err)
	}
}

// askGuest tells whether the guest shut down by itself. Requests to stop that
// come meanwhile can only shorten its time.
func (m *monitor) askGuest(grace time.Duration) bool {
	ctx, cancel := context.WithCancel(context.Background())
	defer cancel()
	m.reviveGate()
	deadline := time.Now().Add(grace)
	asked := m.askPowerOff(ctx, grace)
	for {
		select {
		case <-m.vm.Done():
			return true
		case err := <-asked:
			switch {
			case err == nil:
			case m.reviveGate():
				asked = m.askPowerOff(ctx, time.Until(deadline))
			default:
				m.log.Warn("ask guest to shut down", "error", err)
				return m.endsAnyway()
			}
		case <-time.After(time.Until(deadline)):
			m.log.Warn("guest did not shut down in time", "grace", grace)
			return false
		case sooner := <-m.stop:
			if now := time.Now(); now.Add(sooner).Before(deadline) {
				deadline = now.Add(sooner)
			}
		}
	}
}

// reviveGate tells whether it had to replace a gate that had died.
func (m *monitor) reviveGate() bool {
	if !m.gate.ended() {
		return false
	}
	dead := m.gate
	m.replaceGate()
	return m.gate != dead
}

func (m *monitor) askPowerOff(ctx context.Context, grace time.Duration) <-chan error {
	asked, g := make(chan error, 1), m.gate
	m.background.Go(func() {
		_, err := g.order(ctx, gate.Order{PowerOff: max(grace, time.Millisecond)})
		asked <- err
	})
	return asked
}

// endsAnyway tells whether the guest is on its way out: its answer may be
// lost with it.
func (m *monitor) endsAnyway() bool {
	select {
	case <-m.vm.Done():
		return true
	case <-time.After(100 * time.Millisecond):
		return false
	}
}

// end takes back all that the sandbox has on the host and writes how it
// ended.
func (m *monitor) end(reason string) error {
	m.limit.end()
	err := fault.After("end: undone", m.undo.Run())
	m.background.Wait()
	if err == nil && m.ephemeral() {
		m.emit(api.EventVMStop, because(reason))
		m.removed = true
		if err := fault.After("end: deleted", m.layout.Delete(m.id)); err != nil {
			return err
		}
		m.emit(api.EventVMRemove, nil)
		return nil
	}
	if err := m.standing.Acquire(context.Background(), 1); err != nil {
		return err
	}
	defer m.standing.Release(1)
	saveErr := m.save(func(r *store.Record) {
		r.Status, r.Reason, r.StoppedAt, r.Interrupted = api.StatusStopped, reason, time.Now().UTC(), m.interrupted
		r.TimeoutAt, r.TimeoutLeft = time.Time{}, 0
		if m.left != nil {
			r.Status, r.Reason, r.Saved = api.StatusPaused, "its memory is on the disk", m.left
			r.TimeoutLeft = m.limit.remaining()
		}
		if err != nil {
			r.Status = api.StatusError
			r.Reason = fmt.Sprintf("%s; clean up: %v", reason, err)
			return
		}
		r.Host = store.Host{}
	})
	m.emitEnd()
	return errors.Join(err, saveErr)
}

func (m *monitor) ephemeral() bool {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.record.Ephemeral
}

// serve answers on the control socket, which bring-up has opened.
func (m *monitor) serve() *http.Server {
	server := &http.Server{Handler: control.Handler(commands{m}, m.log), ReadHeaderTimeout: 10 * time.Second, MaxHeaderBytes: 16 << 10}
	go server.Serve(m.controlListener)
	return server
}

// Stop implements control.Monitor.
func (m *monitor) Stop(ctx context.Context, grace time.Duration) error {
	select {
	case m.stop <- grace:
	case <-m.finished:
	case <-ctx.Done():
		return ctx.Err()
	}
	select {
	case <-m.finished:
		return m.outcome
	case <-ctx.Done():
		return ctx.Err()
	}
}

// Rename implements control.Monitor.
func (m *monitor) Rename(_ context.Context, name string) error {
	return m.save(func(r *store.Record) { r.Name = name })
}

// Hold implements control.Monitor.
func (m *monitor) Hold(ctx context.Context) error {
	m.holdOnce.Do(func() { close(m.held) })
	select {
	case <-m.finished:
		return m.outcome
	case <-ctx.Done():
		return m.Stop(context.Background(), m.lastGrace())
	}
}

// holdWait is how long the creator of an ephemeral sandbox has to hold it.
const holdWait = 10 * time.Second

// awaitHold ends an ephemeral sandbox whose creator died before it could hold
// it.
func (m *monitor) awaitHold() {
	select {
	case <-m.held:
	case <-m.finished:
	case <-time.After(holdWait):
		m.log.Warn("nobody holds this ephemeral sandbox")
		m.Stop(context.Background(), m.lastGrace())
	}
}
