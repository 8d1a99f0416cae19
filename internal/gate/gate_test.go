package gate

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/vmsan/vmsan/internal/link"
)

func newLog(t *testing.T) (*consoleLog, string) {
	t.Helper()
	path := filepath.Join(t.TempDir(), "console.log")
	file, err := os.OpenFile(path, os.O_RDWR|os.O_CREATE, 0o600)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { file.Close() })
	log, err := newConsoleLog(file)
	if err != nil {
		t.Fatal(err)
	}
	return log, path
}

func read(t *testing.T, path string) []byte {
	t.Helper()
	text, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	return text
}

// Whatever the pieces, the log never passes its bound, and holds the end of
// what was written without a gap.
func TestConsoleLogKeepsTheEnd(t *testing.T) {
	for _, piece := range []int{1000, 4096, 32 << 10, consoleMax - 1, consoleMax} {
		log, path := newLog(t)
		var all bytes.Buffer
		for i := 0; all.Len() < 3*consoleMax; i++ {
			b := bytes.Repeat(fmt.Appendf(nil, "%d ", i), piece)[:piece]
			all.Write(b)
			if n, err := log.Write(b); n != len(b) || err != nil {
				t.Fatalf("wrote %d of %d, %v", n, len(b), err)
			}
			if log.size > consoleMax+consoleKeep {
				t.Fatalf("pieces of %d: the log grew to %d bytes", piece, log.size)
			}
		}
		text := read(t, path)
		if len(text) < consoleKeep || !bytes.HasSuffix(all.Bytes(), text) {
			t.Errorf("pieces of %d: %d bytes are kept, which are not the end", piece, len(text))
		}
	}
}

// A gate that takes another's place goes on where that one ended.
func TestConsoleLogGoesOn(t *testing.T) {
	log, path := newLog(t)
	fmt.Fprint(log, "one\n")
	next, err := newConsoleLog(log.file)
	if err != nil {
		t.Fatal(err)
	}
	fmt.Fprint(next, "two\n")
	if got := string(read(t, path)); got != "one\ntwo\n" {
		t.Errorf("got %q", got)
	}
}

// pair is both directions of a connection, in memory.
type pair struct{ bytes.Buffer }

func TestConn(t *testing.T) {
	var wire pair
	conn := NewConn(&wire)
	orders := []Order{
		{Begin: &Begin{Identity: &link.Identity{Hostname: "web", Env: map[string]string{"A": "line\nbreak"}}}},
		{PowerOff: true},
	}
	for _, want := range orders {
		if err := conn.Send(want); err != nil {
			t.Fatal(err)
		}
		var got Order
		if err := conn.Receive(&got); err != nil || !cmp.Equal(got, want) {
			t.Errorf("got %+v, %v; want %+v", got, err, want)
		}
	}
	var none Order
	if err := conn.Receive(&none); !errors.Is(err, io.EOF) {
		t.Errorf("at the end: got %v", err)
	}
}

func TestConnRefuses(t *testing.T) {
	for name, line := range map[string]string{
		"no JSON":         "begin\n",
		"another type":    `{"power_off": "yes"}` + "\n",
		"too long a line": `{"error": "` + strings.Repeat("x", maxLine) + `"}` + "\n",
	} {
		var order Order
		if err := NewConn(bytes.NewBufferString(line)).Receive(&order); err == nil || errors.Is(err, io.EOF) {
			t.Errorf("%s: got %v", name, err)
		}
	}
}

// FuzzReport has a gate that was taken over say anything to its monitor.
func FuzzReport(f *testing.F) {
	f.Add([]byte(`{"linked": 1.5, "configured": 2}` + "\n" + `{"error": "no", "failed": true}` + "\n"))
	f.Add([]byte("{\n"))
	f.Fuzz(func(t *testing.T, says []byte) {
		conn := NewConn(bytes.NewBuffer(says))
		for range 1000 {
			var r Report
			if conn.Receive(&r) != nil {
				return
			}
		}
	})
}
