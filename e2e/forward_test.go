package e2e

import (
	"encoding/json"
	"io"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"

	"github.com/vmsan/vmsan/api"
)

// greeter answers each line with it, on a port and a socket of the guest's
// own, until the client has said all.
const greeter = `
import os, socket
def serve(s):
    while True:
        c, _ = s.accept()
        f = c.makefile("rwb")
        for line in f:
            f.write(b"hello " + line)
            f.flush()
        c.close()
        f.close()
tcp, unix = socket.socket(), socket.socket(socket.AF_UNIX)
tcp.bind(("127.0.0.1", 8000))
unix.bind("/run/greeter")
tcp.listen()
unix.listen()
if os.fork() == 0:
    serve(unix)
open("/root/up", "w").write("up")
serve(tcp)
`

// TestPortForward reaches servers in a sandbox without a network.
func TestPortForward(t *testing.T) {
	t.Parallel()
	h := newHost(t)
	h.must("create", "--name", "box", "--network", "none")
	h.startPython("box", greeter, "/root/up")
	socket := filepath.Join(t.TempDir(), "socket")
	cmd := exec.Command(h.binary, "port-forward", "--json", "box", "0:8000", socket+":/run/greeter", "0:9")
	cmd.Env = append(os.Environ(), "VMSAN_DIR="+h.layout.Dir)
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	decoder := json.NewDecoder(out)
	var open []api.Forwarding
	if err := decoder.Decode(&open); err != nil || len(open) != 3 {
		t.Fatalf("listens on %+v, %v", open, err)
	}
	for network, address := range map[string]string{"tcp": open[0].Local, "unix": open[1].Local} {
		for range 3 {
			conn, err := net.Dial(network, address)
			if err != nil {
				t.Fatal(err)
			}
			io.WriteString(conn, "one\ntwo\n")
			conn.(interface{ CloseWrite() error }).CloseWrite()
			if got, err := io.ReadAll(conn); err != nil || string(got) != "hello one\nhello two\n" {
				t.Errorf("%s: %q, %v", network, got, err)
			}
			conn.Close()
		}
	}
	// Nothing listens there in the sandbox.
	conn, err := net.Dial("tcp", open[2].Local)
	if err != nil {
		t.Fatal(err)
	}
	if n, err := conn.Read(make([]byte, 1)); err == nil {
		t.Errorf("read %d bytes of nothing", n)
	}
	conn.Close()
	_, port, err := net.SplitHostPort(open[0].Local)
	if err != nil {
		t.Fatal(err)
	}
	if failure := h.refused("port-forward", "box", port+":80"); failure.Code != api.ErrValidationPortConflict {
		t.Errorf("a port that is taken: %+v", failure)
	}
	// It ends with the sandbox, and says so.
	h.must("stop", "box")
	var failure struct{ Error api.Error }
	if err := decoder.Decode(&failure); err != nil || failure.Error.Code != api.ErrVMDied {
		t.Errorf("at the end: %+v, %v", failure, err)
	}
	if err := cmd.Wait(); err == nil {
		t.Error("it succeeded")
	}
	if _, err := os.Stat(socket); err == nil {
		t.Error("its socket is left")
	}

	// Or when it is told to.
	h.must("start", "box")
	cmd = exec.Command(h.binary, "port-forward", "box", "0:8000")
	cmd.Env = append(os.Environ(), "VMSAN_DIR="+h.layout.Dir)
	text, err := cmd.StderrPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	line := make([]byte, 200)
	if n, err := text.Read(line); err != nil || !strings.Contains(string(line[:n]), "leads to 127.0.0.1:8000") {
		t.Errorf("says %q, %v", line[:n], err)
	}
	cmd.Process.Signal(syscall.SIGTERM)
	if err := cmd.Wait(); err != nil {
		t.Errorf("told to stop: %v", err)
	}
}
