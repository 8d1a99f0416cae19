package link

import (
	"bytes"
	"encoding/binary"
	"errors"
	"io"
	"net"
	"os"
	"sync"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// pair is a stream of the host with its end in the guest.
func pair(t *testing.T) (host *Host, ours, theirs *Stream) {
	t.Helper()
	control, data := newWire(t), newWire(t)
	guest := Listen(control.guest, data.guest, nil)
	host, err := Connect(t.Context(), control.open(t), data.open(t), nil)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { host.Close(); guest.Close() })
	ours, theirs = next(t, host, guest)
	return host, ours, theirs
}

func next(t *testing.T, host *Host, guest *Guest) (ours, theirs *Stream) {
	t.Helper()
	conn, err := host.Dial(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	if _, err := conn.Write([]byte("!")); err != nil {
		t.Fatal(err)
	}
	accepted, err := guest.Accept()
	if err != nil {
		t.Fatal(err)
	}
	if _, err := io.ReadFull(accepted, make([]byte, 1)); err != nil {
		t.Fatal(err)
	}
	return conn.(*Stream), accepted.(*Stream)
}

// numbered is n bytes that tell where they are.
func numbered(n int) []byte {
	b := make([]byte, n)
	for i := range b {
		b[i] = byte(i*31 ^ i>>11)
	}
	return b
}

func TestHalfClose(t *testing.T) {
	_, ours, theirs := pair(t)
	sent := numbered(3 * window / 2)
	go func() {
		ours.Write(sent)
		ours.CloseWrite()
	}()
	got, err := io.ReadAll(theirs)
	if err != nil || !bytes.Equal(got, sent) {
		t.Fatalf("got %d bytes of %d, %v", len(got), len(sent), err)
	}
	if _, err := ours.Write([]byte("x")); !errors.Is(err, net.ErrClosed) {
		t.Errorf("a write after the end: %v", err)
	}
	go func() {
		theirs.Write(sent)
		theirs.Close()
	}()
	var back bytes.Buffer
	if n, err := io.Copy(&back, ours); err != nil || int(n) != len(sent) || !bytes.Equal(back.Bytes(), sent) {
		t.Errorf("got %d bytes back, %v", n, err)
	}
}

// A stream that is closed frees a writer at its other end, whose data has
// nowhere to go, and costs other streams nothing.
func TestClosedFreesWriter(t *testing.T) {
	_, ours, theirs := pair(t)
	wrote := make(chan error, 1)
	go func() {
		_, err := theirs.Write(make([]byte, 3*window))
		wrote <- err
	}()
	if _, err := io.ReadFull(ours, make([]byte, 100)); err != nil {
		t.Fatal(err)
	}
	ours.Close()
	if err := <-wrote; !errors.Is(err, errGone) {
		t.Errorf("the writer got %v", err)
	}
	if _, err := ours.Read(make([]byte, 1)); !errors.Is(err, net.ErrClosed) {
		t.Errorf("a read after Close: %v", err)
	}
	if n, err := theirs.Read(make([]byte, 1)); err != io.EOF {
		t.Errorf("read %d bytes, %v", n, err)
	}
}

// One stream that nobody reads holds up none of the others.
func TestStreamsAreIndependent(t *testing.T) {
	control, data := newWire(t), newWire(t)
	guest := Listen(control.guest, data.guest, nil)
	defer guest.Close()
	host, err := Connect(t.Context(), control.open(t), data.open(t), nil)
	if err != nil {
		t.Fatal(err)
	}
	defer host.Close()
	stuck, _ := next(t, host, guest)
	go stuck.Write(make([]byte, 2*window))
	ours, theirs := next(t, host, guest)
	sent := numbered(5 << 20)
	go ours.Write(sent)
	got := make([]byte, len(sent))
	if _, err := io.ReadFull(theirs, got); err != nil || !bytes.Equal(got, sent) {
		t.Error(err)
	}
}

func TestDeadlines(t *testing.T) {
	_, ours, _ := pair(t)
	ours.SetReadDeadline(time.Now().Add(20 * time.Millisecond))
	if _, err := ours.Read(make([]byte, 1)); !errors.Is(err, os.ErrDeadlineExceeded) {
		t.Errorf("read: %v", err)
	}
	ours.SetDeadline(time.Now().Add(20 * time.Millisecond))
	if _, err := ours.Write(make([]byte, 2*window)); !errors.Is(err, os.ErrDeadlineExceeded) {
		t.Errorf("write: %v", err)
	}
	ours.SetReadDeadline(time.Time{})
	woken := make(chan error)
	go func() {
		_, err := ours.Read(make([]byte, 1))
		woken <- err
	}()
	time.Sleep(10 * time.Millisecond)
	ours.SetReadDeadline(time.Unix(1, 0))
	if err := <-woken; !errors.Is(err, os.ErrDeadlineExceeded) {
		t.Errorf("a read under way: %v", err)
	}
}

// A session that ends takes its streams with it: the host's own at once, the
// guest's when there is a new host.
func TestSessionEnds(t *testing.T) {
	control, data := newWire(t), newWire(t)
	guest := Listen(control.guest, data.guest, nil)
	defer guest.Close()
	host, err := Connect(t.Context(), control.open(t), data.open(t), nil)
	if err != nil {
		t.Fatal(err)
	}
	ours, theirs := next(t, host, guest)
	host.Close()
	<-host.Closed()
	if _, err := ours.Read(make([]byte, 1)); !errors.Is(err, net.ErrClosed) {
		t.Errorf("the host's stream: %v", err)
	}
	if _, err := host.Dial(t.Context()); !errors.Is(err, net.ErrClosed) {
		t.Errorf("dial: %v", err)
	}
	if host, err = Connect(t.Context(), control.open(t), data.open(t), nil); err != nil {
		t.Fatal(err)
	}
	defer host.Close()
	if _, err := theirs.Read(make([]byte, 1)); !errors.Is(err, errReset) {
		t.Errorf("the guest's stream: %v", err)
	}
	if _, err := theirs.Write(make([]byte, 1)); !errors.Is(err, errReset) {
		t.Errorf("the guest's stream: %v", err)
	}
}

// fill makes a pipe that holds data.
func fill(t *testing.T, data []byte) *os.File {
	t.Helper()
	r, w, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { r.Close() })
	if _, err := unix.FcntlInt(r.Fd(), unix.F_SETPIPE_SZ, 1<<20); err != nil {
		t.Fatal(err)
	}
	if _, err := w.Write(data); err != nil {
		t.Fatal(err)
	}
	w.Close()
	return r
}

// What is moved by the kernel comes as it was, between what is written, and
// in spite of other streams; also where the kernel cannot move it.
func TestMove(t *testing.T) {
	for name, wrap := range map[string]func(io.ReadWriteCloser) io.ReadWriteCloser{
		"spliced": func(c io.ReadWriteCloser) io.ReadWriteCloser { return c },
		"copied":  func(c io.ReadWriteCloser) io.ReadWriteCloser { return struct{ io.ReadWriteCloser }{c} },
	} {
		t.Run(name, func(t *testing.T) {
			control, data := newWire(t), newWire(t)
			guest := Listen(control.guest, wrap(data.guest), nil)
			defer guest.Close()
			host, err := Connect(t.Context(), control.open(t), data.open(t), nil)
			if err != nil {
				t.Fatal(err)
			}
			defer host.Close()
			var all sync.WaitGroup
			for range 3 {
				ours, theirs := next(t, host, guest)
				all.Go(func() { moveTo(t, ours, theirs) })
			}
			all.Wait()
		})
	}
}

func moveTo(t *testing.T, ours, theirs *Stream) {
	t.Helper()
	const rounds = 12
	piece := numbered(900_001)
	go func() {
		for range rounds {
			pipe := fill(t, piece)
			for left := len(piece); left > 0; {
				n, err := theirs.MoveFrom(pipe, 500_000, 4, func(n int) []byte { return binary.BigEndian.AppendUint32(nil, uint32(n)) })
				if err != nil || n == 0 {
					t.Errorf("moved %d bytes, %v", n, err)
					return
				}
				left -= n
			}
			if n, err := theirs.MoveFrom(pipe, 10, 0, nil); n != 0 || err != nil {
				t.Errorf("moved %d bytes of an empty pipe, %v", n, err)
			}
		}
		theirs.Close()
	}()
	var got []byte
	for {
		head := make([]byte, 4)
		if _, err := io.ReadFull(ours, head); err == io.EOF {
			break
		}
		at := len(got)
		got = append(got, make([]byte, binary.BigEndian.Uint32(head))...)
		if _, err := io.ReadFull(ours, got[at:]); err != nil {
			t.Fatal(err)
		}
	}
	if want := bytes.Repeat(piece, rounds); !bytes.Equal(got, want) {
		t.Errorf("got %d bytes, want %d unchanged", len(got), len(want))
	}
}

func TestMoveToOneThatIsGone(t *testing.T) {
	_, ours, theirs := pair(t)
	ours.Close()
	if _, err := theirs.Read(make([]byte, 1)); err != io.EOF {
		t.Fatal(err)
	}
	pipe := fill(t, numbered(1000))
	if _, err := theirs.MoveFrom(pipe, 1000, 0, nil); !errors.Is(err, errGone) {
		t.Errorf("got %v", err)
	}
	if left, _ := io.ReadAll(pipe); len(left) != 1000 {
		t.Errorf("%d bytes are left in the pipe", len(left))
	}
}

// However few bytes come at a time, the queue holds them in full chunks.
func TestChunksAreFull(t *testing.T) {
	var c chunks
	data := numbered(5 * chunkSize / 2)
	for i, b := range data {
		c.fill(1)[0] = b
		c.filled(1)
		if want := i/chunkSize + 1; len(c.list) != want {
			t.Fatalf("%d chunks for %d bytes", len(c.list), i+1)
		}
	}
	var got []byte
	for first := c.first(); len(first) > 0; first = c.first() {
		first = first[:min(len(first), 1000)]
		got = append(got, first...)
		c.drop(len(first))
	}
	if !bytes.Equal(got, data) || len(c.list) != 0 {
		t.Errorf("got %d bytes, %d chunks are left", len(got), len(c.list))
	}
}

// FuzzMux is the host's side against a guest that says anything: no stream
// ever holds more than its window, and the session ends with the bytes.
func FuzzMux(f *testing.F) {
	f.Add(append(frame(frameData, 1, 3), 1, 2, 3))
	f.Add(append(frame(frameEnd, 1, 0), frame(frameGone, 2, 0)...))
	f.Add(frame(frameRoom, 2, 1<<31))
	f.Add(append(frame(frameOpen, 9, 0), frame(frameData, 1, 1<<32-1)...))
	f.Fuzz(func(t *testing.T, said []byte) {
		for _, accept := range []func(*Stream){nil, func(*Stream) {}} {
			m := newMux(bytes.NewReader(said), io.Discard, func() {}, accept)
			var streams []*Stream
			for range 3 {
				s, err := m.open()
				if err != nil {
					t.Fatal(err)
				}
				streams = append(streams, s)
			}
			streams[2].Close()
			if m.run() == nil {
				t.Fatal("the session ended without a reason")
			}
			for _, s := range streams[:2] {
				var got bytes.Buffer
				s.WriteTo(&got)
				if got.Len() > len(said) || len(s.data.list) > 0 || s.room > window || s.room < 0 {
					t.Fatalf("%d bytes of %d, room %d", got.Len(), len(said), s.room)
				}
			}
		}
	})
}

// TestUnread: streams that nobody reads take a bounded amount of the host's
// memory together, and nothing from those that are read.
func TestUnread(t *testing.T) {
	control, data := newWire(t), newWire(t)
	guest := Listen(control.guest, data.guest, nil)
	defer guest.Close()
	go func() {
		for {
			stream, err := guest.Accept()
			if err != nil {
				return
			}
			go func() {
				defer stream.Close()
				word := make([]byte, 1)
				if _, err := io.ReadFull(stream, word); err != nil {
					return
				}
				for word[0] == 'f' { // flood
					if _, err := stream.Write(make([]byte, 64<<10)); err != nil {
						return
					}
				}
				stream.Write(word)
			}()
		}
	}()
	host, err := Connect(t.Context(), control.open(t), data.open(t), nil)
	if err != nil {
		t.Fatal(err)
	}
	defer host.Close()
	held := func() (sum int64, streams int) {
		host.mux.mu.Lock()
		defer host.mux.mu.Unlock()
		for _, s := range host.mux.streams {
			sum += s.held.Load()
		}
		return sum, len(host.mux.streams)
	}
	dial := func(word string) *Stream {
		stream, err := host.Dial(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		if _, err := stream.Write([]byte(word)); err != nil {
			t.Fatal(err)
		}
		return stream.(*Stream)
	}
	const many = 3 * hostBudget / window
	var unread []*Stream
	for range many {
		unread = append(unread, dial("f"))
	}
	for deadline := time.Now().Add(time.Minute); ; time.Sleep(time.Millisecond) {
		sum, streams := held()
		if sum > hostBudget+window {
			t.Fatalf("%d bytes are held", sum)
		}
		if streams <= hostBudget/window {
			break
		}
		if time.Now().After(deadline) {
			t.Fatalf("%d streams hold %d bytes, and none is cut off", streams, sum)
		}
	}
	answer := make([]byte, 1)
	if _, err := io.ReadFull(dial("x"), answer); err != nil || answer[0] != 'x' {
		t.Errorf("a stream that is read: %q, %v", answer, err)
	}
	cut := 0
	for _, stream := range unread {
		stream.SetReadDeadline(time.Now().Add(10 * time.Millisecond))
		if _, err := stream.Read(answer); err != nil {
			cut++
		}
	}
	if cut < many-hostBudget/window {
		t.Errorf("%d of %d streams were cut off", cut, many)
	}
}
