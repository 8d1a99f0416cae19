// Package link is the guest link over virtio-serial: it turns the two byte
// pipes between host and guest into any number of byte streams.
//
// A virtio-serial port is a pipe that outlives whoever speaks on it: after a
// restore, or when the host's end was started again, either side may be in
// the middle of an old conversation. So there are two ports. On the control
// port, in lines of text, the host says "reset NONCE". The guest drops its
// old session and writes the nonce to the data port; the host throws away
// all that comes before it, and answers with the nonce, before which the
// guest throws away everything in turn. What follows are the frames of a mux.
//
// The guest writes its nonce as soon as it can serve, so that is also how it
// says that it is ready. A host that speaks to a guest which
// has just booted, or was restored, sets its clock first, and then tells it
// who it is with "identity DIGITS"; a guest that cannot come up, or cannot be
// who it shall be, says "failed REASON".
package link

import (
	"bufio"
	"bytes"
	"crypto/rand"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"strings"
)

// The names of the two virtio-serial ports, as the guest finds them in
// /sys/class/virtio-ports/*/name.
const (
	ControlPort = "vmsan.control"
	DataPort    = "vmsan.data"
)

const (
	nonceSize = 32
	// Bounds on a control message: from the host, whose longest is an
	// identity with a large environment, and from the guest, with why it
	// failed.
	maxHostLine  = 1 << 20
	maxGuestLine = 4096
	maxReason    = 512
)

type nonce [nonceSize]byte

func newNonce() (n nonce) {
	rand.Read(n[:])
	return n
}

// What is said on the control port.
const (
	// verbReset, from the host: drop the old session, begin one with this
	// nonce.
	verbReset = "reset"
	// verbIdentity, from the host: this is who you are.
	verbIdentity = "identity"
	// verbTime, from the host: this is the time, in nanoseconds since 1970. With
	// verbAdvance it is no reason to set the clock back. The guest answers with
	// verbTimed and the same number when its clock shows it.
	verbTime    = "time"
	verbAdvance = "advance"
	verbTimed   = "timed"
	// verbFailed, from the guest: it cannot come up, and why.
	verbFailed = "failed"
)

// message is a line on the control port.
type message struct{ verb, text string }

func (m message) reset() (n nonce, ok bool) {
	raw, err := hex.DecodeString(m.text)
	if m.verb != verbReset || err != nil || len(raw) != nonceSize {
		return n, false
	}
	return nonce(raw), true
}

func writeMessage(w io.Writer, verb, text string) error {
	_, err := io.WriteString(w, verb+" "+text+"\n")
	return err
}

// readMessages calls got for each line on r until r fails or got returns
// false. Of those that are no message nothing becomes: the first line may be
// the end of one that was cut when an earlier speaker died. A line longer
// than longest is an error.
func readMessages(r io.Reader, longest int, got func(message) bool) error {
	lines := bufio.NewScanner(r)
	lines.Buffer(make([]byte, 0, 512), longest)
	for lines.Scan() {
		verb, text, _ := strings.Cut(lines.Text(), " ")
		if !got(message{verb, text}) {
			return nil
		}
	}
	if err := lines.Err(); err != nil {
		return err
	}
	return io.ErrUnexpectedEOF
}

// discardUntil reads r up to and including n and returns what was read
// beyond it. It holds no more than one buffer, however much comes before.
func discardUntil(r io.Reader, n nonce) (rest []byte, err error) {
	buf := make([]byte, 0, 32<<10)
	for {
		if at := bytes.Index(buf, n[:]); at >= 0 {
			return buf[at+nonceSize:], nil
		}
		if len(buf) >= nonceSize {
			kept := copy(buf, buf[len(buf)-nonceSize+1:])
			buf = buf[:kept]
		}
		got, err := r.Read(buf[len(buf):cap(buf)])
		buf = buf[:len(buf)+got]
		if err != nil && got == 0 {
			return nil, err
		}
	}
}

// errReset ends a session that the other side no longer speaks.
var errReset = errors.New("guest link was reset")

// errGone ends the writing to a stream that the other side has closed.
var errGone = errors.New("the other side has closed the stream")

// FailedError is the guest's own word that it cannot come up.
type FailedError struct{ Reason string }

func (e *FailedError) Error() string { return fmt.Sprintf("guest failed: %s", e.Reason) }
