package sandbox

import (
	"context"
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/fsnotify/fsnotify"
	"github.com/google/go-cmp/cmp"

	"github.com/vmsan/vmsan/api"
	"github.com/vmsan/vmsan/internal/filetree"
)

// entries are of names: "d/" is a directory, "l@x" a link to x, "p|" a pipe, and
// "f" a file; what is behind a colon is a file's content.
func entries(names ...string) map[string]filetree.Entry {
	all := map[string]filetree.Entry{}
	for _, name := range names {
		e := filetree.Entry{Name: name, Mode: 0o644, Modified: time.Unix(1, 0)}
		for i, c := range name {
			switch c {
			case '/':
				if i == len(name)-1 {
					e.Name, e.Mode = name[:i], fs.ModeDir|0o755
				}
			case '@':
				e.Name, e.Mode, e.Target = name[:i], fs.ModeSymlink|0o777, name[i+1:]
			case '|':
				e.Name, e.Mode = name[:i], fs.ModeNamedPipe|0o644
			case ':':
				e.Name, e.Size, e.Modified = name[:i], int64(len(name)-i), time.Unix(int64(name[len(name)-1]), 0)
			}
		}
		all[e.Name] = e
	}
	return all
}

func TestSyncPlan(t *testing.T) {
	excluded := func(name string, _ bool) bool { return filepath.Ext(name) == ".o" }
	for name, test := range map[string]struct {
		source, there map[string]filetree.Entry
		keep          bool // without --delete
		want          []string
	}{
		"nothing":        {source: entries("a/", "a/b:x", "l@y"), there: entries("a/", "a/b:x", "l@y")},
		"new":            {source: entries("a/", "a/b"), want: []string{"send a/", "send a/b"}},
		"changed":        {source: entries("a/", "a/b:x", "c:x"), there: entries("a/", "a/b:y", "c:xx"), want: []string{"send a/", "send a/b", "send c"}},
		"a link":         {source: entries("l@y", "m@n", "n"), there: entries("l@x", "m", "n@m"), want: []string{"send l", "send m", "send n"}},
		"removed":        {source: entries("a/"), there: entries("a/", "a/b", "c/", "c/d", "x.o"), want: []string{"remove c/d", "remove c", "remove a/b", "send a/"}},
		"what is around": {source: entries("a/"), there: entries("a/", "a/g/", "a/g/x.o", "c/", "c/d", "c/e/", "c/e/x.o", "c/f/"), want: []string{"remove c/f", "remove c/d"}},
		"kept":           {source: entries("a/"), there: entries("a/", "a/b"), keep: true},
		"what is a pipe": {source: entries("p|"), there: entries("p")},
		"to a directory": {source: entries("a/", "a/b"), there: entries("a"), keep: true, want: []string{"remove a", "send a/", "send a/b"}},
		"to a file":      {source: entries("a"), there: entries("a/", "a/b", "a/c.o"), want: []string{"remove a/b", "remove a", "send a"}},
		"partials":       {source: entries(".vmsan-part-a"), there: entries(".vmsan-part-b")},
		"of an empty":    {source: entries("a"), there: entries("a/"), keep: true, want: []string{"remove a", "send a"}},
	} {
		y := &syncing{SyncOptions: SyncOptions{Delete: !test.keep}, there: test.there}
		p, err := y.plan(t.Context(), test.source, excluded)
		if err != nil {
			t.Errorf("%s: %v", name, err)
		}
		var got []string
		for _, c := range p.changes(test.source).Changes {
			got = append(got, string(c.Action)+" "+c.Path)
		}
		if diff := cmp.Diff(test.want, got); diff != "" {
			t.Errorf("%s (-want +got):\n%s", name, diff)
		}
	}
	y := &syncing{there: entries("a/", "a/b")}
	if _, err := y.plan(t.Context(), entries("a"), excluded); !api.HasCode(err, api.ErrFile) {
		t.Errorf("a file in the place of a full directory: %v", err)
	}
}

// A guest that makes up directories is not believed.
func TestSyncParents(t *testing.T) {
	if err := checkParents(entries("a/", "a/b", "c")); err != nil {
		t.Error(err)
	}
	for _, list := range []map[string]filetree.Entry{entries("a/b"), entries("a", "a/b"), entries("a/", "a/b/c")} {
		if checkParents(list) == nil {
			t.Errorf("%v is taken for a listing", list)
		}
	}
}

func TestSyncChecksum(t *testing.T) {
	a := filetree.Entry{Mode: 0o644, Digest: []byte("1"), Modified: time.Unix(1, 0)}
	b := filetree.Entry{Mode: 0o644, Digest: []byte("1"), Modified: time.Unix(2, 0)}
	y := &syncing{SyncOptions: SyncOptions{Checksum: true}}
	if !y.same(a, b) {
		t.Error("what has the same content is sent")
	}
	if b.Digest = nil; y.same(a, b) {
		t.Error("what nobody has looked at is not sent")
	}
	if y.Checksum = false; y.same(a, b) {
		t.Error("what was changed is not sent")
	}
}

func newTestWatcher(t *testing.T) *treeWatcher {
	t.Helper()
	w, err := newTreeWatcher()
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(w.close)
	return w
}

// A directory goes on being watched when it has another name, and so does what
// is in it.
func TestWatchRenamed(t *testing.T) {
	w, top := newTestWatcher(t), t.TempDir()
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	scan := func() {
		t.Helper()
		o := filetree.ListOptions{Name: ".", Enter: w.enter}
		if err := filetree.List(ctx, top, o, func(filetree.Entry) error { return nil }); err != nil {
			t.Fatal(err)
		}
	}
	change := func(err error) {
		t.Helper()
		if err == nil {
			err = w.wait(ctx)
		}
		if err != nil {
			t.Fatal(err)
		}
		scan()
	}
	scan()
	change(os.MkdirAll(top+"/a/b/c", 0o755))
	change(os.Rename(top+"/a", top+"/moved"))
	change(os.WriteFile(top+"/moved/b/c/file", nil, 0o600))
	change(os.Rename(top+"/moved/b", top+"/b"))
	change(os.WriteFile(top+"/b/c/file", []byte("x"), 0o600))
	change(os.RemoveAll(top + "/b"))
	if err := w.enter(top + "/gone"); err != nil {
		t.Errorf("a directory that has gone: %v", err)
	}
}

// Events that the kernel had no room for are a change like others.
func TestWatchOverflow(t *testing.T) {
	w := newTestWatcher(t)
	w.notify.Errors <- fsnotify.ErrEventOverflow
	if err := w.wait(t.Context()); err != nil {
		t.Error(err)
	}
	broken := errors.New("broken")
	w.notify.Errors <- broken
	if err := w.wait(t.Context()); !errors.Is(err, broken) {
		// The first of the two that both are ready may be taken.
		if err := w.wait(t.Context()); !errors.Is(err, broken) {
			t.Errorf("a watch that fails: %v", err)
		}
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if err := w.wait(ctx); !errors.Is(err, context.Canceled) {
		t.Errorf("interrupted: %v", err)
	}
}
