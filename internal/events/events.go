// Package events keeps the journal of a state directory: what happened to its
// sandboxes, snapshots, images and volumes, as lines of JSON. It is bounded,
// and commands and monitors write to it side by side.
package events

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"time"
	"unicode"
	"unicode/utf8"

	"github.com/vmsan/vmsan/api"
	"github.com/vmsan/vmsan/internal/store"
)

const (
	// maxSegment is how large a file of the journal gets, in bytes. Then it
	// takes the place of the one before it.
	maxSegment = 1 << 20
	// maxLine bounds an event, in bytes.
	maxLine = 8 << 10
	// maxText bounds each text in an event, in bytes, and maxCopies how many
	// copies are named.
	maxText   = 512
	maxCopies = 256
	// lockTime is how long a writer waits for others, each of which takes a
	// fraction of a millisecond.
	lockTime = 5 * time.Second
)

// The books of the journal. What sandboxes cause themselves has a book of its
// own: however much there is of it, nothing else is pushed out of the journal.
var books = []string{"lifecycle", "network"}

func bookOf(t api.EventType) string {
	if strings.HasPrefix(string(t), "network.") {
		return "network"
	}
	return "lifecycle"
}

// Journal is that of one state directory. It may be used from any goroutine,
// and from several processes at a time.
type Journal struct {
	// Dir is made with the first event; its parent has to exist.
	Dir string
}

func (j Journal) current(book string) string  { return filepath.Join(j.Dir, book+".jsonl") }
func (j Journal) previous(book string) string { return filepath.Join(j.Dir, book+".1.jsonl") }

func (j Journal) lock(ctx context.Context) (*store.Lock, error) {
	ctx, cancel := context.WithTimeoutCause(ctx, lockTime, errors.New("another vmsan does not let go of it"))
	defer cancel()
	return store.AcquireLock(ctx, filepath.Join(j.Dir, "lock"))
}

// Of begins an event that is about the sandbox r.
func Of(r *store.Record, t api.EventType) api.Event {
	return api.Event{Type: t, VM: r.ID, Name: r.Name}
}

// Append writes an event, whose time is now if it has none.
func (j Journal) Append(e api.Event) error {
	line, err := encode(e)
	if err != nil {
		return fmt.Errorf("write event %s: %w", e.Type, err)
	}
	if err := j.makeDir(); err != nil {
		return err
	}
	lock, err := j.lock(context.Background())
	if err != nil {
		return fmt.Errorf("write event %s: %w", e.Type, err)
	}
	defer lock.Release()
	if err := j.write(bookOf(e.Type), line); err != nil {
		return fmt.Errorf("write event %s: %w", e.Type, err)
	}
	return nil
}

func (j Journal) makeDir() error {
	// Not with its parents: a state directory that was removed stays so.
	if err := os.Mkdir(j.Dir, 0o700); err != nil && !errors.Is(err, os.ErrExist) {
		return fmt.Errorf("make journal of events: %w", err)
	}
	return nil
}

// write adds a line to a book. The caller holds the lock.
func (j Journal) write(book string, line []byte) error {
	file, err := os.OpenFile(j.current(book), os.O_RDWR|os.O_CREATE|os.O_APPEND, 0o600)
	if err != nil {
		return err
	}
	defer func() { file.Close() }()
	info, err := file.Stat()
	if err != nil {
		return err
	}
	size := info.Size()
	if size+int64(len(line)) > maxSegment {
		if err := os.Rename(j.current(book), j.previous(book)); err != nil {
			return err
		}
		file.Close()
		if file, err = os.OpenFile(j.current(book), os.O_RDWR|os.O_CREATE|os.O_APPEND, 0o600); err != nil {
			return err
		}
		size = 0
	}
	torn, err := endsTorn(file, size)
	if err != nil {
		return err
	}
	if torn {
		// Its writer died within it. Ending it keeps it from spoiling ours.
		line = append([]byte{'\n'}, line...)
	}
	_, err = file.Write(line)
	return err
}

func endsTorn(file *os.File, size int64) (bool, error) {
	if size == 0 {
		return false, nil
	}
	last := make([]byte, 1)
	if _, err := file.ReadAt(last, size-1); err != nil {
		return false, err
	}
	return last[0] != '\n', nil
}

// encode makes a line of an event.
func encode(e api.Event) ([]byte, error) {
	if e.Time.IsZero() {
		e.Time = time.Now()
	}
	e.Time = e.Time.UTC()
	e.Copies = e.Copies[:min(len(e.Copies), maxCopies)]
	texts := []*string{&e.VM, &e.Name, &e.Reason, &e.From, &e.PreviousName, &e.Policy, &e.Snapshot, &e.Template, &e.Volume, &e.Image, &e.ImageDigest}
	if e.Network != nil {
		network := *e.Network
		e.Network = &network
		texts = append(texts, &network.Protocol, &network.Name, &network.Rule, &network.Hint)
	}
	for _, text := range texts {
		*text = printable(*text)
	}
	if !validType.MatchString(string(e.Type)) {
		return nil, fmt.Errorf("%.80q is no type", e.Type)
	}
	line, err := json.Marshal(e)
	if err == nil && len(line) >= maxLine {
		err = fmt.Errorf("it has %d bytes, at most %d", len(line), maxLine)
	}
	return append(line, '\n'), err
}

// printable bounds a text, in which there may be what a guest has said, and
// takes out what a terminal would obey.
func printable(text string) string {
	if len(text) > maxText {
		text = strings.ToValidUTF8(text[:maxText], "")
	}
	return strings.Map(func(c rune) rune {
		if c == utf8.RuneError || !unicode.IsPrint(c) {
			return '?'
		}
		return c
	}, text)
}

var validType = regexp.MustCompile(`^[a-z]{1,32}\.[a-z]{1,32}$`)

// decode reads a line. One that is no event, as a torn one, is not ok.
func decode(line []byte) (e api.Event, ok bool) {
	if len(line) > maxLine || json.Unmarshal(line, &e) != nil {
		return api.Event{}, false
	}
	if e.Time.IsZero() || !validType.MatchString(string(e.Type)) {
		return api.Event{}, false
	}
	return e, true
}
