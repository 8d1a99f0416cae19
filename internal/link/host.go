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
	"strings"
	"sync"
	"sync/atomic"
	"time"
	"unicode"

	"golang.org/x/sys/unix"
)

// Host is the host's end of a guest link. Its methods may be called from any
// goroutine.
type Host struct {
	mux   *mux
	watch *watch
	clock clock
}

// Connect starts a fresh session over the two ports and returns when the
// guest answers, which a guest that boots does when it is ready. It owns the
// ports from now on, also on failure: Close closes them.
//
// The error is a *FailedError if the guest says that it cannot come up, and
// ctx's if that ends first. identity is told to a guest that has just booted
// or was restored, when its clock is right, and nil for one that knows it.
func Connect(ctx context.Context, control, data io.ReadWriteCloser, identity *Identity) (*Host, error) {
	closePorts := sync.OnceFunc(func() {
		control.Close()
		data.Close()
	})
	stop := context.AfterFunc(ctx, closePorts)
	h := &Host{watch: watchControl(control, data)}
	h.clock.pause = time.Second
	rest, err := h.greet(ctx, data, identity)
	if !stop() {
		return nil, context.Cause(ctx)
	}
	if err != nil {
		closePorts()
		return nil, err
	}
	h.mux = newMux(io.MultiReader(bytes.NewReader(rest), data), data, closePorts, nil)
	h.mux.wait, h.mux.budget = 200*time.Microsecond, hostBudget
	go h.mux.run()
	return h, nil
}

// greet returns when the guest has answered, with what it has said since.
func (h *Host) greet(ctx context.Context, data io.ReadWriter, identity *Identity) (rest []byte, err error) {
	if identity != nil {
		if err := h.introduce(ctx, *identity); err != nil {
			return nil, err
		}
	}
	n := newNonce()
	if err := writeMessage(h.watch.control, verbReset, hex.EncodeToString(n[:])); err != nil {
		return nil, h.watch.reason(fmt.Errorf("ask guest for a session: %w", err))
	}
	rest, err = discardUntil(data, n)
	if err != nil {
		return nil, h.watch.reason(err)
	}
	if _, err := data.Write(n[:]); err != nil {
		return nil, fmt.Errorf("begin session: %w", err)
	}
	return rest, nil
}

// introduce waits for a guest that boots or is being restored, sets its clock
// and tells it who it is. A guest that is too slow with its clock is told all
// the same.
func (h *Host) introduce(ctx context.Context, identity Identity) error {
	took, err := h.awaitGuest(ctx)
	if err == nil && took >= clockSlack {
		err = h.setClock(ctx, verbAdvance)
	}
	if err != nil && !errors.Is(err, errClock) {
		return err
	}
	digits, err := identity.encode(time.Now())
	if err != nil {
		return fmt.Errorf("tell guest who it is: %w", err)
	}
	if err := writeMessage(h.watch.control, verbIdentity, digits); err != nil {
		return h.watch.reason(fmt.Errorf("tell guest who it is: %w", err))
	}
	return nil
}

// waitError names the usual end of a wait: a machine that is gone.
func waitError(err error) error {
	if errors.Is(err, io.EOF) || errors.Is(err, unix.ECONNRESET) {
		return errors.New("the guest ended before it said ready")
	}
	return fmt.Errorf("wait for guest: %w", err)
}

// watch is what the host hears on the control port.
type watch struct {
	control io.Writer
	timed   chan string                 // what the guest said last that its clock shows
	failed  atomic.Pointer[FailedError] // why it cannot come up
	ended   chan struct{}               // closed when it cannot say anything any more
}

// watchControl reads the control port for as long as it lives and keeps
// little of it, so that a talkative guest does not block. A guest that says
// it failed ends the wait for it: the data port is closed.
func watchControl(control io.ReadWriter, data io.Closer) *watch {
	w := &watch{control: control, timed: make(chan string, 1), ended: make(chan struct{})}
	obey := func(m message) bool {
		switch m.verb {
		case verbTimed:
			w.keep(m.text)
		case verbFailed:
			w.failed.Store(&FailedError{Reason: printable(m.text[:min(len(m.text), maxReason)])})
			data.Close()
			return false
		}
		return true
	}
	go func() {
		defer close(w.ended)
		for {
			// What is left of a line that is too long is read as lines of its own.
			if err := readMessages(control, maxGuestLine, obey); !errors.Is(err, bufio.ErrTooLong) {
				return
			}
		}
	}()
	return w
}

// keep keeps the last answer, in the place of one that nobody waited for.
func (w *watch) keep(answer string) {
	select {
	case <-w.timed:
	default:
	}
	w.timed <- answer // nobody else sends
}

// reason tells why a guest is not heard: by its own word, or what became of
// its ports.
func (w *watch) reason(err error) error {
	if failed := w.failed.Load(); failed != nil {
		return failed
	}
	return waitError(err)
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
