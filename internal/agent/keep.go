package agent

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"os"
	"sync"

	"golang.org/x/sys/unix"
)

// source is where output came from.
type source byte

const (
	stdout source = iota + 1
	stderr
	terminal
)

// recording keeps the newest output of one command in a file without a name, as records of a source, a
// length and bytes, round and round. Positions count all bytes ever written and never wrap.
type recording struct {
	file     *os.File
	capacity int64

	mu       sync.Mutex
	oldest   int64         // position of the oldest whole record
	end      int64         // position after the newest
	finished bool          // nothing will be added
	changed  chan struct{} // closed and replaced on a change, if someone waits
	waiting  bool
	// pacer is the reader the command waits for; the others lose what they are too slow for.
	pacer *recordingReader
	// newest is the record before end, if it is a small one: what is typed is echoed a few bytes at a time,
	// to readers that are waiting for it.
	newest []byte
}

const (
	recordHeader = 5
	// smallRecord is the most of a record that is written at once and held in memory, in bytes.
	smallRecord = 4 << 10
)

// errLapped says that a reader was too slow and what it would read next is overwritten.
var errLapped = errors.New("reader fell behind the output that is kept")

// newRecording makes the file in directory. It is gone with its last descriptor, also after a crash.
func newRecording(directory string, capacity int64) (*recording, error) {
	file, err := unnamedFile(directory)
	if err != nil {
		return nil, fmt.Errorf("make a file to keep output in %s: %w", directory, err)
	}
	return &recording{file: file, capacity: capacity, changed: make(chan struct{})}, nil
}

func unnamedFile(directory string) (*os.File, error) {
	if err := os.MkdirAll(directory, 0o700); err != nil {
		return nil, err
	}
	fd, err := unix.Open(directory, unix.O_TMPFILE|unix.O_RDWR|unix.O_CLOEXEC, 0o600)
	if err == nil {
		return os.NewFile(uintptr(fd), "output"), nil
	}
	// Overlay filesystems learnt O_TMPFILE in 6.1.
	file, err := os.CreateTemp(directory, "output-")
	if err != nil {
		return nil, err
	}
	return file, os.Remove(file.Name())
}

// add appends output, waiting for the pacer if there is one.
func (r *recording) add(from source, data []byte) {
	size := int64(recordHeader + len(data))
	r.mu.Lock()
	defer r.mu.Unlock()
	for r.pacer != nil && !r.finished && r.end+size-r.pacer.position > r.capacity {
		changed := r.wait()
		r.mu.Unlock()
		<-changed
		r.mu.Lock()
	}
	if r.finished {
		return
	}
	if err := r.write(from, data, size); err != nil {
		// The disk is full, or gone. What is kept then starts anew: better a gap than a wrong byte.
		r.end += size
		r.oldest = r.end
	}
	r.announce()
}

// wait returns the channel that is closed on the next change. It is called with the lock held.
func (r *recording) wait() <-chan struct{} {
	r.waiting = true
	return r.changed
}

// announce is called with the lock held.
func (r *recording) announce() {
	if !r.waiting {
		return
	}
	close(r.changed)
	r.changed = make(chan struct{})
	r.waiting = false
}

func (r *recording) write(from source, data []byte, size int64) error {
	for r.end+size-r.oldest > r.capacity {
		_, length, err := r.header(r.oldest)
		if err != nil {
			return err
		}
		r.oldest += recordHeader + int64(length)
	}
	record := binary.BigEndian.AppendUint32(append(r.newest[:0], byte(from)), uint32(len(data)))
	r.newest = record[:0]
	rest := data
	if size <= smallRecord {
		record, rest = append(record, data...), nil
	}
	if err := r.writeAt(record, r.end); err != nil {
		return err
	}
	if err := r.writeAt(rest, r.end+recordHeader); err != nil {
		return err
	}
	if rest == nil {
		r.newest = record
	}
	r.end += size
	return nil
}

// header is called with the lock held.
func (r *recording) header(position int64) (source, int, error) {
	var header [recordHeader]byte
	if err := r.readAt(header[:], position); err != nil {
		return 0, 0, err
	}
	length := binary.BigEndian.Uint32(header[1:])
	if length > chunkSize {
		return 0, 0, fmt.Errorf("record of %d bytes in kept output", length)
	}
	return source(header[0]), int(length), nil
}

func (r *recording) writeAt(data []byte, position int64) error {
	at := position % r.capacity
	first := min(int64(len(data)), r.capacity-at)
	if _, err := r.file.WriteAt(data[:first], at); err != nil {
		return err
	}
	if first == int64(len(data)) {
		return nil
	}
	_, err := r.file.WriteAt(data[first:], 0)
	return err
}

// readAt reads of a single record.
func (r *recording) readAt(data []byte, position int64) error {
	if start := r.end - int64(len(r.newest)); position >= start && len(r.newest) > 0 {
		copy(data, r.newest[position-start:])
		return nil
	}
	at := position % r.capacity
	first := min(int64(len(data)), r.capacity-at)
	if _, err := r.file.ReadAt(data[:first], at); err != nil {
		return err
	}
	if first == int64(len(data)) {
		return nil
	}
	_, err := r.file.ReadAt(data[first:], 0)
	return err
}

// finish says that there is no more output.
func (r *recording) finish() {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.finished = true
	r.announce()
}

// close gives the disk space back. Readers get an error.
func (r *recording) close() {
	r.finish()
	r.file.Close()
}

// recordingReader reads one recording, each byte once.
type recordingReader struct {
	recording *recording
	position  int64
	joined    int64 // the end of the recording when it began to read
}

// reader starts at the oldest output, or, without replay, at what comes next. A pacing reader holds the
// command up rather than lose output; there may be one.
func (r *recording) reader(replay, pacing bool) *recordingReader {
	r.mu.Lock()
	defer r.mu.Unlock()
	reader := &recordingReader{recording: r, position: r.end, joined: r.end}
	if replay {
		reader.position = r.oldest
	}
	if pacing {
		r.pacer = reader
	}
	return reader
}

// leave stops pacing.
func (r *recordingReader) leave() {
	r.recording.mu.Lock()
	defer r.recording.mu.Unlock()
	if r.recording.pacer == r {
		r.recording.pacer = nil
		r.recording.announce()
	}
}

// next waits for a record and reads it into buffer, which holds chunkSize bytes. It returns io.EOF after
// the last, and errLapped if the record was overwritten before it was read.
func (r *recordingReader) next(ctx context.Context, buffer []byte) (source, []byte, error) {
	rec := r.recording
	rec.mu.Lock()
	defer rec.mu.Unlock()
	for r.position == rec.end {
		if rec.finished {
			return 0, nil, io.EOF
		}
		changed := rec.wait()
		rec.mu.Unlock()
		select {
		case <-changed:
		case <-ctx.Done():
		}
		rec.mu.Lock()
		if ctx.Err() != nil {
			return 0, nil, ctx.Err()
		}
	}
	if r.position < rec.oldest {
		return 0, nil, errLapped
	}
	from, length, err := rec.header(r.position)
	if err != nil {
		return 0, nil, err
	}
	if err := rec.readAt(buffer[:length], r.position+recordHeader); err != nil {
		return 0, nil, err
	}
	r.position += recordHeader + int64(length)
	if rec.pacer == r {
		rec.announce()
	}
	return from, buffer[:length], nil
}
