package link

import (
	"bufio"
	"bytes"
	"context"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"net"
	"strconv"
	"strings"
	"sync"
	"time"
	"unicode"

	"golang.org/x/sys/unix"
)

// Host is the host's end of a guest link. Its methods may be called from any
// goroutine.
type Host struct {
	mux     *mux
	control io.Writer
	timed   <-chan struct{}
}

// Connect starts a fresh session over the two ports and returns when the
// guest answers, which a guest that boots does when it is ready. It owns the
// ports from now on, also on failure: Close closes them.
//
// The error is a *FailedError if the guest says that it cannot come up, and
// ctx's if that ends first. identity is told to a guest that has just booted,
// and nil for one that knows it.
func Connect(ctx context.Context, control, data io.ReadWriteCloser, identity *Identity) (*Host, error) {
	closePorts := sync.OnceFunc(func() {
		control.Close()
		data.Close()
	})
	stop := context.AfterFunc(ctx, closePorts)
	timed := make(chan struct{}, 1)
	rest, err := greet(control, data, identity, timed)
	if !stop() {
		return nil, context.Cause(ctx)
	}
	if err != nil {
		closePorts()
		return nil, err
	}
	m := newMux(io.MultiReader(bytes.NewReader(rest), data), data, closePorts, nil)
	m.wait, m.budget = 200*time.Microsecond, hostBudget
	go m.run()
	return &Host{mux: m, control: control, timed: timed}, nil
}

// greet returns when the guest has answered, with what it has said since.
func greet(control, data io.ReadWriteCloser, identity *Identity, timed chan<- struct{}) (rest []byte, err error) {
	if identity != nil {
		if err := tell(control, *identity); err != nil {
			return nil, fmt.Errorf("tell guest who it is: %w", err)
		}
	}
	n := newNonce()
	if err := writeMessage(control, verbReset, hex.EncodeToString(n[:])); err != nil {
		return nil, fmt.Errorf("ask guest for a session: %w", err)
	}
	failed := make(chan *FailedError, 1)
	go watchControl(control, data, failed, timed)
	rest, err = discardUntil(data, n)
	select {
	case reason := <-failed:
		return nil, reason
	default:
	}
	if err != nil {
		return nil, waitError(err)
	}
	if _, err := data.Write(n[:]); err != nil {
		return nil, fmt.Errorf("begin session: %w", err)
	}
	return rest, nil
}

func tell(control io.Writer, identity Identity) error {
	digits, err := identity.encode()
	if err != nil {
		return err
	}
	return writeMessage(control, verbIdentity, digits)
}

// waitError names the usual end of a wait: a machine that is gone.
func waitError(err error) error {
	if errors.Is(err, io.EOF) || errors.Is(err, unix.ECONNRESET) {
		return errors.New("the guest ended before it said ready")
	}
	return fmt.Errorf("wait for guest: %w", err)
}

// watchControl reads the control port for as long as it lives and keeps
// nothing of it, so that a talkative guest does not block. A guest that says
// it failed ends the wait for it: the data port is closed.
func watchControl(control io.Reader, data io.Closer, failed chan<- *FailedError, timed chan<- struct{}) {
	obey := func(m message) bool {
		if m.verb == verbTimed {
			select {
			case timed <- struct{}{}:
			default: // nobody asked
			}
		}
		if m.verb != verbFailed {
			return true
		}
		failed <- &FailedError{Reason: printable(m.text[:min(len(m.text), maxReason)])}
		data.Close()
		return false
	}
	for {
		// What is left of a line that is too long is read as lines of its own.
		if err := readMessages(control, maxGuestLine, obey); !errors.Is(err, bufio.ErrTooLong) {
			return
		}
	}
}

// printable replaces what could move a terminal's cursor.
func printable(s string) string {
	return strings.Map(func(r rune) rune {
		if unicode.IsPrint(r) {
			return r
		}
		return '?'
	}, s)
}

// A guest's clock is as right as its answer is quick: what is slower than
// clockSlack is told again, some times, for the host may be busy.
const (
	clockSlack = 40 * time.Millisecond
	clockTries = 10
	clockWait  = 2 * time.Second
)

// SetClock sets the guest's clock to the host's. It is called by one goroutine
// at a time. It is an error if the guest does not answer, and none if the host
// is too busy for an answer within clockSlack.
func (h *Host) SetClock(ctx context.Context) error {
	for range clockTries {
		began := time.Now()
		if err := writeMessage(h.control, verbTime, strconv.FormatInt(began.UnixNano(), 10)); err != nil {
			return fmt.Errorf("tell guest the time: %w", err)
		}
		select {
		case <-h.timed:
		case <-time.After(clockWait):
			return errors.New("the guest does not set its clock")
		case <-ctx.Done():
			return context.Cause(ctx)
		}
		if time.Since(began) < clockSlack {
			return nil
		}
	}
	return nil
}

// Dial opens a byte stream to the guest's agent.
func (h *Host) Dial(ctx context.Context) (net.Conn, error) {
	if err := ctx.Err(); err != nil {
		return nil, err
	}
	stream, err := h.mux.open()
	if err != nil {
		return nil, fmt.Errorf("open stream to guest: %w", err)
	}
	return stream, nil
}

// Closed is closed when the session has ended.
func (h *Host) Closed() <-chan struct{} { return h.mux.closed }

// Close ends every stream and closes the ports.
func (h *Host) Close() error {
	h.mux.fail(net.ErrClosed)
	return nil
}
