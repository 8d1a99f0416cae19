package agent

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"net/netip"
	"os"
	"slices"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"connectrpc.com/connect"
	"google.golang.org/protobuf/types/known/timestamppb"

	"github.com/vmsan/vmsan/internal/guest/proto/guestv1"
	"github.com/vmsan/vmsan/internal/guest/proto/guestv1/guestv1connect"
)

func itoa(n int) string { return strconv.Itoa(n) }

// recordingKernel writes down what it is asked to do.
type recordingKernel struct {
	mu    sync.Mutex
	calls []string
	fail  map[string]error // by the first word of a call
}

func (k *recordingKernel) record(format string, args ...any) error {
	k.mu.Lock()
	defer k.mu.Unlock()
	call := fmt.Sprintf(format, args...)
	k.calls = append(k.calls, call)
	word, _, _ := strings.Cut(call, " ")
	return k.fail[word]
}

func (k *recordingKernel) Release() (string, error) { return "6.1.0-test", k.record("uname -r") }
func (k *recordingKernel) SetTime(to time.Time) error {
	return k.record("date -s %s", to.UTC().Format(time.RFC3339Nano))
}
func (k *recordingKernel) SetHostname(name string) error { return k.record("hostname %s", name) }
func (k *recordingKernel) AddEntropy(entropy []byte) error {
	return k.record("add-entropy %x", entropy)
}
func (k *recordingKernel) SetNetwork(address netip.Prefix, gateway netip.Addr) error {
	return k.record("ip-address %s via %s", address, gateway)
}
func (k *recordingKernel) ResetConnections() error      { return k.record("ss -K") }
func (k *recordingKernel) Cover(_, target string) error { return k.record("mount --bind %s", target) }
func (k *recordingKernel) Freeze(path string) error     { return k.record("fsfreeze -f %s", path) }
func (k *recordingKernel) Thaw(path string) error       { return k.record("fsfreeze -u %s", path) }
func (k *recordingKernel) MountVolume(device, target string, readOnly bool) error {
	return k.record("mount %s %s %t", device, target, readOnly)
}
func (k *recordingKernel) Grow(mount, device string, least uint64) (uint64, error) {
	return 1 << 30, k.record("resize2fs %s %s %d", device, mount, least)
}

func TestConfigure(t *testing.T) {
	kernel := &recordingKernel{fail: map[string]error{"add-entropy": syscall.EPERM}}
	g := newGuest(t, func(c *Config) { c.Kernel = kernel })
	if err := os.Symlink("/run/elsewhere/resolv.conf", g.path("etc/resolv.conf")); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(g.path("etc/hosts"), []byte("127.0.0.1 localhost\n127.0.1.1\told\t# vmsan\n10.0.0.1 db\n"), 0o644); err != nil {
		t.Fatal(err)
	}
	response, err := g.control.Configure(t.Context(), connect.NewRequest(&guestv1.ConfigureRequest{
		Hostname:  new("box"),
		MachineId: new("0123456789abcdef0123456789abcdef"),
		BootId:    new("01234567-89ab-cdef-0123-456789abcdef"),
		Time:      timestamppb.New(time.Unix(1700000000, 5)),
		Entropy:   []byte{1, 2, 255},
		Environment: &guestv1.Environment{Variables: map[string]string{
			"E2B_SANDBOX": "true", "E2B_SANDBOX_ID": "abc", "OTHER": "1",
		}},
		DefaultUser:    new("root"),
		DefaultWorkdir: new("/"),
		AccessToken:    new("secret"),
		Resolver:       &guestv1.Resolver{Servers: []string{"10.0.0.53", "fd00::53"}, Search: []string{"a.test", "b.test"}},
	}))
	if err != nil {
		t.Fatal(err)
	}
	var steps []string
	for _, step := range response.Msg.GetSteps() {
		steps = append(steps, strings.TrimSpace(step.GetName()+" "+step.GetError()))
	}
	if want := []string{"time", "entropy operation not permitted", "hostname", "machine_id", "boot_id", "resolver", "environment", "default_user", "default_workdir", "access_token"}; !slices.Equal(steps, want) {
		t.Errorf("got steps %q, want %q", steps, want)
	}
	if want := []string{"date -s 2023-11-14T22:13:20.000000005Z", "add-entropy 0102ff", "hostname box", "mount --bind /proc/sys/kernel/random/boot_id"}; !slices.Equal(kernel.calls, want) {
		t.Errorf("got calls %q, want %q", kernel.calls, want)
	}
	for path, want := range map[string]string{
		"etc/hostname":            "box\n",
		"etc/hosts":               "127.0.0.1 localhost\n10.0.0.1 db\n127.0.1.1\tbox\t# vmsan\n",
		"etc/machine-id":          "0123456789abcdef0123456789abcdef\n",
		"etc/resolv.conf":         "search a.test b.test\nnameserver 10.0.0.53\nnameserver fd00::53\n",
		"run/vmsan/boot_id":       "01234567-89ab-cdef-0123-456789abcdef\n",
		"run/e2b/.E2B_SANDBOX":    "true",
		"run/e2b/.E2B_SANDBOX_ID": "abc",
	} {
		if got, err := os.ReadFile(g.path(path)); err != nil || string(got) != want {
			t.Errorf("%s: got %q, error %v; want %q", path, got, err, want)
		}
	}
	if _, err := os.Stat(g.path("run/e2b/.OTHER")); !os.IsNotExist(err) {
		t.Errorf("run/e2b/.OTHER: %v", err)
	}
	if now := g.agent.current(); now.user != "root" || now.workdir != "/" || now.token != "secret" || now.environment["OTHER"] != "1" {
		t.Errorf("got settings %+v", now)
	}
	if response, text := get(t, g.public.Client(), http.MethodGet, g.public.URL+"/envs", nil); response.StatusCode != 401 {
		t.Errorf("after a token was set: status %d, body %s", response.StatusCode, text)
	}
}

func TestConfigureRefuses(t *testing.T) {
	g := newGuest(t)
	response, err := g.control.Configure(t.Context(), connect.NewRequest(&guestv1.ConfigureRequest{
		Hostname:    new("a b"),
		MachineId:   new("0123"),
		BootId:      new("0123456789abcdef0123456789abcdef"),
		Time:        &timestamppb.Timestamp{Nanos: -1},
		Entropy:     make([]byte, maxEntropy+1),
		Environment: &guestv1.Environment{Variables: map[string]string{"": "x"}},
		DefaultUser: new("nobody-here"),
		Resolver:    &guestv1.Resolver{Servers: []string{"dns.test"}},
	}))
	if err != nil {
		t.Fatal(err)
	}
	if len(response.Msg.GetSteps()) != 8 {
		t.Errorf("got %v", response.Msg)
	}
	for _, step := range response.Msg.GetSteps() {
		if step.GetError() == "" {
			t.Errorf("%s was done", step.GetName())
		}
	}
}

func TestDisk(t *testing.T) {
	kernel := &recordingKernel{fail: map[string]error{}}
	g := newGuest(t, func(c *Config) { c.Kernel, c.DiskMount = kernel, "/disk" })
	if _, err := g.control.Freeze(t.Context(), connect.NewRequest(&guestv1.FreezeRequest{})); err != nil {
		t.Error(err)
	}
	if _, err := g.control.Thaw(t.Context(), connect.NewRequest(&guestv1.ThawRequest{Mount: "/other"})); err != nil {
		t.Error(err)
	}
	// A copy that goes with its memory is not frozen, and not thawed when it is woken.
	if _, err := g.control.Freeze(t.Context(), connect.NewRequest(&guestv1.FreezeRequest{CommandsOnly: true})); err != nil {
		t.Error(err)
	}
	response, err := g.control.Resize(t.Context(), connect.NewRequest(&guestv1.ResizeRequest{Device: "/dev/vdb", Bytes: 7}))
	if err != nil || response.Msg.GetBytes() != 1<<30 {
		t.Errorf("got %v, error %v", response, err)
	}
	if want := []string{"fsfreeze -f /disk", "fsfreeze -u /other", "resize2fs /dev/vdb /disk 7"}; !slices.Equal(kernel.calls, want) {
		t.Errorf("got %q, want %q", kernel.calls, want)
	}
	_, err = g.control.Freeze(t.Context(), connect.NewRequest(&guestv1.FreezeRequest{Mount: "relative"}))
	wantCode(t, err, connect.CodeInvalidArgument, "absolute")
	kernel.fail["fsfreeze"] = syscall.EOPNOTSUPP
	_, err = g.control.Freeze(t.Context(), connect.NewRequest(&guestv1.FreezeRequest{}))
	wantCode(t, err, connect.CodeUnimplemented, "freeze /disk")
}

// A gate that asks the guest to hold still may die before the guest has; the
// next one asks again, and then to go on.
func TestFreezeThatComesLate(t *testing.T) {
	kernel := &recordingKernel{}
	settled := make(chan struct{})
	g := newGuest(t, func(c *Config) {
		c.Kernel, c.DiskMount = kernel, "/disk"
		c.Settle = func() { <-settled }
	})
	handler, calls, served := g.agent.HostHandler(), make(chan context.Context, 1), make(chan struct{})
	server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		defer close(served)
		calls <- r.Context()
		handler.ServeHTTP(w, r)
	}))
	defer server.Close()
	ctx, cancel := context.WithCancel(t.Context())
	go guestv1connect.NewHostClient(server.Client(), server.URL).Freeze(ctx, connect.NewRequest(&guestv1.FreezeRequest{}))
	call := <-calls
	cancel()
	<-call.Done()
	close(settled)
	<-served
	if len(kernel.calls) > 0 {
		t.Errorf("nobody waits any more, and yet: %q", kernel.calls)
	}
}

func TestPowerOff(t *testing.T) {
	var asked []bool
	g := newGuest(t, func(c *Config) {
		c.PowerOff = func(_ context.Context, reboot bool) error {
			asked = append(asked, reboot)
			return nil
		}
	})
	for _, mode := range []guestv1.PowerOffMode{0, guestv1.PowerOffMode_POWER_OFF_MODE_POWEROFF, guestv1.PowerOffMode_POWER_OFF_MODE_REBOOT} {
		if _, err := g.control.PowerOff(t.Context(), connect.NewRequest(&guestv1.PowerOffRequest{Mode: mode})); err != nil {
			t.Fatal(err)
		}
	}
	if !slices.Equal(asked, []bool{false, false, true}) {
		t.Errorf("got %v", asked)
	}
	without := newGuest(t)
	_, err := without.control.PowerOff(t.Context(), connect.NewRequest(&guestv1.PowerOffRequest{}))
	wantCode(t, err, connect.CodeUnimplemented, "")
}

func TestInfo(t *testing.T) {
	g := newGuest(t)
	response, err := g.control.Info(t.Context(), connect.NewRequest(&guestv1.InfoRequest{}))
	if err != nil {
		t.Fatal(err)
	}
	info := response.Msg
	if info.GetAgentVersion() != "test" || info.GetKernelRelease() != "6.1.0-test" || info.GetApiVersion() != contractVersion || info.GetTreeTracking() != "proc" || len(info.GetBootId()) != 36 || info.GetHostname() == "" {
		t.Errorf("got %v", info)
	}
}

// What only the host may do is not there for others, token or none.
func TestHostOnly(t *testing.T) {
	g := newGuest(t)
	for _, path := range []string{"/vmsan.guest.v1.Host/Info", "/vmsan.guest.v1.Host/PowerOff", "/init"} {
		response, _ := get(t, g.public.Client(), http.MethodPost, g.public.URL+path, strings.NewReader("{}"), "Content-Type", "application/json")
		if response.StatusCode != 404 {
			t.Errorf("%s: status %d", path, response.StatusCode)
		}
	}
	response, _ := get(t, g.public.Client(), http.MethodGet, g.public.URL+"/vmsan/dial?network=tcp&address=127.0.0.1:1", nil)
	if response.StatusCode != 404 {
		t.Errorf("dial: status %d", response.StatusCode)
	}
}

func TestInit(t *testing.T) {
	kernel := &recordingKernel{}
	g := newGuest(t, func(c *Config) { c.Kernel = kernel })
	post := func(body string, header ...string) (int, string) {
		response, text := get(t, g.host, http.MethodPost, hostURL+"/init", strings.NewReader(body), header...)
		return response.StatusCode, text
	}
	if status, text := post(`{"accessToken":"one","envVars":{"A":"b"},"timestamp":"2024-01-02T03:04:05Z","defaultUser":"root","defaultWorkdir":"/w","lifecycleID":"x"}`); status != 204 {
		t.Fatalf("status %d, body %s", status, text)
	}
	if now := g.agent.current(); now.token != "one" || now.environment["A"] != "b" || now.user != "root" || now.workdir != "/w" {
		t.Errorf("got settings %+v", now)
	}
	if !slices.Equal(kernel.calls, []string{"date -s 2024-01-02T03:04:05Z"}) {
		t.Errorf("got calls %q", kernel.calls)
	}
	if status, text := post(`{"accessToken":"two"}`); status != 401 || strings.HasPrefix(text, "{") {
		t.Errorf("without the token: status %d, body %s", status, text)
	}
	if status, text := post(`{"accessToken":"two"}`, tokenHeader, "one"); status != 204 {
		t.Errorf("with the token: status %d, body %s", status, text)
	}
	if status, _ := post(`{"accessToken":"two"}`); status != 204 {
		t.Errorf("with the token in the body: status %d", status)
	}
	if status, _ := post(`{`, tokenHeader, "two"); status != 400 {
		t.Errorf("bad body: status %d", status)
	}
	if status, _ := post(strings.Repeat(" ", maxInitBody+1), tokenHeader, "two"); status != 400 {
		t.Errorf("long body: status %d", status)
	}
}

func TestMetrics(t *testing.T) {
	g := newGuest(t)
	response, text := get(t, g.host, http.MethodGet, hostURL+"/metrics", nil)
	var m metrics
	if err := json.Unmarshal([]byte(text), &m); err != nil || response.StatusCode != 200 {
		t.Fatalf("status %d, body %s", response.StatusCode, text)
	}
	if m.CPUs < 1 || m.MemTotal == 0 || m.MemUsed == 0 || m.MemUsed > m.MemTotal || m.MemTotalMiB != m.MemTotal>>20 || m.DiskTotal == 0 || m.Timestamp == 0 || m.CPUUsed < 0 || m.CPUUsed > 100 {
		t.Errorf("got %+v", m)
	}
}

func TestParseMetrics(t *testing.T) {
	total, available, cache := parseMeminfo([]byte("MemTotal:  100 kB\nMemFree: 1 kB\nMemAvailable: 40 kB\nCached: 7 kB\nSReclaimable: 2 kB\nodd\nX:\n"))
	if total != 100<<10 || available != 40<<10 || cache != 9<<10 {
		t.Errorf("got %d, %d, %d", total, available, cache)
	}
	busy, all := parseCPUTime([]byte("cpu  10 1 5 70 4 2 3 5 100 100\ncpu0 1 1 1 1\n"))
	if busy != 26 || all != 100 {
		t.Errorf("got %d of %d", busy, all)
	}
}

func FuzzParseMetrics(f *testing.F) {
	f.Add([]byte("cpu  10 1 5 70 4\nMemTotal: 1 kB"))
	f.Fuzz(func(t *testing.T, text []byte) {
		if busy, total := parseCPUTime(text); busy > total {
			t.Errorf("busy for %d of %d", busy, total)
		}
		parseMeminfo(text)
	})
}

func TestCORS(t *testing.T) {
	g := newGuest(t, func(c *Config) { c.AccessToken = "secret" })
	response, _ := get(t, g.public.Client(), http.MethodOptions, g.public.URL+"/process.Process/Start", nil,
		"Origin", "https://site.test", "Access-Control-Request-Method", "POST", "Access-Control-Request-Headers", "content-type,x-access-token")
	header := response.Header
	if response.StatusCode != 204 || header.Get("Access-Control-Allow-Origin") != "*" || header.Get("Access-Control-Allow-Headers") != "content-type,x-access-token" || !strings.Contains(header.Get("Access-Control-Allow-Methods"), "POST") {
		t.Errorf("status %d, header %v", response.StatusCode, header)
	}
}

// dial asks the agent for a stream and returns it with what reads it.
func (g *guest) dial(t *testing.T, query string) (*net.UnixConn, *bufio.Reader, *http.Response) {
	t.Helper()
	conn, err := net.Dial("unix", g.socket)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { conn.Close() })
	// The first bytes of the stream come with the request.
	fmt.Fprintf(conn, "GET /vmsan/dial?%s HTTP/1.1\r\nHost: guest\r\nConnection: Upgrade\r\nUpgrade: vmsan-stream\r\n\r\nearly ", query)
	reader := bufio.NewReader(conn)
	response, err := http.ReadResponse(reader, nil)
	if err != nil {
		t.Fatal(err)
	}
	return conn.(*net.UnixConn), reader, response
}

func TestDial(t *testing.T) {
	g := newGuest(t)
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer listener.Close()
	got := make(chan []byte, 1)
	go func() {
		conn, err := listener.Accept()
		if err != nil {
			return
		}
		defer conn.Close()
		all, _ := io.ReadAll(conn) // until the host has ended its direction
		got <- all
		conn.Write(bytes.Repeat([]byte("answer"), 100_000))
	}()
	conn, reader, response := g.dial(t, "network=tcp&address="+listener.Addr().String())
	if response.StatusCode != 101 || response.Header.Get("Upgrade") != streamProtocol {
		t.Fatalf("status %d, header %v", response.StatusCode, response.Header)
	}
	fmt.Fprint(conn, "late")
	if err := conn.CloseWrite(); err != nil {
		t.Fatal(err)
	}
	answer, err := io.ReadAll(reader)
	if err != nil || len(answer) != 600_000 {
		t.Errorf("got %d bytes, error %v", len(answer), err)
	}
	if all := <-got; string(all) != "early late" {
		t.Errorf("the guest got %q", all)
	}
}

func TestDialErrors(t *testing.T) {
	g := newGuest(t)
	for query, status := range map[string]int{
		"network=udp&address=127.0.0.1:1":        400,
		"network=tcp":                            400,
		"network=unix&address=" + g.path("none"): 502,
	} {
		if _, _, response := g.dial(t, query); response.StatusCode != status {
			t.Errorf("%s: status %d, want %d", query, response.StatusCode, status)
		}
	}
	response, _ := get(t, g.host, http.MethodGet, hostURL+"/vmsan/dial?network=tcp&address=127.0.0.1:1", nil)
	if response.StatusCode != http.StatusUpgradeRequired {
		t.Errorf("without an upgrade: status %d", response.StatusCode)
	}
}

// A clock is set to what the host says. If it is told to advance, it is not set
// back, and not far from where somebody has set it.
func TestSetClock(t *testing.T) {
	kernel := &recordingKernel{fail: map[string]error{}}
	g := newGuest(t, func(c *Config) { c.Kernel = kernel })
	now := time.Now()
	for _, to := range []struct {
		time    time.Time
		advance bool
	}{
		{now.Add(-time.Second), true},
		{now.Add(-time.Hour), false},
		{now.Add(time.Hour), true},
		{now.Add(mostAdvance / 2), true},
	} {
		if err := (self{g.agent}).SetClock(to.time, to.advance); err != nil {
			t.Fatal(err)
		}
	}
	want := []string{
		"date -s " + now.Add(-time.Hour).UTC().Format(time.RFC3339Nano),
		"date -s " + now.Add(mostAdvance/2).UTC().Format(time.RFC3339Nano),
	}
	if !slices.Equal(kernel.calls, want) {
		t.Errorf("got %q, want %q", kernel.calls, want)
	}
}
