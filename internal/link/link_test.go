package link

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"strings"
	"sync"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// wire is one virtio-serial port as a socket pair: the host's end can be
// opened again and again, like a chardev whose owner is kept by the monitor.
type wire struct {
	host  *os.File
	guest net.Conn
}

func newWire(t *testing.T) wire {
	t.Helper()
	fds, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		t.Fatal(err)
	}
	host, guest := os.NewFile(uintptr(fds[0]), "host"), os.NewFile(uintptr(fds[1]), "guest")
	defer guest.Close()
	conn, err := net.FileConn(guest)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { host.Close(); conn.Close() })
	return wire{host: host, guest: conn}
}

func (w wire) open(t *testing.T) net.Conn {
	t.Helper()
	conn, err := net.FileConn(w.host)
	if err != nil {
		t.Fatal(err)
	}
	return conn
}

func echoGuest(t *testing.T, control, data io.ReadWriteCloser) {
	t.Helper()
	guest := Listen(control, data, nil)
	var streams sync.WaitGroup
	accepting := make(chan struct{})
	t.Cleanup(func() { guest.Close(); <-accepting; streams.Wait() })
	go func() {
		defer close(accepting)
		for {
			stream, err := guest.Accept()
			if err != nil {
				return
			}
			streams.Go(func() {
				defer stream.Close()
				io.Copy(stream, stream)
			})
		}
	}()
}

func echo(t *testing.T, host *Host, text string) {
	t.Helper()
	stream, err := host.Dial(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	defer stream.Close()
	go io.WriteString(stream, text)
	got := make([]byte, len(text))
	if _, err := io.ReadFull(stream, got); err != nil {
		t.Fatal(err)
	}
	if string(got) != text {
		t.Fatalf("echo of %d bytes came back changed", len(text))
	}
}

func TestStreams(t *testing.T) {
	control, data := newWire(t), newWire(t)
	echoGuest(t, control.guest, data.guest)
	host, err := Connect(t.Context(), control.open(t), data.open(t), nil)
	if err != nil {
		t.Fatal(err)
	}
	defer host.Close()
	var all sync.WaitGroup
	for i := range 20 {
		all.Go(func() { echo(t, host, strings.Repeat(fmt.Sprint(i, " "), 50_000)) })
	}
	all.Wait()
}

// A second host finds a guest that is in the middle of a conversation with
// the first, and bytes of it still on the way.
func TestNewHostAfterOldOneDied(t *testing.T) {
	control, data := newWire(t), newWire(t)
	echoGuest(t, control.guest, data.guest)
	for range 5 {
		host, err := Connect(t.Context(), control.open(t), data.open(t), nil)
		if err != nil {
			t.Fatal(err)
		}
		echo(t, host, "hello")
		busy, err := host.Dial(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		go busy.Write(bytes.Repeat([]byte("x"), 4<<20))
		time.Sleep(5 * time.Millisecond)
		host.Close()
	}
}

func TestGuestThatFails(t *testing.T) {
	control, data := newWire(t), newWire(t)
	go Fail(control.guest, errors.New("mount overlay:\x1b[2J no such device"))
	_, err := Connect(t.Context(), control.open(t), data.open(t), nil)
	var failed *FailedError
	if !errors.As(err, &failed) {
		t.Fatalf("got %v, want a FailedError", err)
	}
	if want := "mount overlay:?[2J no such device"; failed.Reason != want {
		t.Fatalf("got reason %q, want %q", failed.Reason, want)
	}
}

func TestGuestThatNeverAnswers(t *testing.T) {
	control, data := newWire(t), newWire(t)
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Millisecond)
	defer cancel()
	if _, err := Connect(ctx, control.open(t), data.open(t), nil); !errors.Is(err, context.DeadlineExceeded) {
		t.Fatalf("got %v, want deadline exceeded", err)
	}
}

// A guest that sends garbage for ever costs one buffer.
func TestGarbageBeforeNonce(t *testing.T) {
	n := newNonce()
	garbage := bytes.Repeat(n[:nonceSize-1], 1<<16)
	rest, err := discardUntil(io.MultiReader(bytes.NewReader(garbage), bytes.NewReader(n[:]), strings.NewReader("rest")), n)
	if err != nil {
		t.Fatal(err)
	}
	if !bytes.HasPrefix([]byte("rest"), rest) {
		t.Fatalf("got %q after the nonce", rest)
	}
}

func FuzzControlMessages(f *testing.F) {
	f.Add([]byte("reset 00\n"))
	f.Add([]byte("half a line\nfailed no\n"))
	f.Add([]byte("identity 61006200\n"))
	f.Add(bytes.Repeat([]byte("x"), maxGuestLine+1))
	f.Fuzz(func(t *testing.T, in []byte) {
		readMessages(bytes.NewReader(in), maxGuestLine, func(m message) bool {
			m.reset()
			decodeIdentity(m.text)
			_ = printable(m.text)
			return true
		})
	})
}

func FuzzDiscardUntil(f *testing.F) {
	f.Add([]byte("before"), []byte("after"))
	f.Fuzz(func(t *testing.T, before, after []byte) {
		n := newNonce()
		in := bytes.NewReader(append(append(append([]byte(nil), before...), n[:]...), after...))
		rest, err := discardUntil(in, n)
		if err != nil {
			t.Fatal(err)
		}
		left, _ := io.ReadAll(in)
		if got := append(rest, left...); !bytes.Equal(got, after) {
			t.Fatalf("got %q after the nonce, want %q", got, after)
		}
	})
}
