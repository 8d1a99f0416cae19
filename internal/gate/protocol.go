package gate

import (
	"bufio"
	"encoding/json"
	"fmt"
	"io"

	"github.com/vmsan/vmsan/internal/link"
)

// The files that a gate inherits, by descriptor.
const (
	fdOrders = 3 + iota
	fdListener
	fdControl
	fdData
	fdConsole
	fdConsoleLog
	fdFirst
)

// Order is what the monitor asks of its gate. Exactly one field is set.
type Order struct {
	// Begin is the first order: connect to the guest.
	Begin *Begin `json:"begin,omitempty"`
	// PowerOff asks the guest to shut down.
	PowerOff bool `json:"power_off,omitempty"`
}

// Begin says what to do once the guest answers.
type Begin struct {
	// Identity to give to a guest that has just booted. Nil for a guest that
	// has it, whose gate died.
	Identity *link.Identity `json:"identity,omitempty"`
	// First is true if the gate inherited a client that is served as soon
	// as the guest is there, before anybody hears of it.
	First bool `json:"first,omitempty"`
}

// Report is what the gate tells its monitor: the outcome of each order, in
// order. It is all that the monitor ever hears of a guest, through a process
// that may have been taken over, so it is short and only shown.
type Report struct {
	// Error is why the order could not be carried out.
	Error string `json:"error,omitempty"`
	// Failed is true if the error is the guest's own word, and not that
	// there was none.
	Failed bool `json:"failed,omitempty"`
}

// maxLine bounds an order or a report, in bytes.
const maxLine = 256 << 10

// Conn carries orders one way and reports the other, as lines of JSON.
type Conn struct {
	w     io.Writer
	lines *bufio.Scanner
}

// NewConn speaks over rw.
func NewConn(rw io.ReadWriter) *Conn {
	lines := bufio.NewScanner(rw)
	lines.Buffer(make([]byte, 0, 4096), maxLine)
	return &Conn{w: rw, lines: lines}
}

// Send sends an Order or a Report.
func (c *Conn) Send(message any) error {
	line, err := json.Marshal(message)
	if err != nil {
		return err
	}
	_, err = c.w.Write(append(line, '\n'))
	return err
}

// Receive stores the next message in message.
func (c *Conn) Receive(message any) error {
	if !c.lines.Scan() {
		if err := c.lines.Err(); err != nil {
			return err
		}
		return io.EOF
	}
	if err := json.Unmarshal(c.lines.Bytes(), message); err != nil {
		return fmt.Errorf("not a message: %w", err)
	}
	return nil
}
