package agent

import (
	"bytes"
	"context"
	"errors"
	"io"
	"net"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/vmsan/vmsan/api"
	guestclient "github.com/vmsan/vmsan/internal/guest"
	"github.com/vmsan/vmsan/internal/guest/wire"
	"github.com/vmsan/vmsan/internal/link"
)

// client is the host's end of the streams of commands.
func (g *guest) client(t *testing.T) *guestclient.Client {
	t.Helper()
	client := guestclient.New(guestclient.DialSocket(g.socket))
	t.Cleanup(client.Close)
	return client
}

// linked is client over a guest link, whose streams take output out of its pipe.
func (g *guest) linked(t *testing.T) *guestclient.Client {
	t.Helper()
	var ports [2][2]net.Conn // control and data, of the host and of the guest
	for i := range ports {
		fds, err := syscall.Socketpair(syscall.AF_UNIX, syscall.SOCK_STREAM|syscall.SOCK_CLOEXEC, 0)
		if err != nil {
			t.Fatal(err)
		}
		for j, fd := range fds {
			file := os.NewFile(uintptr(fd), "port")
			if ports[i][j], err = net.FileConn(file); err != nil {
				t.Fatal(err)
			}
			file.Close()
		}
	}
	listener := link.Listen(ports[0][1], ports[1][1], nil)
	served := make(chan struct{})
	go func() {
		defer close(served)
		g.agent.ServeHost(listener)
	}()
	host, err := link.Connect(t.Context(), ports[0][0], ports[1][0], nil)
	if err != nil {
		t.Fatal(err)
	}
	client := guestclient.New(host.Dial)
	t.Cleanup(func() {
		client.Close()
		host.Close()
		listener.Close()
		<-served
	})
	return client
}

func sh(script string) guestclient.Command {
	return guestclient.Command{Args: []string{"/bin/sh", "-c", script}}
}

func TestStreamEnds(t *testing.T) {
	g := newGuest(t)
	for script, want := range map[string]guestclient.Exit{
		"exit 0":         {},
		"exit 3":         {Code: 3},
		"kill -TERM $$":  {Code: -1, Signal: int(syscall.SIGTERM)},
		"exec kill -9 0": {Code: -1, Signal: int(syscall.SIGKILL)},
	} {
		if got, err := g.client(t).Run(t.Context(), sh(script)); got != want || err != nil {
			t.Errorf("%s: got %+v, %v", script, got, err)
		}
	}
}

func TestStreamRequest(t *testing.T) {
	g := newGuest(t)
	var stdout, stderr bytes.Buffer
	command := guestclient.Command{
		Args:   []string{"/bin/sh", "-c", `printf '%s|' "$PWD" "$A" "$@"; printf 'e\0r' >&2; cat`, "sh", "a b", "", "*"},
		Env:    map[string]string{"A": "ä=\n"},
		Dir:    "/usr",
		User:   currentUser(t),
		Stdout: &stdout, Stderr: &stderr,
	}
	if exit, err := g.client(t).Run(t.Context(), command); err != nil || exit.Code != 0 {
		t.Fatalf("%+v, %v", exit, err)
	}
	if got, want := stdout.String(), "/usr|ä=\n|a b||*|"; got != want {
		t.Errorf("stdout: got %q, want %q", got, want)
	}
	if got := stderr.String(); got != "e\x00r" {
		t.Errorf("stderr: got %q", got)
	}
}

func TestStreamRefuses(t *testing.T) {
	g := newGuest(t)
	plain := filepath.Join(g.root, "plain")
	if err := os.WriteFile(plain, nil, 0o644); err != nil {
		t.Fatal(err)
	}
	for _, c := range []struct {
		command guestclient.Command
		code    api.Code
		text    string
	}{
		{guestclient.Command{Args: []string{"no-such-program"}}, api.ErrExecNotFound, "not in PATH"},
		{guestclient.Command{Args: []string{plain}}, api.ErrExecNotExecutable, "not executable"},
		{guestclient.Command{Args: []string{"true"}, User: "nobody-of-this-name"}, api.ErrGuest, "invalid username"},
		{guestclient.Command{Args: []string{"true"}, Dir: "/no/such/place"}, api.ErrGuest, "does not exist"},
		{guestclient.Command{Args: []string{"true", strings.Repeat("x", maxArguments)}}, api.ErrGuest, "arguments take"},
	} {
		_, err := g.client(t).Run(t.Context(), c.command)
		if !api.HasCode(err, c.code) || !strings.Contains(err.Error(), c.text) {
			t.Errorf("%.40q: got %v, want %v with %q", c.command.Args, err, c.code, c.text)
		}
	}
}

func TestStreamTimeout(t *testing.T) {
	g := newGuest(t)
	var stdout bytes.Buffer
	command := sh("echo early; sleep 60 & wait")
	command.Timeout, command.Stdout = 300*time.Millisecond, &stdout
	exit, err := g.client(t).Run(t.Context(), command)
	if want := (guestclient.Exit{Code: -1, TimedOut: true}); exit != want || err != nil {
		t.Errorf("got %+v, %v", exit, err)
	}
	if stdout.String() != "early\n" {
		t.Errorf("got %q", stdout.String())
	}
}

// pattern is a reader of n bytes that do not repeat soon, NUL among them.
type pattern struct{ at, n int }

func (p *pattern) Read(b []byte) (int, error) {
	if p.at == p.n {
		return 0, io.EOF
	}
	b = b[:min(len(b), p.n-p.at)]
	for i := range b {
		b[i] = byte((p.at + i) * 7 >> 3)
	}
	p.at += len(b)
	return len(b), nil
}

// same is a writer that compares.
type same struct {
	want pattern
	t    *testing.T
}

func (s *same) Write(b []byte) (int, error) {
	want := make([]byte, len(b))
	if n, _ := io.ReadFull(&s.want, want); n < len(b) || !bytes.Equal(b, want) {
		s.t.Errorf("byte %d and following are wrong", s.want.at-n)
		return 0, errors.New("wrong bytes")
	}
	return len(b), nil
}

func TestStreamCarriesBothWays(t *testing.T) {
	g := newGuest(t)
	const size = 50_000_001
	for name, client := range map[string]*guestclient.Client{"socket": g.client(t), "link": g.linked(t)} {
		out, errs := &same{pattern{n: size}, t}, &same{pattern{n: size}, t}
		command := sh("exec tee /dev/stderr")
		command.Stdin, command.Stdout, command.Stderr = &pattern{n: size}, out, errs
		exit, err := client.Run(t.Context(), command)
		if err != nil || exit.Code != 0 || out.want.at != size || errs.want.at != size {
			t.Errorf("%s: got %+v, %v, after %d and %d bytes of %d", name, exit, err, out.want.at, errs.want.at, size)
		}
	}
}

// Output that is moved from pipe to link comes as it was, whatever the sizes of the command's writes, and
// in order with what is read and copied in between.
func TestStreamMovesOutput(t *testing.T) {
	g := newGuest(t)
	client := g.linked(t)
	const size = 64_000_000
	file := filepath.Join(g.root, "data")
	data := make([]byte, size)
	if _, err := io.ReadFull(&pattern{n: size}, data); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(file, data, 0o644); err != nil {
		t.Fatal(err)
	}
	for _, script := range []string{
		"exec cat " + file,
		"exec dd status=none bs=4097 if=" + file,
		"exec dd status=none bs=1M if=" + file,
		"head -c 30000000 " + file + "; sleep 0.05; tail -c +30000001 " + file + " | head -c 7; exec tail -c +30000008 " + file,
	} {
		out := &same{pattern{n: size}, t}
		command := sh(script)
		command.Stdout = out
		if exit, err := client.Run(t.Context(), command); err != nil || exit.Code != 0 || out.want.at != size {
			t.Errorf("%s: got %+v, %v, after %d bytes of %d", script, exit, err, out.want.at, size)
		}
	}
}

// A child that holds the output of a command open does not hold up its end, nor cut its output.
func TestStreamEndsBeforeChild(t *testing.T) {
	g := newGuest(t)
	for range 5 {
		out := &slow{}
		command := sh("sleep 60 & head -c 20000000 /dev/zero")
		command.Stdout = out
		if exit, err := g.linked(t).Run(t.Context(), command); err != nil || exit.Code != 0 || out.n != 20_000_000 {
			t.Errorf("got %+v, %v, after %d bytes", exit, err, out.n)
		}
	}
}

// slow counts, at no more than 1 GB/s.
type slow struct{ n int }

func (s *slow) Write(b []byte) (int, error) {
	time.Sleep(time.Duration(len(b)) * time.Nanosecond)
	s.n += len(b)
	return len(b), nil
}

// A command that does not read its input can still end, and be ended.
func TestStreamInputIsNotRead(t *testing.T) {
	g := newGuest(t)
	command := sh("exec sleep 0.2")
	command.Stdin = &pattern{n: 10 << 20}
	if exit, err := g.client(t).Run(t.Context(), command); err != nil || exit.Code != 0 {
		t.Errorf("got %+v, %v", exit, err)
	}
	ctx, cancel := context.WithTimeout(t.Context(), 300*time.Millisecond)
	defer cancel()
	command = sh("exec sleep 60")
	command.Stdin = &pattern{n: 10 << 20}
	if _, err := g.client(t).Run(ctx, command); !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("got %v", err)
	}
	g.waitEmpty(t)
}

// stuck is a writer that does not return before it is told to.
type stuck struct{ ctx context.Context }

func (s stuck) Write(b []byte) (int, error) {
	<-s.ctx.Done()
	return len(b), nil
}

// The same of one whose output has filled all there is to fill, over a link.
func TestStreamIsNotRead(t *testing.T) {
	g := newGuest(t)
	ctx, cancel := context.WithTimeout(t.Context(), time.Second)
	defer cancel()
	command := sh("exec cat /dev/zero")
	command.Stdout = stuck{ctx}
	client := g.linked(t)
	if _, err := client.Run(ctx, command); !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("got %v", err)
	}
	g.waitEmpty(t)
	if exit, err := client.Run(t.Context(), sh("exit 3")); err != nil || exit.Code != 3 {
		t.Errorf("the next command: %+v, %v", exit, err)
	}
}

// waitEmpty waits until no command runs.
func (g *guest) waitEmpty(t *testing.T) {
	t.Helper()
	for deadline := time.Now().Add(10 * time.Second); len(g.agent.table.list(false)) > 0; time.Sleep(10 * time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatalf("%d commands still run", len(g.agent.table.list(false)))
		}
	}
}

// Whatever a command is at when its host goes away, its tree is killed: idle, while its output has
// nowhere to go, and while it does not take its input.
func TestStreamGone(t *testing.T) {
	g := newGuest(t)
	for _, script := range []string{"sleep 60 & wait", "yes & wait", "yes >&2"} {
		conn, err := net.Dial("unix", g.socket)
		if err != nil {
			t.Fatal(err)
		}
		request := wire.Request{Args: []string{"/bin/sh", "-c", script}, Stdin: true}
		if _, err := conn.Write(append([]byte{wire.Hello}, request.Frame()...)); err != nil {
			t.Fatal(err)
		}
		if header, err := wire.ReadHeader(conn, false); err != nil || header.Kind != wire.Started {
			t.Fatalf("%v, %v", header, err)
		}
		if _, err := conn.Write(wire.Frame(wire.Input, make([]byte, wire.InputWindow))); err != nil {
			t.Fatal(err)
		}
		time.Sleep(100 * time.Millisecond) // for the pipes to be full
		conn.Close()
		g.waitEmpty(t)
	}
}

// A client of kept output that is too slow is told so, while the command goes
// on, with its input open.
func TestSlowClientOfKeptOutput(t *testing.T) {
	const size = 60_000_000
	g := newGuest(t, func(c *Config) { c.KeepBytes = 1 << 20 })
	client, gate := g.client(t), filepath.Join(g.root, "gate")
	pid, err := client.StartDetached(t.Context(), sh("echo begin; while [ ! -e "+gate+" ]; do sleep 0.05; done; head -c "+itoa(size)+" /dev/zero; sleep 60"))
	if err != nil {
		t.Fatal(err)
	}
	kept := g.agent.table.byPid(pid).output.kept
	slow := slowWriter(func() {
		if err := os.WriteFile(gate, nil, 0o644); err != nil {
			t.Error(err)
		}
		eventually(t, "all output to be kept", func() bool {
			kept.mu.Lock()
			defer kept.mu.Unlock()
			return kept.end > size
		})
	})
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	if _, err := client.Attach(ctx, pid, slow, nil); err == nil || !strings.Contains(err.Error(), "too slow") {
		t.Errorf("the slow client got %v", err)
	}
	select {
	case <-g.agent.table.byPid(pid).ended:
		t.Error("the command has ended")
	default:
	}
	if err := client.Signal(t.Context(), pid, int(syscall.SIGKILL)); err != nil {
		t.Error(err)
	}
	g.waitEmpty(t)
}

// slowWriter is called before each write.
type slowWriter func()

func (w slowWriter) Write(p []byte) (int, error) {
	w()
	return len(p), nil
}

// A host that breaks the rules loses its command, not the agent.
func TestStreamRules(t *testing.T) {
	g := newGuest(t)
	start := (&wire.Request{Args: []string{"sleep", "60"}, Stdin: true}).Frame()
	window := wire.Frame(wire.Input, make([]byte, wire.InputWindow))
	for name, said := range map[string][]byte{
		"no start":       wire.Frame(wire.InputEnd, nil),
		"bad start":      wire.Frame(wire.Start, []byte("x")),
		"unknown kind":   {0x7f, 0, 0, 0, 0},
		"second start":   append(start[:len(start):len(start)], start...),
		"what agents do": append(start[:len(start):len(start)], wire.Number(wire.Started, 1)...),
		"too much input": append(append(append(start[:len(start):len(start)], window...), window...), window...),
	} {
		conn, err := net.Dial("unix", g.socket)
		if err != nil {
			t.Fatal(err)
		}
		// What is too much is refused before it has been read.
		if _, err := conn.Write(append([]byte{wire.Hello}, said...)); err != nil && !errors.Is(err, syscall.EPIPE) {
			t.Errorf("%s: %v", name, err)
		}
		conn.SetReadDeadline(time.Now().Add(10 * time.Second))
		if _, err := io.Copy(io.Discard, conn); errors.Is(err, os.ErrDeadlineExceeded) {
			t.Errorf("%s: it goes on", name)
		}
		conn.Close()
		g.waitEmpty(t)
	}
}
