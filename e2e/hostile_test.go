package e2e

import (
	"archive/tar"
	"bufio"
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"
	"unicode"

	"github.com/creack/pty"

	"github.com/vmsan/vmsan/internal/testenv"
	"github.com/vmsan/vmsan/internal/testenv/attack"
)

// attackTime is how long an attack lasts that does not end by itself.
const attackTime = time.Second

// hostileMemory is the memory of a hostile guest, in MiB, and hostileDisk its
// disk in bytes.
const (
	hostileMemory = 192
	hostileDisk   = 512 << 20
)

// What the policy of a hostile guest is about: a domain and a range.
const (
	hostileDomain  = "hostile.example"
	hostileAllowed = "203.0.113.140"
	hostileDenied  = "198.51.100.200"
	honestServer   = "198.51.100.10:22"
)

// siege is what all hostile guests of a test have in common.
type siege struct {
	*host
	program []byte
	results *results
}

// results are what became of each attack.
type results struct {
	mu sync.Mutex
	of map[string]string
}

func (r *results) note(attack, result string) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.of[attack] = result
}

// TestHostileGuests has guests do to the host what they can: floods, lies, and
// silence. What the host holds of each stays within bounds while it does, each
// ends when it is told to, and one beside them notices nothing. The attacks are
// those that docs/security.md lists.
func TestHostileGuests(t *testing.T) {
	s := &siege{host: newHost(t), program: readBuilt(t, "../internal/testenv/attack/vmsan-attack"), results: &results{of: map[string]string{}}}
	if err := testenv.Lab(t).Zone.Set(hostileZone()); err != nil {
		t.Fatal(err)
	}
	s.must("create", "--no-setup", "--name", "bystander")
	s.give("bystander")
	s.startPython("bystander", counter, "/root/process")
	stop, rounds := make(chan struct{}), make(chan int, 1)
	go func() {
		defer close(rounds)
		rounds <- s.bystand(stop)
	}()
	groups := map[string]func(*siege){"ports": (*siege).onPorts, "answers": (*siege).answers}
	all := os.Getenv(faultsVar) != ""
	if all {
		groups["machine"], groups["network"] = (*siege).onMachine, (*siege).onNetwork
		groups["ends"], groups["sessions"] = (*siege).ends, (*siege).sessions
	}
	t.Run("guests", func(t *testing.T) {
		for name, run := range groups {
			t.Run(name, func(t *testing.T) {
				t.Parallel()
				run(s.forTest(t))
			})
		}
	})
	close(stop)
	t.Logf("the bystander was looked at %d times", <-rounds)
	s.compare(t, all)
}

// forTest is the same for a test within.
func (s *siege) forTest(t *testing.T) *siege {
	return &siege{host: &host{t: t, layout: s.layout, binary: s.binary}, program: s.program, results: s.results}
}

// hostileZone has a domain with more addresses than a gate remembers.
func hostileZone() string {
	const each = 100
	var zone strings.Builder
	fmt.Fprintf(&zone, "%s. 60 A 198.51.100.77\n", hostileDomain)
	for i := range attack.ManyNames {
		for j := range each {
			fmt.Fprintf(&zone, "n%d.%s. 1 A 198.%d.%d.%d\n", i, hostileDomain, 52+i/200, i%200, j+1)
		}
	}
	return zone.String()
}

// give puts the program into a sandbox.
func (s *siege) give(name string) {
	s.t.Helper()
	if _, err := s.exec(s.t.Context(), bytes.NewReader(s.program), name, "sh", "-c", "cat >/attack && chmod +x /attack && sync"); err != nil {
		s.t.Fatal(err)
	}
}

func (s *siege) create(name string, flags ...string) {
	s.t.Helper()
	if testenv.MemoryFactor > 1 {
		flags = append(flags, "--no-cgroup") // its limits are for vmsan as it is
	}
	s.must(append([]string{
		"create", "--no-setup", "--name", name, "--memory", fmt.Sprintf("%dm", hostileMemory), "--disk", fmt.Sprint(hostileDisk>>20, "m"),
	}, flags...)...)
}

// bystand looks again and again, until it is told to stop, whether the bystander
// goes on with what it does: counts, runs commands and has a network.
func (s *siege) bystand(stop <-chan struct{}) (rounds int) {
	before, digest := s.count("bystander")
	for {
		if out, err := s.exec(s.t.Context(), nil, "bystander", "/attack", "1m", honestServer, attack.ReachWord); err != nil || strings.Contains(string(out), "failed") {
			s.t.Errorf("the bystander has no network: %v, %s", err, out)
		}
		n, same := s.count("bystander")
		if n <= before || same != digest {
			s.t.Errorf("the bystander counts %d after %d, or has forgotten what it had", n, before)
		}
		before = n
		rounds++
		select {
		case <-stop:
			return rounds
		case <-time.After(attackTime):
		}
	}
}

// under does something while the host's figures of a sandbox are looked at.
func (s *siege) under(name, victim string, do func() string) {
	s.t.Helper()
	w := s.watchFigures(victim)
	defer w.stop()
	s.found(name, do(), w.next())
}

// found takes down what became of an attack.
func (s *siege) found(name, result string, most maxima) {
	s.t.Helper()
	for _, excess := range most.excess() {
		s.t.Errorf("%s: %s", name, excess)
	}
	s.t.Logf("%-28s %s; %s", name, result, most)
	s.results.note(name, result)
}

// attacked makes attacks in a sandbox, one after the other. Each has to have
// done something, and the sandbox is there afterwards.
func (s *siege) attacked(victim, targets string, attacks []string) {
	s.t.Helper()
	w := s.watchFigures(victim)
	defer w.stop()
	cmd := s.command(s.t.Context(), append([]string{"exec", "--no-stdin", victim, "/attack", attackTime.String(), targets}, attacks...)...)
	var stderr bytes.Buffer
	cmd.Stderr = &stderr
	out, err := cmd.StdoutPipe()
	if err == nil {
		err = cmd.Start()
	}
	if err != nil {
		s.t.Fatal(err)
	}
	made := 0
	for lines := bufio.NewScanner(out); lines.Scan(); made++ {
		name, result, _ := strings.Cut(lines.Text(), " ")
		if strings.HasPrefix(result, "failed") {
			s.t.Errorf("%s %s", name, result)
		}
		s.found(name, result+" times", w.next())
	}
	if err := cmd.Wait(); err != nil || made != len(attacks) {
		s.t.Errorf("after %d of %d attacks in %s: %v: %s", made, len(attacks), victim, err, &stderr)
	}
	if _, err := s.exec(s.t.Context(), nil, victim, "true"); err != nil {
		s.t.Errorf("after the attacks: %v", err)
	}
}

func (s *siege) onPorts() {
	const victim = "ports"
	s.create(victim, "--network", "none")
	s.give(victim)
	s.attacked(victim, "", attack.OnPorts())
	s.checkTerminal(victim)
	s.outputUnread(victim)
	s.must("stop", "--timeout", "20s", victim)
	s.must("rm", victim)
}

// checkTerminal has the console's log shown on a terminal, which must not do
// what the guest says.
func (s *siege) checkTerminal(victim string) {
	s.t.Helper()
	cmd := s.command(context.Background(), "logs", victim)
	terminal, err := pty.Start(cmd)
	if err != nil {
		s.t.Fatal(err)
	}
	defer terminal.Close()
	shown, err := io.ReadAll(terminal)
	if err != nil && !errors.Is(err, syscall.EIO) { // of a terminal whose last program has ended
		s.t.Error(err)
	}
	if err := cmd.Wait(); err != nil {
		s.t.Error(err)
	}
	if !bytes.Contains(shown, []byte("renamed")) {
		s.t.Errorf("%d bytes of the log are shown, without what was printed", len(shown))
	}
	if bytes.ContainsAny(shown, "\x1b\x07") || bytes.Contains(shown, []byte("\u009b")) {
		s.t.Error("the log is shown with its escape sequences")
	}
}

// outputUnread has commands print without end for clients that do not read.
func (s *siege) outputUnread(victim string) {
	const clients = 40
	s.under("output-unread", victim, func() string {
		ctx, cancel := context.WithCancel(s.t.Context())
		var all []*exec.Cmd
		for range clients {
			cmd := s.command(ctx, "exec", "--no-stdin", victim, "cat", "/dev/zero")
			out, err := cmd.StdoutPipe()
			if err == nil {
				err = cmd.Start()
			}
			if err != nil {
				s.t.Fatal(err)
			}
			defer out.Close()
			all = append(all, cmd)
		}
		time.Sleep(4 * attackTime)
		answers := "commands beside them run"
		if _, err := s.exec(s.t.Context(), nil, victim, "true"); err != nil {
			s.t.Errorf("beside clients that do not read: %v", err)
			answers = "commands beside them fail"
		}
		cancel()
		for _, cmd := range all {
			cmd.Wait() // it was killed
		}
		return answers
	})
}

func (s *siege) onMachine() {
	const victim = "machine"
	s.create(victim, "--network", "none")
	s.give(victim)
	s.attacked(victim, "", attack.OnMachine())
	s.copyPit(victim)
	s.must("stop", "--timeout", "20s", victim)
	s.must("rm", victim)
}

// copyPit copies what hostile-names and deep-directories have made.
func (s *siege) copyPit(victim string) {
	s.t.Helper()
	for _, of := range []string{"names", "deep"} {
		parent := s.t.TempDir()
		into := filepath.Join(parent, "into")
		if err := os.Mkdir(into, 0o755); err != nil {
			s.t.Fatal(err)
		}
		ran := s.client(patience, "cp", victim+":"+attack.Pit+"/"+of, into)
		ran.check(s.t, "copy of "+of)
		if left := names(s.t, parent); len(left) != 1 {
			s.t.Errorf("copy of %s: beside the destination is %q", of, left)
		}
		err := filepath.WalkDir(into, func(path string, e fs.DirEntry, err error) error {
			if err != nil {
				return err
			}
			info, err := e.Info()
			if err == nil && info.Mode()&(fs.ModeDevice|fs.ModeNamedPipe|fs.ModeSocket|fs.ModeSetuid|fs.ModeSetgid) != 0 {
				s.t.Errorf("copy of %s: %q is %s", of, path, info.Mode())
			}
			return err
		})
		if err != nil && !errors.Is(err, syscall.ENAMETOOLONG) {
			s.t.Error(err)
		}
	}
}

func (s *siege) onNetwork() {
	const victim, port = "network", 17070
	s.create(victim,
		"--allowed-domain", "*."+hostileDomain+","+hostileDomain, "--allowed-cidr", "203.0.113.128/25",
		"--publish", fmt.Sprintf("127.0.0.1:%d:%d:lo", port, attack.ServePort),
		"--publish", fmt.Sprintf("127.0.0.1:%d:%d", port+1, attack.ServePort),
		"--publish", fmt.Sprintf("127.0.0.1:%d:%d/udp", port, attack.ServePort))
	s.give(victim)
	s.attacked(victim, strings.Join([]string{hostileAllowed, hostileDenied, hostileDomain}, " "), attack.OnNetwork())
	s.must("exec", "--no-stdin", "-d", victim, "/attack", "1h", "", attack.ServeFloods)
	s.sh(victim, fmt.Sprintf("until grep -qi ':%04X ' /proc/net/udp; do sleep 0.05; done", attack.ServePort))
	for name, address := range map[string]string{
		"published-loopback-unread": fmt.Sprint("tcp 127.0.0.1:", port),
		"published-stream-unread":   fmt.Sprint("tcp 127.0.0.1:", port+1),
		"published-datagrams":       fmt.Sprint("udp 127.0.0.1:", port),
	} {
		s.under(name, victim, func() string { return s.unread(victim, address) })
	}
	if out, err := s.vmsan("network", "log", victim); err != nil || strings.ContainsFunc(out, unprintable) {
		s.t.Errorf("the log of the network, %v: %.200q", err, out)
	}
	s.must("stop", "--timeout", "20s", victim)
	s.must("rm", victim)
}

// unread connects to a published port as often as it goes, and reads nothing.
func (s *siege) unread(victim, address string) string {
	s.t.Helper()
	const clients = 40
	network, to, _ := strings.Cut(address, " ")
	for range clients {
		conn, err := net.Dial(network, to)
		if err != nil {
			s.t.Fatal(err)
		}
		defer conn.Close()
		conn.Write([]byte("come"))
	}
	time.Sleep(4 * attackTime)
	if _, err := s.exec(s.t.Context(), nil, victim, "true"); err != nil {
		s.t.Errorf("beside clients of %s that do not read: %v", address, err)
	}
	return fmt.Sprint(clients, " clients")
}

// ends attacks what the guest itself is made of.
func (s *siege) ends() {
	const victim = "ends"
	s.create(victim, "--network", "none", "--cold")
	s.give(victim)
	for _, name := range attack.Ends() {
		s.under(name, victim, func() string {
			if slices.Contains(short, name) {
				ran := s.client(patience, "exec", "--no-stdin", victim, "/attack", attackTime.String(), "", name)
				ran.check(s.t, name)
				if strings.Contains(ran.stdout, "failed") {
					s.t.Error(ran.stdout)
				}
			} else {
				s.must("exec", "-d", victim, "/attack", "1h", "", name)
			}
			s.awaitConsole(victim, attack.Announcement(name))
			return s.mute(name, victim)
		})
		stopped := s.client(patience, "stop", "--timeout", "1s", victim)
		if stopped.err != nil {
			s.t.Errorf("stop after %s: %v: %s", name, stopped.err, stopped.stderr)
		}
		if name != "own-disk-overwritten" { // the last
			s.must("start", victim)
		}
	}
	s.must("rm", "-f", victim)
}

// short are the attacks after which the guest may go on, and livesOn those that
// it may live through, one way or the other.
var (
	short   = []string{"device-registers", "own-disk-overwritten"}
	livesOn = append([]string{"fork-bomb"}, short...)
)

// mute waits until a sandbox runs no command any more.
func (s *siege) mute(name, victim string) string {
	s.t.Helper()
	for deadline := time.Now().Add(patience); ; {
		ran := s.client(3*attackTime, "exec", "--no-stdin", victim, "true")
		ran.check(s.t, name)
		if ran.err != nil {
			return "no command runs"
		}
		if slices.Contains(livesOn, name) {
			return "commands run"
		}
		if time.Now().After(deadline) {
			s.t.Errorf("%s: the guest lives on", name)
			return "commands run"
		}
	}
}

// liar makes a sandbox whose init takes the agent's place.
func (s *siege) liar(name, about string, flags ...string) {
	s.t.Helper()
	archive := filepath.Join(s.t.TempDir(), name+".tar")
	if err := os.WriteFile(archive, s.liarImage(about), 0o600); err != nil {
		s.t.Fatal(err)
	}
	s.must("image", "import", archive, name)
	s.create(name, append([]string{"--cold", "--network", "none", "--image", name, "--init"}, flags...)...)
	// What it is asked by may be gone before it has answered.
	s.client(patience, "exec", "--no-stdin", name, "/sbin/init", "1s", "", attack.BeginWord)
	s.awaitConsole(name, "the liar has the ports")
}

func (s *siege) liarImage(about string) []byte {
	var archive bytes.Buffer
	w := tar.NewWriter(&archive)
	for _, dir := range []string{"dev", "etc", "proc", "root", "run", "sbin", "sys", "tmp"} {
		w.WriteHeader(&tar.Header{Name: dir + "/", Typeflag: tar.TypeDir, Mode: 0o755})
	}
	for _, f := range []struct {
		name string
		text []byte
	}{
		{"sbin/init", s.program}, {attack.LieFile[1:], []byte(about)}, {"etc/passwd", []byte("root:x:0:0::/:/sbin/init\n")},
	} {
		w.WriteHeader(&tar.Header{Name: f.name, Mode: 0o755, Size: int64(len(f.text))})
		w.Write(f.text)
	}
	w.Close()
	return archive.Bytes()
}

func (s *siege) awaitConsole(name, text string) {
	s.t.Helper()
	path := s.layout.Console(s.idOf(name))
	for deadline := time.Now().Add(patience); ; time.Sleep(20 * time.Millisecond) {
		console, err := os.ReadFile(path)
		if err == nil && bytes.Contains(console, []byte(text)) {
			return
		}
		if time.Now().After(deadline) {
			s.t.Fatalf("the console of %s does not say %q: %v: %.4000q", name, text, err, console)
		}
	}
}

// anotherSession ends the gate of a sandbox, whose next one asks the guest for
// another session.
func (s *siege) anotherSession(name string) {
	s.t.Helper()
	id := s.idOf(name)
	record, err := s.layout.Load(id)
	if err != nil {
		s.t.Fatal(err)
	}
	dead := record.Host.Gate.PID
	if err := syscall.Kill(dead, syscall.SIGKILL); err != nil && !errors.Is(err, syscall.ESRCH) {
		s.t.Fatal(err)
	}
	for deadline := time.Now().Add(patience); record.Host.Gate.PID == dead; time.Sleep(20 * time.Millisecond) {
		if record, err = s.layout.Load(id); err != nil {
			s.t.Fatal(err)
		}
		if time.Now().After(deadline) {
			s.t.Fatal("there is no other gate")
		}
	}
}

func (s *siege) sessions() {
	const victim = "sessions"
	s.liar(victim, attack.Sessions)
	for _, name := range attack.InSessions() {
		s.anotherSession(victim)
		s.awaitConsole(victim, "the liar tells "+name)
		s.under(name, victim, func() string {
			ran := s.client(3*attackTime, "exec", "--no-stdin", victim, "x")
			ran.check(s.t, name)
			if ran.err == nil {
				s.t.Errorf("%s: a command ran in a guest that has no agent", name)
			}
			return "no command runs"
		})
	}
	if stopped := s.client(patience, "stop", "--timeout", "1s", victim); stopped.err != nil {
		s.t.Errorf("stop: %v: %s", stopped.err, stopped.stderr)
	}
	s.must("rm", victim)
	s.must("image", "rm", victim)
}

func (s *siege) answers() {
	const victim = "answers"
	s.liar(victim, attack.Answers)
	s.anotherSession(victim)
	for _, name := range attack.InAnswers() {
		if out, err := s.exec(s.t.Context(), nil, victim, attack.LieWord, name); err != nil {
			s.t.Fatalf("%s: %v: %s", name, err, out)
		}
		s.under(name, victim, func() string { return s.heard(victim, name) })
	}
	s.must("rm", "-f", victim)
	s.must("image", "rm", victim)
}

// heard has the host's commands hear a lie.
func (s *siege) heard(victim, name string) string {
	s.t.Helper()
	parent := s.t.TempDir()
	into := filepath.Join(parent, "into")
	if err := os.Mkdir(into, 0o755); err != nil {
		s.t.Fatal(err)
	}
	limit := patience
	if slices.Contains([]string{"command-output-without-end", "command-false-room", "command-no-answer", "silence"}, name) {
		limit = 3 * attackTime
	}
	commands := [][]string{{"ps", victim}}
	fails := true
	switch {
	case strings.HasPrefix(name, "command-"):
		commands = [][]string{{"exec", "--no-stdin", victim, "x"}}
	case strings.HasPrefix(name, "copy-"):
		commands = [][]string{{"cp", victim + ":/pit", into}}
	case name == "processes-with-escapes":
		commands, fails = [][]string{{"ps", victim}, {"ps", "--json", victim}}, false
	case name == "stop-that-is-no-stop":
		commands, fails = [][]string{{"stop", "--timeout", "1s", victim}}, false
	case name == "silence":
		commands = append(commands, []string{"exec", "-d", victim, "x"}, []string{"cp", victim + ":/pit", into})
	}
	for _, args := range commands {
		ran := s.client(limit, args...)
		ran.check(s.t, name)
		if (ran.err != nil) != fails {
			s.t.Errorf("%s: vmsan %v: %v: %.300q %.300q", name, args, ran.err, ran.stdout, ran.stderr)
		}
	}
	if name == "silence" {
		// The host gives up, and the sandbox goes on.
		for _, args := range [][]string{{"snapshot", "create", victim}, {"pause", victim}, {"resume", victim}} {
			s.client(patience, args...).check(s.t, name)
		}
	}
	for _, dir := range []string{parent, filepath.Dir(parent), "/tmp"} {
		if _, err := os.Lstat(filepath.Join(dir, attack.Outside)); err == nil {
			s.t.Errorf("%s: a file was made in %s", name, dir)
		}
	}
	return "heard"
}

// run is a command of the host's that was run.
type run struct {
	args           []string
	stdout, stderr string
	err            error
	// late is true if it had to be killed, which Ctrl-C alone did not do.
	late   bool
	memory int64 // the most it had, in bytes
}

// client runs the binary, and interrupts it if it does not end by itself.
func (s *siege) client(limit time.Duration, args ...string) *run {
	ctx, cancel := context.WithTimeout(context.Background(), limit)
	defer cancel()
	cmd := s.command(ctx, args...)
	var stderr bytes.Buffer
	stdout := &firstBytes{most: 1 << 20}
	cmd.Stdout, cmd.Stderr = stdout, &stderr
	cmd.Cancel = func() error { return cmd.Process.Signal(os.Interrupt) }
	cmd.WaitDelay = time.Minute
	r := &run{args: args, err: cmd.Run()}
	r.stdout, r.stderr = string(stdout.kept), stderr.String()
	r.late = errors.Is(r.err, exec.ErrWaitDelay)
	if usage, ok := cmd.ProcessState.SysUsage().(*syscall.Rusage); ok {
		r.memory = usage.Maxrss << 10
		r.late = r.late || cmd.ProcessState.Sys().(syscall.WaitStatus).Signaled()
	}
	return r
}

// firstBytes keeps the first bytes that are written.
type firstBytes struct {
	kept []byte
	most int
}

func (f *firstBytes) Write(b []byte) (int, error) {
	f.kept = append(f.kept, b[:min(len(b), f.most-len(f.kept))]...)
	return len(b), nil
}

// maxClient bounds the memory of a command, whatever a guest says.
const maxClient = 96 << 20

// check fails if a guest has made a command do what it should not.
func (r *run) check(t testing.TB, during string) {
	t.Helper()
	if r.late {
		t.Errorf("%s: vmsan %v had to be killed", during, r.args)
	}
	if r.memory > testenv.MemoryFactor*maxClient {
		t.Errorf("%s: vmsan %v took %d MiB", during, r.args, r.memory>>20)
	}
	if strings.ContainsFunc(r.stderr, unprintable) {
		t.Errorf("%s: vmsan %v prints %.300q", during, r.args, r.stderr)
	}
	if r.args[0] != "exec" && strings.ContainsFunc(r.stdout, unprintable) {
		t.Errorf("%s: vmsan %v prints %.300q", during, r.args, r.stdout)
	}
	if strings.Contains(r.stderr, "goroutine ") {
		t.Errorf("%s: vmsan %v panics: %s", during, r.args, r.stderr)
	}
}

func unprintable(c rune) bool { return c != '\n' && !unicode.IsPrint(c) }

// compare has docs/security.md list the attacks that were made, and no others.
func (s *siege) compare(t *testing.T, all bool) {
	t.Helper()
	text, err := os.ReadFile("../docs/security.md")
	if err != nil {
		t.Fatal(err)
	}
	_, section, found := strings.Cut(string(text), "## What hostile guests try\n")
	if !found {
		t.Fatal("docs/security.md does not say what hostile guests try")
	}
	section, _, _ = strings.Cut(section, "\n## ")
	var listed, made []string
	for line := range strings.Lines(section) {
		if cells := strings.Split(line, "|"); len(cells) > 2 && strings.Contains(cells[1], "`") {
			listed = append(listed, strings.Trim(cells[1], " `"))
		}
	}
	for name := range s.results.of {
		made = append(made, name)
	}
	slices.Sort(listed)
	slices.Sort(made)
	for _, name := range made {
		if !slices.Contains(listed, name) {
			t.Errorf("docs/security.md does not list %s", name)
		}
	}
	for _, name := range listed {
		if all && !slices.Contains(made, name) {
			t.Errorf("docs/security.md lists %s, which was not tried", name)
		}
	}
	t.Logf("%d attacks", len(made))
}
