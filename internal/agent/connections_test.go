package agent

import (
	"errors"
	"net"
	"os/exec"
	"syscall"
	"testing"
	"time"

	"github.com/vmsan/vmsan/internal/testenv"
)

func TestResetConnections(t *testing.T) {
	testenv.RequireRoot(t)
	inNewNamespace(t, func() {
		for _, args := range [][]string{{"link", "set", "lo", "up"}, {"addr", "add", "198.51.100.1/32", "dev", "lo"}} {
			if out, err := exec.Command("ip", args...).CombinedOutput(); err != nil {
				t.Fatalf("ip %v: %v: %s", args, err, out)
			}
		}
		far, near := connected(t, "198.51.100.1:0"), connected(t, "127.0.0.1:0")
		if err := (linux{}).ResetConnections(); err != nil {
			t.Fatal(err)
		}
		for _, end := range far {
			end.SetReadDeadline(time.Now().Add(10 * time.Second))
			if _, err := end.Read(make([]byte, 1)); !errors.Is(err, syscall.ECONNABORTED) && !errors.Is(err, syscall.ECONNRESET) {
				t.Errorf("a connection to elsewhere ends with %v", err)
			}
		}
		if _, err := near[0].Write([]byte("x")); err != nil {
			t.Fatal(err)
		}
		near[1].SetReadDeadline(time.Now().Add(10 * time.Second))
		if _, err := near[1].Read(make([]byte, 1)); err != nil {
			t.Errorf("a connection within the guest: %v", err)
		}
		if err := (linux{}).ResetConnections(); err != nil {
			t.Errorf("with nothing left: %v", err)
		}
	})
}

// connected returns the two ends of a connection through address.
func connected(t *testing.T, address string) [2]net.Conn {
	t.Helper()
	listener, err := net.Listen("tcp4", address)
	if err != nil {
		t.Fatal(err)
	}
	defer listener.Close()
	client, err := net.Dial("tcp4", listener.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	server, err := listener.Accept()
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { client.Close(); server.Close() })
	return [2]net.Conn{client, server}
}
