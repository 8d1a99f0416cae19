package agent

import (
	"bytes"
	"context"
	"errors"
	"io"
	"math/rand/v2"
	"os"
	"path/filepath"
	"testing"
	"time"
)

func newTestRecording(t *testing.T, capacity int64) *recording {
	t.Helper()
	r, err := newRecording(t.TempDir(), capacity)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(r.close)
	return r
}

func readAll(t *testing.T, reader *recordingReader) []byte {
	t.Helper()
	var all []byte
	buffer := make([]byte, chunkSize)
	for {
		_, data, err := reader.next(t.Context(), buffer)
		if err == io.EOF {
			return all
		}
		if err != nil {
			t.Fatal(err)
		}
		all = append(all, data...)
	}
}

// Whatever sizes come, what is replayed is the end of what was written, in whole records.
func TestRecordingKeepsTheNewest(t *testing.T) {
	random := rand.New(rand.NewPCG(1, 2))
	for range 20 {
		r := newTestRecording(t, 10_000)
		var all []byte
		for range random.IntN(400) {
			data := make([]byte, 1+random.IntN(900))
			for i := range data {
				data[i] = byte(random.Uint32())
			}
			r.add(stdout, data)
			all = append(all, data...)
		}
		r.finish()
		got := readAll(t, r.reader(true, false))
		if !bytes.HasSuffix(all, got) || len(got) < min(len(all), 6000) {
			t.Errorf("%d bytes of %d are not their end, or too few", len(got), len(all))
		}
	}
}

func TestRecordingFollowsExactlyOnce(t *testing.T) {
	r := newTestRecording(t, 1<<20)
	r.add(stdout, []byte("kept "))
	replay, live := r.reader(true, false), r.reader(false, false)
	done := make(chan struct{})
	go func() {
		defer close(done)
		for range 100 {
			r.add(stderr, []byte("live "))
		}
		r.finish()
	}()
	want := bytes.Repeat([]byte("live "), 100)
	if got := readAll(t, live); !bytes.Equal(got, want) {
		t.Errorf("live: got %d bytes", len(got))
	}
	if got := readAll(t, replay); !bytes.Equal(got, append([]byte("kept "), want...)) {
		t.Errorf("replay: got %d bytes", len(got))
	}
	<-done
}

// A follower says once that all is out that was kept, before what comes then.
func TestFollowerCatchesUp(t *testing.T) {
	r := newTestRecording(t, 1<<20)
	r.add(terminal, []byte("ke"))
	r.add(terminal, []byte("pt"))
	var seen string
	f := &keptFollower{reader: r.reader(true, false), caughtUp: func() error {
		seen += "|"
		r.add(terminal, []byte("live"))
		r.finish()
		return nil
	}}
	err := f.follow(t.Context(), func(_ source, c chunk) error {
		seen += string(c.data())
		return nil
	})
	if err != nil || seen != "kept|live" {
		t.Errorf("saw %q, %v", seen, err)
	}
}

func TestRecordingLapsASlowReader(t *testing.T) {
	r := newTestRecording(t, 1000)
	reader := r.reader(true, false)
	for range 10 {
		r.add(stdout, make([]byte, 300))
	}
	if _, _, err := reader.next(t.Context(), make([]byte, chunkSize)); !errors.Is(err, errLapped) {
		t.Errorf("got %v", err)
	}
}

func TestRecordingWaitsForItsPacer(t *testing.T) {
	r := newTestRecording(t, 1000)
	pacer := r.reader(true, true)
	added := make(chan int, 10)
	go func() {
		for i := range 10 {
			r.add(stdout, make([]byte, 300))
			added <- i
		}
		close(added)
	}()
	buffer := make([]byte, chunkSize)
	for range 5 {
		if _, data, err := pacer.next(t.Context(), buffer); err != nil || len(data) != 300 {
			t.Fatalf("got %d bytes, error %v", len(data), err)
		}
	}
	pacer.leave() // then nobody is waited for
	for range added {
	}
	if r.end != 10*305 {
		t.Errorf("end is %d", r.end)
	}
}

func TestRecordingReaderGivesUp(t *testing.T) {
	r := newTestRecording(t, 1000)
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Millisecond)
	defer cancel()
	if _, _, err := r.reader(true, false).next(ctx, make([]byte, chunkSize)); !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("got %v", err)
	}
}

// When the disk is full the command goes on, and what can be read later has no wrong byte in it.
func TestRecordingOnAFullDisk(t *testing.T) {
	r := newTestRecording(t, 1000)
	r.add(stdout, []byte("before"))
	whole := r.file
	r.file = closedFile(t)
	r.add(stdout, []byte("lost"))
	r.file = whole
	r.add(stdout, []byte("after"))
	r.finish()
	if got := readAll(t, r.reader(true, false)); string(got) != "after" {
		t.Errorf("got %q", got)
	}
}

func closedFile(t *testing.T) *os.File {
	t.Helper()
	file, err := os.Create(filepath.Join(t.TempDir(), "closed"))
	if err != nil {
		t.Fatal(err)
	}
	file.Close()
	return file
}
