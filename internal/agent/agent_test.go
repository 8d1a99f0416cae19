package agent

import (
	"context"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"connectrpc.com/connect"

	"github.com/vmsan/vmsan/internal/guest/proto/filesystem/filesystemconnect"
	"github.com/vmsan/vmsan/internal/guest/proto/guestv1"
	"github.com/vmsan/vmsan/internal/guest/proto/guestv1/guestv1connect"
	"github.com/vmsan/vmsan/internal/guest/proto/process"
	"github.com/vmsan/vmsan/internal/guest/proto/process/processconnect"
)

// guest is an agent with clients of both its doors.
type guest struct {
	agent  *Agent
	root   string
	socket string
	host   *http.Client // over a unix socket, like a stream of the link
	public *httptest.Server

	process    processconnect.ProcessClient
	filesystem filesystemconnect.FilesystemClient
	control    guestv1connect.HostClient
}

const hostURL = "http://guest"

func newGuest(t *testing.T, change ...func(*Config)) *guest {
	t.Helper()
	root := t.TempDir()
	config := Config{
		Version:         "test",
		DefaultUser:     currentUser(t),
		DefaultWorkdir:  root,
		SystemRoot:      root,
		KeepDirectory:   filepath.Join(root, "keep"),
		CgroupDirectory: filepath.Join(root, "no-cgroup"),
		Kernel:          &recordingKernel{},
	}
	copyAccounts(t, root)
	for _, set := range change {
		set(&config)
	}
	g := &guest{agent: New(config), root: root, socket: filepath.Join(t.TempDir(), "link")}
	listener, err := net.Listen("unix", g.socket)
	if err != nil {
		t.Fatal(err)
	}
	go g.agent.ServeHost(listener)
	g.public = httptest.NewServer(g.agent.PublicHandler())
	transport := &http.Transport{DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
		var dialer net.Dialer
		return dialer.DialContext(ctx, "unix", g.socket)
	}}
	g.host = &http.Client{Transport: transport}
	g.process = processconnect.NewProcessClient(g.host, hostURL)
	g.filesystem = filesystemconnect.NewFilesystemClient(g.host, hostURL)
	g.control = guestv1connect.NewHostClient(g.host, hostURL)
	t.Cleanup(func() {
		transport.CloseIdleConnections()
		listener.Close()
		g.public.CloseClientConnections()
		g.public.Close()
		if err := g.agent.Close(); err != nil {
			t.Errorf("close agent: %v", err)
		}
	})
	return g
}

// currentUser is the number of whoever runs the tests, so that they need no rights.
func currentUser(t *testing.T) string {
	t.Helper()
	found, err := accounts{etc: "/etc"}.lookup(itoa(os.Geteuid()))
	if err != nil {
		t.Fatal(err)
	}
	return itoa(int(found.uid)) + ":" + itoa(os.Getegid())
}

func copyAccounts(t *testing.T, root string) {
	t.Helper()
	if err := os.MkdirAll(filepath.Join(root, "etc"), 0o755); err != nil {
		t.Fatal(err)
	}
	for _, name := range []string{"passwd", "group"} {
		text, err := os.ReadFile("/etc/" + name)
		if err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(filepath.Join(root, "etc", name), text, 0o644); err != nil {
			t.Fatal(err)
		}
	}
}

// result is what a command did.
type result struct {
	pid    int
	stdout []byte
	stderr []byte
	pty    []byte
	end    *process.ProcessEvent_EndEvent
}

func (r *result) take(event *process.ProcessEvent) {
	switch e := event.GetEvent().(type) {
	case *process.ProcessEvent_Start:
		r.pid = int(e.Start.GetPid())
	case *process.ProcessEvent_Data:
		r.stdout = append(r.stdout, e.Data.GetStdout()...)
		r.stderr = append(r.stderr, e.Data.GetStderr()...)
		r.pty = append(r.pty, e.Data.GetPty()...)
	case *process.ProcessEvent_End:
		r.end = e.End
	}
}

func shell(script string) *process.StartRequest {
	no := false
	return &process.StartRequest{
		Process: &process.ProcessConfig{Cmd: "/bin/sh", Args: []string{"-c", script}},
		Stdin:   &no,
	}
}

// run starts a command and follows it to its end.
func (g *guest) run(t *testing.T, request *process.StartRequest) (*result, error) {
	t.Helper()
	stream, err := g.process.Start(t.Context(), connect.NewRequest(request))
	if err != nil {
		return nil, err
	}
	defer stream.Close()
	r := &result{}
	for stream.Receive() {
		r.take(stream.Msg().GetEvent())
	}
	return r, stream.Err()
}

func (g *guest) mustRun(t *testing.T, request *process.StartRequest) *result {
	t.Helper()
	r, err := g.run(t, request)
	if err != nil {
		t.Fatalf("run %v: %v", request.GetProcess(), err)
	}
	if r.end == nil {
		t.Fatalf("run %v: no end event", request.GetProcess())
	}
	return r
}

// launch starts a command and reads only its start event. The stream ends with the test.
func (g *guest) launch(t *testing.T, request *process.StartRequest) (*connect.ServerStreamForClient[process.StartResponse], int, context.CancelFunc) {
	t.Helper()
	ctx, cancel := context.WithCancel(t.Context())
	stream, err := g.process.Start(ctx, connect.NewRequest(request))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		cancel()
		stream.Close()
	})
	if !stream.Receive() {
		t.Fatalf("no start event: %v", stream.Err())
	}
	pid := int(stream.Msg().GetEvent().GetStart().GetPid())
	if pid == 0 {
		t.Fatalf("first event is %v, not start", stream.Msg())
	}
	return stream, pid, cancel
}

func byPid(pid int) *process.ProcessSelector {
	return &process.ProcessSelector{Selector: &process.ProcessSelector_Pid{Pid: uint32(pid)}}
}

// attach follows a command to its end.
func (g *guest) attach(t *testing.T, pid int, replay bool) (*result, error) {
	t.Helper()
	stream, err := g.process.Connect(t.Context(), connect.NewRequest(&process.ConnectRequest{Process: byPid(pid), Replay: replay}))
	if err != nil {
		return nil, err
	}
	defer stream.Close()
	r := &result{}
	for stream.Receive() {
		r.take(stream.Msg().GetEvent())
	}
	return r, stream.Err()
}

// eventually waits for what other processes do in their own time.
func eventually(t *testing.T, what string, holds func() bool) {
	t.Helper()
	deadline := time.Now().Add(20 * time.Second)
	for !holds() {
		if time.Now().After(deadline) {
			t.Fatalf("waited in vain for %s", what)
		}
		time.Sleep(5 * time.Millisecond)
	}
}

// alive tells if a process runs; a zombie does not.
func alive(pid int) bool {
	text, err := os.ReadFile("/proc/" + itoa(pid) + "/stat")
	if err != nil {
		return false
	}
	stat, ok := parseStat(string(text))
	return ok && stat.state != 'Z' && stat.state != 'X'
}

func wantCode(t *testing.T, err error, code connect.Code, text string) {
	t.Helper()
	if connect.CodeOf(err) != code || !strings.Contains(err.Error(), text) {
		t.Errorf("got error %v, want %v with %q", err, code, text)
	}
}

// get asks one of the doors for a path.
func get(t *testing.T, client *http.Client, method, url string, body io.Reader, header ...string) (*http.Response, string) {
	t.Helper()
	request, err := http.NewRequestWithContext(t.Context(), method, url, body)
	if err != nil {
		t.Fatal(err)
	}
	for i := 0; i < len(header); i += 2 {
		request.Header.Set(header[i], header[i+1])
	}
	response, err := client.Do(request)
	if err != nil {
		t.Fatal(err)
	}
	defer response.Body.Close()
	text, err := io.ReadAll(response.Body)
	if err != nil {
		t.Fatal(err)
	}
	return response, string(text)
}

// panickyKernel breaks in the middle of a call.
type panickyKernel struct{ recordingKernel }

func (*panickyKernel) SetHostname(string) error { panic("broken on purpose") }

// A handler that panics ends its own call; for PID 1 the alternative is the end of the guest.
func TestPanicEndsOneCall(t *testing.T) {
	g := newGuest(t, func(c *Config) { c.Kernel = &panickyKernel{} })
	name := "any"
	if _, err := g.control.Configure(t.Context(), connect.NewRequest(&guestv1.ConfigureRequest{Hostname: &name})); err == nil {
		t.Error("a call whose handler panicked succeeded")
	}
	if r := g.mustRun(t, shell("echo alive")); string(r.stdout) != "alive\n" {
		t.Errorf("after a panic a command says %q", r.stdout)
	}
}
