package gate

import (
	"bufio"
	"encoding/json"
	"fmt"
	"io"
	"net/netip"
	"time"

	"github.com/vmsan/vmsan/internal/link"
	"github.com/vmsan/vmsan/internal/policy"
)

// The files that a gate inherits, by descriptor.
const (
	fdOrders = 3 + iota
	fdListener
	fdControl
	fdData
	fdConsole
	fdConsoleLog
	// What follows is there only for a sandbox with a network, up to the
	// published ports. Behind all comes the first client, if there is one.
	fdRequests
	fdDNSPacket
	fdDNSStream
	fdProxy
	fdDenials
	fdNetworkLog
	fdPorts
)

// fdFirst is the first client's descriptor, in a gate with so many files.
func fdFirst(networked bool, ports int) uintptr {
	if !networked {
		return fdRequests
	}
	return uintptr(fdPorts + ports)
}

// Order is what the monitor asks of its gate. Exactly one field is set, and
// perhaps Limit.
type Order struct {
	// Limit is how long the guest may take. An order that it takes longer for
	// fails, and the gate goes on; one that the monitor breaks off ends it.
	Limit time.Duration `json:"limit,omitempty"`
	// Begin is the first order: connect to the guest.
	Begin *Begin `json:"begin,omitempty"`
	// PowerOff asks the guest to shut down within so long.
	PowerOff time.Duration `json:"power_off,omitempty"`
	// Freeze has the guest's commands hold still and its disk take no writes,
	// Hold only the former, and Thaw lets them go on.
	Freeze bool `json:"freeze,omitempty"`
	Hold   bool `json:"hold,omitempty"`
	Thaw   bool `json:"thaw,omitempty"`
	// SetTime sets the guest's clock.
	SetTime bool `json:"set_time,omitempty"`
	// Resize has the guest grow its file system to that of its own disk, which
	// has so many bytes.
	Resize int64 `json:"resize,omitempty"`
	// Clients asks how many clients have streams to the guest.
	Clients bool `json:"clients,omitempty"`
	// Policy changes what the guest may reach.
	Policy *PolicyOrder `json:"policy,omitempty"`
}

// Begin says what to do once the guest answers.
type Begin struct {
	// Identity to give to a guest that has just booted. Nil for a guest that
	// has it, whose gate died.
	Identity *link.Identity `json:"identity,omitempty"`
	// First is true if the gate inherited a client that is served as soon
	// as the guest is there, before anybody hears of it.
	First bool `json:"first,omitempty"`
	// Network says how to serve the guest's network. Nil without one.
	Network *NetworkOrder `json:"network,omitempty"`
}

// NetworkOrder is how to serve a guest's network.
type NetworkOrder struct {
	Policy policy.Policy `json:"policy"`
	// Guest is the guest's address, and Pool where all sandboxes have theirs.
	Guest netip.Addr   `json:"guest"`
	Pool  netip.Prefix `json:"pool"`
	// Ports are what the published ports that were handed over lead to.
	Ports []policy.Publication `json:"ports,omitempty"`
}

// PolicyOrder is a change of what the guest may reach.
type PolicyOrder struct {
	Policy policy.Policy `json:"policy"`
	// Kill cuts connections that are no longer allowed.
	Kill bool `json:"kill,omitempty"`
}

// Report is what the gate tells its monitor: the outcome of each order, in
// order. It is all that the monitor ever hears of a guest, through a process
// that may have been taken over, so it is short and only shown.
type Report struct {
	// Killed is how many connections were cut. Of Policy.
	Killed int `json:"killed,omitempty"`
	// Clients is how many have streams to the guest. Of Clients.
	Clients int `json:"clients,omitempty"`
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
