// Package e2b_test runs the unmodified npm package e2b against a sandbox.
package e2b_test

import (
	"context"
	"io"
	"net"
	"os"
	"os/exec"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/vmsan/vmsan/internal/guest"
	"github.com/vmsan/vmsan/internal/testenv"
)

// address is where the package's debug mode looks for its sandbox.
const address = "127.0.0.1:49983"

// limit is for the whole of the package's tests, in emulation on a busy host.
const limit = 8 * time.Minute

func TestMain(m *testing.M) { os.Exit(testenv.Main(m)) }

func TestSDK(t *testing.T) {
	vmsan := testenv.RequireVmsan(t)
	if _, err := os.Stat("node_modules/e2b/package.json"); err != nil {
		t.Fatalf("the npm package e2b is not installed; run: make deps (%v)", err)
	}
	id := vmsan.Create(t)
	forward(t, vmsan.Layout.GuestSocket(id))

	ctx, cancel := context.WithTimeout(t.Context(), limit)
	defer cancel()
	node := exec.CommandContext(ctx, "node", "--test", "--test-reporter=tap", "sdk.test.mjs")
	node.Env = append(os.Environ(), "E2B_DEBUG=true", "E2B_API_KEY=")
	node.WaitDelay = 10 * time.Second
	out, err := node.CombinedOutput()
	if err != nil {
		t.Fatalf("the package disagrees: %v\n%s", err, out)
	}
	t.Logf("%s", summary(string(out)))
}

// summary is the counts at the end of TAP.
func summary(tap string) string {
	lines := strings.Split(strings.TrimSpace(tap), "\n")
	return strings.Join(lines[max(len(lines)-8, 0):], "\n")
}

// forward joins each connection to the package's address with a stream of
// its own to the guest's agent.
func forward(t *testing.T, socket string) {
	t.Helper()
	listener, err := net.Listen("tcp", address)
	if err != nil {
		t.Fatal(err)
	}
	dial := guest.DialSocket(socket)
	ctx, cancel := context.WithCancel(t.Context())
	var serving sync.WaitGroup
	serving.Go(func() {
		for {
			client, err := listener.Accept()
			if err != nil {
				return
			}
			serving.Go(func() { carry(ctx, t, client, dial) })
		}
	})
	t.Cleanup(func() {
		cancel()
		listener.Close()
		serving.Wait()
	})
}

// carry copies both ways until both sides are done, or the test is.
func carry(ctx context.Context, t *testing.T, client net.Conn, dial guest.Dial) {
	defer client.Close()
	stream, err := dial(ctx)
	if err != nil {
		t.Errorf("dial guest: %v", err)
		return
	}
	defer stream.Close()
	defer context.AfterFunc(ctx, func() {
		client.Close()
		stream.Close()
	})()
	var up sync.WaitGroup
	up.Go(func() {
		io.Copy(stream, client)
		stream.(*net.UnixConn).CloseWrite()
	})
	io.Copy(client, stream)
	client.(*net.TCPConn).CloseWrite()
	client.SetReadDeadline(time.Now())
	up.Wait()
}
