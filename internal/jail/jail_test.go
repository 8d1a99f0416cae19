package jail

import (
	"bufio"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/vmsan/vmsan/internal/cgroup"
	"github.com/vmsan/vmsan/internal/testenv"
)

// parentVar makes the test binary a parent that is going to be killed.
const parentVar = "VMSAN_TEST_JAIL_PARENT"

func TestMain(m *testing.M) {
	if os.Getenv(parentVar) != "" {
		beParent()
	}
	os.Exit(testenv.Main(m))
}

// wait bounds whatever should happen at once.
const wait = time.Minute

// testUser is not one that anything runs as.
var testUser = User{UID: 1_599_999_001, GID: 1_599_999_002}

const namespaces = unix.CLONE_NEWPID | unix.CLONE_NEWNET | unix.CLONE_NEWIPC | unix.CLONE_NEWUTS

// jailed is a shell with all walls, whose root holds the programs of the host
// and one file.
func jailed(t *testing.T, script string) Spec {
	t.Helper()
	dir := t.TempDir()
	file := filepath.Join(dir, "file")
	if err := os.WriteFile(file, []byte("hello\n"), 0o644); err != nil {
		t.Fatal(err)
	}
	root := &Root{
		Mount: filepath.Join(dir, "root"),
		Binds: []Bind{{Source: file, Target: "/data/file"}, {Source: "/usr", Target: "/usr"}},
		Links: map[string]string{"/bin": "usr/bin", "/lib": "usr/lib", "/lib64": "usr/lib64"},
	}
	if err := os.Mkdir(root.Mount, 0o700); err != nil {
		t.Fatal(err)
	}
	return Spec{Path: "/bin/sh", Args: []string{"-c", script}, Root: root, User: &testUser, Namespaces: namespaces}
}

func start(t *testing.T, spec Spec) *Process {
	t.Helper()
	p, err := Start(spec)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := p.Kill(); err != nil {
			t.Errorf("kill: %v", err)
		}
		await(t, p)
	})
	return p
}

func await(t *testing.T, p *Process) {
	t.Helper()
	select {
	case <-p.Done():
	case <-time.After(wait):
		t.Fatalf("process %d does not end", p.PID())
	}
}

// output runs spec and returns what it prints.
func output(t *testing.T, spec Spec) string {
	t.Helper()
	r, w, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	defer r.Close()
	spec.Stdout, spec.Stderr = w, w
	p := start(t, spec)
	w.Close()
	r.SetReadDeadline(time.Now().Add(wait))
	text, err := io.ReadAll(r)
	if err != nil {
		t.Fatal(err)
	}
	await(t, p)
	return string(text)
}

// status reads /proc/PID/status.
func status(t *testing.T, pid int) map[string]string {
	t.Helper()
	text, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", pid))
	if err != nil {
		t.Fatal(err)
	}
	fields := map[string]string{}
	for line := range strings.Lines(string(text)) {
		name, value, _ := strings.Cut(line, ":")
		fields[name] = strings.Join(strings.Fields(value), " ")
	}
	return fields
}

func TestPrivileges(t *testing.T) {
	testenv.RequireRoot(t)
	got := status(t, start(t, jailed(t, "exec sleep 600")).PID())
	for name, want := range map[string]string{
		"Uid":        "1599999001 1599999001 1599999001 1599999001",
		"Gid":        "1599999002 1599999002 1599999002 1599999002",
		"Groups":     "",
		"CapInh":     "0000000000000000",
		"CapPrm":     "0000000000000000",
		"CapEff":     "0000000000000000",
		"CapBnd":     "0000000000000000",
		"CapAmb":     "0000000000000000",
		"NoNewPrivs": "1",
	} {
		if got[name] != want {
			t.Errorf("%s: got %q, want %q", name, got[name], want)
		}
	}
}

func TestNamespaces(t *testing.T) {
	testenv.RequireRoot(t)
	p := start(t, jailed(t, "exec sleep 600"))
	for _, name := range []string{"net", "pid", "ipc", "uts", "mnt"} {
		ours, err := os.Readlink("/proc/self/ns/" + name)
		if err != nil {
			t.Fatal(err)
		}
		theirs, err := os.Readlink(fmt.Sprintf("/proc/%d/ns/%s", p.PID(), name))
		if err != nil {
			t.Fatal(err)
		}
		if ours == theirs {
			t.Errorf("the child is in the caller's %s namespace", name)
		}
	}
}

func TestNetwork(t *testing.T) {
	testenv.RequireRoot(t)
	network := newNetwork(t)
	spec := jailed(t, "sleep 60")
	spec.Namespaces &^= unix.CLONE_NEWNET
	spec.Network = network
	child := start(t, spec)
	got, err := os.Stat(fmt.Sprintf("/proc/%d/ns/net", child.PID()))
	if err != nil {
		t.Fatal(err)
	}
	want, err := network.Stat()
	if err != nil {
		t.Fatal(err)
	}
	if !os.SameFile(got, want) {
		t.Error("the child is not in the network namespace that it was given")
	}
	ours, err := os.Stat("/proc/self/ns/net")
	if err != nil || os.SameFile(ours, want) {
		t.Errorf("the parent went along: %v", err)
	}
}

// newNetwork makes an empty network namespace.
func newNetwork(t *testing.T) *os.File {
	t.Helper()
	made := make(chan *os.File, 1)
	go onThreadOfItsOwn(func() {
		defer close(made)
		if err := unix.Unshare(unix.CLONE_NEWNET); err != nil {
			return
		}
		if file, err := os.Open("/proc/thread-self/ns/net"); err == nil {
			made <- file
		}
	})
	network := <-made
	if network == nil {
		t.Fatal("cannot make a network namespace")
	}
	t.Cleanup(func() { network.Close() })
	return network
}

func TestRootHoldsWhatWasBound(t *testing.T) {
	testenv.RequireRoot(t)
	got := output(t, jailed(t, "cd /; for f in * .[!.]* data/*; do echo $f; done; cat /data/file; ls -ln /data/file | cut -c1-10"))
	want := "bin\ndata\nlib\nlib64\nusr\n.[!.]*\ndata/file\nhello\n-rw-r--r--\n"
	if got != want {
		t.Errorf("got\n%s, want\n%s", got, want)
	}
}

// Root in the jail could not write either: the mounts are read-only.
func TestRootIsReadOnly(t *testing.T) {
	testenv.RequireRoot(t)
	spec := jailed(t, "for f in /new /data/new /data/file /usr/new; do echo > $f; done; exit 7")
	spec.User = nil
	got := output(t, spec)
	if n := strings.Count(got, "Read-only file system"); n != 4 {
		t.Errorf("%d of 4 writes were refused for the reason that they should be:\n%s", n, got)
	}
}

func TestMountsAreGone(t *testing.T) {
	testenv.RequireRoot(t)
	spec := jailed(t, "exec sleep 600")
	p := start(t, spec)
	table, err := os.ReadFile(fmt.Sprintf("/proc/%d/mountinfo", p.PID()))
	if err != nil {
		t.Fatal(err)
	}
	for line := range strings.Lines(string(table)) {
		fields := strings.Fields(line)
		if !slices.Contains([]string{"/", "/usr", "/data/file"}, fields[4]) {
			t.Errorf("the jail has %s", fields[4])
		}
		if !strings.HasPrefix(fields[5], "ro,nosuid") {
			t.Errorf("%s is mounted %s", fields[4], fields[5])
		}
	}
	if entries, err := os.ReadDir(spec.Root.Mount); err != nil || len(entries) > 0 {
		t.Errorf("the host sees the jail's root: %v, %v", entries, err)
	}
}

func TestDevices(t *testing.T) {
	testenv.RequireRoot(t)
	spec := jailed(t, "stat -c '%A %u %g %t:%T' /dev/zero2; head -c 3 /dev/zero2 | wc -c")
	spec.Root.Devices = []Device{{Path: "/dev/zero2", Major: 1, Minor: 5}}
	want := "crw------- 1599999001 1599999002 1:5\n3\n"
	if got := output(t, spec); got != want {
		t.Errorf("got %q, want %q", got, want)
	}
}

func TestFiles(t *testing.T) {
	testenv.RequireRoot(t)
	// Files that a child must not inherit.
	for range 3 {
		file, err := os.Open("/etc/passwd")
		if err != nil {
			t.Fatal(err)
		}
		defer file.Close()
		// As if it had been inherited itself.
		if _, err := unix.FcntlInt(file.Fd(), unix.F_SETFD, 0); err != nil {
			t.Fatal(err)
		}
	}
	passed, err := os.Open("/etc/hostname")
	if err != nil {
		t.Fatal(err)
	}
	defer passed.Close()
	spec := jailed(t, "exec sleep 600")
	spec.Files = []*os.File{passed}
	p := start(t, spec)
	want := []string{"0 /dev/null", "1 /dev/null", "2 /dev/null", "3 /etc/hostname"}
	// The programs open libraries until they have started.
	var got []string
	for deadline := time.Now().Add(wait); !slices.Equal(got, want) && time.Now().Before(deadline); time.Sleep(10 * time.Millisecond) {
		got = files(t, p.PID())
		if slices.ContainsFunc(got, func(f string) bool { return strings.HasSuffix(f, "/etc/passwd") }) {
			break
		}
	}
	if !slices.Equal(got, want) {
		t.Errorf("got %v, want %v", got, want)
	}
}

// files lists a process's descriptors and what they refer to.
func files(t *testing.T, pid int) []string {
	t.Helper()
	entries, err := os.ReadDir(fmt.Sprintf("/proc/%d/fd", pid))
	if err != nil {
		t.Fatal(err)
	}
	var list []string
	for _, e := range entries {
		if target, err := os.Readlink(fmt.Sprintf("/proc/%d/fd/%s", pid, e.Name())); err == nil {
			list = append(list, e.Name()+" "+target)
		}
	}
	return list
}

// The caller's environment may hold secrets.
func TestEnvironment(t *testing.T) {
	t.Setenv("VMSAN_TEST_SECRET", "1234")
	for want, env := range map[string][]string{"": nil, "A=b\x00": {"A=b"}} {
		got := output(t, Spec{Path: "/bin/cat", Args: []string{"/proc/self/environ"}, Env: env})
		if got != want {
			t.Errorf("with %q: got %q; want %q", env, got, want)
		}
	}
}

// Set-user-id programs give nothing.
func TestNoNewPrivileges(t *testing.T) {
	testenv.RequireRoot(t)
	dir := t.TempDir()
	id := filepath.Join(dir, "id")
	program, err := os.ReadFile("/usr/bin/id")
	if err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(id, program, 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.Chmod(id, fs.ModeSetuid|0o755); err != nil {
		t.Fatal(err)
	}
	spec := jailed(t, "/setuid-id -u")
	spec.Root.Binds = append(spec.Root.Binds, Bind{Source: id, Target: "/setuid-id"})
	if got := output(t, spec); got != "1599999001\n" {
		t.Errorf("a set-user-id program runs as %q", got)
	}
}

func TestCgroupFromBirth(t *testing.T) {
	testenv.RequireRoot(t)
	group := makeGroup(t, "birth")
	spec := jailed(t, "exec sleep 600")
	spec.Cgroup = group
	p := start(t, spec)
	if got := groupsOf(t, p.PID()); !strings.Contains(got, "/"+group.Name()) {
		t.Errorf("the child is in\n%s", got)
	}
	if got := groupsOfThreads(t); strings.Contains(got, group.Name()) {
		t.Errorf("a thread of the caller stayed in the child's cgroup:\n%s", got)
	}
}

func makeGroup(t *testing.T, name string) *cgroup.Group {
	t.Helper()
	name = testenv.CgroupPrefix() + name
	group, err := cgroup.Create(name, cgroup.Limits{CPUs: 1, Memory: 64 << 20, PIDs: 32})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := cgroup.Remove(name); err != nil {
			t.Error(err)
		}
	})
	return group
}

func groupsOf(t *testing.T, pid int) string {
	t.Helper()
	text, err := os.ReadFile(fmt.Sprintf("/proc/%d/cgroup", pid))
	if err != nil {
		t.Fatal(err)
	}
	return string(text)
}

// groupsOfThreads is what all threads of this process are in.
func groupsOfThreads(t *testing.T) string {
	t.Helper()
	paths, err := filepath.Glob("/proc/self/task/*/cgroup")
	if err != nil {
		t.Fatal(err)
	}
	var all strings.Builder
	for _, path := range paths {
		text, err := os.ReadFile(path)
		if err == nil {
			all.Write(text)
		}
	}
	return all.String()
}

// Fifty children are started at once, each with walls of its own.
func TestManyAtOnce(t *testing.T) {
	testenv.RequireRoot(t)
	namespace, err := os.Readlink("/proc/self/ns/mnt")
	if err != nil {
		t.Fatal(err)
	}
	group := makeGroup(t, "many")
	var all sync.WaitGroup
	for i := range 50 {
		spec := jailed(t, fmt.Sprintf("exit %d", i))
		if i%2 == 0 {
			spec.Cgroup = group
		}
		all.Go(func() {
			p, err := Start(spec)
			if err != nil {
				t.Error(err)
				return
			}
			await(t, p)
			if got, want := p.Exit(), "exit status "+strconv.Itoa(i); got != want {
				t.Errorf("got %q, want %q", got, want)
			}
		})
	}
	all.Wait()
	if got := groupsOfThreads(t); strings.Contains(got, group.Name()) {
		t.Errorf("a thread stayed in the children's cgroup:\n%s", got)
	}
	awaitThreads(t, namespace)
}

// awaitThreads waits until no thread is in another mount namespace: those
// that started a child end with it, and are used for nothing else.
func awaitThreads(t *testing.T, namespace string) {
	t.Helper()
	for deadline := time.Now().Add(wait); ; time.Sleep(10 * time.Millisecond) {
		paths, err := filepath.Glob("/proc/self/task/*/ns/mnt")
		if err != nil {
			t.Fatal(err)
		}
		strays := slices.DeleteFunc(paths, func(path string) bool {
			ns, err := os.Readlink(path)
			return err != nil || ns == namespace
		})
		if len(strays) == 0 {
			return
		}
		if time.Now().After(deadline) {
			t.Fatalf("threads in other mount namespaces: %v", strays)
		}
	}
}

func TestParentDeath(t *testing.T) {
	testenv.RequireRoot(t)
	parent := exec.Command("/proc/self/exe")
	parent.Env = append(os.Environ(), parentVar+"="+t.TempDir())
	parent.Stderr = os.Stderr
	out, err := parent.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := parent.Start(); err != nil {
		t.Fatal(err)
	}
	line, err := bufio.NewReader(out).ReadString('\n')
	if err != nil {
		t.Fatal(err)
	}
	child, err := strconv.Atoi(strings.TrimSpace(line))
	if err != nil {
		t.Fatal(err)
	}
	fd, err := unix.PidfdOpen(child, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer unix.Close(fd)
	if err := parent.Process.Kill(); err != nil {
		t.Fatal(err)
	}
	parent.Wait()
	ready, err := unix.Poll([]unix.PollFd{{Fd: int32(fd), Events: unix.POLLIN}}, int(wait.Milliseconds()))
	if err != nil || ready != 1 {
		t.Fatalf("the child outlives its parent: %d, %v", ready, err)
	}
}

// beParent starts a child, prints its process id, and waits to be killed.
func beParent() {
	root := &Root{
		Mount: os.Getenv(parentVar), Binds: []Bind{{Source: "/usr", Target: "/usr"}},
		Links: map[string]string{"/lib": "usr/lib", "/lib64": "usr/lib64"},
	}
	p, err := Start(Spec{Path: "/usr/bin/sleep", Args: []string{"600"}, Root: root, User: &testUser, Namespaces: namespaces})
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
	fmt.Println(p.PID())
	<-p.Done()
	os.Exit(1)
}

func TestErrorsNameWhatAndWhy(t *testing.T) {
	testenv.RequireRoot(t)
	missing := jailed(t, "")
	missing.Root.Binds[0].Source = "/nowhere/file"
	unmounted := jailed(t, "")
	unmounted.Root.Mount = "/nowhere/root"
	program := jailed(t, "")
	program.Path = "/bin/nothing"
	for want, spec := range map[string]Spec{
		"start /bin/sh: bind /nowhere/file: ":          missing,
		"start /bin/sh: mount root on /nowhere/root: ": unmounted,
		"start /bin/nothing: ":                         program,
	} {
		p, err := Start(spec)
		if err == nil {
			p.Kill()
			t.Errorf("started, want an error like %q", want)
			continue
		}
		if !strings.HasPrefix(err.Error(), want) || !errors.Is(err, fs.ErrNotExist) {
			t.Errorf("got %q, want one that begins with %q", err, want)
		}
	}
}

// Without walls any user can start a child, which still cannot gain rights.
func TestWithoutRoot(t *testing.T) {
	p := start(t, Spec{Path: "/bin/sleep", Args: []string{"600"}})
	got := status(t, p.PID())
	if got["NoNewPrivs"] != "1" {
		t.Errorf("NoNewPrivs is %q", got["NoNewPrivs"])
	}
	if status(t, os.Getpid())["NoNewPrivs"] != "0" && os.Getenv("VMSAN_TEST_ROOT") != "" {
		t.Error("the caller's own rights were taken")
	}
}

func TestExit(t *testing.T) {
	for script, want := range map[string]string{"exit 3": "exit status 3", "kill -9 $$": "signal: killed"} {
		p := start(t, Spec{Path: "/bin/sh", Args: []string{"-c", script}})
		await(t, p)
		if got := p.Exit(); got != want {
			t.Errorf("%s: got %q, want %q", script, got, want)
		}
		if err := p.Kill(); err != nil {
			t.Errorf("kill what has ended: %v", err)
		}
	}
}
