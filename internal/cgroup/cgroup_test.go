package cgroup

import (
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"syscall"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/vmsan/vmsan/internal/testenv"
)

func TestMain(m *testing.M) { os.Exit(testenv.Main(m)) }

var limits = Limits{CPUs: 1.5, Memory: 96 << 20, PIDs: 40}

func create(t *testing.T, name string) *Group {
	t.Helper()
	name = testenv.CgroupPrefix() + name
	g, err := Create(name, limits)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := Remove(name); err != nil {
			t.Error(err)
		}
		if Exists(name) {
			t.Errorf("%s is still there", name)
		}
	})
	return g
}

func TestLimits(t *testing.T) {
	testenv.RequireRoot(t)
	g := create(t, "limits")
	if !Exists(g.Name()) {
		t.Errorf("%s does not exist", g.Name())
	}
	files := map[string]string{
		"cpu/%s/cpu.cfs_quota_us": "150000", "cpu/%s/cpu.cfs_period_us": "100000",
		"memory/%s/memory.limit_in_bytes": "100663296", "pids/%s/pids.max": "40",
	}
	if g.host.unified {
		files = map[string]string{"%s/cpu.max": "150000 100000", "%s/memory.max": "100663296", "%s/pids.max": "40"}
	}
	for file, want := range files {
		got, err := os.ReadFile(filepath.Join(g.host.root, fmt.Sprintf(file, g.Name())))
		if err != nil || strings.TrimSpace(string(got)) != want {
			t.Errorf("%s: got %q, %v; want %q", file, got, err, want)
		}
	}
}

// startIn starts a process that is born in g.
func startIn(t *testing.T, g *Group) *exec.Cmd {
	t.Helper()
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	before := ownGroups(t)
	entry, err := g.Enter()
	if err != nil {
		t.Fatal(err)
	}
	cmd := exec.Command("sleep", "600")
	if entry.Directory != nil {
		cmd.SysProcAttr = &syscall.SysProcAttr{UseCgroupFD: true, CgroupFD: int(entry.Directory.Fd())}
	}
	err = cmd.Start()
	if leaveErr := entry.Leave(); leaveErr != nil {
		t.Fatal(leaveErr)
	}
	if err != nil {
		t.Fatal(err)
	}
	if after := ownGroups(t); after != before {
		t.Errorf("the thread did not come home: it was in\n%sand is in\n%s", before, after)
	}
	t.Cleanup(func() {
		cmd.Process.Kill()
		cmd.Wait()
	})
	return cmd
}

func ownGroups(t *testing.T) string {
	t.Helper()
	text, err := os.ReadFile("/proc/thread-self/cgroup")
	if err != nil {
		t.Fatal(err)
	}
	return string(text)
}

func TestRemoveKillsMembers(t *testing.T) {
	testenv.RequireRoot(t)
	g := create(t, "members")
	child := startIn(t, g)
	groups, err := os.ReadFile(fmt.Sprintf("/proc/%d/cgroup", child.Process.Pid))
	if err != nil || !isMember(string(groups), g.Name()) {
		t.Fatalf("the child is in\n%s, %v", groups, err)
	}
	ended := make(chan error, 1)
	go func() { ended <- child.Wait() }()
	if err := Remove(g.Name()); err != nil {
		t.Fatal(err)
	}
	if err := <-ended; err == nil || err.Error() != "signal: killed" {
		t.Errorf("the member ended with %v", err)
	}
	if err := Remove(g.Name()); err != nil {
		t.Errorf("remove what is gone: %v", err)
	}
}

// A thread of the caller that is in the group keeps it from being removed,
// and costs nobody their life.
// TestFindAndRemoveEmpty: a group with a process in it is not empty.
func TestFindAndRemoveEmpty(t *testing.T) {
	testenv.RequireRoot(t)
	full, empty := create(t, "full"), create(t, "empty")
	cmd := startIn(t, full)
	names, err := List(testenv.CgroupPrefix())
	if want := []string{empty.Name(), full.Name()}; err != nil || !slices.Equal(names, want) {
		t.Errorf("got %v, %v; want %v", names, err, want)
	}
	if members, err := Members(full.Name()); err != nil || !slices.Equal(members, []int{cmd.Process.Pid}) {
		t.Errorf("members %v, %v; want %d", members, err, cmd.Process.Pid)
	}
	if members, err := Members(empty.Name()); err != nil || len(members) > 0 {
		t.Errorf("the empty group has the members %v, %v", members, err)
	}
	if err := RemoveEmpty(full.Name()); !errors.Is(err, unix.EBUSY) || !Exists(full.Name()) {
		t.Errorf("a group with a member: %v", err)
	}
	for range 2 {
		if err := RemoveEmpty(empty.Name()); err != nil || Exists(empty.Name()) {
			t.Errorf("an empty group: %v", err)
		}
	}
	if members, err := Members(empty.Name()); err != nil || len(members) > 0 {
		t.Errorf("a group that is gone has the members %v, %v", members, err)
	}
	if err := errors.Join(cmd.Process.Kill(), Remove(full.Name())); err != nil {
		t.Error(err)
	}
	cmd.Wait() // it was killed
}

func TestMissing(t *testing.T) {
	testenv.RequireRoot(t)
	if names, err := Missing(); err != nil || len(names) > 0 {
		t.Errorf("got %v, %v", names, err)
	}
	root := t.TempDir()
	if err := os.WriteFile(filepath.Join(root, "cgroup.controllers"), []byte("cpuset cpu io\n"), 0o644); err != nil {
		t.Fatal(err)
	}
	if names, err := (host{root, true}).missing(); err != nil || !slices.Equal(names, []string{"memory", "pids"}) {
		t.Errorf("got %v, %v", names, err)
	}
}

func TestRemoveSparesCaller(t *testing.T) {
	testenv.RequireRoot(t)
	g := create(t, "caller")
	if g.host.unified {
		t.Skip("threads enter groups on v1 alone")
	}
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	entry, err := g.Enter()
	if err != nil {
		t.Fatal(err)
	}
	if err := Remove(g.Name()); err == nil {
		t.Error("a group with the caller in it was removed")
	}
	if err := entry.Leave(); err != nil {
		t.Fatal(err)
	}
}

// A process whose number was once in the list is let be.
func TestKillMemberSparesStrangers(t *testing.T) {
	testenv.RequireRoot(t)
	g := create(t, "strangers")
	stranger := exec.Command("sleep", "600")
	if err := stranger.Start(); err != nil {
		t.Fatal(err)
	}
	defer func() {
		stranger.Process.Kill()
		stranger.Wait()
	}()
	if err := killMember(g.host.directories(g.Name())[0], stranger.Process.Pid); err != nil {
		t.Fatal(err)
	}
	if err := stranger.Process.Signal(syscall.Signal(0)); err != nil {
		t.Errorf("the stranger is gone: %v", err)
	}
}

func TestNames(t *testing.T) {
	for _, name := range []string{"", ".", "..", "/", "a/b", "../a", "a\n", "-a", "a b", "a.b"} {
		if err := Remove(name); err == nil {
			t.Errorf("Remove(%q) succeeded", name)
		}
		if _, err := Create(name, limits); err == nil {
			t.Errorf("Create(%q) succeeded", name)
		}
		if Exists(name) {
			t.Errorf("Exists(%q)", name)
		}
	}
}

func TestIsMember(t *testing.T) {
	for groups, want := range map[string]bool{
		"0::/vmsan-a\n":                     true,
		"4:memory:/vmsan-a\n3:cpu:/\n":      true,
		"0::/sub/vmsan-a\n":                 true,
		"0::/vmsan-a-gate\n0::/x-vmsan-a\n": false,
		"0::/vmsan-a/below\n":               false,
		"":                                  false,
	} {
		if got := isMember(groups, "vmsan-a"); got != want {
			t.Errorf("isMember(%q) is %t", groups, got)
		}
	}
}

// v2 is the host's cgroup v2, which hybrid hosts have too, mostly without
// controllers.
func v2(t *testing.T) host {
	t.Helper()
	testenv.RequireRoot(t)
	for _, root := range []string{"/sys/fs/cgroup", "/sys/fs/cgroup/unified"} {
		if _, err := os.Stat(filepath.Join(root, "cgroup.controllers")); err == nil {
			return host{root: root, unified: true}
		}
	}
	t.Skip("no cgroup v2 is mounted")
	return host{}
}

func TestUnifiedBirthAndRemoval(t *testing.T) {
	h := v2(t)
	name := testenv.CgroupPrefix() + "unified"
	if err := os.Mkdir(filepath.Join(h.root, name), 0o755); err != nil {
		t.Fatal(err)
	}
	child := startIn(t, &Group{name: name, host: h})
	groups, err := os.ReadFile(fmt.Sprintf("/proc/%d/cgroup", child.Process.Pid))
	if err != nil || !strings.Contains(string(groups), "0::/"+name+"\n") {
		t.Errorf("the child is in\n%s, %v", groups, err)
	}
	ended := make(chan error, 1)
	go func() { ended <- child.Wait() }()
	if err := h.remove(name); err != nil {
		t.Fatal(err)
	}
	if err := <-ended; err == nil || err.Error() != "signal: killed" {
		t.Errorf("the member ended with %v", err)
	}
}

func TestUnifiedWithoutControllers(t *testing.T) {
	h := host{root: t.TempDir(), unified: true}
	for list, want := range map[string]string{
		"memory pids\n": `the host has no cgroup controller "cpu"`,
		"":              `the host has no cgroup controller "cpu"`,
		"cpuset cpu\n":  `the host has no cgroup controller "memory"`,
	} {
		if err := os.WriteFile(filepath.Join(h.root, "cgroup.controllers"), []byte(list), 0o600); err != nil {
			t.Fatal(err)
		}
		_, err := h.create("vmsan-a", limits)
		if err == nil || err.Error() != "create cgroup vmsan-a: "+want {
			t.Errorf("with %q: got %v, want %s", list, err, want)
		}
	}
}

func TestUnifiedResources(t *testing.T) {
	r := limits.resources()
	if *r.CPU.Quota != 150_000 || *r.CPU.Period != 100_000 || *r.Memory.Limit != 96<<20 || *r.Pids.Limit != 40 {
		t.Errorf("got %+v", r)
	}
}

// Leaving works after the thread's root has changed, as it has when a jail
// was made on it.
func TestLeaveFromJail(t *testing.T) {
	testenv.RequireRoot(t)
	g := create(t, "leave")
	dir := t.TempDir()
	home := ownGroups(t)
	result := make(chan error)
	after := make(chan string)
	go func() {
		runtime.LockOSThread() // and never unlock: the thread has another root
		entry, err := g.Enter()
		if err == nil {
			err = unix.Unshare(unix.CLONE_FS)
		}
		proc, openErr := os.Open("/proc/thread-self/cgroup")
		if err == nil && openErr == nil {
			defer proc.Close()
			err = unix.Chroot(dir)
		}
		if err == nil {
			err = entry.Leave()
		}
		result <- err
		text := make([]byte, 4096)
		n, _ := proc.Read(text)
		after <- string(text[:n])
	}()
	if err := <-result; err != nil {
		t.Fatal(err)
	}
	if got := <-after; got != home {
		t.Errorf("the thread is in\n%s, want\n%s", got, home)
	}
}
