package link

import (
	"bytes"
	"io"
	"os"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// What comes in bursts, in pages and in parts of them comes through whole and in
// order, and a reader that is busy still hears of the end.
func TestPagePort(t *testing.T) {
	var fds [2]int
	if err := unix.Pipe2(fds[:], unix.O_CLOEXEC); err != nil {
		t.Fatal(err)
	}
	from, to := os.NewFile(uintptr(fds[0]), "port"), os.NewFile(uintptr(fds[1]), "host")
	defer from.Close()
	port, batched := newPagePort(from).(*pagePort)
	if !batched {
		t.Fatal("a file is read as it is")
	}
	want := numbered(3<<20 + 77)
	go func() {
		defer to.Close()
		for at, n := 0, 0; at < len(want); n++ {
			some := min(len(want)-at, []int{pageSize, 20 * pageSize, 100}[n/50%3])
			to.Write(want[at : at+some])
			if at += some; n%40 == 0 {
				time.Sleep(2 * busyPause)
			}
		}
	}()
	got, err := io.ReadAll(port)
	if err != nil || !bytes.Equal(got, want) {
		t.Errorf("%d bytes came of %d, or others, %v", len(got), len(want), err)
	}
}
