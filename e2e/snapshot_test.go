package e2e

import (
	"fmt"
	"os"
	"strconv"
	"strings"
	"testing"
	"time"
)

// sourceProgram draws random numbers all the time, and holds a connection to a
// server that says nothing: what it says of the end of that is in a file.
const sourceProgram = `
import os, socket, threading, time
def client():
    s = socket.create_connection(("198.51.100.10", 7))
    open("/root/client", "w").write("connected")
    try:
        s.recv(1)
        open("/root/client", "w").write("ended")
    except OSError as e:
        open("/root/client", "w").write("reset")
threading.Thread(target=client, daemon=True).start()
with open("/root/random", "w") as out:
    while True:
        out.write(os.urandom(16).hex() + "\n")
        out.flush()
        time.sleep(0.5)
`

// Thirty-two copies of a running sandbox are thirty-two guests: names, ids,
// UUIDs and randomness are their own, also for a program that was drawing
// random numbers when it was copied; their clocks are right, and connections
// of the source are reset in them and go on in the source.
func TestForks(t *testing.T) {
	h := newHost(t)
	const count = 32
	h.must("create", "--name", "source", "--network-policy", "allow-all", "--publish", "18095:80")
	h.must("exec", "-d", "source", "python3", "-c", sourceProgram)
	h.await("source", "connected")
	h.must("fork", "source", "--count", strconv.Itoa(count), "--name", "f")

	seen := map[string]string{} // what has to be one fork's alone, to whose it is
	streams := make([][]string, count)
	for i := range count {
		name := fmt.Sprintf("f-%d", i+1)
		h.await(name, "reset")
		own := h.must("exec", name, "sh", "-c",
			"hostname; cat /etc/machine-id /proc/sys/kernel/random/boot_id /proc/sys/kernel/random/uuid; "+
				"python3 -c 'import uuid; print(uuid.uuid4())'; head -c 16 /dev/urandom | od -An -tx1")
		for _, what := range strings.Split(strings.TrimSpace(own), "\n") {
			if other := seen[what]; other != "" {
				t.Errorf("%s and %s both have %s", other, name, what)
			}
			seen[what] = name
		}
		streams[i] = strings.Fields(h.must("exec", name, "cat", "/root/random"))
	}
	checkStreams(t, streams)
	if got := h.must("exec", "source", "cat", "/root/client"); got != "connected" {
		t.Errorf("the source's connection is %s", got)
	}
	for _, name := range []string{"f-1", "f-32", "source"} {
		h.checkClock(name)
	}
}

// await waits for what the source program says of its connection.
func (h *host) await(name, want string) {
	h.t.Helper()
	for deadline := time.Now().Add(patience); ; time.Sleep(50 * time.Millisecond) {
		got, err := h.vmsan("exec", name, "cat", "/root/client")
		if err == nil && got == want {
			return
		}
		if time.Now().After(deadline) {
			h.t.Fatalf("the connection of %s is %q, not %s: %v", name, got, want, err)
		}
	}
}

// checkStreams compares what the copies of one program have drawn: after what
// they have in common, from before the copy, there is nothing in common.
func checkStreams(t *testing.T, streams [][]string) {
	t.Helper()
	common := 0
	for same := true; same; {
		for _, s := range streams {
			same = same && common < len(s) && s[common] == streams[0][common]
		}
		if same {
			common++
		}
	}
	if common == 0 {
		t.Error("the program did not run before it was copied")
	}
	drawn := map[string]int{}
	for i, s := range streams {
		if len(s) == common {
			t.Errorf("the program of fork %d does not go on", i+1)
		}
		for _, number := range s[common:] {
			if other, ok := drawn[number]; ok {
				t.Errorf("forks %d and %d have both drawn %s", other+1, i+1, number)
			}
			drawn[number] = i
		}
	}
}

// Cycles of pausing and of going back lose nothing, and the policy holds after
// each.
func TestCycles(t *testing.T) {
	t.Parallel()
	h := newHost(t)
	const cycles = 5 // of each; ten times as many with the tests of load
	h.must("create", "--name", "web", "--allowed-domain", "allowed.example")
	sum := h.must("exec", "web", "sh", "-c",
		"head -c 20M /dev/urandom >/root/data; cp /root/data /run/data; sync; sha256sum /root/data /run/data")
	check := func(after string) {
		t.Helper()
		if got := h.must("exec", "web", "sha256sum", "/root/data", "/run/data"); got != sum {
			t.Fatalf("after %s: %s, want %s", after, got, sum)
		}
		h.must("exec", "web", "sh", "-c", "curl -sS -m 30 http://allowed.example/ && ! curl -sS -m 30 http://198.51.100.20/")
		h.checkClock("web")
	}
	times := cycles
	if os.Getenv(loadVar) != "" {
		times *= 10
	}
	for i := range times {
		h.must("pause", "web")
		h.must("resume", "web")
		check(fmt.Sprintf("pause %d", i+1))
	}
	for i := range times {
		id := strings.TrimSpace(h.must("snapshot", "create", "web"))
		h.must("exec", "web", "sh", "-c", "echo lost >/root/data")
		h.must("restore", "web", id)
		check(fmt.Sprintf("restore %d", i+1))
		h.must("snapshot", "rm", id)
	}
}
