package qemu

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"sync"
)

// maxQMPLine bounds one message of a VMM that may have been taken over by
// its guest. Real ones stay below a few KiB.
const maxQMPLine = 1 << 20

// errMonitorClosed is what a command gets when QEMU ends before its answer.
var errMonitorClosed = errors.New("QEMU closed its monitor")

// monitor speaks the QEMU Machine Protocol, commands one at a time (QEMU's
// docs/interop/qmp-spec.txt). Its methods may be called from any goroutine.
type monitor struct {
	conn   net.Conn
	events func(name string, data json.RawMessage)

	commands sync.Mutex // held during a command
	answers  chan answer
	done     chan struct{}
}

// answer is any message from QEMU: exactly one of its fields is set.
type answer struct {
	Greeting json.RawMessage `json:"QMP"`
	Return   json.RawMessage `json:"return"`
	Error    *commandError   `json:"error"`
	Event    string          `json:"event"`
	Data     json.RawMessage `json:"data"`
}

type commandError struct {
	Class string `json:"class"`
	Desc  string `json:"desc"`
}

func (e *commandError) Error() string { return e.Desc }

// newMonitor takes over conn. events is called for each event, in order, and
// must not run commands.
func newMonitor(conn net.Conn, events func(string, json.RawMessage)) *monitor {
	m := &monitor{conn: conn, events: events, answers: make(chan answer), done: make(chan struct{})}
	go m.read()
	return m
}

func (m *monitor) read() {
	defer close(m.done)
	lines := bufio.NewScanner(m.conn)
	lines.Buffer(make([]byte, 0, 4096), maxQMPLine)
	for lines.Scan() {
		a, ok := parseAnswer(lines.Bytes())
		if !ok {
			return
		}
		switch {
		case a.Event != "":
			m.events(a.Event, a.Data)
		case a.Return != nil || a.Error != nil:
			m.answers <- a
		}
	}
}

func parseAnswer(line []byte) (a answer, ok bool) {
	return a, json.Unmarshal(line, &a) == nil
}

// negotiate leaves the mode that QMP begins in.
func (m *monitor) negotiate(ctx context.Context) error {
	return m.run(ctx, "qmp_capabilities", nil, nil)
}

// run runs a command and stores what it returns in result, unless nil. If
// ctx ends first the monitor is closed: an answer that comes late would be
// taken for the next command's.
func (m *monitor) run(ctx context.Context, command string, arguments, result any) error {
	m.commands.Lock()
	defer m.commands.Unlock()
	request, err := json.Marshal(struct {
		Execute   string `json:"execute"`
		Arguments any    `json:"arguments,omitempty"`
	}{command, arguments})
	if err != nil {
		return err
	}
	defer context.AfterFunc(ctx, func() { m.conn.Close() })()
	if _, err := m.conn.Write(append(request, '\n')); err != nil {
		return fmt.Errorf("QEMU %s: %w", command, cause(ctx, err))
	}
	select {
	case a := <-m.answers:
		if a.Error != nil {
			return fmt.Errorf("QEMU %s: %w", command, a.Error)
		}
		if result == nil {
			return nil
		}
		return json.Unmarshal(a.Return, result)
	case <-m.done:
		return fmt.Errorf("QEMU %s: %w", command, cause(ctx, errMonitorClosed))
	}
}

func cause(ctx context.Context, err error) error {
	if ctx.Err() != nil {
		return context.Cause(ctx)
	}
	return err
}

func (m *monitor) close() {
	m.conn.Close()
	for {
		select {
		case <-m.answers:
		case <-m.done:
			return
		}
	}
}
