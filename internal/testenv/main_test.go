package testenv

import (
	"io"
	"net"
	"os"
	"testing"
)

// A pipe that is left open is told, and one that the runtime keeps is not:
// copies between sockets go through those.
func TestOpenFiles(t *testing.T) {
	in, inEnd := tcpPair(t)
	outEnd, out := tcpPair(t)
	before := openFiles()
	go func() {
		in.Write([]byte("x"))
		in.CloseWrite()
	}()
	if n, err := io.Copy(outEnd, inEnd); n != 1 || err != nil {
		t.Fatalf("copied %d bytes: %v", n, err)
	}
	out.Close()
	if err := leakedFiles(before); err != nil {
		t.Errorf("after a copy between sockets: %v", err)
	}

	r, w, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	defer r.Close()
	defer w.Close()
	if err := leakedFiles(before); err == nil {
		t.Error("an open pipe is not told")
	}
}

func tcpPair(t *testing.T) (dialed, accepted *net.TCPConn) {
	t.Helper()
	l, err := net.ListenTCP("tcp", &net.TCPAddr{IP: net.IPv4(127, 0, 0, 1)})
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	dialed, err = net.DialTCP("tcp", nil, l.Addr().(*net.TCPAddr))
	if err != nil {
		t.Fatal(err)
	}
	accepted, err = l.AcceptTCP()
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		dialed.Close()
		accepted.Close()
	})
	return dialed, accepted
}
