package events

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"slices"

	"github.com/fsnotify/fsnotify"

	"github.com/vmsan/vmsan/api"
)

// Read returns all events that the journal still has, the oldest first.
func (j Journal) Read(ctx context.Context) ([]api.Event, error) {
	r := j.reader()
	defer r.close()
	return r.next(ctx)
}

// Follow calls show for all events that the journal still has, the oldest
// first, and for those that come, until show fails or ctx ends, which is no
// error.
func (j Journal) Follow(ctx context.Context, show func(api.Event) error) error {
	if err := j.makeDir(); err != nil {
		return err
	}
	watcher, err := fsnotify.NewWatcher()
	if err != nil {
		return fmt.Errorf("watch journal of events: %w", err)
	}
	defer watcher.Close()
	if err := watcher.Add(j.Dir); err != nil {
		return fmt.Errorf("watch journal of events: %w", err)
	}
	r := j.reader()
	defer r.close()
	for {
		events, err := r.next(ctx)
		if err != nil && ctx.Err() == nil {
			return err
		}
		for _, e := range events {
			if err := show(e); err != nil {
				return err
			}
		}
		select {
		case <-watcher.Events:
		case err := <-watcher.Errors:
			if errors.Is(err, fsnotify.ErrEventOverflow) {
				continue // it was to wake us, and has
			}
			return fmt.Errorf("watch journal of events: %w", err)
		case <-ctx.Done():
			return nil
		}
	}
}

// reader reads a journal bit by bit.
type reader struct{ books []*bookReader }

func (j Journal) reader() *reader {
	r := &reader{}
	for _, book := range books {
		r.books = append(r.books, &bookReader{journal: j, book: book})
	}
	return r
}

func (r *reader) close() {
	for _, b := range r.books {
		if b.file != nil {
			b.file.Close()
		}
	}
}

// next returns the events since it was called last.
func (r *reader) next(ctx context.Context) (events []api.Event, err error) {
	for _, b := range r.books {
		more, err := b.next(ctx)
		if err != nil {
			return nil, fmt.Errorf("read journal of events: %w", err)
		}
		events = append(events, more...)
	}
	slices.SortStableFunc(events, func(a, b api.Event) int { return a.Time.Compare(b.Time) })
	return events, nil
}

// bookReader reads a book bit by bit.
type bookReader struct {
	journal Journal
	book    string
	file    *os.File // where it has come to; nil before the first
	rest    []byte   // of a line that is not whole yet
}

func (b *bookReader) next(ctx context.Context) (events []api.Event, err error) {
	for {
		more, err := b.read()
		if err != nil {
			return nil, err
		}
		events = append(events, more...)
		if b.file != nil && isFile(b.journal.current(b.book), b.file) {
			return events, nil
		}
		more, again, err := b.turn(ctx)
		events = append(events, more...)
		if err != nil || !again {
			return events, err
		}
	}
}

// read reads the open file to its end.
func (b *bookReader) read() (events []api.Event, err error) {
	if b.file == nil {
		return nil, nil
	}
	// No segment is larger.
	text, err := io.ReadAll(io.LimitReader(b.file, 2*maxSegment))
	if err != nil {
		return nil, err
	}
	b.rest = append(b.rest, text...)
	for {
		line, rest, whole := bytes.Cut(b.rest, []byte{'\n'})
		if !whole {
			break
		}
		b.rest = rest
		if e, ok := decode(line); ok {
			events = append(events, e)
		}
	}
	// Not with all that was read before it.
	b.rest = bytes.Clone(b.rest[:min(len(b.rest), maxLine+1)])
	return events, nil
}

// turn goes on to the segment after the open one, if there is one, and returns
// what was added to that after it was read. Whoever adds to it, or puts another
// in its place, holds the lock.
func (b *bookReader) turn(ctx context.Context) (events []api.Event, again bool, err error) {
	if !b.exists() {
		return nil, false, nil
	}
	lock, err := b.journal.lock(ctx)
	if err != nil {
		return nil, false, err
	}
	defer lock.Release()
	if events, err = b.read(); err != nil {
		return nil, false, err
	}
	next := b.journal.previous(b.book)
	if _, err := os.Stat(next); err != nil || b.file != nil && isFile(next, b.file) {
		next = b.journal.current(b.book)
	}
	file, err := os.Open(next)
	if errors.Is(err, os.ErrNotExist) {
		return events, false, nil
	}
	if err != nil {
		return events, false, err
	}
	if b.file != nil {
		b.file.Close()
	}
	b.file, b.rest = file, nil
	return events, true, nil
}

// exists tells whether there was an event yet.
func (b *bookReader) exists() bool {
	for _, path := range []string{b.journal.current(b.book), b.journal.previous(b.book)} {
		if _, err := os.Stat(path); err == nil {
			return true
		}
	}
	return false
}

// isFile tells whether file is what path names.
func isFile(path string, file *os.File) bool {
	named, err := os.Stat(path)
	if err != nil {
		return false
	}
	open, err := file.Stat()
	return err == nil && os.SameFile(named, open)
}
