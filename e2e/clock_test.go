package e2e

import (
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/vmsan/vmsan/internal/testenv"
)

// The clock is right after a boot, each restore and each pause. A server's
// certificate that was not valid yet when the snapshot was made, by its clock,
// is valid at once.
func TestClock(t *testing.T) {
	h := newHost(t)
	world := testenv.Lab(t)
	h.must("create", "--name", "old", "--cold")
	h.checkClock("old")
	const server = "198.51.100.10"
	if _, err := h.exec(t.Context(), strings.NewReader(string(world.CA.PEM())), "old", "sh", "-c", "cat >/root/ca.pem"); err != nil {
		t.Fatal(err)
	}
	const hello = `import socket, ssl
context = ssl.create_default_context(cafile="/root/ca.pem")
context.wrap_socket(socket.create_connection(("` + server + `", 443)), server_hostname="` + server + `")
print("hello")`
	if got := h.must("exec", "--no-stdin", "old", "python3", "-c", hello); got != "hello" {
		t.Errorf("the server says %q", got)
	}
	h.sh("old", "date -s 2020-01-01")
	if out, err := h.vmsan("exec", "--no-stdin", "old", "python3", "-c", hello); err == nil ||
		!strings.Contains(err.Error(), "CERTIFICATE_VERIFY_FAILED") {
		t.Fatalf("with an old clock: %s, %v", out, err)
	}
	h.must("snapshot", "create", "old", "--name", "old")
	h.must("create", "--snapshot", "old", "--name", "new")
	h.checkClock("new")
	if got := h.must("exec", "--no-stdin", "new", "python3", "-c", hello); got != "hello" {
		t.Errorf("the server says %q", got)
	}
	h.must("restore", "old", "old")
	h.checkClock("old")
	h.must("pause", "new")
	h.must("pause", "--reclaim", "old")
	time.Sleep(3 * time.Second)
	h.must("resume", "new", "old")
	h.checkClock("new")
	h.checkClock("old")
}

// checkClock compares a guest's clock with the host's, to 50 ms beside the
// time that asking takes.
func (h *host) checkClock(name string) {
	h.t.Helper()
	const slack = 50 * time.Millisecond
	before := time.Now()
	text := strings.TrimSpace(h.must("exec", name, "date", "+%s%N"))
	after := time.Now()
	nanoseconds, err := strconv.ParseInt(text, 10, 64)
	if err != nil {
		h.t.Fatal(err)
	}
	if at := time.Unix(0, nanoseconds); at.Before(before.Add(-slack)) || at.After(after.Add(slack)) {
		h.t.Errorf("the clock of %s is %s, and the host's was %s to %s", name, at, before, after)
	}
}
