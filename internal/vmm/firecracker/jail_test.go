package firecracker

import (
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/vmsan/vmsan/internal/cgroup"
	"github.com/vmsan/vmsan/internal/testenv"
	"github.com/vmsan/vmsan/internal/vmm"
	"github.com/vmsan/vmsan/internal/vmm/firecracker/contract"
)

// The numbers are those of the faults of the system that vmsan replaces, in
// the order of their weight.

// onEach runs a test with the contract's programs, and with the real ones if
// they were asked for.
func onEach(t *testing.T, test func(t *testing.T, parts testenv.Machine)) {
	t.Helper()
	t.Run("contract", func(t *testing.T) { test(t, bench(t)) })
	t.Run("real", func(t *testing.T) {
		testenv.RequireFirecracker(t)
		test(t, testenv.RequireMachine(t))
	})
}

// bench is what the tests of the jail need.
func bench(t *testing.T) testenv.Machine {
	t.Helper()
	testenv.RequireRoot(t)
	parts := testenv.RequireMachine(t)
	contract.Install(t)
	return parts
}

func boot(t *testing.T, spec vmm.Spec) *virtualMachine {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	defer cancel()
	vm, err := Driver{}.Start(ctx, spec)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { vm.Stop(context.Background()) })
	return vm.(*virtualMachine)
}

// status is a line of the VMM's /proc/PID/status.
func status(t *testing.T, vm vmm.VM, name string) string {
	t.Helper()
	text, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", vm.PID()))
	if err != nil {
		t.Fatal(err)
	}
	for line := range strings.Lines(string(text)) {
		if value, ok := strings.CutPrefix(line, name+":"); ok {
			return strings.Join(strings.Fields(value), " ")
		}
	}
	t.Fatalf("there is no %s", name)
	return ""
}

// TestFinding1RemovingOneJailLeavesTheOthers ends one machine, and fails to
// start another, beside one that goes on.
func TestFinding1RemovingOneJailLeavesTheOthers(t *testing.T) {
	parts := bench(t)
	base := t.TempDir()
	spec := func(id string) vmm.Spec {
		s := machineSpec(t, parts)
		s.ID, s.Jail.Root = id, filepath.Join(base, id)
		if err := os.Mkdir(s.Jail.Root, 0o700); err != nil {
			t.Fatal(err)
		}
		return s
	}
	stays, goes := boot(t, spec("stays")), boot(t, spec("goes"))
	if err := goes.Stop(t.Context()); err != nil {
		t.Fatal(err)
	}
	bad := spec("fails")
	bad.Initramfs = parts.Kernel // no archive
	if _, err := (Driver{}).Start(t.Context(), bad); err == nil || !strings.Contains(err.Error(), "Boot source error") {
		t.Errorf("got %v, want the fault", err)
	}
	host, err := stays.Link().DialGuest(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	host.Close()
	if _, err := stays.open(diskDirectory+"overlay", unix.O_PATH); err == nil || !errors.Is(err, unix.EXDEV) {
		t.Errorf("the disk of the one that stays: %v; want a mount of its own", err)
	}
	if left, _ := filepath.Glob(base + "/*/*"); len(left) > 0 {
		t.Errorf("the host sees %v", left)
	}
}

// TestFinding5SeccompIsOn looks for the filter, which is off only if asked for.
func TestFinding5SeccompIsOn(t *testing.T) { onEach(t, seccompIsOn) }

func seccompIsOn(t *testing.T, parts testenv.Machine) {
	for no, want := range map[bool]string{false: "2", true: "0"} {
		spec := machineSpec(t, parts)
		spec.Jail.NoSeccomp = no
		if got := status(t, boot(t, spec), "Seccomp"); got != want {
			t.Errorf("with NoSeccomp %v the mode is %s, want %s", no, got, want)
		}
	}
}

// allowAll are filters that let each call pass but one which nobody makes.
const allowAll = `{"vmm": ONE, "api": ONE, "vcpu": ONE}`

const allowOne = `{"default_action": "allow", "filter_action": "trap", "filter": [{"syscall": "swapon"}]}`

// TestOwnFilters has a filter of the user's, and one that is none.
func TestOwnFilters(t *testing.T) {
	t.Run("contract", func(t *testing.T) {
		ownFilters(t, bench(t), []byte(contract.Filter))
	})
	t.Run("real", func(t *testing.T) {
		testenv.RequireFirecracker(t)
		path := filepath.Join(t.TempDir(), "filter.json")
		if err := os.WriteFile(path, []byte(strings.ReplaceAll(allowAll, "ONE", allowOne)), 0o600); err != nil {
			t.Fatal(err)
		}
		filter, err := (Driver{}).ReadFilter(t.Context(), path)
		if err != nil {
			t.Fatal(err)
		}
		ownFilters(t, testenv.RequireMachine(t), filter)
	})
}

func ownFilters(t *testing.T, parts testenv.Machine, filter []byte) {
	spec := machineSpec(t, parts)
	path := filepath.Join(t.TempDir(), "filter")
	for _, c := range []struct {
		filter []byte
		err    string
	}{{filter, ""}, {[]byte("\xff nonsense"), "ilter"}} {
		if err := os.WriteFile(path, c.filter, 0o600); err != nil {
			t.Fatal(err)
		}
		spec.Jail.Filter = open(t, path, os.O_RDONLY)
		vm, err := startWith(t, spec, configuration(spec))
		switch {
		case c.err != "":
			if err == nil || !strings.Contains(err.Error(), c.err) || !strings.Contains(err.Error(), "Firecracker ended") {
				t.Errorf("with %q got %v", c.filter, err)
			}
		case err != nil:
			t.Fatal(err)
		case !slices.ContainsFunc(threads(t, vm), func(s string) bool { return strings.Contains(s, "Seccomp:\t2\n") }):
			// The real one's other threads get theirs at the boot.
			t.Error("there is no filter")
		}
	}
}

// threads are the states of the VMM's threads.
func threads(t *testing.T, vm vmm.VM) (states []string) {
	t.Helper()
	paths, err := filepath.Glob(fmt.Sprintf("/proc/%d/task/*/status", vm.PID()))
	if err != nil {
		t.Fatal(err)
	}
	for _, path := range paths {
		text, _ := os.ReadFile(path)
		states = append(states, string(text))
	}
	return states
}

// startWith starts Firecracker and makes requests of it.
func startWith(t *testing.T, spec vmm.Spec, requests []request) (*virtualMachine, error) {
	t.Helper()
	o, closeFiles := testOrder(t, spec)
	defer closeFiles()
	vm, err := start(t.Context(), o, requests)
	if err == nil {
		vm.run(true)
		t.Cleanup(func() { vm.Stop(context.Background()) })
	}
	return vm, err
}

// TestNoPIDNamespace has Firecracker among the host's processes, and nowhere
// else.
func TestNoPIDNamespace(t *testing.T) { onEach(t, noPIDNamespace) }

func noPIDNamespace(t *testing.T, parts testenv.Machine) {
	spec := machineSpec(t, parts)
	spec.Jail.NoPIDNamespace = true
	vm, err := startWith(t, spec, nil)
	if err != nil {
		t.Fatal(err)
	}
	for _, name := range []string{"mnt", "pid", "net", "ipc", "uts"} {
		theirs, err1 := os.Readlink(fmt.Sprintf("/proc/%d/ns/%s", vm.PID(), name))
		ours, err2 := os.Readlink("/proc/self/ns/" + name)
		if err1 != nil || err2 != nil || (theirs == ours) != (name == "pid") {
			t.Errorf("the %s namespace is %s, ours %s", name, theirs, ours)
		}
	}
}

// TestFinding6NotRootAndNoSharedFile looks at users, rights, namespaces, limits
// and links, and that what many sandboxes have is as it was. (The contract's
// Firecracker refuses a kernel, image or saved memory that it could write.)
func TestFinding6NotRootAndNoSharedFile(t *testing.T) { onEach(t, notRootAndNoSharedFile) }

func notRootAndNoSharedFile(t *testing.T, parts testenv.Machine) {
	before := digest(t, parts.Kernel)
	group, err := cgroup.Create(testenv.CgroupPrefix()+"fc", cgroup.Limits{CPUs: 1, Memory: 512 << 20, PIDs: 128})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { cgroup.Remove(group.Name()) })
	spec := machineSpec(t, parts)
	spec.Jail.Cgroup = group
	vm := boot(t, spec)
	t.Cleanup(func() { vm.Stop(context.Background()) })
	for name, want := range map[string]string{
		"Uid": words4(testUser.UID), "Gid": words4(testUser.GID), "Groups": "",
		"CapEff": "0000000000000000", "CapPrm": "0000000000000000", "NoNewPrivs": "1",
	} {
		if got := status(t, vm, name); got != want {
			t.Errorf("%s is %s, want %s", name, got, want)
		}
	}
	for _, name := range []string{"mnt", "pid", "net", "ipc", "uts"} {
		theirs, err1 := os.Readlink(fmt.Sprintf("/proc/%d/ns/%s", vm.PID(), name))
		ours, err2 := os.Readlink("/proc/self/ns/" + name)
		if err1 != nil || err2 != nil || theirs == ours {
			t.Errorf("the %s namespace is %s, ours %s", name, theirs, ours)
		}
	}
	text, err := os.ReadFile(fmt.Sprintf("/proc/%d/cgroup", vm.PID()))
	if err != nil || !strings.Contains(string(text), "/"+group.Name()+"\n") {
		t.Errorf("it is in %s, %v", text, err)
	}
	checkLimits(t, vm)
	checkJail(t, vm)
	if digest(t, parts.Kernel) != before {
		t.Error("the kernel has changed")
	}
	info, err := os.Stat(parts.Kernel)
	if err != nil || info.Mode().Perm()&0o222 != 0 || info.Sys().(*syscall.Stat_t).Uid != 0 {
		t.Errorf("the kernel is %v, %v", info.Mode(), err)
	}
}

func words4(id uint32) string { return strings.TrimSpace(strings.Repeat(fmt.Sprint(id)+" ", 4)) }

func digest(t *testing.T, path string) [sha256.Size]byte {
	t.Helper()
	f, err := os.Open(path)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	sum := sha256.New()
	if _, err := io.Copy(sum, f); err != nil {
		t.Fatal(err)
	}
	return [sha256.Size]byte(sum.Sum(nil))
}

func checkLimits(t *testing.T, vm vmm.VM) {
	t.Helper()
	text, err := os.ReadFile(fmt.Sprintf("/proc/%d/limits", vm.PID()))
	if err != nil {
		t.Fatal(err)
	}
	for name, want := range map[string]int{"Max open files": maxFiles, "Max file size": 256<<20 + slack} {
		_, rest, _ := strings.Cut(string(text), name)
		if fields := strings.Fields(rest); len(fields) < 2 || fields[1] != fmt.Sprint(want) {
			t.Errorf("%s: got %.40q, want %d", name, rest, want)
		}
	}
}

// checkJail lists all that is in the jail, and whose it is.
func checkJail(t *testing.T, vm *virtualMachine) {
	t.Helper()
	want := []string{
		"api.sock", "boot", "boot/initramfs", "boot/vmlinux", "dev", "dev/kvm", "dev/net", "dev/net/tun", "dev/urandom",
		"disks", "disks/image", "disks/overlay", "firecracker", "firecracker.pid", "log", "metrics", "run", "v.sock",
	}
	root := fmt.Sprintf("/proc/%d/root/", vm.PID())
	var got []string
	err := filepath.WalkDir(root, func(path string, d os.DirEntry, err error) error {
		name := strings.TrimPrefix(path, root)
		// What stands in for the inside of the guest is no part of a jail,
		// and not each kernel has that device.
		switch name {
		case "guest", "dev/shm", "proc":
			return filepath.SkipDir
		case "", "requests", "dev/userfaultfd":
			return err
		}
		if err != nil {
			return err
		}
		got = append(got, name)
		var stat unix.Stat_t
		if err := unix.Lstat(path, &stat); err != nil {
			return err
		}
		shared := slices.Contains([]string{"boot", "boot/initramfs", "boot/vmlinux", "disks", "disks/image", "firecracker.pid"}, name)
		if owned := stat.Uid == testUser.UID && stat.Gid == testUser.GID; owned == shared {
			t.Errorf("%s belongs to %d:%d", name, stat.Uid, stat.Gid)
		}
		return nil
	})
	slices.Sort(got)
	if err != nil || !slices.Equal(got, want) {
		t.Errorf("the jail has %q, %v\nwant %q", got, err, want)
	}
}

// TestLinksInTheJailLeadNowhere is a Firecracker that was taken over and puts a
// link to somebody else's socket in the place of its own.
func TestLinksInTheJailLeadNowhere(t *testing.T) { onEach(t, linksLeadNowhere) }

func linksLeadNowhere(t *testing.T, parts testenv.Machine) {
	vm := boot(t, machineSpec(t, parts))
	root := fmt.Sprintf("/proc/%d/root", vm.PID())
	outside := filepath.Join(t.TempDir(), "control.sock")
	if err := os.Remove(root + jailAPI); err != nil {
		t.Fatal(err)
	}
	if err := os.Symlink(outside, root+jailAPI); err != nil {
		t.Fatal(err)
	}
	if conn, err := vm.connect(t.Context(), jailAPI); !errors.Is(err, unix.ELOOP) {
		t.Errorf("got %v, %v", conn, err)
	}
}

// TestLongPaths has a jail at a path that is longer than a socket's can be.
func TestLongPaths(t *testing.T) {
	spec := machineSpec(t, bench(t))
	spec.Jail.Root = filepath.Join(spec.Jail.Root, strings.Repeat("long/", 40))
	if err := os.MkdirAll(spec.Jail.Root, 0o700); err != nil {
		t.Fatal(err)
	}
	host, err := boot(t, spec).Link().DialGuest(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	host.Close()
}

// TestRestrictedFilesystem has a jail on a file system without devices and
// programs: it brings one of its own.
func TestRestrictedFilesystem(t *testing.T) { onEach(t, restrictedFilesystem) }

func restrictedFilesystem(t *testing.T, parts testenv.Machine) {
	base := t.TempDir()
	if err := unix.Mount("tmpfs", base, "tmpfs", unix.MS_NODEV|unix.MS_NOEXEC|unix.MS_NOSUID, ""); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := unix.Unmount(base, 0); err != nil {
			t.Error(err)
		}
	})
	spec := machineSpec(t, parts)
	spec.Jail.Root = filepath.Join(base, "root")
	if err := os.Mkdir(spec.Jail.Root, 0o700); err != nil {
		t.Fatal(err)
	}
	if _, err := startWith(t, spec, append(configuration(spec), instanceStart())); err != nil {
		t.Fatal(err)
	}
}

// TestDiesAtEachStep ends Firecracker in place of each request.
func TestDiesAtEachStep(t *testing.T) {
	parts := bench(t)
	steps := configuration(machineSpec(t, parts))
	for i := range steps {
		o, closeFiles := testOrder(t, machineSpec(t, parts))
		requests := append(slices.Clone(steps[:i]), request{"PUT", contract.Death, struct{}{}})
		vm, err := start(t.Context(), o, requests)
		closeFiles()
		if err == nil {
			vm.run(true)
			vm.Stop(t.Context())
			t.Fatalf("it survived step %d", i)
		}
		if !strings.Contains(err.Error(), "Firecracker ended: exit status 148") {
			t.Errorf("step %d: got %v", i, err)
		}
	}
}

// testOrder is what Start makes of a spec.
func testOrder(t *testing.T, spec vmm.Spec) (*order, func()) {
	t.Helper()
	o, err := Driver{}.newOrder(spec)
	if err != nil {
		t.Fatal(err)
	}
	kernel, initramfs := open(t, spec.Kernel, os.O_RDONLY), open(t, spec.Initramfs, os.O_RDONLY)
	o.add(kernel, jailKernel, false)
	o.add(initramfs, jailInitramfs, false)
	return o, func() { kernel.Close(); initramfs.Close() }
}

// TestFaults are requests that come too late or make no sense, with what
// Firecracker says to them.
func TestFaults(t *testing.T) { onEach(t, faults) }

func faults(t *testing.T, parts testenv.Machine) {
	vm := boot(t, machineSpec(t, parts))
	for _, c := range []struct {
		request request
		want    string
	}{
		{configuration(testSpec())[0], "not supported after starting the microVM"},
		{instanceStart(), "not supported after starting the microVM"},
		{saving(), "save/restore unavailable while running"},
		{state("Asleep"), "unknown variant `Asleep`"},
		{request{"PUT", "/drives/a-b", drive{ID: "a-b"}}, "alphanumeric characters and underscores"},
		{request{"PUT", "/vsock", map[string]any{"guest_cid": 3, "uds_path": "/x", "more": 1}}, "unknown field `more`"},
		{request{"PUT", "/nothing", struct{}{}}, "Invalid request method and/or path"},
	} {
		err := vm.api.each(t.Context(), []request{c.request})
		var fault *FaultError
		if !errors.As(err, &fault) || fault.Status != 400 || !strings.Contains(fault.Message, c.want) {
			t.Errorf("%s %s: got %v, want %q", c.request.method, c.request.path, err, c.want)
		}
	}
}

// TestNoAnswer is a Firecracker that stands still: calls end with their context.
func TestNoAnswer(t *testing.T) { onEach(t, noAnswer) }

func noAnswer(t *testing.T, parts testenv.Machine) {
	vm := boot(t, machineSpec(t, parts))
	if err := unix.Kill(vm.PID(), unix.SIGSTOP); err != nil {
		t.Fatal(err)
	}
	gaveUp := errors.New("gave up")
	ctx, cancel := context.WithTimeoutCause(t.Context(), 50*time.Millisecond, gaveUp)
	defer cancel()
	if err := vm.Pause(ctx); !errors.Is(err, gaveUp) {
		t.Errorf("got %v", err)
	}
}
