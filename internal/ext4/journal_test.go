package ext4

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
)

// TestRecover reads file systems with transactions in their journals, and gets
// what e2fsck makes of them.
func TestRecover(t *testing.T) {
	for features, opens := range map[string][]string{
		"^metadata_csum,^64bit": {"jo"},
		"^metadata_csum,64bit":  {"jo"},
		"metadata_csum,^64bit":  {"jo", "jo -c -v 2", "jo -c -v 3"},
		"metadata_csum,64bit":   {"jo", "jo -c -v 2", "jo -c -v 3"},
	} {
		for _, open := range opens {
			t.Run(features+" "+open, func(t *testing.T) {
				path := inUse(t, t.TempDir(), features, open)
				f, err := os.Open(path)
				if err != nil {
					t.Fatal(err)
				}
				defer f.Close()
				if _, err := NewReader(f); err == nil {
					t.Error("a file system in use is read as it is")
				}
				r, err := Recover(f)
				if err != nil {
					t.Fatal(err)
				}
				got := listReader(t, r)
				// It says that it changed something.
				out, err := exec.Command("e2fsck", "-fy", path).CombinedOutput()
				if exit := (*exec.ExitError)(nil); err != nil && (!errors.As(err, &exit) || exit.ExitCode() != 1) {
					t.Fatalf("%v: %s", err, out)
				}
				if diff := cmp.Diff(list(t, path), got); diff != "" {
					t.Errorf("(-e2fsck +ours):\n%s", diff)
				}
				if !strings.Contains(got, fmt.Sprintf("/a 100644 0:0 links 1 4096 bytes sum %d", 3*4096)) {
					t.Errorf("a is not what was committed last:\n%s", got)
				}
			})
		}
	}
}

// inUse makes a file system with four files of one block, and in its journal
// other blocks for them: some of them twice, revoked, escaped, and at last some
// that were not committed.
func inUse(t testing.TB, dir, features, open string) string {
	t.Helper()
	path, files := filepath.Join(dir, "fs"), filepath.Join(dir, "files")
	if err := os.Mkdir(files, 0o755); err != nil {
		t.Fatal(err)
	}
	write := func(path string, data []byte) string {
		if err := os.WriteFile(path, data, 0o644); err != nil {
			t.Fatal(err)
		}
		if err := os.Chtimes(path, time.Unix(0, 0), time.Unix(0, 0)); err != nil {
			t.Fatal(err)
		}
		return path
	}
	for _, name := range []string{"a", "b", "c", "d"} {
		write(filepath.Join(files, name), bytes.Repeat([]byte{1}, BlockSize))
	}
	if out, err := exec.Command("mkfs.ext4", "-q", "-b", "4096", "-J", "size=4", "-O", features, "-E", "root_owner=0:0", "-d", files, path, "16m").
		CombinedOutput(); err != nil {
		t.Fatalf("%v: %s", err, out)
	}
	block := func(name string) string {
		out, err := exec.Command("debugfs", "-R", "bmap "+name+" 0", path).Output()
		if err != nil {
			t.Fatal(err)
		}
		return strings.TrimSpace(string(out))
	}
	twos := write(filepath.Join(dir, "twos"), bytes.Repeat([]byte{2}, 2*BlockSize))
	threes := write(filepath.Join(dir, "threes"), bytes.Repeat([]byte{3}, BlockSize))
	fours := write(filepath.Join(dir, "fours"), bytes.Repeat([]byte{4}, BlockSize))
	magic := write(filepath.Join(dir, "magic"), append(binary.BigEndian.AppendUint32(nil, journalMagic), make([]byte, BlockSize-4)...))
	a, b, c, d := block("a"), block("b"), block("c"), block("d")
	script := fmt.Sprintf("%s\njw -b %s,%s %s\njw -b %s %s\njw -r %s\njw -b %s %s\njc\n", open, a, b, twos, a, threes, b, c, magic) +
		fmt.Sprintf("%s\njw -c -b %s %s\njc\n", open, d, fours)
	cmd := exec.Command("debugfs", "-w", path)
	cmd.Stdin = strings.NewReader(script)
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Fatalf("%v: %s", err, out)
	}
	tear(t, path, bytes.Repeat([]byte{4}, BlockSize))
	return path
}

// tear writes over the one place in a file that has a block: what was not
// committed need not be there.
func tear(t testing.TB, path string, block []byte) {
	t.Helper()
	f, err := os.OpenFile(path, os.O_RDWR, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	data, err := io.ReadAll(f)
	if err != nil {
		t.Fatal(err)
	}
	if bytes.Count(data, block) != 1 {
		t.Fatalf("the block is there %d times", bytes.Count(data, block))
	}
	if _, err := f.WriteAt([]byte("torn"), int64(bytes.Index(data, block))+100); err != nil {
		t.Fatal(err)
	}
}

// patched is a file with other bytes from at on.
type patched struct {
	r    io.ReaderAt
	at   int64
	data []byte
}

func (p patched) ReadAt(b []byte, at int64) (int, error) {
	n, err := p.r.ReadAt(b, at)
	from, to := max(at, p.at), min(at+int64(n), p.at+int64(len(p.data)))
	if from < to {
		copy(b[from-at:to-at], p.data[from-p.at:])
	}
	return n, err
}

func FuzzRecover(f *testing.F) {
	data, err := os.ReadFile(inUse(f, f.TempDir(), "metadata_csum,64bit", "jo"))
	if err != nil {
		f.Fatal(err)
	}
	base := bytes.NewReader(data)
	r, err := readSuper(base)
	if err != nil {
		f.Fatal(err)
	}
	file, err := r.file(r.journal)
	if err != nil {
		f.Fatal(err)
	}
	_, at, err := (&journal{file: file}).read(0)
	if err != nil {
		f.Fatal(err)
	}
	f.Add(data[at:][:16*BlockSize])
	f.Fuzz(func(t *testing.T, journal []byte) {
		r, err := Recover(patched{base, at, journal})
		if err != nil {
			return
		}
		names := 0
		r.Walk(func(_ string, n *File) error {
			if names++; names > 1000 {
				return io.EOF
			}
			_, err := io.CopyN(io.Discard, n.Open(), 1<<20)
			return err
		})
	})
}
