package e2e

import (
	"encoding/json"
	"slices"
	"testing"

	"github.com/vmsan/vmsan/api"
)

// ports are those of a sandbox, less the agent's own.
func (h *host) ports(name string) (list []api.Port) {
	h.t.Helper()
	if err := json.Unmarshal([]byte(h.must("ports", "--json", name)), &list); err != nil {
		h.t.Fatal(err)
	}
	return slices.DeleteFunc(list, func(p api.Port) bool { return p.Port == 49983 })
}

// listener listens on three ports until it is told to end.
const listener = `
import socket, time
open("/proc/self/comm", "w").write("bad\x1b[2Jname")
def bind(kind, address):
    s = socket.socket(type=kind)
    s.bind(address)
    return s
all, lo = bind(socket.SOCK_STREAM, ("0.0.0.0", 8000)), bind(socket.SOCK_STREAM, ("127.0.0.1", 8001))
all.listen()
lo.listen()
udp = bind(socket.SOCK_DGRAM, ("0.0.0.0", 8000))
open("/root/up", "w").write("up")
time.sleep(100000)
`

func TestPorts(t *testing.T) {
	t.Parallel()
	h := newHost(t)
	h.must("create", "--name", "box", "--publish", "18000:8000", "--publish", "18001:8001:lo", "--publish", "18002:8001")
	if before := h.ports("box"); len(before) > 0 {
		t.Errorf("before anything listens: %+v", before)
	}
	h.startPython("box", listener, "/root/up")
	type port struct {
		protocol, address string
		port              uint16
		published         string
	}
	want := []port{
		{"tcp", "0.0.0.0", 8000, "127.0.0.1:18000"},
		{"tcp", "127.0.0.1", 8001, "127.0.0.1:18001"},
		{"udp", "0.0.0.0", 8000, ""},
	}
	var got []port
	for _, p := range h.ports("box") {
		shown := port{p.Protocol, p.Address.String(), p.Port, ""}
		if len(p.Published) == 1 {
			shown.published = p.Published[0]
		}
		got = append(got, shown)
		// The kernel cuts names at 15 bytes.
		if p.PID == 0 || p.Process != "bad?[2Jname" {
			t.Errorf("%+v is of process %d, %q", shown, p.PID, p.Process)
		}
	}
	if !slices.Equal(got, want) {
		t.Errorf("listens on %+v, want %+v", got, want)
	}
	h.sh("box", "pkill -f '[p]rogram.py'; while pgrep -f '[p]rogram.py'; do sleep 0.1; done")
	if after := h.ports("box"); len(after) > 0 {
		t.Errorf("after it has ended: %+v", after)
	}
	h.must("pause", "box")
	if failure := h.refused("ports", "box"); failure.Code != api.ErrVMNotRunning {
		t.Errorf("of a sandbox that is paused: %+v", failure)
	}
}
