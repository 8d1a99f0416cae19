package qemu

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"os"
	"time"

	"golang.org/x/sys/unix"

	"github.com/vmsan/vmsan/internal/vmm"
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

	turn    chan struct{} // holds the command that is under way
	answers chan answer   // holds the answer to it
	done    chan struct{} // closed when nothing more is read
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

// maxDesc bounds what is told of an error, in bytes.
const maxDesc = 512

// Error is made safe to print.
func (e *commandError) Error() string { return vmm.Printable(e.Desc[:min(len(e.Desc), maxDesc)]) }

// newMonitor takes over conn. events is called for each event, in order, and
// must not run commands.
func newMonitor(conn net.Conn, events func(string, json.RawMessage)) *monitor {
	m := &monitor{
		conn: conn, events: events,
		turn: make(chan struct{}, 1), answers: make(chan answer, 1), done: make(chan struct{}),
	}
	go m.read()
	return m
}

// read reads until QEMU's end is closed, or says what QEMU does not.
func (m *monitor) read() {
	defer close(m.done)
	defer m.conn.Close()
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
			select {
			case m.answers <- a:
			default:
				return // nobody asked for two
			}
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
	return m.runWith(ctx, nil, command, arguments, result)
}

// runWith is run with a file that comes along (QEMU's docs/interop/qmp-spec.txt,
// "getfd").
func (m *monitor) runWith(ctx context.Context, file *os.File, command string, arguments, result any) error {
	select {
	case m.turn <- struct{}{}:
		defer func() { <-m.turn }()
	case <-m.done:
		return fmt.Errorf("QEMU %s: %w", command, errMonitorClosed)
	case <-ctx.Done():
	}
	if ctx.Err() != nil {
		return fmt.Errorf("QEMU %s: %w", command, context.Cause(ctx))
	}
	defer context.AfterFunc(ctx, func() { m.conn.Close() })()
	a, err := m.ask(file, command, arguments)
	if err != nil {
		return fmt.Errorf("QEMU %s: %w", command, cause(ctx, err))
	}
	if result == nil {
		return nil
	}
	if err := json.Unmarshal(a.Return, result); err != nil {
		return fmt.Errorf("QEMU %s: %w", command, err)
	}
	return nil
}

func (m *monitor) ask(file *os.File, command string, arguments any) (answer, error) {
	request, err := json.Marshal(struct {
		Execute   string `json:"execute"`
		Arguments any    `json:"arguments,omitempty"`
	}{command, arguments})
	if err != nil {
		return answer{}, err
	}
	if err := m.send(append(request, '\n'), file); err != nil {
		return answer{}, fmt.Errorf("%w: %w", errMonitorClosed, err)
	}
	var a answer
	select {
	case a = <-m.answers:
	case <-m.done:
		// The answer may have been QEMU's last word.
		select {
		case a = <-m.answers:
		default:
			return answer{}, errMonitorClosed
		}
	}
	if a.Error != nil {
		return a, a.Error
	}
	return a, nil
}

func (m *monitor) send(request []byte, file *os.File) error {
	if file == nil {
		_, err := m.conn.Write(request)
		return err
	}
	conn, ok := m.conn.(*net.UnixConn)
	if !ok {
		return fmt.Errorf("pass %s over %T", file.Name(), m.conn)
	}
	_, _, err := conn.WriteMsgUnix(request, unix.UnixRights(int(file.Fd())), nil)
	return err
}

func cause(ctx context.Context, err error) error {
	if ctx.Err() != nil {
		return context.Cause(ctx)
	}
	return err
}

// drainTime is how long the events of a QEMU that has ended may take to be
// read. Only something that it left running can keep its end open.
const drainTime = time.Second

// drain reads what a QEMU that has ended said last, and closes the monitor.
func (m *monitor) drain() {
	m.conn.SetReadDeadline(time.Now().Add(drainTime))
	<-m.done
}
