package link

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"os"
	"path/filepath"
	"sync"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// vsock stands in for a machine's vsock: a real socket that the guest's end
// listens on, and somebody who connects to it for the host's.
type vsock struct {
	host, guest io.ReadWriteCloser

	mu   sync.Mutex
	last *os.File // of the connections handed over
	path string
}

func newVsock(t *testing.T) *vsock {
	t.Helper()
	v := &vsock{path: filepath.Join(t.TempDir(), "v.sock")}
	fd, err := unix.Socket(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		t.Fatal(err)
	}
	if err := errors.Join(unix.Bind(fd, &unix.SockaddrUnix{Name: v.path}), unix.Listen(fd, 8)); err != nil {
		t.Fatal(err)
	}
	v.guest = GuestPort(os.NewFile(uintptr(fd), "listener"))
	v.host = v.connect(t)
	t.Cleanup(func() {
		v.guest.Close()
		v.reset()
	})
	return v
}

// connect opens the host's end, anew if it is called again.
func (v *vsock) connect(t *testing.T) io.ReadWriteCloser {
	t.Helper()
	fds, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_SEQPACKET|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		t.Fatal(err)
	}
	ours, theirs := os.NewFile(uintptr(fds[0]), "ours"), os.NewFile(uintptr(fds[1]), "theirs")
	defer ours.Close()
	defer theirs.Close()
	conn, err := net.FileConn(theirs)
	if err != nil {
		t.Fatal(err)
	}
	var connector sync.WaitGroup
	connector.Go(func() {
		defer conn.Close()
		Connector(conn.(*net.UnixConn), v.dial)
	})
	port, err := HostPort(ours)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { port.Close(); connector.Wait() })
	return port
}

func (v *vsock) dial() (*os.File, error) {
	conn, err := net.Dial("unix", v.path)
	if err != nil {
		return nil, err
	}
	defer conn.Close()
	file, err := conn.(*net.UnixConn).File()
	if err != nil {
		return nil, err
	}
	own, err := conn.(*net.UnixConn).File()
	if err != nil {
		return nil, err
	}
	v.mu.Lock()
	defer v.mu.Unlock()
	if v.last != nil {
		v.last.Close()
	}
	v.last = own
	return file, nil
}

// reset breaks the connection there is.
func (v *vsock) reset() {
	v.mu.Lock()
	defer v.mu.Unlock()
	if v.last != nil {
		unix.Shutdown(int(v.last.Fd()), unix.SHUT_RDWR)
		v.last.Close()
		v.last = nil
	}
}

// TestPipeOutlivesConnections sends both ways at once while connections break.
func TestPipeOutlivesConnections(t *testing.T) {
	v := newVsock(t)
	text := make([]byte, 6<<20)
	for i := range text {
		text[i] = byte(rand.Uint32())
	}
	stop := make(chan struct{})
	var breaker, all sync.WaitGroup
	breaker.Go(func() {
		for {
			select {
			case <-stop:
				return
			case <-time.After(20 * time.Millisecond): // so that some of it gets through
				v.reset()
			}
		}
	})
	for _, way := range []struct{ from, to io.ReadWriteCloser }{{v.host, v.guest}, {v.guest, v.host}} {
		all.Go(func() {
			if n, err := way.from.Write(text); n != len(text) || err != nil {
				t.Errorf("wrote %d: %v", n, err)
			}
		})
		all.Go(func() {
			got := make([]byte, len(text))
			if _, err := io.ReadFull(way.to, got); err != nil {
				t.Error(err)
			}
			if !bytes.Equal(got, text) {
				t.Error("what came is not what was sent")
			}
		})
	}
	all.Wait()
	close(stop)
	breaker.Wait()
}

// TestPipeNextHost begins anew, in the middle of an old conversation.
func TestPipeNextHost(t *testing.T) {
	v := newVsock(t)
	if _, err := io.WriteString(v.guest, "for the first host, who never reads it"); err != nil {
		t.Fatal(err)
	}
	if _, err := io.WriteString(v.host, "x"); err != nil {
		t.Fatal(err)
	}
	if _, err := io.ReadFull(v.guest, make([]byte, 1)); err != nil {
		t.Fatal(err)
	}
	v.host.Close()
	next := v.connect(t)
	if _, err := io.WriteString(next, "hello"); err != nil {
		t.Fatal(err)
	}
	got := make([]byte, 5)
	stale := make([]byte, len("for the first host, who never reads it"))
	if _, err := io.ReadFull(next, stale); err != nil {
		t.Fatal(err)
	}
	if _, err := io.ReadFull(v.guest, got); err != nil || string(got) != "hello" {
		t.Fatalf("got %q, %v", got, err)
	}
	if _, err := io.WriteString(v.guest, "world"); err != nil {
		t.Fatal(err)
	}
	if _, err := io.ReadFull(next, got); err != nil || string(got) != "world" {
		t.Fatalf("got %q, %v", got, err)
	}
}

// TestPipeLink is the whole link over pipes that break.
func TestPipeLink(t *testing.T) {
	control, data := newVsock(t), newVsock(t)
	echoGuest(t, control.guest, data.guest)
	host, err := Connect(t.Context(), control.host, data.host, nil)
	if err != nil {
		t.Fatal(err)
	}
	defer host.Close()
	for i := range 50 {
		stream, err := host.Dial(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		text := fmt.Sprintf("stream %d", i)
		if _, err := io.WriteString(stream, text); err != nil {
			t.Fatal(err)
		}
		control.reset()
		data.reset()
		got := make([]byte, len(text))
		if _, err := io.ReadFull(stream, got); err != nil || string(got) != text {
			t.Fatalf("got %q, %v", got, err)
		}
		stream.Close()
	}
}

// TestPipeEnds is what the host sees when there are no more connections.
func TestPipeEnds(t *testing.T) {
	p := dialPipe(func() (io.ReadWriteCloser, error) { return nil, io.EOF }, func() error { return nil })
	if _, err := p.Read(make([]byte, 1)); err != io.EOF {
		t.Errorf("read: got %v, want EOF", err)
	}
	p.Close()
	if _, err := p.Write([]byte("x")); err == nil {
		t.Error("a pipe that has ended takes data")
	}
}

// script is a connection whose other side says what it says, whatever it hears.
type script struct{ io.Reader }

func (script) Write(b []byte) (int, error) { return len(b), nil }
func (script) Close() error                { return nil }

// FuzzPipe reads what a hostile guest may send.
func FuzzPipe(f *testing.F) {
	f.Add([]byte{0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 3, 'a', 'b', 'c', 0x80, 0, 0, 0})
	f.Add([]byte{0, 0, 0, 0, 0, 0, 0, 9})
	f.Add([]byte{0, 0, 0, 0, 0, 0, 0, 0, 0x80, 0, 0, 1})
	f.Add([]byte{0, 0, 0, 0, 0, 0, 0, 0, 0x7f, 0xff, 0xff, 0xff, 1})
	f.Add(bytes.Repeat([]byte{0, 0, 0x80, 0}, 3<<10))
	f.Fuzz(func(t *testing.T, said []byte) {
		p := newPipe(func() error { return nil })
		p.Write([]byte("kept"))
		if p.call(&script{bytes.NewReader(said)}) == nil {
			t.Error("a connection that ended did not")
		}
		if len(p.in) > pipeWindow || len(p.out) > len("kept") {
			t.Errorf("%d bytes in and %d bytes out are held", len(p.in), len(p.out))
		}
	})
}
