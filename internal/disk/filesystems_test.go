package disk_test

import (
	"bytes"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/vmsan/vmsan/internal/disk"
	"github.com/vmsan/vmsan/internal/testenv"
)

// mount returns a directory on a file system of its own of 1 GiB, made by
// mkfs in a sparse file.
func mount(t *testing.T, mkfs ...string) string {
	t.Helper()
	testenv.RequireRoot(t)
	image := filepath.Join(t.TempDir(), "image")
	if err := os.WriteFile(image, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	if err := os.Truncate(image, 1<<30); err != nil {
		t.Fatal(err)
	}
	dir := t.TempDir()
	run(t, append(mkfs, image)...)
	run(t, "mount", "-o", "loop", image, dir)
	t.Cleanup(func() {
		// The loop device goes with its last mount.
		run(t, "umount", dir)
		if left := run(t, "losetup", "--associated", image); len(left) > 0 {
			t.Errorf("a loop device is left: %s", left)
		}
	})
	return dir
}

func run(t *testing.T, args ...string) []byte {
	t.Helper()
	out, err := exec.Command(args[0], args[1:]...).CombinedOutput()
	if err != nil {
		t.Fatalf("%v: %v: %s", args, err, out)
	}
	return out
}

// used is how much of dir's file system is taken, in bytes.
func used(t *testing.T, dir string) int64 {
	t.Helper()
	run(t, "sync", "-f", dir)
	var st unix.Statfs_t
	if err := unix.Statfs(dir, &st); err != nil {
		t.Fatal(err)
	}
	return int64(st.Blocks-st.Bfree) * st.Bsize
}

// diskSize is the size of a disk that has little in it.
const diskSize = 100 << 30

// written makes a disk with n bytes of data, far apart.
func written(t *testing.T, path string, n int) {
	t.Helper()
	f, err := os.Create(path)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	if err := f.Truncate(diskSize); err != nil {
		t.Fatal(err)
	}
	noise := rand.NewChaCha8([32]byte{1})
	chunk := make([]byte, 1<<20)
	for i := range n / len(chunk) {
		noise.Read(chunk)
		if _, err := f.WriteAt(chunk, int64(i)*(1<<30)+int64(i)); err != nil {
			t.Fatal(err)
		}
	}
	if err := f.Sync(); err != nil {
		t.Fatal(err)
	}
}

// cloned clones a disk with n bytes of data, changes the clone, and returns
// what the clone took of the file system.
func cloned(t *testing.T, dir string, n int, want disk.Method) int64 {
	t.Helper()
	src, dst := filepath.Join(dir, "src"), filepath.Join(dir, "dst")
	written(t, src, n)
	before := used(t, dir)
	began := time.Now()
	method, err := disk.Clone(t.Context(), dst, src)
	took := time.Since(began)
	if err != nil {
		t.Fatal(err)
	}
	if method != want {
		t.Errorf("the clone was made by %s, want %s", method, want)
	}
	grown := used(t, dir) - before
	t.Logf("%d MiB of data: %s, %d KiB", n>>20, took, grown>>10)
	checkClone(t, src, dst)
	for _, path := range []string{src, dst} {
		if err := os.Remove(path); err != nil {
			t.Fatal(err)
		}
	}
	return grown
}

// checkClone compares a little, and writes to the clone.
func checkClone(t *testing.T, src, dst string) {
	t.Helper()
	read := func(path string) []byte {
		f, err := os.Open(path)
		if err != nil {
			t.Fatal(err)
		}
		defer f.Close()
		b := make([]byte, 2<<20)
		if _, err := f.ReadAt(b, 1<<30-1<<19); err != nil {
			t.Fatal(err)
		}
		return b
	}
	before := read(src)
	if !bytes.Equal(read(dst), before) {
		t.Error("the clone differs")
	}
	f, err := os.OpenFile(dst, os.O_WRONLY, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	if _, err := f.WriteAt([]byte("changed"), 1<<30+100); err != nil {
		t.Fatal(err)
	}
	if !bytes.Equal(read(src), before) {
		t.Error("a write to the clone reached the original")
	}
}

// Where blocks can be shared, a clone takes as much for a disk with little in
// it as for one with much.
func TestCloneShares(t *testing.T) {
	for _, mkfs := range [][]string{{"mkfs.btrfs", "-q"}, {"mkfs.xfs", "-q", "-m", "reflink=1"}} {
		t.Run(mkfs[0], func(t *testing.T) {
			dir := mount(t, mkfs...)
			for _, n := range []int{8 << 20, 80 << 20} {
				if took := cloned(t, dir, n, disk.Reflink); took > 1<<20 {
					t.Errorf("the clone of a disk with %d bytes takes %d", n, took)
				}
			}
		})
	}
}

// Elsewhere it takes what the disk has in it, however large the disk is.
func TestCloneCopiesData(t *testing.T) {
	dir := mount(t, "mkfs.ext4", "-q")
	for _, n := range []int{8 << 20, 80 << 20} {
		if took := cloned(t, dir, n, disk.Extents); took < int64(n) || took > int64(n)+1<<20 {
			t.Errorf("the clone of a disk with %d bytes takes %d", n, took)
		}
	}
}
