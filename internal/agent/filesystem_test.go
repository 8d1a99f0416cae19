package agent

import (
	"context"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"connectrpc.com/connect"

	"github.com/vmsan/vmsan/internal/guest/proto/filesystem"
)

func (g *guest) path(elements ...string) string {
	return filepath.Join(append([]string{g.root}, elements...)...)
}

func (g *guest) write(t *testing.T, name, text string) string {
	t.Helper()
	path := g.path(name)
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(path, []byte(text), 0o640); err != nil {
		t.Fatal(err)
	}
	return path
}

func (g *guest) stat(path string) (*filesystem.EntryInfo, error) {
	response, err := g.filesystem.Stat(context.Background(), connect.NewRequest(&filesystem.StatRequest{Path: path}))
	if err != nil {
		return nil, err
	}
	return response.Msg.GetEntry(), nil
}

func TestStat(t *testing.T) {
	g := newGuest(t)
	file := g.write(t, "dir/file", "12345")
	for link, target := range map[string]string{"link": "dir/file", "dirlink": "dir", "broken": "nowhere"} {
		if err := os.Symlink(target, g.path(link)); err != nil {
			t.Fatal(err)
		}
	}
	entry, err := g.stat(file)
	if err != nil {
		t.Fatal(err)
	}
	if entry.GetName() != "file" || entry.GetPath() != file || entry.GetSize() != 5 || entry.GetMode() != 0o640 ||
		entry.GetPermissions() != "-rw-r-----" || entry.GetType() != filesystem.FileType_FILE_TYPE_FILE ||
		entry.GetOwner() == "" || entry.GetModifiedTime().AsTime().IsZero() || entry.SymlinkTarget != nil {
		t.Errorf("file: %v", entry)
	}
	if entry, err = g.stat(g.path("dir")); err != nil || entry.GetType() != filesystem.FileType_FILE_TYPE_DIRECTORY || entry.GetPermissions() != "drwxr-xr-x" || entry.GetMode() != 0o755 {
		t.Errorf("directory: %v, error %v", entry, err)
	}
	real, err := filepath.EvalSymlinks(file)
	if err != nil {
		t.Fatal(err)
	}
	if entry, err = g.stat(g.path("link")); err != nil || entry.GetType() != filesystem.FileType_FILE_TYPE_FILE || entry.GetMode() != 0o640 || !strings.HasPrefix(entry.GetPermissions(), "L") || entry.GetSymlinkTarget() != real {
		t.Errorf("link: %v, error %v", entry, err)
	}
	if entry, err = g.stat(g.path("dirlink")); err != nil || entry.GetType() != filesystem.FileType_FILE_TYPE_DIRECTORY {
		t.Errorf("link to a directory: %v, error %v", entry, err)
	}
	if entry, err = g.stat(g.path("broken")); err != nil || entry.GetType() != filesystem.FileType_FILE_TYPE_SYMLINK || entry.GetSymlinkTarget() != "nowhere" {
		t.Errorf("broken link: %v, error %v", entry, err)
	}
	_, err = g.stat("/no/such")
	wantCode(t, err, connect.CodeNotFound, "path '/no/such' does not exist")
	_, err = g.stat("/" + strings.Repeat("a", maxPath))
	wantCode(t, err, connect.CodeInvalidArgument, "longer")
}

func TestMakeDir(t *testing.T) {
	g := newGuest(t)
	file := g.write(t, "file", "")
	makeDir := func(path string) (*filesystem.EntryInfo, error) {
		response, err := g.filesystem.MakeDir(t.Context(), connect.NewRequest(&filesystem.MakeDirRequest{Path: path}))
		if err != nil {
			return nil, err
		}
		return response.Msg.GetEntry(), nil
	}
	if entry, err := makeDir(g.path("a/b/c")); err != nil || entry.GetPath() != g.path("a/b/c") || entry.GetType() != filesystem.FileType_FILE_TYPE_DIRECTORY {
		t.Errorf("got %v, error %v", entry, err)
	}
	_, err := makeDir(g.path("a/b"))
	wantCode(t, err, connect.CodeAlreadyExists, "already exists")
	_, err = makeDir(file)
	wantCode(t, err, connect.CodeInvalidArgument, "not a directory")
	_, err = makeDir(filepath.Join(file, "below"))
	wantCode(t, err, connect.CodeInvalidArgument, "not a directory")
}

func TestMoveAndRemove(t *testing.T) {
	g := newGuest(t)
	file := g.write(t, "file", "x")
	moved := g.path("new/place/file")
	response, err := g.filesystem.Move(t.Context(), connect.NewRequest(&filesystem.MoveRequest{Source: file, Destination: moved}))
	if err != nil || response.Msg.GetEntry().GetPath() != moved {
		t.Fatalf("got %v, error %v", response, err)
	}
	_, err = g.filesystem.Move(t.Context(), connect.NewRequest(&filesystem.MoveRequest{Source: file, Destination: moved}))
	wantCode(t, err, connect.CodeNotFound, "does not exist")
	for range 2 { // the second time there is nothing, and that is fine
		if _, err := g.filesystem.Remove(t.Context(), connect.NewRequest(&filesystem.RemoveRequest{Path: g.path("new")})); err != nil {
			t.Fatal(err)
		}
	}
	if _, err := os.Stat(g.path("new")); !os.IsNotExist(err) {
		t.Errorf("still there: %v", err)
	}
	_, err = g.filesystem.Remove(t.Context(), connect.NewRequest(&filesystem.RemoveRequest{Path: "/.."}))
	wantCode(t, err, connect.CodeInvalidArgument, "root directory")
}

func TestListDir(t *testing.T) {
	g := newGuest(t)
	for _, name := range []string{"l/b/2", "l/b/1", "l/a", "l/b/deep/x", "l/c"} {
		g.write(t, name, "")
	}
	if err := os.Symlink("l", g.path("alias")); err != nil {
		t.Fatal(err)
	}
	if err := os.Symlink("..", g.path("l/b/up")); err != nil {
		t.Fatal(err)
	}
	list := func(path string, depth uint32) ([]string, error) {
		response, err := g.filesystem.ListDir(t.Context(), connect.NewRequest(&filesystem.ListDirRequest{Path: path, Depth: depth}))
		if err != nil {
			return nil, err
		}
		var paths []string
		for _, entry := range response.Msg.GetEntries() {
			paths = append(paths, strings.TrimPrefix(entry.GetPath(), path+"/"))
		}
		return paths, nil
	}
	all := []string{"a", "b", "b/1", "b/2", "b/deep", "b/deep/x", "b/up", "c"}
	for _, c := range []struct {
		path  string
		depth uint32
		want  []string
	}{
		{g.path("l"), 0, []string{"a", "b", "c"}},
		{g.path("l"), 1, []string{"a", "b", "c"}},
		{g.path("l"), 2, []string{"a", "b", "b/1", "b/2", "b/deep", "b/up", "c"}},
		{g.path("l"), 64, all},
		{g.path("alias"), 9, all},
	} {
		if got, err := list(c.path, c.depth); err != nil || !slices.Equal(got, c.want) {
			t.Errorf("%s depth %d: got %q, error %v", c.path, c.depth, got, err)
		}
	}
	_, err := list(g.path("l/a"), 1)
	wantCode(t, err, connect.CodeInvalidArgument, "not a directory")
	_, err = list("/no/such", 1)
	wantCode(t, err, connect.CodeNotFound, "")
	_, err = list(g.path("l"), maxDepth+1)
	wantCode(t, err, connect.CodeInvalidArgument, "depth")
}

func TestWatchDir(t *testing.T) {
	g := newGuest(t)
	g.write(t, "w/old/file", "")
	stream, err := g.filesystem.WatchDir(t.Context(), connect.NewRequest(&filesystem.WatchDirRequest{Path: g.path("w"), Recursive: true, IncludeEntry: true}))
	if err != nil {
		t.Fatal(err)
	}
	defer stream.Close()
	if !stream.Receive() || stream.Msg().GetStart() == nil {
		t.Fatalf("first message %v, error %v", stream.Msg(), stream.Err())
	}
	next := func(name string, kind filesystem.EventType) *filesystem.FilesystemEvent {
		t.Helper()
		for stream.Receive() {
			event := stream.Msg().GetFilesystem()
			if event.GetName() == name && event.GetType() == kind {
				return event
			}
		}
		t.Fatalf("no %v of %s: %v", kind, name, stream.Err())
		return nil
	}
	g.write(t, "w/old/file", "text")
	if event := next("old/file", filesystem.EventType_EVENT_TYPE_WRITE); event.GetEntry().GetPath() != g.path("w/old/file") {
		t.Errorf("got %v", event)
	}
	// Made at once, before the watch of the first can be set up.
	g.write(t, "w/new/deeper/file", "")
	next("new", filesystem.EventType_EVENT_TYPE_CREATE)
	next("new/deeper", filesystem.EventType_EVENT_TYPE_CREATE)
	next("new/deeper/file", filesystem.EventType_EVENT_TYPE_CREATE)
	if err := os.Chmod(g.path("w/new/deeper/file"), 0o600); err != nil {
		t.Fatal(err)
	}
	next("new/deeper/file", filesystem.EventType_EVENT_TYPE_CHMOD)
	if err := os.Rename(g.path("w/new/deeper/file"), g.path("w/moved")); err != nil {
		t.Fatal(err)
	}
	if event := next("new/deeper/file", filesystem.EventType_EVENT_TYPE_RENAME); event.Entry != nil {
		t.Errorf("got %v", event)
	}
	if err := os.Remove(g.path("w/moved")); err != nil {
		t.Fatal(err)
	}
	next("moved", filesystem.EventType_EVENT_TYPE_REMOVE)
}

func TestWatchErrors(t *testing.T) {
	g := newGuest(t)
	file := g.write(t, "file", "")
	for path, code := range map[string]connect.Code{"/no/such": connect.CodeNotFound, file: connect.CodeInvalidArgument} {
		_, err := g.filesystem.CreateWatcher(t.Context(), connect.NewRequest(&filesystem.CreateWatcherRequest{Path: path}))
		wantCode(t, err, code, "")
	}
	_, err := g.filesystem.GetWatcherEvents(t.Context(), connect.NewRequest(&filesystem.GetWatcherEventsRequest{WatcherId: "x"}))
	wantCode(t, err, connect.CodeNotFound, "")
	_, err = g.filesystem.RemoveWatcher(t.Context(), connect.NewRequest(&filesystem.RemoveWatcherRequest{WatcherId: "x"}))
	wantCode(t, err, connect.CodeNotFound, "")
}

func TestPolledWatch(t *testing.T) {
	g := newGuest(t)
	g.write(t, "w/sub/file", "")
	created, err := g.filesystem.CreateWatcher(t.Context(), connect.NewRequest(&filesystem.CreateWatcherRequest{Path: g.path("w")}))
	if err != nil {
		t.Fatal(err)
	}
	id := created.Msg.GetWatcherId()
	g.write(t, "w/sub/unseen", "") // not a recursive watch
	g.write(t, "w/seen", "")
	var names []string
	eventually(t, "the event", func() bool {
		response, err := g.filesystem.GetWatcherEvents(t.Context(), connect.NewRequest(&filesystem.GetWatcherEventsRequest{WatcherId: id}))
		if err != nil {
			t.Fatal(err)
		}
		for _, event := range response.Msg.GetEvents() {
			names = append(names, event.GetName())
		}
		return slices.Contains(names, "seen")
	})
	if slices.Contains(names, "sub/unseen") {
		t.Errorf("got %q", names)
	}
	if _, err := g.filesystem.RemoveWatcher(t.Context(), connect.NewRequest(&filesystem.RemoveWatcherRequest{WatcherId: id})); err != nil {
		t.Fatal(err)
	}
	_, err = g.filesystem.GetWatcherEvents(t.Context(), connect.NewRequest(&filesystem.GetWatcherEventsRequest{WatcherId: id}))
	wantCode(t, err, connect.CodeNotFound, "")
}
