package sparse

import (
	"bytes"
	"os"
	"testing"

	"github.com/google/go-cmp/cmp"
	"golang.org/x/sys/unix"
)

func temp(t *testing.T, size int64) *os.File {
	t.Helper()
	f, err := os.CreateTemp(t.TempDir(), "sparse")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { f.Close() })
	if err := f.Truncate(size); err != nil {
		t.Fatal(err)
	}
	return f
}

func write(t *testing.T, f *os.File, b []byte, at int64) {
	t.Helper()
	if _, err := f.WriteAt(b, at); err != nil {
		t.Fatal(err)
	}
}

func extents(t *testing.T, f *os.File) (list []Extent) {
	t.Helper()
	for e, err := range Extents(f) {
		if err != nil {
			t.Fatal(err)
		}
		list = append(list, e)
	}
	return list
}

func TestExtents(t *testing.T) {
	f := temp(t, 1<<20)
	if got := extents(t, f); got != nil {
		t.Errorf("a file that is all hole has %v", got)
	}
	write(t, f, bytes.Repeat([]byte{1}, 8192), 0)
	write(t, f, []byte{1}, 500_000)
	write(t, f, []byte{1}, 1<<20-1)
	want := []Extent{{0, 8192}, {499712, 503808}, {1<<20 - 4096, 1 << 20}}
	if diff := cmp.Diff(extents(t, f), want); diff != "" {
		t.Errorf("got the first, want the second:\n%s", diff)
	}
}

func TestExtentsOfClosedFile(t *testing.T) {
	f := temp(t, 1)
	f.Close()
	for _, err := range Extents(f) {
		if err == nil {
			t.Error("got an extent")
		}
	}
}

// The file's last page is a short one.
func TestPunch(t *testing.T) {
	const size = 3<<20 + 100
	f := temp(t, size)
	want := make([]byte, size)
	for _, at := range []int{0, 5, 4096, 40960, 1<<20 - 1, 2 << 20, size - 1} {
		want[at] = 1
	}
	write(t, f, want, 0)
	for range 2 {
		if err := Punch(f); err != nil {
			t.Fatal(err)
		}
		got := make([]byte, size)
		if _, err := f.ReadAt(got, 0); err != nil {
			t.Fatal(err)
		}
		if !bytes.Equal(got, want) {
			t.Fatal("the content changed")
		}
		var st unix.Stat_t
		if err := unix.Fstat(int(f.Fd()), &st); err != nil {
			t.Fatal(err)
		}
		// Six pages are not zero.
		if stored := st.Blocks * 512; st.Size != size || stored > 6*4096 {
			t.Errorf("%d bytes take %d", st.Size, stored)
		}
	}
}

func TestPunchOfZeros(t *testing.T) {
	f := temp(t, 0)
	write(t, f, make([]byte, 100_000), 0)
	if err := Punch(f); err != nil {
		t.Fatal(err)
	}
	if got := extents(t, f); got != nil {
		t.Errorf("got %v", got)
	}
}
