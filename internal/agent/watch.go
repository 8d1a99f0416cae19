package agent

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"io/fs"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"time"

	"connectrpc.com/connect"
	"github.com/fsnotify/fsnotify"
	"golang.org/x/sys/unix"

	"github.com/vmsan/vmsan/internal/guest/proto/filesystem"
)

// watchers counts all watches and holds those that are polled.
type watchers struct {
	mu     sync.Mutex
	open   int
	polled map[string]*polledWatch
}

// take makes sure of a place for one more.
func (w *watchers) take() error {
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.open >= maxWatchers {
		return connect.NewError(connect.CodeResourceExhausted, fmt.Errorf("%d directories are watched already", maxWatchers))
	}
	w.open++
	return nil
}

func (w *watchers) release() {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.open--
}

func (w *watchers) add(id string, p *polledWatch) {
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.polled == nil {
		w.polled = map[string]*polledWatch{}
	}
	w.polled[id] = p
}

func (w *watchers) find(id string) *polledWatch {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.polled[id]
}

func (w *watchers) remove(id string) *polledWatch {
	w.mu.Lock()
	defer w.mu.Unlock()
	p := w.polled[id]
	delete(w.polled, id)
	return p
}

func (w *watchers) close() {
	w.mu.Lock()
	all := w.polled
	w.polled = nil
	w.mu.Unlock()
	for _, p := range all {
		p.stop()
	}
}

// watchRequest is what WatchDirRequest and CreateWatcherRequest have in common.
type watchRequest interface {
	GetPath() string
	GetRecursive() bool
	GetIncludeEntry() bool
	GetAllowNetworkMounts() bool
}

// watch reports the changes below one directory.
type watch struct {
	root      string
	recursive bool
	entries   bool
	agent     *Agent
	notify    *fsnotify.Watcher
	// found are paths reported because they were in a directory when its watch began. The kernel may
	// report the same creation.
	found map[string]struct{}
}

func (s *filesystemService) openWatch(request watchRequest, header http.Header) (*watch, error) {
	path, _, err := s.locate(request.GetPath(), header)
	if err != nil {
		return nil, err
	}
	if err := requireDirectory(path); err != nil {
		return nil, err
	}
	if !request.GetAllowNetworkMounts() {
		if err := refuseNetworkMount(path); err != nil {
			return nil, err
		}
	}
	if err := s.agent.watchers.take(); err != nil {
		return nil, err
	}
	w := &watch{
		root:      path,
		recursive: request.GetRecursive(),
		entries:   request.GetIncludeEntry(),
		agent:     s.agent,
		found:     map[string]struct{}{},
	}
	if err := w.arm(); err != nil {
		s.agent.watchers.release()
		return nil, fileError(path, err)
	}
	return w, nil
}

func (w *watch) arm() error {
	notify, err := fsnotify.NewBufferedWatcher(256)
	if err != nil {
		return fmt.Errorf("watch %s: %w", w.root, err)
	}
	w.notify = notify
	if err := w.cover(w.root, nil); err != nil {
		notify.Close()
		return err
	}
	return nil
}

func (w *watch) close() {
	w.notify.Close()
	w.agent.watchers.release()
}

// cover watches a directory and, for a recursive watch, those below it. report is told what is there
// already; it is nil when the watch as a whole begins.
func (w *watch) cover(directory string, report func(path string)) error {
	if len(w.notify.WatchList()) >= maxWatchedDirs {
		return connect.NewError(connect.CodeResourceExhausted, fmt.Errorf("more than %d directories to watch", maxWatchedDirs))
	}
	// First the watch, then the look: what is made between the two is seen twice, and not missed.
	if err := w.notify.Add(directory); err != nil {
		return err
	}
	if !w.recursive {
		return nil
	}
	items, err := os.ReadDir(directory)
	if err != nil {
		return err
	}
	for _, item := range items {
		path := filepath.Join(directory, item.Name())
		if report != nil {
			report(path)
		}
		if !item.IsDir() {
			continue
		}
		if err := w.cover(path, report); err != nil && !gone(err) {
			return err
		}
	}
	return nil
}

func gone(err error) bool {
	return errors.Is(err, fs.ErrNotExist) || errors.Is(err, unix.ENOTDIR)
}

// run hands events over until ctx is done, the watch fails, or emit does.
func (w *watch) run(ctx context.Context, emit func(*filesystem.FilesystemEvent) error) error {
	for {
		select {
		case <-ctx.Done():
			return ctx.Err()
		case err, ok := <-w.notify.Errors:
			if !ok {
				return nil
			}
			return connect.NewError(connect.CodeInternal, fmt.Errorf("watch %s: %w", w.root, err))
		case event, ok := <-w.notify.Events:
			if !ok {
				return nil
			}
			if err := w.handle(event, emit); err != nil {
				return err
			}
		}
	}
}

// kinds are the events of the contract, in the order they happen in if the kernel reports several in one.
var kinds = []struct {
	op   fsnotify.Op
	kind filesystem.EventType
}{
	{fsnotify.Create, filesystem.EventType_EVENT_TYPE_CREATE},
	{fsnotify.Rename, filesystem.EventType_EVENT_TYPE_RENAME},
	{fsnotify.Chmod, filesystem.EventType_EVENT_TYPE_CHMOD},
	{fsnotify.Write, filesystem.EventType_EVENT_TYPE_WRITE},
	{fsnotify.Remove, filesystem.EventType_EVENT_TYPE_REMOVE},
}

func (w *watch) handle(event fsnotify.Event, emit func(*filesystem.FilesystemEvent) error) error {
	for _, k := range kinds {
		if !event.Has(k.op) {
			continue
		}
		if k.op == fsnotify.Create && w.reported(event.Name) {
			continue
		}
		if err := emit(w.event(event.Name, k.kind)); err != nil {
			return err
		}
		if k.op == fsnotify.Create && w.recursive {
			if err := w.coverNew(event.Name, emit); err != nil {
				return err
			}
		}
	}
	return nil
}

// reported tells, once, if a creation was reported already.
func (w *watch) reported(path string) bool {
	_, ok := w.found[path]
	delete(w.found, path)
	return ok
}

// coverNew picks up a directory that was just made, with all that is in it by now.
func (w *watch) coverNew(path string, emit func(*filesystem.FilesystemEvent) error) error {
	info, err := os.Lstat(path)
	if err != nil || !info.IsDir() {
		return nil
	}
	var emitErr error
	err = w.cover(path, func(found string) {
		if len(w.found) >= maxWatchQueue {
			clear(w.found)
		}
		w.found[found] = struct{}{}
		if emitErr == nil {
			emitErr = emit(w.event(found, filesystem.EventType_EVENT_TYPE_CREATE))
		}
	})
	if emitErr != nil {
		return emitErr
	}
	if err != nil && !gone(err) {
		return fileError(path, err)
	}
	return nil
}

func (w *watch) event(path string, kind filesystem.EventType) *filesystem.FilesystemEvent {
	name, err := filepath.Rel(w.root, path)
	if err != nil {
		name = path
	}
	event := &filesystem.FilesystemEvent{Name: name, Type: kind}
	if w.entries && kind != filesystem.EventType_EVENT_TYPE_REMOVE && kind != filesystem.EventType_EVENT_TYPE_RENAME {
		// Gone already: the event is told without it.
		event.Entry, _ = describe(path, w.agent.accounts.names())
	}
	return event
}

// Filesystems whose changes on another machine, or in another process, inotify does not see. Numbers of
// include/uapi/linux/magic.h.
var networkFilesystems = map[int64]string{
	0x6969:     "NFS",
	0x517b:     "SMB",
	0xff534d42: "CIFS",
	0xfe534d42: "SMB",
	0x65735546: "FUSE",
	0x01021997: "9p",
}

func refuseNetworkMount(path string) error {
	var stat unix.Statfs_t
	if err := unix.Statfs(path, &stat); err != nil {
		return fileError(path, err)
	}
	if name, ok := networkFilesystems[int64(uint32(stat.Type))]; ok {
		return connect.NewError(connect.CodeInvalidArgument, fmt.Errorf("cannot watch path on network filesystem (%s): %s", name, path))
	}
	return nil
}

// WatchDir streams events.
func (s *filesystemService) WatchDir(ctx context.Context, request *connect.Request[filesystem.WatchDirRequest], stream *connect.ServerStream[filesystem.WatchDirResponse]) error {
	w, err := s.openWatch(request.Msg, request.Header())
	if err != nil {
		return err
	}
	defer w.close()
	sender := newWatchStream(stream, keepaliveInterval(request.Header()))
	defer sender.close()
	if err := sender.send(&filesystem.WatchDirResponse{Event: &filesystem.WatchDirResponse_Start{Start: &filesystem.WatchDirResponse_StartEvent{}}}); err != nil {
		return err
	}
	return w.run(ctx, func(event *filesystem.FilesystemEvent) error {
		return sender.send(&filesystem.WatchDirResponse{Event: &filesystem.WatchDirResponse_Filesystem{Filesystem: event}})
	})
}

// watchStream sends a keepalive whenever nothing else was sent for an interval.
type watchStream struct {
	interval time.Duration

	mu     sync.Mutex
	stream *connect.ServerStream[filesystem.WatchDirResponse]
	timer  *time.Timer
	closed bool
}

func newWatchStream(stream *connect.ServerStream[filesystem.WatchDirResponse], interval time.Duration) *watchStream {
	s := &watchStream{interval: interval, stream: stream}
	s.mu.Lock()
	defer s.mu.Unlock()
	s.timer = time.AfterFunc(interval, s.beat)
	return s
}

func (s *watchStream) send(response *filesystem.WatchDirResponse) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.closed {
		return os.ErrClosed
	}
	s.timer.Reset(s.interval)
	return s.stream.Send(response)
}

func (s *watchStream) beat() {
	// A client that is gone ends the stream's context.
	_ = s.send(&filesystem.WatchDirResponse{Event: &filesystem.WatchDirResponse_Keepalive{Keepalive: &filesystem.WatchDirResponse_KeepAlive{}}})
}

func (s *watchStream) close() {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.closed = true
	s.timer.Stop()
}

// polledWatch collects events until its client asks for them.
type polledWatch struct {
	watch  *watch
	cancel context.CancelFunc
	done   chan struct{}

	mu     sync.Mutex
	events []*filesystem.FilesystemEvent
	err    error
}

// CreateWatcher begins to collect events for GetWatcherEvents.
func (s *filesystemService) CreateWatcher(_ context.Context, request *connect.Request[filesystem.CreateWatcherRequest]) (*connect.Response[filesystem.CreateWatcherResponse], error) {
	w, err := s.openWatch(request.Msg, request.Header())
	if err != nil {
		return nil, err
	}
	// It lives on after the call, until RemoveWatcher.
	ctx, cancel := context.WithCancel(context.Background())
	p := &polledWatch{watch: w, cancel: cancel, done: make(chan struct{})}
	id := "w" + strings.ToLower(rand.Text())
	s.agent.watchers.add(id, p)
	go p.collect(ctx)
	return connect.NewResponse(&filesystem.CreateWatcherResponse{WatcherId: id}), nil
}

func (p *polledWatch) collect(ctx context.Context) {
	defer close(p.done)
	err := p.watch.run(ctx, p.add)
	p.mu.Lock()
	defer p.mu.Unlock()
	p.err = err
}

func (p *polledWatch) add(event *filesystem.FilesystemEvent) error {
	p.mu.Lock()
	defer p.mu.Unlock()
	if len(p.events) >= maxWatchQueue {
		return connect.NewError(connect.CodeResourceExhausted, fmt.Errorf("%d events waited to be asked for", maxWatchQueue))
	}
	p.events = append(p.events, event)
	return nil
}

// take returns what was collected, and only after that why there is no more.
func (p *polledWatch) take() ([]*filesystem.FilesystemEvent, error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	events := p.events
	p.events = nil
	if len(events) == 0 {
		return nil, p.err
	}
	return events, nil
}

func (p *polledWatch) stop() {
	p.cancel()
	<-p.done
	p.watch.close()
}

func (s *filesystemService) GetWatcherEvents(_ context.Context, request *connect.Request[filesystem.GetWatcherEventsRequest]) (*connect.Response[filesystem.GetWatcherEventsResponse], error) {
	p := s.agent.watchers.find(request.Msg.GetWatcherId())
	if p == nil {
		return nil, unknownWatcher(request.Msg.GetWatcherId())
	}
	events, err := p.take()
	if err != nil {
		return nil, err
	}
	return connect.NewResponse(&filesystem.GetWatcherEventsResponse{Events: events}), nil
}

func (s *filesystemService) RemoveWatcher(_ context.Context, request *connect.Request[filesystem.RemoveWatcherRequest]) (*connect.Response[filesystem.RemoveWatcherResponse], error) {
	p := s.agent.watchers.remove(request.Msg.GetWatcherId())
	if p == nil {
		return nil, unknownWatcher(request.Msg.GetWatcherId())
	}
	p.stop()
	return connect.NewResponse(&filesystem.RemoveWatcherResponse{}), nil
}

func unknownWatcher(id string) error {
	return connect.NewError(connect.CodeNotFound, fmt.Errorf("watcher with id %s not found", id))
}
