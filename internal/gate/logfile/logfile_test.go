package logfile

import (
	"bytes"
	"fmt"
	"os"
	"path/filepath"
	"testing"
)

func newFile(t *testing.T) (*os.File, string) {
	t.Helper()
	path := filepath.Join(t.TempDir(), "log")
	file, err := os.OpenFile(path, os.O_RDWR|os.O_CREATE, 0o600)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { file.Close() })
	return file, path
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
func TestKeepsTheEnd(t *testing.T) {
	for _, piece := range []int{1000, 4096, 32 << 10, Max - 1, Max} {
		file, path := newFile(t)
		log, err := Open(file)
		if err != nil {
			t.Fatal(err)
		}
		var all bytes.Buffer
		for i := 0; all.Len() < 3*Max; i++ {
			b := bytes.Repeat(fmt.Appendf(nil, "%d ", i), piece)[:piece]
			all.Write(b)
			if n, err := log.Write(b); n != len(b) || err != nil {
				t.Fatalf("wrote %d of %d, %v", n, len(b), err)
			}
			if log.Size() > Max+Keep {
				t.Fatalf("pieces of %d: the log grew to %d bytes", piece, log.Size())
			}
		}
		text := read(t, path)
		if len(text) < Keep || !bytes.HasSuffix(all.Bytes(), text) {
			t.Errorf("pieces of %d: %d bytes are kept, which are not the end", piece, len(text))
		}
	}
}

func TestKeepsWholeLines(t *testing.T) {
	file, path := newFile(t)
	log, err := OpenLines(file)
	if err != nil {
		t.Fatal(err)
	}
	line := append(bytes.Repeat([]byte("x"), 998), '\n')
	for range 2 * Max / len(line) {
		if _, err := log.Write(line); err != nil {
			t.Fatal(err)
		}
	}
	text := read(t, path)
	if len(text) < Keep-len(line) || len(text)%len(line) != 0 || !bytes.HasPrefix(text, line) {
		t.Errorf("%d bytes are kept, which are not whole lines of %d", len(text), len(line))
	}
}

// A gate that takes another's place goes on where that one ended.
func TestGoesOn(t *testing.T) {
	file, path := newFile(t)
	for _, text := range []string{"one\n", "two\n"} {
		log, err := Open(file)
		if err != nil {
			t.Fatal(err)
		}
		fmt.Fprint(log, text)
	}
	if got := string(read(t, path)); got != "one\ntwo\n" {
		t.Errorf("got %q", got)
	}
}
