package e2e

import (
	"context"
	"encoding/json"
	"io"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
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

// asker says what it is told to a port or a socket of the guest's own, ends
// that, and prints what comes back.
const asker = `
import socket, sys
where, text = sys.argv[1:]
s = socket.socket(socket.AF_UNIX) if where[0] == "/" else socket.socket()
s.connect(where if where[0] == "/" else ("127.0.0.1", int(where)))
s.sendall(text.encode())
s.shutdown(socket.SHUT_WR)
while data := s.recv(65536):
    sys.stdout.buffer.write(data)
`

// crowder connects so often at once, and prints how many were answered.
const crowder = `
import socket, sys
port, count = map(int, sys.argv[1:])
all = []
for i in range(count):
    s = socket.create_connection(("127.0.0.1", port))
    s.sendall(b"%d" % i)
    s.shutdown(socket.SHUT_WR)
    all.append(s)
print(sum(s.makefile("rb").read() == b"you said %d" % i for i, s in enumerate(all)))
`

// answerAll has each connection answered once its client has said all.
func answerAll(l net.Listener) {
	for {
		conn, err := l.Accept()
		if err != nil {
			return
		}
		go func() {
			defer conn.Close()
			said, err := io.ReadAll(conn)
			if err == nil {
				io.WriteString(conn, "you said "+string(said))
			}
		}()
	}
}

// forward starts port-forward and returns what it listens on.
func (h *host) forward(args ...string) (*exec.Cmd, []api.Forwarding) {
	h.t.Helper()
	cmd := h.command(context.Background(), append([]string{"port-forward", "--json"}, args...)...)
	cmd.Stderr = os.Stderr
	out, err := cmd.StdoutPipe()
	if err == nil {
		err = cmd.Start()
	}
	if err != nil {
		h.t.Fatal(err)
	}
	h.t.Cleanup(func() { cmd.Process.Kill() })
	var open []api.Forwarding
	if err := json.NewDecoder(out).Decode(&open); err != nil {
		h.t.Fatal(err)
	}
	return cmd, open
}

// TestReverseForward has a sandbox without a network reach one port and one
// socket of the host's.
func TestReverseForward(t *testing.T) {
	t.Parallel()
	h := newHost(t)
	h.must("create", "--name", "box", "--network", "none")
	socket := filepath.Join(t.TempDir(), "socket")
	var targets []string
	for network, address := range map[string]string{"tcp": "127.0.0.1:0", "unix": socket} {
		l, err := net.Listen(network, address)
		if err != nil {
			t.Fatal(err)
		}
		defer l.Close()
		go answerAll(l)
		targets = append(targets, l.Addr().String())
	}
	slices.Sort(targets) // the socket, and the port
	cmd, open := h.forward("box", "-R", "0:"+targets[1], "-R", "8001:"+targets[0], "-R", "/run/to-host:"+targets[1], "-R", "8002:127.0.0.1:1")
	if len(open) != 4 || !open[0].Reverse || open[1].Remote != "127.0.0.1:8001" || open[2].Remote != "/run/to-host" {
		t.Fatalf("forwards %+v", open)
	}
	_, chosen, err := net.SplitHostPort(open[0].Remote)
	if err != nil || chosen == "0" {
		t.Errorf("chose %s: %v", open[0].Remote, err)
	}
	ask := func(where, text string) string {
		t.Helper()
		return h.must("exec", "box", "python3", "-c", asker, where, text)
	}
	for _, where := range []string{chosen, "8001", "/run/to-host"} {
		for _, text := range []string{"hello", strings.Repeat("long ", 20_000)} {
			if got, want := ask(where, text), strings.TrimSpace("you said "+text); got != want {
				t.Errorf("%s: got %d bytes (%.40q), want %d", where, len(got), got, len(want))
			}
		}
	}
	// Any user of the guest may use it.
	if got := h.must("exec", "--user", "nobody", "box", "python3", "-c", asker, "/run/to-host", "me"); got != "you said me" {
		t.Errorf("another user: %q", got)
	}
	if got := h.must("exec", "box", "python3", "-c", crowder, chosen, "100"); got != "100" {
		t.Errorf("of 100 at once %s were answered", got)
	}
	// Nothing listens there on the host: the guest is cut off, not lied to.
	if got := ask("8002", "hello"); got != "" {
		t.Errorf("nothing answers %q", got)
	}
	if failure := h.refused("port-forward", "box", "-R", "8001:80"); failure.Code != api.ErrValidationPortConflict {
		t.Errorf("a port that is taken in the guest: %+v", failure)
	}
	if failure := h.refused("port-forward", "box", "-R", "80"); failure.Code != api.ErrValidationPort {
		t.Errorf("without a target: %+v", failure)
	}
	// However it ends, nobody listens in the guest any more.
	const refused = `until ! python3 -c 'import socket; socket.create_connection(("127.0.0.1", 8001))' 2>/dev/null && [ ! -e /run/to-host ]; do sleep 0.1; done`
	cmd.Process.Kill()
	cmd.Wait()
	h.sh("box", refused)
	cmd, _ = h.forward("box", "-R", "8001:"+targets[0], "-R", "/run/to-host:"+targets[0])
	if got := ask("8001", "again"); got != "you said again" {
		t.Errorf("a second time: %q", got)
	}
	cmd.Process.Signal(syscall.SIGTERM)
	if err := cmd.Wait(); err != nil {
		t.Errorf("told to stop: %v", err)
	}
	h.sh("box", refused)
	// And it ends with the sandbox.
	cmd, _ = h.forward("box", "-R", "8001:"+targets[0])
	h.must("stop", "box")
	if err := cmd.Wait(); err == nil {
		t.Error("it succeeded when the sandbox ended")
	}
}

// TestPortForward reaches servers in a sandbox without a network.
func TestPortForward(t *testing.T) {
	t.Parallel()
	h := newHost(t)
	h.must("create", "--name", "box", "--network", "none")
	h.startPython("box", greeter, "/root/up")
	socket := filepath.Join(t.TempDir(), "socket")
	cmd := h.command(context.Background(), "port-forward", "--json", "box", "0:8000", socket+":/run/greeter", "0:9")
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
