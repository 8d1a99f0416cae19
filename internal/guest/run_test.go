package guest

import (
	"bytes"
	"context"
	"io"
	"net"
	"strings"
	"testing"

	"github.com/vmsan/vmsan/api"
	"github.com/vmsan/vmsan/internal/guest/wire"
)

// runAgainst runs a command whose guest answers with these bytes, and hangs up.
func runAgainst(t *testing.T, answer []byte, command Command) (Exit, error) {
	ours, theirs := net.Pipe()
	go io.Copy(io.Discard, theirs)
	go func() {
		theirs.Write(answer)
		theirs.Close()
	}()
	return New(func(context.Context) (net.Conn, error) { return ours, nil }).Run(t.Context(), command)
}

func join(frames ...[]byte) []byte { return bytes.Join(frames, nil) }

func TestRunAgainstLiars(t *testing.T) {
	started := wire.Number(wire.Started, 1)
	for what, answer := range map[string][]byte{
		"nothing":           nil,
		"no end":            started,
		"cut header":        join(started, []byte{byte(wire.Stdout), 0}),
		"cut output":        join(started, wire.Frame(wire.Stdout, []byte("abc"))[:7]),
		"endless output":    join(started, []byte{byte(wire.Stdout), 0xff, 0xff, 0xff, 0xff}),
		"started twice":     join(started, started),
		"what hosts say":    join(started, wire.Frame(wire.InputEnd, nil)),
		"HTTP":              []byte("HTTP/1.1 400 Bad Request\r\n\r\n"),
		"an end of no size": wire.Frame(wire.Ended, nil),
	} {
		_, err := runAgainst(t, answer, Command{Args: []string{"x"}})
		if !api.HasCode(err, api.ErrGuestLink) {
			t.Errorf("%s: got %v", what, err)
		}
	}
	_, err := runAgainst(t, wire.Failure{Code: 5, Text: "\x1b[2Jno"}.Frame(), Command{Args: []string{"x"}})
	if !api.HasCode(err, api.ErrExecNotFound) || strings.ContainsRune(err.Error(), 0x1b) {
		t.Errorf("got %q", err)
	}
}

// More room than there can be, time and again, does not make us send more
// than the window.
func TestRunBelievesNoRoom(t *testing.T) {
	c := credit{given: make(chan struct{}, 1)}
	for range 5 {
		c.give(1<<32 - 1)
	}
	if got := c.take(1 << 30); got != wire.InputWindow {
		t.Errorf("got %d", got)
	}
}

func FuzzRun(f *testing.F) {
	f.Add(join(wire.Number(wire.Started, 1), wire.Frame(wire.Stdout, []byte("abc")), wire.End{Code: 3}.Frame()))
	f.Add(wire.Failure{Code: 7, Text: "x"}.Frame())
	f.Add(join(wire.Number(wire.Taken, 1<<20), wire.Number(wire.Started, 1), wire.Number(wire.Started, 1)))
	f.Fuzz(func(t *testing.T, answer []byte) {
		var stdout, stderr bytes.Buffer
		runAgainst(t, answer, Command{Args: []string{"x"}, Stdin: strings.NewReader("in"), Stdout: &stdout, Stderr: &stderr})
		if stdout.Len()+stderr.Len() > len(answer) {
			t.Errorf("%d bytes of output of %d", stdout.Len()+stderr.Len(), len(answer))
		}
	})
}
