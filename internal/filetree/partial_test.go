package filetree

import (
	"archive/tar"
	"bytes"
	"context"
	"crypto/sha256"
	"errors"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// large is more than is worth keeping, and ends in the middle of a buffer.
var large = bytes.Repeat([]byte("0123456789abcdef"), (3*worthKeeping+copyBuffer/2)/16)

var me = &Owner{os.Geteuid(), os.Getegid()}

// resume carries what is wanted of a tree, and breaks the stream off behind limit bytes.
func resume(t *testing.T, from, to string, limit int64) (Totals, error) {
	t.Helper()
	wanted := map[string]Part{}
	var there Entries
	must(t, List(t.Context(), to, ListOptions{Name: ".", Destination: true}, there.Add))
	must(t, List(t.Context(), from, ListOptions{Name: "."}, func(e Entry) error {
		partial := there.ByName[PartialName(e.Name)]
		wanted[e.Name] = Part{Offset: partial.Size, Digest: partial.Digest}
		return nil
	}))
	var stream bytes.Buffer
	_, err := Pack(t.Context(), &stream, from, PackOptions{Name: ".", Wanted: wanted})
	must(t, err)
	r := io.MultiReader(io.LimitReader(&stream, limit), brokenReader{})
	if limit >= int64(stream.Len()) {
		r = &stream
	}
	return Unpack(t.Context(), r, to, UnpackOptions{Name: ".", Owner: me, Resume: true, Parts: wanted})
}

type brokenReader struct{}

var errBroken = errors.New("it broke off")

func (brokenReader) Read([]byte) (int, error) { return 0, errBroken }

func TestResume(t *testing.T) {
	from, to := t.TempDir(), t.TempDir()
	write(t, from+"/file", string(large), 0o640)
	must(t, os.Chtimes(from+"/file", time.Time{}, time.Unix(1e9, 5)))
	partial := filepath.Join(to, PartialName("file"))
	if _, err := resume(t, from, to, 2*worthKeeping); !errors.Is(err, errBroken) {
		t.Fatalf("a stream that breaks off: %v", err)
	}
	first, err := os.Stat(partial)
	if err != nil || first.Size() < worthKeeping || first.Size() > 2*worthKeeping {
		t.Fatalf("kept is %+v, %v", first, err)
	}
	// Another break, behind the first.
	if _, err := resume(t, from, to, worthKeeping); !errors.Is(err, errBroken) {
		t.Fatal(err)
	}
	second, err := os.Stat(partial)
	if err != nil || second.Size() <= first.Size() {
		t.Fatalf("kept is %+v, %v", second, err)
	}
	if names := ls(t, to); !slices.Equal(names, []string{filepath.Base(partial)}) {
		t.Errorf("there is %q", names)
	}
	totals, err := resume(t, from, to, 1<<40)
	if err != nil || totals.Bytes != int64(len(large))-second.Size() {
		t.Errorf("%+v, %v", totals, err)
	}
	if got, want := describeTree(t, to), describeTree(t, from); got["file"] != want["file"] || len(got) != len(want) {
		t.Errorf("there is %v, want %v", got, want)
	}
	if got, err := os.ReadFile(to + "/file"); err != nil || !bytes.Equal(got, large) {
		t.Errorf("%d bytes, %v", len(got), err)
	}
}

func ls(t *testing.T, dir string) (names []string) {
	t.Helper()
	entries, err := os.ReadDir(dir)
	must(t, err)
	for _, e := range entries {
		names = append(names, e.Name())
	}
	return names
}

// What is kept and is not the file's beginning is not gone on with; nor is what
// others have put in a partial's place, or written to.
func TestWrongPartial(t *testing.T) {
	for name, plant := range map[string]func(path, precious string) error{
		"other content": func(path, _ string) error { return os.WriteFile(path, bytes.Repeat([]byte("x"), worthKeeping), 0o600) },
		"longer":        func(path, _ string) error { return os.WriteFile(path, append(slices.Clone(large), 'x'), 0o600) },
		"link":          func(path, precious string) error { return os.Symlink(precious, path) },
		"below":         func(path, _ string) error { return os.Symlink("mine", path) },
		"hard":          func(path, precious string) error { return os.Link(precious, path) },
		"pipe":          func(path, _ string) error { return unix.Mkfifo(path, 0o600) },
		"directory": func(path, _ string) error {
			return errors.Join(os.Mkdir(path, 0o700), os.WriteFile(path+"/in", nil, 0o600))
		},
	} {
		parent, from := t.TempDir(), t.TempDir()
		to, precious := parent+"/to", parent+"/precious"
		write(t, precious, string(large[:worthKeeping]), 0o600)
		write(t, to+"/mine", string(large[:worthKeeping]), 0o600)
		write(t, from+"/file", string(large), 0o600)
		must(t, plant(filepath.Join(to, PartialName("file")), precious))
		if totals, err := resume(t, from, to, 1<<40); err != nil || totals.Bytes != int64(len(large)) {
			t.Errorf("%s: %+v, %v", name, totals, err)
		}
		if names := ls(t, to); !slices.Equal(names, []string{"file", "mine"}) {
			t.Errorf("%s: there is %q", name, names)
		}
		for file, want := range map[string][]byte{precious: large[:worthKeeping], to + "/mine": large[:worthKeeping], to + "/file": large} {
			if got, err := os.ReadFile(file); err != nil || !bytes.Equal(got, want) {
				t.Errorf("%s: %s has %d bytes, %v", name, file, len(got), err)
			}
		}
	}
}

// A stream cannot say where a file goes on, or what goes, unless that was asked.
func TestHostileParts(t *testing.T) {
	entry := func(name string, records map[string]string) []byte {
		var out bytes.Buffer
		w := tar.NewWriter(&out)
		must(t, w.WriteHeader(&tar.Header{Typeflag: tar.TypeReg, Name: name, Size: 1, Mode: 0o600, Format: tar.FormatPAX, PAXRecords: records}))
		_, err := w.Write([]byte("x"))
		must(t, err, w.Close())
		return out.Bytes()
	}
	asked := UnpackOptions{Owner: me, Resume: true, Parts: map[string]Part{"file": {Offset: 4}}}
	for name, test := range map[string]struct {
		stream []byte
		o      UnpackOptions
	}{
		"not resumed":     {entry("file", map[string]string{offsetRecord: "4"}), UnpackOptions{Owner: me}},
		"elsewhere":       {entry("file", map[string]string{offsetRecord: "3"}), asked},
		"another":         {entry("mine", map[string]string{offsetRecord: "4"}), asked},
		"negative":        {entry("file", map[string]string{offsetRecord: "-4"}), asked},
		"no number":       {entry("file", map[string]string{offsetRecord: "4x"}), asked},
		"nothing kept":    {entry("file", map[string]string{offsetRecord: "4"}), asked},
		"removal":         {entry("mine", map[string]string{removeRecord: "yes"}), asked},
		"removal outside": {entry("../to/mine", map[string]string{removeRecord: "yes"}), UnpackOptions{Owner: me, Removals: true}},
		"removal of all":  {entry(".", map[string]string{removeRecord: "yes"}), UnpackOptions{Owner: me, Removals: true}},
		"a partial":       {entry("sub/"+PartialName("mine"), nil), asked},
	} {
		to := t.TempDir() + "/to"
		write(t, to+"/mine", "mine", 0o600)
		if _, err := Unpack(t.Context(), bytes.NewReader(test.stream), to, test.o); err == nil {
			t.Errorf("%s is done", name)
		}
		if got, err := os.ReadFile(to + "/mine"); err != nil || string(got) != "mine" {
			t.Errorf("%s: %q, %v", name, got, err)
		}
		if names := ls(t, to); !slices.Equal(names, []string{"mine"}) {
			t.Errorf("%s: there is %q", name, names)
		}
	}
}

// A copy waits for one that writes the same file, and goes on where that ended.
func TestTwoResume(t *testing.T) {
	from, to := t.TempDir(), t.TempDir()
	write(t, from+"/file", string(large), 0o600)
	var copies sync.WaitGroup
	for range 4 {
		copies.Go(func() {
			if _, err := resume(t, from, to, 1<<40); err != nil && !strings.Contains(err.Error(), "of the partial file only") {
				t.Error(err)
			}
		})
	}
	copies.Wait()
	if got, err := os.ReadFile(to + "/file"); err != nil || !bytes.Equal(got, large) || len(ls(t, to)) != 1 {
		t.Errorf("%d bytes, %v, %q", len(got), err, ls(t, to))
	}
}

// What is wanted is sent, and no other file; what is to go has gone before.
func TestWanted(t *testing.T) {
	from, to := t.TempDir(), t.TempDir()
	for _, name := range []string{"a", "b/c", "b/d/e", "f/g"} {
		write(t, from+"/"+name, name, 0o600)
	}
	for _, name := range []string{"a", "old/x", "old/kept/y", "f"} {
		write(t, to+"/"+name, "old", 0o600)
	}
	r, w := io.Pipe()
	go func() {
		_, err := Pack(context.Background(), w, from, PackOptions{
			Name: ".", Wanted: map[string]Part{"b/d/e": {}, "b": {}, "f/g": {}}, Removed: []string{"old/x", "old", "none", "f"},
		})
		w.CloseWithError(err)
	}()
	totals, err := Unpack(t.Context(), r, to, UnpackOptions{Owner: me, Removals: true})
	must(t, err)
	if totals.Files != 2 || totals.Directories != 1 || totals.Removed != 2 {
		t.Errorf("%+v", totals)
	}
	tree := describeTree(t, to)
	for _, name := range []string{"a", "b", "b/d", "b/d/e", "f", "f/g", "old", "old/kept", "old/kept/y"} {
		if tree[name] == "" {
			t.Errorf("%s is not there", name)
		}
		delete(tree, name)
	}
	if delete(tree, "."); len(tree) > 0 {
		t.Errorf("there is %v", tree)
	}
}

func TestList(t *testing.T) {
	top := t.TempDir()
	write(t, top+"/sub/file", "content", 0o640)
	write(t, top+"/skipped/file", "content", 0o640)
	write(t, top+"/"+PartialName("file"), "part", 0o600)
	must(t, os.Symlink("sub", top+"/link"), unix.Mkfifo(top+"/pipe", 0o600))
	var entered []string
	list := func(top string, o ListOptions) map[string]Entry {
		t.Helper()
		var entries Entries
		must(t, List(t.Context(), top, o, entries.Add))
		return entries.ByName
	}
	all := list(top, ListOptions{
		Name: "top", Digests: true,
		Skip:  func(name string, directory bool) bool { return name == "top/skipped" && directory },
		Enter: func(path string) error { entered = append(entered, path); return nil },
	})
	sum := sha256.Sum256([]byte("content"))
	if len(all) != 6 || !all["top"].Mode.IsDir() || all["top/link"].Target != "sub" || !bytes.Equal(all["top/sub/file"].Digest, sum[:]) {
		t.Errorf("listed are %+v", all)
	}
	if !slices.Equal(entered, []string{top, top + "/sub"}) {
		t.Errorf("entered were %q", entered)
	}
	sum = sha256.Sum256([]byte("part"))
	if got := list(top+"/file", ListOptions{Name: "x", Destination: true}); len(got) != 1 || !bytes.Equal(got[PartialName("x")].Digest, sum[:]) {
		t.Errorf("where a file is to go there is %+v", got)
	}
	if got := list(top+"/link", ListOptions{Name: "x", Destination: true}); len(got) != 1 || got["x"].Target != "sub" {
		t.Errorf("where a link is there is %+v", got)
	}
	if got := list(top+"/none/x", ListOptions{Name: "x", Destination: true}); len(got) != 0 {
		t.Errorf("where nothing is there is %+v", got)
	}
	if got := list(top+"/sub/file", ListOptions{Name: "x"}); got["x"].Size != 7 {
		t.Errorf("of a file there is %+v", got)
	}
	if err := List(t.Context(), top+"/none", ListOptions{Name: "x"}, nil); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("of nothing there is %v", err)
	}
}
