package unpack

import (
	"archive/tar"
	"bytes"
	"context"
	"fmt"
	"io"
	"maps"
	"math/rand/v2"
	"os"
	"os/exec"
	"path"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/vmsan/vmsan/api"
	"github.com/vmsan/vmsan/internal/ext4"
)

// entry is a line of a layer: "f NAME BODY", "d NAME", "l NAME TARGET" for a
// symbolic and "h NAME TARGET" for a hard link.
type entry string

func layer(t testing.TB, entries ...entry) []byte {
	t.Helper()
	var b bytes.Buffer
	w := tar.NewWriter(&b)
	for _, e := range entries {
		part := strings.SplitN(string(e)+" ", " ", 3)
		body := strings.TrimSuffix(part[2], " ")
		h := tar.Header{Name: part[1], Mode: 0o640, ModTime: time.Unix(1e9, 0), Format: tar.FormatPAX}
		switch part[0] {
		case "f":
			h.Typeflag, h.Size = tar.TypeReg, int64(len(body))
		case "d":
			h.Typeflag, h.Mode = tar.TypeDir, 0o700
		case "l":
			h.Typeflag, h.Linkname = tar.TypeSymlink, body
		case "h":
			h.Typeflag, h.Linkname = tar.TypeLink, body
		}
		if err := w.WriteHeader(&h); err != nil {
			t.Fatal(err)
		}
		if part[0] == "f" {
			if _, err := io.WriteString(w, body); err != nil {
				t.Fatal(err)
			}
		}
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	return b.Bytes()
}

// unpackAll returns what the layers make together, a line for each file, and
// where the file system is.
func unpackAll(t testing.TB, whiteouts bool, layers ...[]byte) (string, string, error) {
	t.Helper()
	name := filepath.Join(t.TempDir(), "fs")
	f, err := os.Create(name)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	fs := ext4.NewWriter(f, 1<<30)
	u := New(fs, 1<<20)
	for _, l := range layers {
		if err := u.Layer(context.Background(), bytes.NewReader(l), whiteouts); err != nil {
			return "", name, err
		}
	}
	if err := fs.Close(); err != nil {
		t.Fatal(err)
	}
	return list(t, f), name, nil
}

func list(t testing.TB, f *os.File) string {
	t.Helper()
	r, err := ext4.NewReader(f)
	if err != nil {
		t.Fatal(err)
	}
	var b strings.Builder
	first := map[uint32]string{}
	err = r.Walk(func(name string, n *ext4.File) error {
		if name == "" {
			return nil
		}
		fmt.Fprintf(&b, "%s %o", name, n.Mode&0o7777)
		switch other := first[n.Number]; {
		case other != "":
			fmt.Fprintf(&b, " = %s", other)
		case n.IsDir():
			b.WriteString(" dir")
		case n.Target != "":
			fmt.Fprintf(&b, " -> %s", n.Target)
		default:
			body, err := io.ReadAll(n.Open())
			if err != nil {
				return err
			}
			fmt.Fprintf(&b, " %s", body)
		}
		first[n.Number] = name
		b.WriteString("\n")
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	return b.String()
}

func TestLayers(t *testing.T) {
	for _, c := range []struct {
		name   string
		layers [][]entry
		want   string
	}{
		{"whiteout", [][]entry{{"f a 1", "f d/b 2", "f d/c 3"}, {"f .wh.a", "f d/.wh.b"}}, "d 755 dir\nd/c 640 3\n"},
		{"whiteout of a directory", [][]entry{{"f d/e/f 1"}, {"f .wh.d"}}, ""},
		{"whiteout of nothing", [][]entry{{"f a 1"}, {"f .wh.b", "f x/.wh.y"}}, "a 640 1\n"},
		{"whiteout is of layers before", [][]entry{{"f d/old 1"}, {"f d/new 2", "f .wh.d"}}, "d 755 dir\nd/new 640 2\n"},
		{"whiteout first", [][]entry{{"d d", "f d/old 1"}, {"f .wh.d", "f d/new 2"}}, "d 755 dir\nd/new 640 2\n"},
		{"whiteout last", [][]entry{{"d d", "f d/old 1"}, {"d d", "f d/new 2", "f .wh.d"}}, "d 700 dir\nd/new 640 2\n"},
		{"opaque directory", [][]entry{{"d d", "f d/a 1", "f d/e/b 2"}, {"d d", "f d/.wh..wh..opq", "f d/c 3"}}, "d 700 dir\nd/c 640 3\n"},
		{"opaque last", [][]entry{{"f d/a 1", "f d/e/b 2"}, {"f d/e/c 3", "f d/.wh..wh..opq"}}, "d 755 dir\nd/e 755 dir\nd/e/c 640 3\n"},
		{"opaque of nothing", [][]entry{{"f a 1"}, {"f d/.wh..wh..opq"}}, "a 640 1\n"},
		{"aufs", [][]entry{{"f a 1"}, {"f .wh..wh.plnk", "f .wh..wh.aufs"}}, "a 640 1\n"},
		{"file over directory", [][]entry{{"f d/a 1"}, {"f d 2"}}, "d 640 2\n"},
		{"directory over file", [][]entry{{"f d 1"}, {"f .wh.x", "d d", "f d/a 2"}}, "d 700 dir\nd/a 640 2\n"},
		{"directory over link", [][]entry{{"d to", "l d to"}, {"d d", "f d/a 2"}}, "d 700 dir\nd/a 640 2\nto 700 dir\n"},
		{"directory described later", [][]entry{{"f d/a 1"}, {"d d"}}, "d 700 dir\nd/a 640 1\n"},
		{"last of two", [][]entry{{"f a 1", "f a 2", "f d/a 1", "l d x"}}, "a 640 2\nd 777 -> x\n"},
		{"hard link", [][]entry{{"f a 1", "h b a"}}, "a 640 1\nb 640 = a\n"},
		{"hard link to a layer before", [][]entry{{"f a 1"}, {"h d/b a"}}, "a 640 1\nd 755 dir\nd/b 640 = a\n"},
		{"hard link to a hidden file", [][]entry{{"f a 1", "h b a"}, {"f .wh.a"}}, "b 640 1\n"},
		{"hard link to a replaced file", [][]entry{{"f a 1", "h b a"}, {"f a 2"}}, "a 640 2\nb 640 1\n"},
		{"hard link to a link", [][]entry{{"l a x", "h b a"}}, "a 777 -> x\nb 777 = a\n"},
		{"hard link to itself", [][]entry{{"f a 1", "h a a", "h b a", "h a b"}}, "a 640 1\nb 640 = a\n"},
		{"below a link", [][]entry{{"l etc usr/etc", "f usr/etc/a 1"}, {"f etc/b 2"}}, "etc 777 -> usr/etc\nusr 755 dir\nusr/etc 755 dir\nusr/etc/a 640 1\nusr/etc/b 640 2\n"},
		{"below a link out of the root", [][]entry{{"l d ../../../e"}, {"f d/a 1", "f ../../b 2"}}, "b 640 2\nd 777 -> ../../../e\ne 755 dir\ne/a 640 1\n"},
		{"whiteout below a link", [][]entry{{"d e", "f e/a 1", "l d /e"}, {"f d/.wh.a"}}, "d 777 -> /e\ne 700 dir\n"},
		{"empty layer", [][]entry{{"f a 1"}, {}}, "a 640 1\n"},
	} {
		t.Run(c.name, func(t *testing.T) {
			var layers [][]byte
			for _, l := range c.layers {
				layers = append(layers, layer(t, l...))
			}
			got, disk, err := unpackAll(t, true, layers...)
			if err != nil {
				t.Fatal(err)
			}
			if diff := cmp.Diff(c.want, got); diff != "" {
				t.Errorf("(-want +got):\n%s", diff)
			}
			if out, err := exec.Command("e2fsck", "-fn", disk).CombinedOutput(); err != nil {
				t.Errorf("%v: %s", err, out)
			}
		})
	}
}

func TestNoWhiteoutsInPlainArchives(t *testing.T) {
	got, _, err := unpackAll(t, false, layer(t, "f a 1", "f .wh.a 2", "f d/.wh..wh..opq 3"))
	const want = ".wh.a 640 2\na 640 1\nd 755 dir\nd/.wh..wh..opq 640 3\n"
	if err != nil || got != want {
		t.Errorf("got\n%s, error %v", got, err)
	}
}

func TestWhiteoutsThatNameNothing(t *testing.T) {
	for _, bad := range []string{".wh.", ".wh..", ".wh..."} {
		if _, _, err := unpackAll(t, true, layer(t, "f a 1"), layer(t, entry("f "+bad))); !api.HasCode(err, api.ErrImageInvalid) {
			t.Errorf("%s: got error %v, want ErrImageInvalid", bad, err)
		}
	}
}

func TestBoundsBytes(t *testing.T) {
	for size, fits := range map[int]bool{1 << 20: true, 1<<20 + 1: false} {
		_, _, err := unpackAll(t, true, layer(t, entry("f a "+strings.Repeat("x", size))))
		if (err == nil) != fits || err != nil && !api.HasCode(err, api.ErrImageInvalid) {
			t.Errorf("%d bytes: got error %v", size, err)
		}
	}
}

// What is read and not kept counts, too.
func TestBoundsBytesOfWhiteouts(t *testing.T) {
	for _, name := range []string{".wh.a", ".wh..wh.plnk"} {
		_, _, err := unpackAll(t, true, layer(t, entry("f "+name+" "+strings.Repeat("x", 1<<20+1))))
		if !api.HasCode(err, api.ErrImageInvalid) {
			t.Errorf("%s: got error %v", name, err)
		}
	}
}

// model is what layers make together, by the words of the specification: for
// each layer first what it hides, then what it has. It knows no symbolic links
// in paths.
type model map[string]string

func (m model) apply(entries []entry) {
	for _, e := range entries {
		name := strings.Fields(string(e))[1]
		dir, base := path.Split(name)
		if base == ".wh..wh..opq" {
			m.removeBelow(strings.TrimSuffix(dir, "/"))
		} else if hidden, ok := strings.CutPrefix(base, ".wh."); ok {
			m.remove(dir + hidden)
		}
	}
	for _, e := range entries {
		part := strings.SplitN(string(e)+" ", " ", 3)
		name := part[1]
		if strings.HasPrefix(path.Base(name), ".wh.") {
			continue
		}
		for dir := path.Dir(name); dir != "."; dir = path.Dir(dir) {
			if m[dir] == "" {
				m[dir] = "755 dir"
			}
		}
		if part[0] == "d" {
			if !strings.HasSuffix(m[name], " dir") {
				m.remove(name)
			}
			m[name] = "700 dir"
			continue
		}
		m.remove(name)
		m[name] = "640 " + strings.TrimSuffix(part[2], " ")
	}
}

func (m model) remove(name string) {
	delete(m, name)
	m.removeBelow(name)
}

func (m model) removeBelow(dir string) {
	maps.DeleteFunc(m, func(name, _ string) bool { return strings.HasPrefix(name, dir+"/") })
}

func (m model) String() string {
	var b strings.Builder
	for _, name := range slices.SortedFunc(maps.Keys(m), comparePaths) {
		fmt.Fprintf(&b, "%s %s\n", name, m[name])
	}
	return b.String()
}

// comparePaths orders paths as a walk does.
func comparePaths(a, b string) int {
	return slices.Compare(strings.Split(a, "/"), strings.Split(b, "/"))
}

// TestRandomLayers compares with the model.
func TestRandomLayers(t *testing.T) {
	for seed := range uint64(300) {
		random := rand.New(rand.NewPCG(seed, 2))
		want := model{}
		var layers [][]byte
		var script []entry
		for range 1 + random.IntN(5) {
			entries := randomLayer(random, want)
			want.apply(entries)
			layers = append(layers, layer(t, entries...))
			script = append(append(script, entries...), "--")
		}
		got, _, err := unpackAll(t, true, layers...)
		if err != nil {
			t.Fatalf("seed %d: %v\n%s", seed, err, script)
		}
		if diff := cmp.Diff(want.String(), got); diff != "" {
			t.Fatalf("seed %d (-model +got):\n%s\n%q", seed, diff, script)
		}
	}
}

// randomLayer has each name once, as layers do, and none below a file of its
// own or of a layer before that it does not replace.
func randomLayer(random *rand.Rand, below model) []entry {
	kinds := map[string]string{}
	var entries []entry
	for i := range random.IntN(20) {
		parts := make([]string, 1+random.IntN(4))
		for j := range parts {
			parts[j] = string(rune('a' + random.IntN(3)))
		}
		name := strings.Join(parts, "/")
		kind := []string{"f", "d", "w", "o"}[random.IntN(4)]
		if !fitsIn(kinds, below, name, kind) {
			continue
		}
		switch kind {
		case "f":
			kinds[name] = "f"
			entries = append(entries, entry(fmt.Sprintf("f %s body%d", name, i)))
		case "d":
			kinds[name] = "d"
			entries = append(entries, entry("d "+name))
		case "w":
			dir, base := path.Split(name)
			entries = append(entries, entry("f "+dir+".wh."+base))
		case "o":
			entries = append(entries, entry("f "+name+"/.wh..wh..opq"))
		}
	}
	return entries
}

func fitsIn(kinds map[string]string, below model, name, kind string) bool {
	if kind == "w" || kind == "o" {
		return true
	}
	if kinds[name] != "" {
		return false
	}
	for dir := path.Dir(name); dir != "."; dir = path.Dir(dir) {
		if kinds[dir] == "f" || kinds[dir] == "" && below[dir] != "" && !strings.HasSuffix(below[dir], " dir") {
			return false
		}
	}
	for other := range kinds {
		if kind == "f" && strings.HasPrefix(other, name+"/") {
			return false
		}
	}
	return kind != "f" || kinds[name] == ""
}

func FuzzLayer(f *testing.F) {
	f.Add(layer(f, "f a 1", "d d", "f d/b 2", "h c a"), layer(f, "f .wh.a", "f d/.wh..wh..opq", "h d/e c"))
	f.Add(layer(f, "l a b", "f a/x 1"), layer(f, "l b a", "f a/y 2"))
	f.Fuzz(func(t *testing.T, lower, upper []byte) {
		_, disk, err := unpackAll(t, true, lower, upper)
		if err != nil {
			if !api.HasCode(err, api.ErrImageInvalid) {
				t.Errorf("got error %v, want ErrImageInvalid", err)
			}
			return
		}
		if out, err := exec.Command("e2fsck", "-fn", disk).CombinedOutput(); err != nil {
			t.Errorf("%v: %s", err, out)
		}
	})
}

// TestBoundsDepth goes deeper entry by entry, each where a link leads.
func TestBoundsDepth(t *testing.T) {
	deep := strings.Repeat("d/", 1000)
	entries := []entry{entry("l l0 " + deep), entry("d " + deep)}
	for i := range 60 {
		entries = append(entries, entry(fmt.Sprintf("d l%d/d", i)), entry(fmt.Sprintf("l l%d l%d/d", i+1, i)))
	}
	_, _, err := unpackAll(t, true, layer(t, entries...))
	if !api.HasCode(err, api.ErrImageInvalid) || !strings.Contains(err.Error(), "in each other") && !strings.Contains(err.Error(), "symbolic links") {
		t.Errorf("got error %v", err)
	}
}

// TestBoundsTime does not follow long links for every file.
func TestBoundsTime(t *testing.T) {
	entries := []entry{"d d"}
	for i := range 40 {
		entries = append(entries, entry(fmt.Sprintf("l l%d %sl%d", i, strings.Repeat("d/../", 800), i+1)))
	}
	entries = append(entries, "l l39 d")
	for i := range 4000 {
		entries = append(entries, entry(fmt.Sprintf("f l0/%d x", i)), entry(fmt.Sprintf("f d/%d x", i)))
	}
	if _, _, err := unpackAll(t, true, layer(t, entries...)); !api.HasCode(err, api.ErrImageInvalid) {
		t.Errorf("got error %v, want ErrImageInvalid", err)
	}
}
