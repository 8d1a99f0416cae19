package sandbox

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"syscall"
	"time"

	"github.com/fsnotify/fsnotify"

	"github.com/vmsan/vmsan/api"
)

// treeWatcher tells that something in a tree has changed, and not what: each
// round looks at all of it, which is as right after renames, and after events
// that the kernel had no room for, as after one file was written.
type treeWatcher struct {
	notify  *fsnotify.Watcher
	changed chan struct{}
	failed  chan error
}

func newTreeWatcher() (*treeWatcher, error) {
	notify, err := fsnotify.NewWatcher()
	if err != nil {
		return nil, watchError(fmt.Errorf("watch files: %w", err))
	}
	w := &treeWatcher{notify: notify, changed: make(chan struct{}, 1), failed: make(chan error, 1)}
	go w.listen()
	return w, nil
}

// listen ends with the watcher. Events are taken at once, whatever else is done
// just now.
func (w *treeWatcher) listen() {
	for {
		select {
		case _, ok := <-w.notify.Events:
			if !ok {
				return
			}
		case err, ok := <-w.notify.Errors:
			if !ok {
				return
			}
			if !errors.Is(err, fsnotify.ErrEventOverflow) {
				select {
				case w.failed <- err:
				default: // one is enough
				}
			}
		}
		select {
		case w.changed <- struct{}{}:
		default: // it is known
		}
	}
}

// enter watches a directory, before its names are read.
func (w *treeWatcher) enter(path string) error {
	err := w.notify.Add(path)
	if errors.Is(err, fs.ErrNotExist) || errors.Is(err, syscall.ENOTDIR) {
		return nil // it has gone, which the one around it tells
	}
	if err != nil {
		return watchError(fmt.Errorf("watch %s: %w", path, err))
	}
	return nil
}

func watchError(err error) error {
	failure := api.Errorf(api.ErrInternal, "%w", err)
	switch {
	case errors.Is(err, syscall.ENOSPC):
		failure.Code = api.ErrUnsupported
		return failure.WithHint("sysctl fs.inotify.max_user_watches=1048576, or --exclude large directories")
	case errors.Is(err, syscall.EMFILE):
		failure.Code = api.ErrUnsupported
		return failure.WithHint("sysctl fs.inotify.max_user_instances=1024")
	}
	return failure
}

// A change is followed by more: editors write a file beside the old one and
// rename it, builds and checkouts change many. settle is how long it has to be
// quiet, and settleLimit how long at most that is waited for.
const (
	settle      = 100 * time.Millisecond
	settleLimit = time.Second
)

// wait returns when something has changed, and it is quiet again.
func (w *treeWatcher) wait(ctx context.Context) error {
	select {
	case <-ctx.Done():
		return ctx.Err()
	case err := <-w.failed:
		return watchError(fmt.Errorf("watch files: %w", err))
	case <-w.changed:
	}
	for limit := time.Now().Add(settleLimit); time.Now().Before(limit); {
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-w.changed:
		case <-time.After(settle):
			return nil
		}
	}
	return nil
}

func (w *treeWatcher) close() { w.notify.Close() }
