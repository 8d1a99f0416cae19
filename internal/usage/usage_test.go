package usage

import (
	"bytes"
	"context"
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"sync"
	"testing"

	"github.com/vmsan/vmsan/internal/testenv"
)

func TestMain(m *testing.M) { os.Exit(testenv.Main(m)) }

// write makes a file with n bytes of data.
func write(t *testing.T, path string, n int) {
	t.Helper()
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
		t.Fatal(err)
	}
	f, err := os.Create(path)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	if _, err := f.Write(bytes.Repeat([]byte("data"), n/4)); err != nil {
		t.Fatal(err)
	}
	if err := f.Sync(); err != nil {
		t.Fatal(err)
	}
}

func tree(t *testing.T, m *Meter, path string) Use {
	t.Helper()
	u, err := m.Tree(t.Context(), path)
	if err != nil {
		t.Fatal(err)
	}
	return u
}

// near allows for directories and what a file system keeps beside data.
func near(t *testing.T, what string, got, want int64) {
	t.Helper()
	if got < want || got > want+256<<10 {
		t.Errorf("%s: got %d, want %d", what, got, want)
	}
}

const mib = 1 << 20

func TestHolesAndMissing(t *testing.T) {
	dir := t.TempDir()
	write(t, filepath.Join(dir, "a", "data"), mib)
	if err := os.Truncate(filepath.Join(dir, "a", "data"), 1<<30); err != nil {
		t.Fatal(err)
	}
	if err := os.Symlink("/", filepath.Join(dir, "a", "link")); err != nil {
		t.Fatal(err)
	}
	var m Meter
	u := tree(t, &m, filepath.Join(dir, "a"))
	near(t, "apparent", u.Apparent, 1<<30)
	near(t, "used", u.Used, mib)
	if u.Shared != 0 || u.Unique() != u.Used || m.Total() != u.Used {
		t.Errorf("got %+v, total %d", u, m.Total())
	}
	if u := tree(t, &m, filepath.Join(dir, "missing")); u != (Use{}) {
		t.Errorf("what is not there takes %+v", u)
	}
}

// A file with links in several places is shared, unless all are in one.
func TestLinks(t *testing.T) {
	dir := t.TempDir()
	write(t, filepath.Join(dir, "a", "both"), 4*mib)
	write(t, filepath.Join(dir, "a", "twice"), mib)
	write(t, filepath.Join(dir, "b", "own"), 2*mib)
	for from, to := range map[string]string{"a/both": "b/both", "a/twice": "a/again"} {
		if err := os.Link(filepath.Join(dir, from), filepath.Join(dir, to)); err != nil {
			t.Fatal(err)
		}
	}
	var m Meter
	a, b := tree(t, &m, filepath.Join(dir, "a")), tree(t, &m, filepath.Join(dir, "b"))
	near(t, "used by a", a.Used, 5*mib)
	near(t, "shared by a", a.Shared, 4*mib)
	near(t, "used by b", b.Used, 6*mib)
	near(t, "shared by b", b.Shared, 4*mib)
	near(t, "unique to b", b.Unique(), 2*mib)
	near(t, "total", m.Total(), 7*mib)
}

func TestUnion(t *testing.T) {
	for _, c := range []struct {
		extents []extent
		want    int64
	}{
		{nil, 0},
		{[]extent{{0, 10}, {0, 10}}, 10},
		{[]extent{{20, 30}, {0, 10}, {5, 25}}, 30},
		{[]extent{{0, 100}, {10, 20}, {90, 110}}, 110},
		{[]extent{{5, 5}, {7, 3}}, 0},
	} {
		if got := union(c.extents); got != c.want {
			t.Errorf("%v: got %d, want %d", c.extents, got, c.want)
		}
	}
}

// Things come and go while they are measured.
func TestWhileFilesChange(t *testing.T) {
	dir := t.TempDir()
	write(t, filepath.Join(dir, "stays"), mib)
	ctx, cancel := context.WithCancel(t.Context())
	var changing sync.WaitGroup
	for i := range 4 {
		changing.Go(func() {
			below := filepath.Join(dir, strconv.Itoa(i))
			for ctx.Err() == nil {
				for j := range 20 {
					os.MkdirAll(filepath.Join(below, "d"), 0o755)
					os.WriteFile(filepath.Join(below, "d", strconv.Itoa(j)), []byte("x"), 0o600)
				}
				os.RemoveAll(below)
			}
		})
	}
	for range 100 {
		var m Meter
		if u := tree(t, &m, dir); u.Used < mib || m.Total() != u.Used {
			t.Errorf("got %+v, total %d", u, m.Total())
		}
	}
	cancel()
	changing.Wait()
	var m Meter
	if _, err := m.Tree(ctx, dir); !errors.Is(err, context.Canceled) {
		t.Errorf("got %v", err)
	}
}

// Copies that share blocks take them once.
func TestSharedBlocks(t *testing.T) {
	testenv.RequireRoot(t)
	for _, mkfs := range [][]string{{"mkfs.btrfs", "-q"}, {"mkfs.xfs", "-q", "-m", "reflink=1"}} {
		t.Run(mkfs[0], func(t *testing.T) {
			dir := mount(t, mkfs...)
			write(t, filepath.Join(dir, "a", "disk"), 8*mib)
			if err := os.Mkdir(filepath.Join(dir, "b"), 0o755); err != nil {
				t.Fatal(err)
			}
			run(t, "cp", "--reflink=always", filepath.Join(dir, "a", "disk"), filepath.Join(dir, "b", "disk"))
			f, err := os.OpenFile(filepath.Join(dir, "b", "disk"), os.O_WRONLY, 0)
			if err != nil {
				t.Fatal(err)
			}
			defer f.Close()
			if _, err := f.WriteAt(make([]byte, 2*mib), 2*mib); err != nil {
				t.Fatal(err)
			}
			run(t, "sync", "-f", dir)
			var m Meter
			a, b := tree(t, &m, filepath.Join(dir, "a")), tree(t, &m, filepath.Join(dir, "b"))
			near(t, "used by a", a.Used, 8*mib)
			// To btrfs an extent is shared if a part of it is.
			if a.Shared < 6*mib || a.Shared > 8*mib {
				t.Errorf("shared by a: got %d", a.Shared)
			}
			near(t, "used by b", b.Used, 8*mib)
			near(t, "unique to b", b.Unique(), 2*mib)
			near(t, "total", m.Total(), 10*mib)
		})
	}
}

// mount returns a directory on a file system of its own, made by mkfs in a
// sparse file.
func mount(t *testing.T, mkfs ...string) string {
	t.Helper()
	image, dir := filepath.Join(t.TempDir(), "image"), t.TempDir()
	if err := os.WriteFile(image, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	if err := os.Truncate(image, 512*mib); err != nil {
		t.Fatal(err)
	}
	run(t, append(mkfs, image)...)
	run(t, "mount", "-o", "loop", image, dir)
	t.Cleanup(func() { run(t, "umount", dir) })
	return dir
}

func run(t *testing.T, args ...string) {
	t.Helper()
	if out, err := exec.Command(args[0], args[1:]...).CombinedOutput(); err != nil {
		t.Fatalf("%v: %v: %s", args, err, out)
	}
}
