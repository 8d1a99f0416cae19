package filetree

import (
	"bytes"
	"fmt"
	"os"
	"path/filepath"
	"syscall"
	"testing"

	"golang.org/x/sys/unix"
)

// patchy has data and rows of zeros, none of which ends where a buffer does.
func patchy(size int) []byte {
	data := make([]byte, size)
	for at := 0; at < size; at += 5 * holeSize {
		for i := at; i < min(at+2*holeSize+77, size); i++ {
			data[i] = byte(i*7 + i>>13 | 1)
		}
	}
	return data
}

// Large files come through direct I/O as they are, holes and all, on a disk and
// in memory.
func TestDirect(t *testing.T) {
	for _, directory := range []string{t.TempDir(), "/dev/shm"} {
		for _, size := range []int{worthDirect - 1, worthDirect, worthDirect + 1, 3*worthDirect + 12345} {
			t.Run(fmt.Sprintf("%s/%d", filepath.Base(directory), size), func(t *testing.T) {
				work, err := os.MkdirTemp(directory, "vmsan-test-")
				if err != nil {
					t.Fatal(err)
				}
				defer os.RemoveAll(work)
				directRoundTrip(t, work, patchy(size))
			})
		}
	}
}

func directRoundTrip(t *testing.T, work string, want []byte) {
	if err := os.WriteFile(work+"/from", want, 0o644); err != nil {
		t.Fatal(err)
	}
	var stream bytes.Buffer
	if _, err := Pack(t.Context(), &stream, work+"/from", PackOptions{Name: "to", Direct: true}); err != nil {
		t.Fatal(err)
	}
	if _, err := Unpack(t.Context(), &stream, work, UnpackOptions{Name: "to", Direct: true}); err != nil {
		t.Fatal(err)
	}
	if got, err := os.ReadFile(work + "/to"); err != nil || !bytes.Equal(got, want) {
		t.Errorf("%d bytes came of %d, or others, %v", len(got), len(want), err)
	}
	info, err := os.Stat(work + "/to")
	if err != nil {
		t.Fatal(err)
	}
	if there := info.Sys().(*syscall.Stat_t).Blocks * 512; len(want) >= worthDirect && there > int64(len(want))*4/5 {
		t.Errorf("of %d bytes, two fifths of them holes, %d are on disk", len(want), there)
	}
}

// A file of which a part is there already, up to any place, goes on.
func TestDirectFromAnywhere(t *testing.T) {
	want := patchy(2*worthDirect + 5)
	for _, at := range []int{0, directBlock, directBlock + 1, worthDirect} {
		file, err := os.Create(filepath.Join(t.TempDir(), "file"))
		if err != nil {
			t.Fatal(err)
		}
		if _, err := file.Write(want[:at]); err != nil {
			t.Fatal(err)
		}
		var d direct
		rest := bytes.NewReader(want[at:])
		left, err := d.write(t.Context(), file, rest, int64(rest.Len()))
		if err != nil || left != int64(rest.Len()) {
			t.Errorf("from %d: %d bytes left of which the stream has %d, %v", at, left, rest.Len(), err)
		}
		flags, err := unix.FcntlInt(file.Fd(), unix.F_GETFL, 0)
		if err != nil || flags&unix.O_DIRECT != 0 {
			t.Errorf("from %d: the file is left with flags %#x, %v", at, flags, err)
		}
		d.close()
		file.Close()
	}
}
