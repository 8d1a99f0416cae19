package sockets

import (
	"errors"
	"io"
	"net"
	"os"
	"runtime"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/vmsan/vmsan/internal/testenv"
)

func TestMain(m *testing.M) { os.Exit(testenv.Main(m)) }

func listen(t *testing.T) net.Listener {
	t.Helper()
	listener, err := net.Listen("tcp4", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { listener.Close() })
	return listener
}

func dial(t *testing.T, listener net.Listener) net.Conn {
	t.Helper()
	conn, err := net.Dial("tcp4", listener.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	conn.SetDeadline(time.Now().Add(10 * time.Second))
	t.Cleanup(func() { conn.Close() })
	return conn
}

func TestServerAcceptsUpToItsLimit(t *testing.T) {
	t.Cleanup(func() {
		for range 3 {
			runtime.GC() // closes the pipes that package net keeps for splice
		}
	})
	var s Server
	listener := listen(t)
	var serving sync.WaitGroup
	serving.Go(func() {
		err := s.Accept(listener, 2, func(conn net.Conn) { io.Copy(conn, conn) }, func(conn net.Conn) { io.WriteString(conn, "no") })
		if err != nil {
			t.Error(err)
		}
	})
	echo := func(conn net.Conn) string {
		conn.Write([]byte("hi"))
		b := make([]byte, 2)
		io.ReadFull(conn, b)
		return string(b)
	}
	a, b := dial(t, listener), dial(t, listener)
	if echo(a) != "hi" || echo(b) != "hi" {
		t.Error("what is within the limit is not served")
	}
	if got, _ := io.ReadAll(dial(t, listener)); string(got) != "no" {
		t.Errorf("what is beyond the limit: %q", got)
	}
	a.(*net.TCPConn).CloseWrite()
	io.ReadAll(a)
	for deadline := time.Now().Add(5 * time.Second); echo(dial(t, listener)) != "hi"; {
		if time.Now().After(deadline) {
			t.Fatal("a place that is free again is not given away")
		}
	}
	s.Close()
	serving.Wait()
	if _, err := b.Read(make([]byte, 1)); err == nil || errors.Is(err, os.ErrDeadlineExceeded) {
		t.Errorf("after Close: %v", err)
	}
	other := listen(t)
	if err := s.Accept(other, 1, nil, nil); err != nil {
		t.Error(err)
	}
	if _, err := other.Accept(); !errors.Is(err, net.ErrClosed) {
		t.Errorf("a closed server left a listener open: %v", err)
	}
}

func TestCutIsAReset(t *testing.T) {
	listener := listen(t)
	conn := dial(t, listener)
	accepted, err := listener.Accept()
	if err != nil {
		t.Fatal(err)
	}
	Cut(accepted)
	if _, err := conn.Read(make([]byte, 1)); !errors.Is(err, syscall.ECONNRESET) {
		t.Errorf("got %v", err)
	}
}
