package agent

import (
	"bytes"
	"context"
	"encoding/base64"
	"encoding/json"
	"io"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"connectrpc.com/connect"

	"github.com/vmsan/vmsan/internal/guest/proto/process"
	"github.com/vmsan/vmsan/internal/guest/proto/process/processconnect"
	"github.com/vmsan/vmsan/internal/testenv"
)

func TestExitCode(t *testing.T) {
	g := newGuest(t)
	for code, status := range map[int]string{0: "exit status 0", 3: "exit status 3", 127: "exit status 127"} {
		r := g.mustRun(t, shell("echo out; echo err >&2; exit "+itoa(code)))
		if int(r.end.GetExitCode()) != code || !r.end.GetExited() || r.end.GetStatus() != status {
			t.Errorf("exit %d: got %v", code, r.end)
		}
		if (r.end.Error == nil) != (code == 0) || (code != 0 && r.end.GetError() != status) {
			t.Errorf("exit %d: got error %q", code, r.end.GetError())
		}
		if string(r.stdout) != "out\n" || string(r.stderr) != "err\n" {
			t.Errorf("exit %d: got stdout %q, stderr %q", code, r.stdout, r.stderr)
		}
	}
}

func TestSignalEnds(t *testing.T) {
	g := newGuest(t)
	for number, status := range map[syscall.Signal]string{
		syscall.SIGKILL: "signal: killed",
		syscall.SIGTERM: "signal: terminated",
		syscall.SIGUSR1: "signal: user defined signal 1",
	} {
		stream, pid, _ := g.launch(t, shell("exec sleep 60"))
		n := int32(number)
		if _, err := g.process.SendSignal(t.Context(), connect.NewRequest(&process.SendSignalRequest{Process: byPid(pid), Number: &n})); err != nil {
			t.Fatal(err)
		}
		r := &result{}
		for stream.Receive() {
			r.take(stream.Msg().GetEvent())
		}
		if r.end.GetExitCode() != -1 || r.end.GetExited() || r.end.GetStatus() != status || r.end.GetError() != status || r.end.GetSignal() != n {
			t.Errorf("%v: got %v", number, r.end)
		}
	}
}

func TestSignalErrors(t *testing.T) {
	g := newGuest(t)
	_, pid, _ := g.launch(t, shell("exec sleep 60"))
	big := int32(65)
	for _, c := range []struct {
		request *process.SendSignalRequest
		code    connect.Code
	}{
		{&process.SendSignalRequest{Process: byPid(pid)}, connect.CodeUnimplemented},
		{&process.SendSignalRequest{Process: byPid(pid), Signal: 2}, connect.CodeUnimplemented},
		{&process.SendSignalRequest{Process: byPid(pid), Number: &big}, connect.CodeInvalidArgument},
		{&process.SendSignalRequest{Process: byPid(1 << 30), Signal: 9}, connect.CodeNotFound},
		{&process.SendSignalRequest{Signal: 9}, connect.CodeInvalidArgument},
	} {
		_, err := g.process.SendSignal(t.Context(), connect.NewRequest(c.request))
		wantCode(t, err, c.code, "")
	}
}

// A signal to a process that has ended must not reach whoever has its number now.
func TestSignalAfterEnd(t *testing.T) {
	g := newGuest(t)
	r := g.mustRun(t, shell("exit 0"))
	_, err := g.process.SendSignal(t.Context(), connect.NewRequest(&process.SendSignalRequest{Process: byPid(r.pid), Signal: 9}))
	wantCode(t, err, connect.CodeNotFound, "has ended")
}

func TestArgumentsAreNotInterpreted(t *testing.T) {
	g := newGuest(t)
	r := g.mustRun(t, &process.StartRequest{Process: &process.ProcessConfig{
		Cmd:  "printf",
		Args: []string{"[%s]", "-la", "a b", "$HOME", "*", "", "ü\n"},
	}})
	if want := "[-la][a b][$HOME][*][][ü\n]"; string(r.stdout) != want {
		t.Errorf("got %q, want %q", r.stdout, want)
	}
}

func TestBinaryOutput(t *testing.T) {
	g := newGuest(t)
	want := make([]byte, 300_000)
	for i := range want {
		want[i] = byte(i * 7)
	}
	file := filepath.Join(g.root, "binary")
	if err := os.WriteFile(file, want, 0o644); err != nil {
		t.Fatal(err)
	}
	r := g.mustRun(t, shell("cat "+file+"; cat "+file+" >&2"))
	if !bytes.Equal(r.stdout, want) || !bytes.Equal(r.stderr, want) {
		t.Errorf("got %d and %d bytes, want %d unchanged", len(r.stdout), len(r.stderr), len(want))
	}
}

// The reference stopped reading at lines over 1 MiB and hung the command.
func TestHugeLine(t *testing.T) {
	g := newGuest(t)
	const size = 100_000_000
	stream, _, _ := g.launch(t, shell("head -c 100000000 /dev/zero"))
	total, ended := 0, false
	for stream.Receive() {
		data := stream.Msg().GetEvent().GetData().GetStdout()
		if bytes.ContainsFunc(data, func(r rune) bool { return r != 0 }) {
			t.Fatal("got a byte that is not NUL")
		}
		total += len(data)
		ended = ended || stream.Msg().GetEvent().GetEnd() != nil
	}
	if stream.Err() != nil || total != size || !ended {
		t.Errorf("got %d bytes, end %v, error %v; want %d", total, ended, stream.Err(), size)
	}
}

func TestStdin(t *testing.T) {
	g := newGuest(t)
	stream, pid, _ := g.launch(t, &process.StartRequest{Process: &process.ProcessConfig{Cmd: "cat"}})
	want := bytes.Repeat([]byte("0123456789\x00\xff"), 50_000)
	go func() {
		for piece := range slices.Chunk(want, 200_000) {
			g.process.SendInput(context.Background(), connect.NewRequest(&process.SendInputRequest{
				Process: byPid(pid),
				Input:   &process.ProcessInput{Input: &process.ProcessInput_Stdin{Stdin: piece}},
			}))
		}
		for range 2 { // closing twice is fine
			g.process.CloseStdin(context.Background(), connect.NewRequest(&process.CloseStdinRequest{Process: byPid(pid)}))
		}
	}()
	r := &result{}
	for stream.Receive() {
		r.take(stream.Msg().GetEvent())
	}
	if !bytes.Equal(r.stdout, want) || r.end.GetExitCode() != 0 || stream.Err() != nil {
		t.Errorf("got %d bytes, end %v, error %v; want %d bytes", len(r.stdout), r.end, stream.Err(), len(want))
	}
}

func TestStreamInput(t *testing.T) {
	g := newGuest(t)
	stream, pid, _ := g.launch(t, &process.StartRequest{Process: &process.ProcessConfig{Cmd: "cat"}})
	input := g.process.StreamInput(t.Context())
	send := func(request *process.StreamInputRequest) {
		t.Helper()
		if err := input.Send(request); err != nil {
			t.Fatal(err)
		}
	}
	send(&process.StreamInputRequest{Event: &process.StreamInputRequest_Start{Start: &process.StreamInputRequest_StartEvent{Process: byPid(pid)}}})
	send(&process.StreamInputRequest{Event: &process.StreamInputRequest_Keepalive{Keepalive: &process.StreamInputRequest_KeepAlive{}}})
	for _, text := range []string{"one ", "two"} {
		send(&process.StreamInputRequest{Event: &process.StreamInputRequest_Data{Data: &process.StreamInputRequest_DataEvent{
			Input: &process.ProcessInput{Input: &process.ProcessInput_Stdin{Stdin: []byte(text)}},
		}}})
	}
	if _, err := input.CloseAndReceive(); err != nil {
		t.Fatal(err)
	}
	if _, err := g.process.CloseStdin(t.Context(), connect.NewRequest(&process.CloseStdinRequest{Process: byPid(pid)})); err != nil {
		t.Fatal(err)
	}
	r := &result{}
	for stream.Receive() {
		r.take(stream.Msg().GetEvent())
	}
	if string(r.stdout) != "one two" {
		t.Errorf("got %q", r.stdout)
	}
}

func TestStdinErrors(t *testing.T) {
	g := newGuest(t)
	_, null, _ := g.launch(t, shell("exec sleep 60"))
	_, piped, _ := g.launch(t, &process.StartRequest{Process: &process.ProcessConfig{Cmd: "sleep", Args: []string{"60"}}})
	_, tty, _ := g.launch(t, &process.StartRequest{
		Process: &process.ProcessConfig{Cmd: "sleep", Args: []string{"60"}},
		Pty:     &process.PTY{},
	})
	stdin := &process.ProcessInput{Input: &process.ProcessInput_Stdin{Stdin: []byte("x")}}
	pty := &process.ProcessInput{Input: &process.ProcessInput_Pty{Pty: []byte("x")}}
	for _, c := range []struct {
		pid   int
		input *process.ProcessInput
		code  connect.Code
	}{
		{null, stdin, connect.CodeInternal},
		{piped, pty, connect.CodeInternal},
		{tty, stdin, connect.CodeInternal},
		{piped, nil, connect.CodeUnimplemented},
		{1 << 30, stdin, connect.CodeNotFound},
	} {
		_, err := g.process.SendInput(t.Context(), connect.NewRequest(&process.SendInputRequest{Process: byPid(c.pid), Input: c.input}))
		wantCode(t, err, c.code, "")
	}
	_, err := g.process.CloseStdin(t.Context(), connect.NewRequest(&process.CloseStdinRequest{Process: byPid(tty)}))
	wantCode(t, err, connect.CodeInternal, "terminal")
}

// A process that reads nothing must hold up neither other processes nor, for longer than they wish, its writers.
func TestStdinFull(t *testing.T) {
	g := newGuest(t)
	_, stuck, _ := g.launch(t, &process.StartRequest{Process: &process.ProcessConfig{Cmd: "sleep", Args: []string{"60"}}})
	ctx, cancel := context.WithTimeout(t.Context(), 300*time.Millisecond)
	defer cancel()
	_, err := g.process.SendInput(ctx, connect.NewRequest(&process.SendInputRequest{
		Process: byPid(stuck),
		Input:   &process.ProcessInput{Input: &process.ProcessInput_Stdin{Stdin: make([]byte, 1<<20)}},
	}))
	wantCode(t, err, connect.CodeDeadlineExceeded, "")
	if r := g.mustRun(t, shell("echo fine")); string(r.stdout) != "fine\n" {
		t.Errorf("got %q", r.stdout)
	}
	kill := int32(syscall.SIGKILL)
	if _, err := g.process.SendSignal(t.Context(), connect.NewRequest(&process.SendSignalRequest{Process: byPid(stuck), Number: &kill})); err != nil {
		t.Fatal(err)
	}
}

func TestNothingOnStdin(t *testing.T) {
	g := newGuest(t)
	if r := g.mustRun(t, shell("cat; echo end")); string(r.stdout) != "end\n" {
		t.Errorf("got %q", r.stdout)
	}
}

func TestStartErrors(t *testing.T) {
	g := newGuest(t)
	plain := filepath.Join(g.root, "plain")
	if err := os.WriteFile(plain, []byte("not a program"), 0o644); err != nil {
		t.Fatal(err)
	}
	odd := filepath.Join(g.root, "odd")
	if err := os.WriteFile(odd, []byte("\x01\x02"), 0o755); err != nil {
		t.Fatal(err)
	}
	missing, long := "/no/such/place", strings.Repeat("x", maxPath+1)
	for name, c := range map[string]struct {
		config *process.ProcessConfig
		code   connect.Code
		text   string
	}{
		"none":          {nil, connect.CodeInvalidArgument, "no command"},
		"not in PATH":   {&process.ProcessConfig{Cmd: "no-such-program"}, connect.CodeNotFound, "'no-such-program' is not in PATH"},
		"missing":       {&process.ProcessConfig{Cmd: "/no/such"}, connect.CodeNotFound, "'/no/such' does not exist"},
		"not a program": {&process.ProcessConfig{Cmd: plain}, connect.CodePermissionDenied, "not executable"},
		"directory":     {&process.ProcessConfig{Cmd: "/"}, connect.CodePermissionDenied, "not a file"},
		"odd format":    {&process.ProcessConfig{Cmd: odd}, connect.CodeInvalidArgument, "exec format error"},
		"cwd":           {&process.ProcessConfig{Cmd: "true", Cwd: &missing}, connect.CodeInvalidArgument, "cwd '/no/such/place' does not exist"},
		"cwd of a file": {&process.ProcessConfig{Cmd: "true", Cwd: &plain}, connect.CodeInvalidArgument, "is not a directory"},
		"long cwd":      {&process.ProcessConfig{Cmd: "true", Cwd: &long}, connect.CodeInvalidArgument, "longer"},
		"user":          {&process.ProcessConfig{Cmd: "true", User: new("nobody-here")}, connect.CodeUnauthenticated, "invalid username: 'nobody-here'"},
		"argument":      {&process.ProcessConfig{Cmd: "true", Args: []string{"a\x00b"}}, connect.CodeInvalidArgument, "NUL"},
		"variable":      {&process.ProcessConfig{Cmd: "true", Envs: map[string]string{"A=B": "c"}}, connect.CodeInvalidArgument, "environment"},
		"arguments":     {&process.ProcessConfig{Cmd: "true", Args: []string{strings.Repeat("x", maxArguments)}}, connect.CodeInvalidArgument, "arguments take"},
	} {
		_, err := g.run(t, &process.StartRequest{Process: c.config})
		if err == nil {
			t.Errorf("%s: started", name)
			continue
		}
		wantCode(t, err, c.code, c.text)
	}
}

func TestEnvironment(t *testing.T) {
	g := newGuest(t, func(c *Config) {
		c.Environment = map[string]string{"GLOBAL": "g", "BOTH": "global"}
	})
	r := g.mustRun(t, &process.StartRequest{Process: &process.ProcessConfig{
		Cmd:  "env",
		Envs: map[string]string{"BOTH": "call", "EMPTY": ""},
	}})
	lines := strings.Split(strings.TrimSpace(string(r.stdout)), "\n")
	for _, want := range []string{"GLOBAL=g", "BOTH=call", "EMPTY=", "PATH=" + defaultPath} {
		if !slices.Contains(lines, want) {
			t.Errorf("no %s in %q", want, lines)
		}
	}
	for _, name := range []string{"HOME=", "USER=", "LOGNAME="} {
		if !slices.ContainsFunc(lines, func(line string) bool { return strings.HasPrefix(line, name) }) {
			t.Errorf("no %s in %q", name, lines)
		}
	}
	if len(lines) != 7 {
		t.Errorf("got %q, want nothing of the agent's own environment", lines)
	}
}

func TestCommandIsFoundInItsOwnPath(t *testing.T) {
	g := newGuest(t)
	bin := filepath.Join(g.root, "bin")
	if err := os.Mkdir(bin, 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(bin, "hello"), []byte("#!/bin/sh\necho $0 $PWD\n"), 0o755); err != nil {
		t.Fatal(err)
	}
	want := filepath.Join(bin, "hello") + " " + g.root + "\n"
	for _, path := range []string{bin, "bin", "/no:bin"} {
		r := g.mustRun(t, &process.StartRequest{Process: &process.ProcessConfig{
			Cmd: "hello", Cwd: &g.root, Envs: map[string]string{"PATH": path + ":/bin"},
		}})
		if string(r.stdout) != want {
			t.Errorf("PATH %s: got %q, want %q", path, r.stdout, want)
		}
	}
	r := g.mustRun(t, &process.StartRequest{Process: &process.ProcessConfig{Cmd: "bin/hello", Cwd: &g.root}})
	if string(r.stdout) != want {
		t.Errorf("got %q, want %q", r.stdout, want)
	}
}

func TestUsers(t *testing.T) {
	testenv.RequireRoot(t)
	g := newGuest(t)
	passwd := "root:x:0:0::/root:/bin/sh\nann:x:1234:1234::/:/bin/sh\n"
	group := "root:x:0:\nann:x:1234:\nstaff:x:50:bob,ann\nwheel:x:10:ann\n"
	for name, text := range map[string]string{"passwd": passwd, "group": group} {
		if err := os.WriteFile(filepath.Join(g.root, "etc", name), []byte(text), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	for user, want := range map[string]string{
		"ann":       "1234 1234 1234 10 50 ann",
		"1234":      "1234 1234 1234 10 50 ann",
		"ann:staff": "1234 50 50 10 ann",
		"1234:77":   "1234 77 77 10 50 ann",
		"4321:77":   "4321 77 77 4321",
		"root":      "0 0 0 root",
	} {
		r := g.mustRun(t, &process.StartRequest{Process: &process.ProcessConfig{
			Cmd: "/bin/sh", Args: []string{"-c", "echo $(id -u; id -g; id -G; echo $USER)"}, User: &user, Cwd: new("/"),
		}})
		if got := strings.TrimSpace(string(r.stdout)); got != want {
			t.Errorf("user %s: got %q, want %q", user, got, want)
		}
	}
	request := connect.NewRequest(&process.StartRequest{Process: &process.ProcessConfig{Cmd: "id", Args: []string{"-u"}, Cwd: new("/")}})
	request.Header().Set("Authorization", "Basic "+base64.StdEncoding.EncodeToString([]byte("ann:")))
	stream, err := g.process.Start(t.Context(), request)
	if err != nil {
		t.Fatal(err)
	}
	defer stream.Close()
	r := &result{}
	for stream.Receive() {
		r.take(stream.Msg().GetEvent())
	}
	if string(r.stdout) != "1234\n" {
		t.Errorf("HTTP Basic: got %q, error %v", r.stdout, stream.Err())
	}
}

// family starts a shell with a grandchild in a session of its own, and returns the pids of both.
func family(t *testing.T, g *guest, change func(*process.StartRequest)) (pid, grandchild int, cancel context.CancelFunc) {
	t.Helper()
	file := filepath.Join(t.TempDir(), "pid")
	request := shell("setsid sh -c 'echo $$ >" + file + "; sleep 60' & wait")
	change(request)
	_, pid, cancel = g.launch(t, request)
	eventually(t, "the grandchild", func() bool {
		text, _ := os.ReadFile(file)
		_, err := fscan(text, &grandchild)
		return err == nil && strings.HasSuffix(string(text), "\n")
	})
	return pid, grandchild, cancel
}

func TestTreeSignal(t *testing.T) {
	eachForest(t, func(t *testing.T, g *guest) {
		pid, grandchild, _ := family(t, g, func(*process.StartRequest) {})
		_, err := g.process.SendSignal(t.Context(), connect.NewRequest(&process.SendSignalRequest{
			Process: byPid(pid), Signal: process.Signal_SIGNAL_SIGKILL, Tree: true,
		}))
		if err != nil {
			t.Fatal(err)
		}
		eventually(t, "the tree to die", func() bool { return !alive(pid) && !alive(grandchild) })
	})
}

// A command that starts others as fast as it can, which outlive it: a signal to all of them reaches each.
func TestTreeSignalWhileForking(t *testing.T) {
	g := newGuest(t, func(c *Config) { c.CgroupDirectory = mountCgroups(t) })
	for range 5 {
		_, pid, _ := g.launch(t, shell("for i in $(seq 3000); do sleep 60 & done; wait"))
		tree := g.agent.table.byPid(pid).tree.(*cgroupTree)
		eventually(t, "the command to have begun", func() bool { all, _ := tree.pids(); return len(all) > 20 })
		if err := tree.signal(syscall.SIGTERM); err != nil {
			t.Fatal(err)
		}
		eventually(t, "all of them to end", func() bool { all, _ := tree.pids(); return len(all) == 0 })
	}
}

// A signal that comes while all commands hold still, and that ends none of them, is no error.
func TestTreeSignalWhileHeld(t *testing.T) {
	g := newGuest(t, func(c *Config) { c.CgroupDirectory = mountCgroups(t) })
	pid, grandchild, _ := family(t, g, func(*process.StartRequest) {})
	if err := g.agent.forest.hold(true); err != nil {
		t.Fatal(err)
	}
	if err := g.agent.table.byPid(pid).tree.signal(syscall.SIGURG); err != nil {
		t.Error(err)
	}
	if err := g.agent.forest.hold(false); err != nil {
		t.Fatal(err)
	}
	if !alive(pid) || !alive(grandchild) {
		t.Error("a command has ended")
	}
}

func TestKillOnDisconnect(t *testing.T) {
	eachForest(t, func(t *testing.T, g *guest) {
		pid, grandchild, cancel := family(t, g, func(r *process.StartRequest) { r.KillOnDisconnect = true })
		cancel()
		eventually(t, "the tree to die", func() bool { return !alive(pid) && !alive(grandchild) })
	})
}

// A client that reads nothing and then goes away must still take its command with it.
func TestKillOnDisconnectOfStalledClient(t *testing.T) {
	g := newGuest(t)
	request := shell("exec cat /dev/zero")
	request.KillOnDisconnect = true
	_, pid, cancel := g.launch(t, request)
	time.Sleep(200 * time.Millisecond) // the pipe and the socket fill up
	cancel()
	eventually(t, "the command to die", func() bool { return !alive(pid) })
}

func TestDisconnectAlone(t *testing.T) {
	g := newGuest(t)
	file := filepath.Join(g.root, "done")
	_, pid, cancel := g.launch(t, shell("i=0; while [ $i -lt 20000 ]; do echo line $i of many that nobody reads; i=$((i+1)); done; echo done >"+file))
	cancel()
	eventually(t, "the command to end by itself", func() bool {
		_, err := os.Stat(file)
		return err == nil && !alive(pid)
	})
}

func TestTimeout(t *testing.T) {
	eachForest(t, func(t *testing.T, g *guest) {
		ctx, cancel := context.WithCancel(t.Context())
		defer cancel()
		body := `{"process":{"cmd":"/bin/sh","args":["-c","setsid sleep 60 & echo $!; wait"]}}`
		request, err := http.NewRequestWithContext(ctx, http.MethodPost, hostURL+"/process.Process/Start", bytes.NewReader(envelope(body)))
		if err != nil {
			t.Fatal(err)
		}
		request.Header.Set("Content-Type", "application/connect+json")
		request.Header.Set("Connect-Timeout-Ms", "500")
		response, err := g.host.Do(request)
		if err != nil {
			t.Fatal(err)
		}
		defer response.Body.Close()
		messages := readEnvelopes(t, response.Body)
		last := messages[len(messages)-1]
		if response.StatusCode != 200 || !strings.Contains(last, `"code":"deadline_exceeded"`) {
			t.Errorf("status %d, messages %q", response.StatusCode, messages)
		}
		if strings.Contains(strings.Join(messages, ""), `"end"`) {
			t.Errorf("an end event before the error: %q", messages)
		}
		var start struct {
			Event struct {
				Start struct{ Pid int }
			}
		}
		if err := json.Unmarshal([]byte(messages[0]), &start); err != nil || start.Event.Start.Pid == 0 {
			t.Fatalf("first message %q: %v", messages[0], err)
		}
		eventually(t, "the process to die", func() bool { return !alive(start.Event.Start.Pid) })
		r, err := g.attach(t, start.Event.Start.Pid, false)
		if err != nil || !r.end.GetTimedOut() || r.end.GetSignal() != 9 {
			t.Errorf("later Connect: end %v, error %v", r.end, err)
		}
	})
}

// The limit is the process's, so it holds for one whose client has gone.
func TestTimeoutAfterDisconnect(t *testing.T) {
	g := newGuest(t)
	ctx, cancel := context.WithTimeout(t.Context(), time.Second)
	defer cancel()
	stream, err := g.process.Start(ctx, connect.NewRequest(shell("exec sleep 60")))
	if err != nil {
		t.Fatal(err)
	}
	if !stream.Receive() {
		t.Fatal(stream.Err())
	}
	pid := int(stream.Msg().GetEvent().GetStart().GetPid())
	cancel()
	stream.Close()
	eventually(t, "the process to die", func() bool { return !alive(pid) })
}

// A child in the background keeps the pipe open; the command has ended all the same, and the child lives.
func TestBackgroundChild(t *testing.T) {
	eachForest(t, func(t *testing.T, g *guest) {
		r := g.mustRun(t, shell("(sleep 1; echo late; exec sleep 60) & echo $!"))
		var child int
		if _, err := fscan(r.stdout, &child); err != nil {
			t.Fatalf("stdout %q: %v", r.stdout, err)
		}
		time.Sleep(1500 * time.Millisecond)
		if !alive(child) {
			t.Error("the child died of writing to its stdout")
		}
		_, err := g.process.SendSignal(t.Context(), connect.NewRequest(&process.SendSignalRequest{Process: byPid(r.pid), Signal: 9, Tree: true}))
		if err != nil {
			t.Fatal(err)
		}
		eventually(t, "the child to die", func() bool { return !alive(child) })
	})
}

func TestConnectToEnded(t *testing.T) {
	g := newGuest(t)
	ran := g.mustRun(t, shell("echo lost; exit 4"))
	r, err := g.attach(t, ran.pid, false)
	if err != nil || r.pid != ran.pid || r.end.GetExitCode() != 4 || len(r.stdout) != 0 {
		t.Errorf("got %+v, error %v", r, err)
	}
	_, err = g.attach(t, ran.pid, true)
	wantCode(t, err, connect.CodeFailedPrecondition, "keep_output")
	_, err = g.attach(t, 1<<30, false)
	wantCode(t, err, connect.CodeNotFound, "")
}

func TestConnectSeesWhatComes(t *testing.T) {
	g := newGuest(t)
	gate := filepath.Join(g.root, "gate")
	tag := "worker"
	request := shell("echo early; while [ ! -e " + gate + " ]; do sleep 0.05; done; echo late; exit 5")
	request.Tag = &tag
	first, pid, _ := g.launch(t, request)
	if !first.Receive() || string(first.Msg().GetEvent().GetData().GetStdout()) != "early\n" {
		t.Fatalf("got %v, error %v", first.Msg(), first.Err())
	}
	byTag := &process.ProcessSelector{Selector: &process.ProcessSelector_Tag{Tag: tag}}
	second, err := g.process.Connect(t.Context(), connect.NewRequest(&process.ConnectRequest{Process: byTag}))
	if err != nil {
		t.Fatal(err)
	}
	defer second.Close()
	if !second.Receive() || int(second.Msg().GetEvent().GetStart().GetPid()) != pid {
		t.Fatalf("got %v, error %v", second.Msg(), second.Err())
	}
	if err := os.WriteFile(gate, nil, 0o644); err != nil {
		t.Fatal(err)
	}
	one, two := &result{}, &result{}
	for first.Receive() {
		one.take(first.Msg().GetEvent())
	}
	for second.Receive() {
		two.take(second.Msg().GetEvent())
	}
	for _, r := range []*result{one, two} {
		if string(r.stdout) != "late\n" || r.end.GetExitCode() != 5 {
			t.Errorf("got stdout %q, end %v", r.stdout, r.end)
		}
	}
}

// A second stream nobody reads is dropped, and neither the first nor the command waits for it.
func TestSlowSecondStream(t *testing.T) {
	g := newGuest(t)
	gate := filepath.Join(g.root, "gate")
	first, pid, _ := g.launch(t, shell("while [ ! -e "+gate+" ]; do sleep 0.05; done; head -c 60000000 /dev/zero"))
	second, err := g.process.Connect(t.Context(), connect.NewRequest(&process.ConnectRequest{Process: byPid(pid)}))
	if err != nil {
		t.Fatal(err)
	}
	defer second.Close()
	if !second.Receive() {
		t.Fatal(second.Err())
	}
	if err := os.WriteFile(gate, nil, 0o644); err != nil {
		t.Fatal(err)
	}
	r := &result{}
	for first.Receive() {
		r.take(first.Msg().GetEvent())
	}
	if len(r.stdout) != 60_000_000 || r.end == nil {
		t.Errorf("first stream: got %d bytes, end %v, error %v", len(r.stdout), r.end, first.Err())
	}
	for second.Receive() {
	}
	wantCode(t, second.Err(), connect.CodeResourceExhausted, "too slow")
}

// The only stream on a process is waited for, whichever call it came by.
func TestOnlyStreamLosesNothing(t *testing.T) {
	g := newGuest(t)
	gate := filepath.Join(g.root, "gate")
	_, pid, cancel := g.launch(t, shell("while [ ! -e "+gate+" ]; do sleep 0.05; done; head -c 30000000 /dev/zero"))
	second, err := g.process.Connect(t.Context(), connect.NewRequest(&process.ConnectRequest{Process: byPid(pid)}))
	if err != nil {
		t.Fatal(err)
	}
	defer second.Close()
	if !second.Receive() {
		t.Fatal(second.Err())
	}
	cancel()
	eventually(t, "the first stream to go", func() bool {
		o := &g.agent.table.byPid(pid).output
		o.mu.Lock()
		defer o.mu.Unlock()
		return o.first == nil
	})
	if err := os.WriteFile(gate, nil, 0o644); err != nil {
		t.Fatal(err)
	}
	time.Sleep(300 * time.Millisecond) // let the queue fill up
	r := &result{}
	for second.Receive() {
		r.take(second.Msg().GetEvent())
	}
	if len(r.stdout) != 30_000_000 || r.end == nil {
		t.Errorf("got %d bytes, end %v, error %v", len(r.stdout), r.end, second.Err())
	}
}

// What a command has written before its end arrives, however late the client takes it.
func TestSlowClientLosesNothing(t *testing.T) {
	g := newGuest(t)
	var streams []*connect.ServerStreamForClient[process.StartResponse]
	// Less than the buffers on the way hold, so that each command ends at once.
	sizes := []int{100_000, 200_000, 400_000, 600_000, 800_000}
	for _, size := range sizes {
		stream, _, _ := g.launch(t, shell("head -c "+itoa(size)+" /dev/zero"))
		streams = append(streams, stream)
	}
	time.Sleep(4 * outputGrace)
	for i, stream := range streams {
		r := &result{}
		for stream.Receive() {
			r.take(stream.Msg().GetEvent())
		}
		if len(r.stdout) != sizes[i] || r.end == nil {
			t.Errorf("got %d bytes of %d, end %v, error %v", len(r.stdout), sizes[i], r.end, stream.Err())
		}
	}
}

func TestDetachedAndReplay(t *testing.T) {
	g := newGuest(t)
	request := shell("i=0; while [ $i -lt 30000 ]; do echo line $i; i=$((i+1)); done; exit 6")
	request.KeepOutput = true
	_, pid, cancel := g.launch(t, request)
	cancel()
	for range 3 { // while it runs, about its end, after it
		r, err := g.attach(t, pid, true)
		if err != nil {
			t.Fatal(err)
		}
		lines := strings.Split(strings.TrimSuffix(string(r.stdout), "\n"), "\n")
		if len(lines) != 30000 || r.end.GetExitCode() != 6 {
			t.Fatalf("got %d lines, end %v", len(lines), r.end)
		}
		for i, line := range lines {
			if line != "line "+itoa(i) {
				t.Fatalf("line %d is %q", i, line)
			}
		}
	}
}

func TestAttachedAndKept(t *testing.T) {
	g := newGuest(t, func(c *Config) { c.KeepBytes = 1 << 20 })
	request := shell("head -c 20000000 /dev/zero; echo; echo end")
	request.KeepOutput = true
	ran := g.mustRun(t, request)
	if len(ran.stdout) != 20_000_005 {
		t.Errorf("got %d bytes, want all", len(ran.stdout))
	}
	r, err := g.attach(t, ran.pid, true)
	if err != nil {
		t.Fatal(err)
	}
	if len(r.stdout) > 1<<20 || len(r.stdout) < 1<<19 || !bytes.HasSuffix(r.stdout, []byte("\x00\nend\n")) {
		t.Errorf("replay has %d bytes ending in %q", len(r.stdout), r.stdout[max(0, len(r.stdout)-10):])
	}
}

func TestList(t *testing.T) {
	g := newGuest(t)
	kept := shell("exit 7")
	kept.KeepOutput = true
	ended := g.mustRun(t, kept)
	_, live, _ := g.launch(t, shell("exec sleep 60"))
	list := func(includeEnded bool) []*process.ProcessInfo {
		response, err := g.process.List(t.Context(), connect.NewRequest(&process.ListRequest{IncludeEnded: includeEnded}))
		if err != nil {
			t.Fatal(err)
		}
		return response.Msg.GetProcesses()
	}
	running := list(false)
	if len(running) != 1 || int(running[0].GetPid()) != live || running[0].GetState() != process.ProcessState_PROCESS_STATE_RUNNING || running[0].GetConfig().GetCmd() != "/bin/sh" {
		t.Errorf("running: %v", running)
	}
	all := list(true)
	if len(all) != 2 || int(all[0].GetPid()) != ended.pid || all[0].GetEnd().GetExitCode() != 7 || !all[0].GetKept() || all[0].GetStartedAt() == nil {
		t.Errorf("all: %v", all)
	}
	for range maxEnded {
		g.mustRun(t, kept)
	}
	if all := list(true); len(all) != maxEnded+1 || slices.ContainsFunc(all, func(p *process.ProcessInfo) bool { return int(p.GetPid()) == ended.pid }) {
		t.Errorf("%d listed, the oldest among them", len(all))
	}
}

func TestTerminal(t *testing.T) {
	g := newGuest(t)
	gate := filepath.Join(g.root, "gate")
	stream, pid, _ := g.launch(t, &process.StartRequest{
		Process: &process.ProcessConfig{Cmd: "/bin/sh", Args: []string{"-c", "tty -s && stty size; touch " + gate + "; read line; stty size; echo got $line; exit 9"}},
		Pty:     &process.PTY{Size: &process.PTY_Size{Cols: 101, Rows: 33}},
	})
	eventually(t, "the shell to begin", func() bool { _, err := os.Stat(gate); return err == nil })
	_, err := g.process.Update(t.Context(), connect.NewRequest(&process.UpdateRequest{
		Process: byPid(pid), Pty: &process.PTY{Size: &process.PTY_Size{Cols: 90, Rows: 44}},
	}))
	if err != nil {
		t.Fatal(err)
	}
	_, err = g.process.SendInput(t.Context(), connect.NewRequest(&process.SendInputRequest{
		Process: byPid(pid), Input: &process.ProcessInput{Input: &process.ProcessInput_Pty{Pty: []byte("hello\n")}},
	}))
	if err != nil {
		t.Fatal(err)
	}
	r := &result{}
	for stream.Receive() {
		if r.end != nil {
			t.Error("an event after the end")
		}
		r.take(stream.Msg().GetEvent())
	}
	if want := "33 101\r\nhello\r\n44 90\r\ngot hello\r\n"; string(r.pty) != want || r.end.GetExitCode() != 9 || len(r.stdout) != 0 {
		t.Errorf("got %q, end %v; want %q", r.pty, r.end, want)
	}
}

// The end comes after all output, also when there is much of it at the end.
func TestTerminalOutputIsWhole(t *testing.T) {
	g := newGuest(t)
	for range 5 {
		r := g.mustRun(t, &process.StartRequest{
			Process: &process.ProcessConfig{Cmd: "/bin/sh", Args: []string{"-c", "head -c 200000 /dev/zero | tr '\\0' x; exit 0"}},
			Pty:     &process.PTY{},
		})
		if len(r.pty) != 200_000 {
			t.Fatalf("got %d bytes", len(r.pty))
		}
	}
}

func TestKeepalive(t *testing.T) {
	g := newGuest(t)
	request := connect.NewRequest(shell("sleep 2.5"))
	request.Header().Set("Keepalive-Ping-Interval", "1")
	stream, err := g.process.Start(t.Context(), request)
	if err != nil {
		t.Fatal(err)
	}
	defer stream.Close()
	keepalives := 0
	for stream.Receive() {
		if stream.Msg().GetEvent().GetKeepalive() != nil {
			keepalives++
		}
	}
	if keepalives == 0 || stream.Err() != nil {
		t.Errorf("got %d keepalives, error %v", keepalives, stream.Err())
	}
}

// What SDKs send and read, byte by byte.
func TestJSONWire(t *testing.T) {
	g := newGuest(t)
	body := `{"process":{"cmd":"/bin/sh","args":["-c","printf 'a\\0b'; exit 3"],"envs":{}},"stdin":false,"unknown":1}`
	response, text := get(t, g.host, http.MethodPost, hostURL+"/process.Process/Start", bytes.NewReader(envelope(body)),
		"Content-Type", "application/connect+json", "Connect-Protocol-Version", "1", "Accept-Encoding", "gzip")
	messages := readEnvelopes(t, strings.NewReader(text))
	if response.StatusCode != 200 || len(messages) != 4 {
		t.Fatalf("status %d, messages %q", response.StatusCode, messages)
	}
	for i, want := range []string{
		`{"event":{"start":{"pid":`,
		`{"event":{"data":{"stdout":"YQBi"}}}`,
		`{"event":{"end":{"exitCode":3,"exited":true,"status":"exit status 3","error":"exit status 3"}}}`,
		`{}`,
	} {
		// Package protojson spaces its output at random, to be relied on by nobody.
		if got := strings.ReplaceAll(messages[i], `, "`, `,"`); !strings.HasPrefix(strings.ReplaceAll(got, `": `, `":`), want) {
			t.Errorf("message %d is %q, want %q", i, messages[i], want)
		}
	}
	response, text = get(t, g.host, http.MethodPost, hostURL+"/process.Process/SendSignal", strings.NewReader(`{"process":{"pid":1073741824},"signal":"SIGNAL_SIGKILL"}`),
		"Content-Type", "application/json")
	if response.StatusCode != 404 || !strings.Contains(text, `"code":"not_found"`) {
		t.Errorf("status %d, body %s", response.StatusCode, text)
	}
	response, text = get(t, g.host, http.MethodPost, hostURL+"/process.Process/List", strings.NewReader(`{}`),
		"Content-Type", "application/json", "Accept-Encoding", "gzip")
	if response.StatusCode != 200 || response.Header.Get("Content-Encoding") != "" || text != "{}" {
		t.Errorf("status %d, encoding %q, body %q", response.StatusCode, response.Header.Get("Content-Encoding"), text)
	}
}

func TestManyAtOnce(t *testing.T) {
	g := newGuest(t)
	results := make(chan error, 40)
	for i := range cap(results) {
		go func() {
			stream, err := g.process.Start(context.Background(), connect.NewRequest(shell("exit "+itoa(i))))
			if err != nil {
				results <- err
				return
			}
			defer stream.Close()
			r := &result{}
			for stream.Receive() {
				r.take(stream.Msg().GetEvent())
			}
			if int(r.end.GetExitCode()) != i {
				t.Errorf("exit %d: got %v, error %v", i, r.end, stream.Err())
			}
			results <- nil
		}()
	}
	for range cap(results) {
		if err := <-results; err != nil {
			t.Error(err)
		}
	}
}

var _ processconnect.ProcessHandler = (*processService)(nil)

// envelope frames one message of a Connect stream.
func envelope(body string) []byte {
	n := len(body)
	return append([]byte{0, byte(n >> 24), byte(n >> 16), byte(n >> 8), byte(n)}, body...)
}

func readEnvelopes(t *testing.T, from io.Reader) []string {
	t.Helper()
	var messages []string
	for {
		var head [5]byte
		if _, err := io.ReadFull(from, head[:]); err == io.EOF {
			return messages
		} else if err != nil {
			t.Fatal(err)
		}
		body := make([]byte, int(head[1])<<24|int(head[2])<<16|int(head[3])<<8|int(head[4]))
		if _, err := io.ReadFull(from, body); err != nil {
			t.Fatal(err)
		}
		messages = append(messages, string(body))
	}
}
