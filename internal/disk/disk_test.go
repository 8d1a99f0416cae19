package disk

import (
	"bytes"
	"context"
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"testing"

	"golang.org/x/sync/errgroup"
	"golang.org/x/sys/unix"

	"github.com/vmsan/vmsan/api"
	"github.com/vmsan/vmsan/internal/store"
)

// requireMkfs asks for e2fsprogs, which Debian always has.
func requireMkfs(t *testing.T) {
	t.Helper()
	if _, err := findMkfs(); err != nil {
		t.Fatal(err)
	}
}

func allocated(t *testing.T, path string) int64 {
	t.Helper()
	var st unix.Stat_t
	if err := unix.Stat(path, &st); err != nil {
		t.Fatal(err)
	}
	return st.Blocks * 512
}

func checkFilesystem(t *testing.T, path string) {
	t.Helper()
	program, err := findMkfs()
	if err != nil {
		t.Fatal(err)
	}
	out, err := exec.Command(filepath.Join(filepath.Dir(program), "e2fsck"), "-fn", path).CombinedOutput()
	if err != nil {
		t.Errorf("e2fsck: %v\n%s", err, out)
	}
}

func TestBlankIsSparseAndSound(t *testing.T) {
	requireMkfs(t)
	l := store.Layout{Dir: t.TempDir()}
	const size = 10 << 30
	path, err := EnsureBlank(t.Context(), l, size)
	if err != nil {
		t.Fatal(err)
	}
	info, err := os.Stat(path)
	if err != nil {
		t.Fatal(err)
	}
	if info.Size() != size || info.Mode() != 0o444 {
		t.Errorf("got %d bytes, mode %v", info.Size(), info.Mode())
	}
	if got := allocated(t, path); got > 8<<20 {
		t.Errorf("a blank of 10 GiB takes %d bytes", got)
	}
	checkFilesystem(t, path)
	clone := filepath.Join(t.TempDir(), "clone")
	if _, err := Clone(t.Context(), clone, path); err != nil {
		t.Fatal(err)
	}
	if got := allocated(t, clone); got > 8<<20 {
		t.Errorf("its clone takes %d bytes", got)
	}
	checkFilesystem(t, clone)
}

func TestBlankSizes(t *testing.T) {
	requireMkfs(t)
	l := store.Layout{Dir: t.TempDir()}
	for _, size := range []int64{MinSize, 256 << 20, 512 << 20, 1 << 40} {
		path, err := EnsureBlank(t.Context(), l, size)
		if err != nil {
			t.Fatal(err)
		}
		checkFilesystem(t, path)
	}
	for _, size := range []int64{-1, 0, MinSize - BlockSize, MinSize + 1, MaxSize + BlockSize} {
		if _, err := EnsureBlank(t.Context(), l, size); !api.HasCode(err, api.ErrValidationDiskSize) {
			t.Errorf("size %d: got error %v, want ErrValidationDiskSize", size, err)
		}
	}
}

func TestBlankByManyAtOnce(t *testing.T) {
	requireMkfs(t)
	l := store.Layout{Dir: t.TempDir()}
	g, ctx := errgroup.WithContext(t.Context())
	for range 8 {
		g.Go(func() error {
			_, err := EnsureBlank(ctx, l, MinSize)
			return err
		})
	}
	if err := g.Wait(); err != nil {
		t.Fatal(err)
	}
	checkFilesystem(t, l.Blank(MinSize))
	if left, err := os.ReadDir(l.Tmp()); err != nil || len(left) > 0 {
		t.Errorf("%d leftovers, error %v", len(left), err)
	}
}

func TestBlankIsMadeOnce(t *testing.T) {
	requireMkfs(t)
	l := store.Layout{Dir: t.TempDir()}
	var files []os.FileInfo
	for range 2 {
		path, err := EnsureBlank(t.Context(), l, MinSize)
		if err != nil {
			t.Fatal(err)
		}
		info, err := os.Stat(path)
		if err != nil {
			t.Fatal(err)
		}
		files = append(files, info)
	}
	if !os.SameFile(files[0], files[1]) {
		t.Error("the second call made another file")
	}
}

func TestBlankCanceled(t *testing.T) {
	requireMkfs(t)
	l := store.Layout{Dir: t.TempDir()}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if _, err := EnsureBlank(ctx, l, MinSize); !errors.Is(err, context.Canceled) {
		t.Errorf("got error %v", err)
	}
	if left, err := os.ReadDir(l.Tmp()); err == nil && len(left) > 0 {
		t.Errorf("%d leftovers", len(left))
	}
}

func TestBlankWithoutMkfs(t *testing.T) {
	t.Setenv("PATH", t.TempDir())
	if _, err := os.Stat("/usr/sbin/mkfs.ext4"); err == nil {
		// It is found where Debian has it whatever PATH says.
		if _, err := EnsureBlank(t.Context(), store.Layout{Dir: t.TempDir()}, MinSize); err != nil {
			t.Error(err)
		}
		return
	}
	_, err := EnsureBlank(t.Context(), store.Layout{Dir: t.TempDir()}, MinSize)
	if !api.HasCode(err, api.ErrSetupMissingBinary) {
		t.Errorf("got error %v, want ErrSetupMissingBinary", err)
	}
}

// sparseFile makes a file with data at its start, in its middle and at its end.
func sparseFile(t *testing.T) (path string, content []byte) {
	t.Helper()
	path = filepath.Join(t.TempDir(), "src")
	content = make([]byte, 8<<20)
	f, err := os.Create(path)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	if err := f.Truncate(int64(len(content))); err != nil {
		t.Fatal(err)
	}
	for _, at := range []int{0, 3<<20 + 4096, len(content) - 5000} {
		chunk := bytes.Repeat([]byte{byte(at>>12) + 1}, 5000)
		copy(content[at:], chunk)
		if _, err := f.WriteAt(chunk, int64(at)); err != nil {
			t.Fatal(err)
		}
	}
	return path, content
}

func TestCloneOfAllHole(t *testing.T) {
	src := filepath.Join(t.TempDir(), "src")
	if err := os.WriteFile(src, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	if err := os.Truncate(src, 1<<20); err != nil {
		t.Fatal(err)
	}
	dst := src + ".clone"
	if _, err := Clone(t.Context(), dst, src); err != nil {
		t.Fatal(err)
	}
	if info, err := os.Stat(dst); err != nil || info.Size() != 1<<20 || info.Mode() != 0o600 {
		t.Errorf("got %v, error %v", info, err)
	}
}

func TestCloneKeepsWhatIsThere(t *testing.T) {
	src, _ := sparseFile(t)
	dst := filepath.Join(t.TempDir(), "dst")
	if err := os.WriteFile(dst, []byte("mine"), 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := Clone(t.Context(), dst, src); !errors.Is(err, os.ErrExist) {
		t.Errorf("got error %v, want that dst exists", err)
	}
	if got, err := os.ReadFile(dst); err != nil || string(got) != "mine" {
		t.Errorf("dst has %q, error %v", got, err)
	}
}

func TestCloneThatIsBrokenOff(t *testing.T) {
	src, _ := sparseFile(t)
	dst := filepath.Join(t.TempDir(), "dst")
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	method, err := Clone(ctx, dst, src)
	if method == Reflink {
		return // in no time
	}
	if _, statErr := os.Stat(dst); !errors.Is(err, context.Canceled) || !errors.Is(statErr, os.ErrNotExist) {
		t.Errorf("got error %v, and for what is there %v", err, statErr)
	}
}
