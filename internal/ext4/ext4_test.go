package ext4

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
)

const testSize = 8 << 30

// check has e2fsck look at a file system; it changes nothing.
func check(t *testing.T, path string) {
	t.Helper()
	if out, err := exec.Command("e2fsck", "-fn", path).CombinedOutput(); err != nil {
		t.Errorf("e2fsck: %v\n%s", err, out)
	}
}

func create(t testing.TB, fill func(w *Writer)) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), "fs")
	f, err := os.Create(path)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	w := NewWriter(f, testSize)
	fill(w)
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	return path
}

// list describes a file system as a person would.
func list(t testing.TB, path string) string {
	t.Helper()
	f, err := os.Open(path)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	r, err := NewReader(f)
	if err != nil {
		t.Fatal(err)
	}
	return listReader(t, r)
}

func listReader(t testing.TB, r *Reader) string {
	t.Helper()
	var b strings.Builder
	err := r.Walk(func(path string, n *File) error {
		fmt.Fprintf(&b, "/%s %o %d:%d links %d", path, n.Mode, n.UID, n.GID, n.Links)
		switch n.Mode & TypeMask {
		case TypeSymlink:
			fmt.Fprintf(&b, " -> %d bytes %.20s", len(n.Target), n.Target)
		case TypeChar, TypeBlock:
			fmt.Fprintf(&b, " device %d:%d", n.Major, n.Minor)
		case TypeRegular:
			sum := 0
			size, err := io.Copy(sumWriter{&sum}, n.Open())
			if err != nil {
				return err
			}
			fmt.Fprintf(&b, " %d bytes sum %d", size, sum)
		}
		for _, x := range sortedXattrs(n.Xattrs) {
			fmt.Fprintf(&b, " %d.%s=%.10q", x.space, x.name, x.value)
		}
		if !n.ModTime.IsZero() {
			fmt.Fprintf(&b, " %s", n.ModTime.UTC().Format(time.RFC3339Nano))
		}
		b.WriteString("\n")
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	return b.String()
}

type sumWriter struct{ sum *int }

func (s sumWriter) Write(p []byte) (int, error) {
	for _, c := range p {
		*s.sum += int(c)
	}
	return len(p), nil
}

func put(t testing.TB, w *Writer, dir *Inode, name string, a Attr, body string) *Inode {
	t.Helper()
	n := w.New(a)
	if a.Mode&TypeMask == TypeRegular {
		if err := w.Fill(n, strings.NewReader(body), int64(len(body))); err != nil {
			t.Fatal(err)
		}
	}
	if err := w.Link(dir, name, n); err != nil {
		t.Fatal(err)
	}
	return n
}

func TestEveryType(t *testing.T) {
	path := create(t, func(w *Writer) {
		root := w.Root()
		put(t, w, root, "empty", Attr{Mode: TypeRegular | 0o600, UID: 70_000, GID: 4_000_000_000}, "")
		file := put(t, w, root, "file", Attr{Mode: TypeRegular | 0o4755, ModTime: time.Unix(5_000_000_000, 123456789)}, strings.Repeat("\x01", 5000))
		if err := w.Link(root, "link", file); err != nil {
			t.Fatal(err)
		}
		put(t, w, root, "old", Attr{Mode: TypeFifo | 0o644, ModTime: time.Unix(-1_000_000_000, 0)}, "")
		put(t, w, root, "char", Attr{Mode: TypeChar | 0o666, Major: 0xabc, Minor: 0xfedcb}, "")
		put(t, w, root, "block", Attr{Mode: TypeBlock | 0o660, Major: 8, Minor: 1}, "")
		put(t, w, root, "fast", Attr{Mode: TypeSymlink | 0o777, Target: strings.Repeat("f", 59)}, "")
		put(t, w, root, "slow", Attr{Mode: TypeSymlink | 0o777, Target: strings.Repeat("s", 60)}, "")
		put(t, w, root, "slowest", Attr{Mode: TypeSymlink | 0o777, Target: strings.Repeat("s", MaxSymlink)}, "")
		dir := put(t, w, root, "dir", Attr{Mode: TypeDir | 0o1777}, "")
		put(t, w, dir, strings.Repeat("n", MaxName), Attr{Mode: TypeDir | 0o700}, "")
		put(t, w, root, "xattrs", Attr{Mode: TypeRegular | 0o644, Xattrs: map[string]string{
			"user.short": "1", "security.capability": strings.Repeat("c", 20), "user.empty": "",
			"user.b1": strings.Repeat("x", 200), "user.a10": strings.Repeat("y", 201), "security.ima": strings.Repeat("z", 1001),
			"user.zzzz": strings.Repeat("x", 200), "user.c": strings.Repeat("x", 200),
		}}, "x")
	})
	check(t, path)
	const want = `/ 40755 0:0 links 3
/block 60660 0:0 links 1 device 8:1
/char 20666 0:0 links 1 device 2748:1043915
/dir 41777 0:0 links 3
/dir/NAME 40700 0:0 links 2
/empty 100600 70000:4000000000 links 1 0 bytes sum 0
/fast 120777 0:0 links 1 -> 59 bytes ffffffffffffffffffff
/file 104755 0:0 links 2 5000 bytes sum 5000 2128-06-11T08:53:20.123456789Z
/link 104755 0:0 links 2 5000 bytes sum 5000 2128-06-11T08:53:20.123456789Z
/old 10644 0:0 links 1 1938-04-24T22:13:20Z
/slow 120777 0:0 links 1 -> 60 bytes ssssssssssssssssssss
/slowest 120777 0:0 links 1 -> 4095 bytes ssssssssssssssssssss
/xattrs 100644 0:0 links 1 1 bytes sum 120 1.c="xxxxxxxxxx" 1.b1="xxxxxxxxxx" 1.a10="yyyyyyyyyy" 1.zzzz="xxxxxxxxxx" 1.empty="" 1.short="1" 6.ima="zzzzzzzzzz" 6.capability="cccccccccc"
`
	if diff := cmp.Diff(strings.Replace(want, "NAME", strings.Repeat("n", MaxName), 1), list(t, path)); diff != "" {
		t.Errorf("(-want +got):\n%s", diff)
	}
}

// zeroReader is an endless file of zeros with some other bytes here and there.
type zeroReader struct{ at int64 }

func (z *zeroReader) Read(p []byte) (int, error) {
	clear(p)
	const every = 100 << 20
	for i := (every - z.at%every) % every; i < int64(len(p)); i += every {
		p[i] = 1
	}
	z.at += int64(len(p))
	return len(p), nil
}

// TestLargeFile has more extents than an inode lists, and takes no space for
// its zeros.
func TestLargeFile(t *testing.T) {
	const size = 5<<30 + 1
	path := create(t, func(w *Writer) {
		n := w.New(Attr{Mode: TypeRegular | 0o644})
		if err := w.Fill(n, &zeroReader{}, size); err != nil {
			t.Fatal(err)
		}
		if err := w.Link(w.Root(), "large", n); err != nil {
			t.Fatal(err)
		}
	})
	check(t, path)
	if used := diskUse(t, path); used > 8<<20 {
		t.Errorf("it takes %d bytes", used)
	}
	f, err := os.Open(path)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	r, err := NewReader(f)
	if err != nil {
		t.Fatal(err)
	}
	err = r.Walk(func(path string, n *File) error {
		if path != "large" {
			return nil
		}
		c := &contents{n: n, at: 5 << 30}
		if rest, err := io.ReadAll(c); n.Size != size || err != nil || len(rest) != 1 {
			t.Errorf("size %d, end of %d bytes, error %v", n.Size, len(rest), err)
		}
		c = &contents{n: n, at: 3000 << 20}
		var b [2]byte
		if _, err := io.ReadFull(c, b[:]); err != nil || b != [2]byte{1, 0} {
			t.Errorf("got %v, error %v", b, err)
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
}

func diskUse(t *testing.T, path string) int64 {
	t.Helper()
	out, err := exec.Command("du", "-B1", path).Output()
	if err != nil {
		t.Fatal(err)
	}
	var n int64
	fmt.Sscan(string(out), &n)
	return n
}

func TestManyFiles(t *testing.T) {
	path := create(t, func(w *Writer) {
		for i := range 40 {
			dir := put(t, w, w.Root(), fmt.Sprint("dir", i), Attr{Mode: TypeDir | 0o755}, "")
			for j := range 1500 {
				put(t, w, dir, fmt.Sprint("some file ", j), Attr{Mode: TypeRegular | 0o644}, "")
			}
		}
	})
	check(t, path)
	if n := strings.Count(list(t, path), "\n"); n != 1+40*1501 {
		t.Errorf("got %d names", n)
	}
}

// TestDeletedFilesTakeNoSpace also checks that what they held is gone, and
// that nothing of it is in the files that came after.
func TestDeletedFilesTakeNoSpace(t *testing.T) {
	fill := func(w *Writer, deleted bool) {
		if deleted {
			put(t, w, w.Root(), "dir", Attr{Mode: TypeDir | 0o755}, "")
			put(t, w, w.Root().Child("dir"), "gone", Attr{Mode: TypeRegular}, strings.Repeat("secret", 200_000))
			put(t, w, w.Root(), "last", Attr{Mode: TypeRegular}, "kept")
			w.Unlink(w.Root(), "dir")
		} else {
			put(t, w, w.Root(), "last", Attr{Mode: TypeRegular}, "kept")
		}
		put(t, w, w.Root(), "next", Attr{Mode: TypeRegular}, strings.Repeat("n", 5000))
	}
	with := create(t, func(w *Writer) { fill(w, true) })
	without := create(t, func(w *Writer) { fill(w, false) })
	check(t, with)
	if diff := cmp.Diff(list(t, without), list(t, with)); diff != "" {
		t.Errorf("(-never there +deleted):\n%s", diff)
	}
	if a, b := diskUse(t, with), diskUse(t, without); a > b {
		t.Errorf("%d bytes with deleted files, %d without", a, b)
	}
	data, err := os.ReadFile(with)
	if err != nil {
		t.Fatal(err)
	}
	if bytes.Contains(data, []byte("secret")) {
		t.Error("contents of a deleted file are still there")
	}
}

func TestRandomTrees(t *testing.T) {
	for seed := range uint64(30) {
		random := rand.New(rand.NewPCG(seed, 1))
		path := create(t, func(w *Writer) { grow(t, w, random) })
		check(t, path)
		random = rand.New(rand.NewPCG(seed, 1))
		again := create(t, func(w *Writer) { grow(t, w, random) })
		if a, b := mustRead(t, path), mustRead(t, again); !bytes.Equal(a, b) {
			t.Errorf("seed %d: the same calls made other bytes", seed)
		}
	}
}

func mustRead(t *testing.T, path string) []byte {
	t.Helper()
	b, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	return b
}

func grow(t *testing.T, w *Writer, random *rand.Rand) {
	dirs := []*Inode{w.Root()}
	for i := range 200 {
		dir := dirs[random.IntN(len(dirs))]
		name := fmt.Sprint("n", random.IntN(20))
		if dir.Child(name) != nil {
			w.Unlink(dir, name)
			dirs = reachable(w.Root())
			continue
		}
		switch random.IntN(3) {
		case 0:
			dirs = append(dirs, put(t, w, dir, name, Attr{Mode: TypeDir | 0o755}, ""))
		case 1:
			put(t, w, dir, name, Attr{Mode: TypeSymlink | 0o777, Target: strings.Repeat("t", 1+random.IntN(100))}, "")
		default:
			n := put(t, w, dir, name, Attr{Mode: TypeRegular}, strings.Repeat("b", random.IntN(3*BlockSize)))
			if random.IntN(3) == 0 && dir.Child("link") == nil {
				if err := w.Link(dir, "link", n); err != nil {
					t.Fatal(i, err)
				}
			}
		}
	}
}

func reachable(n *Inode) []*Inode {
	dirs := []*Inode{n}
	for _, name := range sortedNames(n) {
		if c := n.Child(name); c.IsDir() {
			dirs = append(dirs, reachable(c)...)
		}
	}
	return dirs
}

func sortedNames(n *Inode) []string {
	var names []string
	for i := range 20 {
		if name := fmt.Sprint("n", i); n.Child(name) != nil {
			names = append(names, name)
		}
	}
	return names
}

func TestWriterRefuses(t *testing.T) {
	f, err := os.Create(filepath.Join(t.TempDir(), "fs"))
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	w := NewWriter(f, 1<<20)
	n := w.New(Attr{Mode: TypeRegular})
	if err := w.Fill(n, strings.NewReader("abc"), 4); !errors.Is(err, ErrShort) {
		t.Errorf("short contents: got error %v", err)
	}
	if err := w.Fill(w.New(Attr{Mode: TypeRegular}), &zeroReader{}, 2<<20); !errors.Is(err, ErrTooLarge) {
		t.Errorf("large contents: got error %v", err)
	}
	if _, _, err := splitXattrs(map[string]string{"user.a": strings.Repeat("x", BlockSize)}); !errors.Is(err, ErrXattrs) {
		t.Errorf("large attribute: got error %v", err)
	}
}

// TestReadsMkfs reads what others wrote.
func TestReadsMkfs(t *testing.T) {
	// Distributions differ in their defaults.
	for _, features := range []string{"none,has_journal,extent,filetype,64bit,metadata_csum", "metadata_csum,metadata_csum_seed", "^64bit,^flex_bg"} {
		t.Run(features, func(t *testing.T) { readsMkfs(t, features) })
	}
}

func readsMkfs(t *testing.T, features string) {
	dir, path := t.TempDir(), filepath.Join(t.TempDir(), "fs")
	for name, body := range map[string]string{"a": "hello", "b": strings.Repeat("b", 100_000)} {
		if err := os.WriteFile(filepath.Join(dir, name), []byte(body), 0o640); err != nil {
			t.Fatal(err)
		}
	}
	if err := os.Symlink("a", filepath.Join(dir, "link")); err != nil {
		t.Fatal(err)
	}
	if out, err := exec.Command("mkfs.ext4", "-q", "-O", features, "-d", dir, path, "16m").CombinedOutput(); err != nil {
		t.Fatalf("%v: %s", err, out)
	}
	got := map[string]int64{}
	f, err := os.Open(path)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	r, err := NewReader(f)
	if err != nil {
		t.Fatal(err)
	}
	err = r.Walk(func(path string, n *File) error {
		switch n.Mode & TypeMask {
		case TypeRegular:
			got[path], err = io.Copy(io.Discard, n.Open())
		case TypeSymlink:
			got[path+" -> "+n.Target] = n.Size
		}
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(map[string]int64{"a": 5, "b": 100_000, "link -> a": 1}, got); diff != "" {
		t.Errorf("(-want +got):\n%s", diff)
	}
}

// What says that it holds more than it can is damaged, however small it is.
func TestReaderRefusesSizes(t *testing.T) {
	for name, spoil := range map[string]func(inode []byte){
		"a file's size": func(inode []byte) { binary.LittleEndian.PutUint32(inode[108:], 0x7fffffff) },
		"a size that overflows": func(inode []byte) {
			binary.LittleEndian.PutUint32(inode[4:], 0xffffffff)
			binary.LittleEndian.PutUint32(inode[108:], 0x7fffffff)
		},
	} {
		disk := small(t)
		r, err := NewReader(bytes.NewReader(disk))
		if err != nil {
			t.Fatal(err)
		}
		var number uint32
		if err := r.Walk(func(_ string, n *File) error {
			if n.Mode&TypeMask == TypeRegular {
				number = n.Number
			}
			return nil
		}); err != nil || number == 0 {
			t.Fatalf("no file, %v", err)
		}
		inode, err := r.inode(number)
		if err != nil {
			t.Fatal(err)
		}
		spoil(disk[bytes.Index(disk, inode):])
		if r, err = NewReader(bytes.NewReader(disk)); err != nil {
			t.Fatal(err)
		}
		err = r.Walk(func(_ string, n *File) error {
			if n.Mode&TypeMask != TypeRegular {
				return nil
			}
			_, err := io.Copy(io.Discard, io.LimitReader(n.Open(), 1<<20))
			return err
		})
		if !errors.Is(err, ErrDamaged) {
			t.Errorf("%s: %v", name, err)
		}
	}
}

// Values that share bytes would be as much as one likes.
func TestXattrsDoNotOverlap(t *testing.T) {
	block := make([]byte, 4096)
	for i := range 2 {
		e := block[i*20:]
		e[0], e[1], e[16] = 1, 1, 'a'+byte(i)
		binary.LittleEndian.PutUint32(e[8:], 4000)
		binary.LittleEndian.PutUint16(e[2:], 96)
	}
	if err := getXattrs(block, 0, map[string]string{}); !errors.Is(err, ErrDamaged) {
		t.Errorf("got error %v", err)
	}
}

// small is a file system with a file and a link.
func small(t testing.TB) []byte {
	t.Helper()
	path := create(t, func(w *Writer) {
		put(t, w, w.Root(), "file", Attr{Mode: TypeRegular, Xattrs: map[string]string{"user.a": "b"}}, "hello")
		put(t, w, w.Root(), "slow", Attr{Mode: TypeSymlink, Target: strings.Repeat("s", 60)}, "")
	})
	data, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	return data
}

func FuzzReader(f *testing.F) {
	data := small(f)
	f.Add(data, 0, byte(0))
	for i := range 40 {
		f.Add(data, len(data)-len(data)*i/41-1, byte(0xff))
	}
	f.Fuzz(func(t *testing.T, data []byte, at int, c byte) {
		if at >= 0 && at < len(data) {
			data = bytes.Clone(data)
			data[at] ^= c
		}
		r, err := NewReader(bytes.NewReader(data))
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
