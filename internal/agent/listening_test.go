package agent

import (
	"encoding/json"
	"net"
	"net/http"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
)

// TestPortsAndStats asks an agent for what it finds in this very system.
func TestPortsAndStats(t *testing.T) {
	g := newGuest(t)
	tcp, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer tcp.Close()
	udp, err := net.ListenPacket("udp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer udp.Close()
	client, err := net.Dial("tcp", tcp.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	defer client.Close()
	find := func(protocol string, at net.Addr) int {
		t.Helper()
		_, body := get(t, g.host, http.MethodGet, hostURL+"/vmsan/ports", nil)
		var all []listening
		if err := json.Unmarshal([]byte(body), &all); err != nil {
			t.Fatalf("%v: %s", err, body)
		}
		want := netip.MustParseAddrPort(at.String())
		i := slices.IndexFunc(all, func(l listening) bool {
			return l.Protocol == protocol && l.Address == want.Addr() && l.Port == want.Port()
		})
		if i >= 0 && (all[i].PID != os.Getpid() || all[i].Process == "") {
			t.Errorf("%s %s is of %d %q", protocol, at, all[i].PID, all[i].Process)
		}
		return i
	}
	if find("tcp", tcp.Addr()) < 0 || find("udp", udp.LocalAddr()) < 0 {
		t.Error("does not find what listens")
	}
	if find("tcp", client.LocalAddr()) >= 0 {
		t.Error("finds what does not listen")
	}
	tcp.Close()
	if find("tcp", tcp.Addr()) >= 0 {
		t.Error("finds what has ended")
	}

	measure := func() (s stats) {
		t.Helper()
		_, body := get(t, g.host, http.MethodGet, hostURL+"/vmsan/stats", nil)
		if err := json.Unmarshal([]byte(body), &s); err != nil {
			t.Fatalf("%v: %s", err, body)
		}
		return s
	}
	if s := measure(); s.MemUsed == 0 || s.MemUsed > s.MemTotal || s.DiskUsed == 0 || s.DiskUsed > s.DiskTotal || s.Processes < 1 {
		t.Errorf("stats are %+v", s)
	}
	// They are the host's alone.
	for _, path := range []string{"/vmsan/ports", "/vmsan/stats"} {
		if response, _ := get(t, g.public.Client(), http.MethodGet, g.public.URL+path, nil); response.StatusCode != http.StatusNotFound {
			t.Errorf("%s from within the guest: status %d", path, response.StatusCode)
		}
	}
}

func TestReadSockets(t *testing.T) {
	const table = `  sl  local_address rem_address   st tx_queue rx_queue tr tm->when retrnsmt   uid  timeout inode
   0: 0100007F:1F40 00000000:0000 0A 00000000:00000000 00:00000000 00000000     0        0 4711 1 0 100 0 0 10 0
   1: 0100007F:1F40 0100007F:9000 01 00000000:00000000 00:00000000 00000000     0        0 4712 1 0 100 0 0 10 0
   2: 00000000000000000000000001000000:0050 00000000000000000000000000000000:0000 0A 00000000:00000000 00:00000000 00000000     0        0 4713 1
   3: 0100:1F40 00000000:0000 0A 00000000:00000000 00:00000000 00000000     0        0 4714
   4: short
`
	all, err := readSockets(strings.NewReader(table), nil, "tcp", tcpListens)
	want := []listening{
		{Protocol: "tcp", Address: netip.MustParseAddr("127.0.0.1"), Port: 8000, inode: 4711},
		{Protocol: "tcp", Address: netip.MustParseAddr("::1"), Port: 80, inode: 4713},
	}
	if err != nil || !slices.Equal(all, want) {
		t.Errorf("got %+v, %v", all, err)
	}
}

// The kernel's threads are the children of one process.
func TestCountProcesses(t *testing.T) {
	proc := t.TempDir()
	for _, dir := range []string{"1", "2/task/2", "3", "4", "10", "sys", "self"} {
		if err := os.MkdirAll(filepath.Join(proc, dir), 0o755); err != nil {
			t.Fatal(err)
		}
	}
	if n, err := countProcesses(proc); n != 5 || err != nil {
		t.Errorf("without a list of children: %d, %v", n, err)
	}
	if err := os.WriteFile(filepath.Join(proc, "2/task/2/children"), []byte("3 4 "), 0o644); err != nil {
		t.Fatal(err)
	}
	if n, err := countProcesses(proc); n != 2 || err != nil {
		t.Errorf("got %d, %v", n, err)
	}
}
