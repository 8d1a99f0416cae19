package qemu

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"golang.org/x/sys/unix"

	"github.com/vmsan/vmsan/internal/guest"
	"github.com/vmsan/vmsan/internal/jail"
	"github.com/vmsan/vmsan/internal/testenv"
	"github.com/vmsan/vmsan/internal/vmm"
)

// limit bounds each test of a machine.
const limit = 2 * time.Minute

// machineSpec is a machine with everything a sandbox can have.
func machineSpec(t *testing.T) vmm.Spec {
	t.Helper()
	parts := testenv.RequireMachine(t)
	tap, err := deadTap()
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { tap.Close() })
	return vmm.Spec{
		ID: "vmtest", VCPUs: 2, MemoryMiB: 160, Accelerator: vmm.TCG,
		Kernel: parts.Kernel, Initramfs: parts.Initramfs,
		Disks: []vmm.Disk{
			{Name: "image", File: open(t, parts.Image, os.O_RDONLY), ReadOnly: true},
			{Name: "overlay", File: open(t, parts.Overlay(t), os.O_RDWR)},
		},
		NIC:  &vmm.NIC{Tap: tap, MAC: net.HardwareAddr{2, 0, 0, 0, 0, 1}},
		Jail: vmm.Jail{User: &jail.User{UID: 65534, GID: 65534}, Root: t.TempDir()},
		Log:  create(t, filepath.Join(t.TempDir(), "log")),
	}
}

// running is a machine with a client of its agent.
type running struct {
	vmm.VM
	*guest.Client
}

func (r running) sh(t *testing.T, ctx context.Context, script string) string {
	t.Helper()
	var out strings.Builder
	exit, err := r.Run(ctx, guest.Command{Args: []string{"/bin/sh", "-c", script}, Stdout: &out})
	if err != nil || exit.Code != 0 {
		t.Fatalf("%s: %+v, %v", script, exit, err)
	}
	return strings.TrimSpace(out.String())
}

// attend drains the console, dials the guest, and ends the machine with t.
func attend(t *testing.T, ctx context.Context, vm vmm.VM) running {
	t.Helper()
	t.Cleanup(func() { vm.Stop(ctx) })
	console, err := net.FileConn(vm.Link().Console)
	if err != nil {
		t.Fatal(err)
	}
	go io.Copy(io.Discard, console)
	t.Cleanup(func() { console.Close() })
	host, err := vm.Link().DialGuest(ctx)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { host.Close() })
	client := guest.New(host.Dial)
	t.Cleanup(client.Close)
	return running{vm, client}
}

func testContext(t *testing.T) context.Context {
	t.Helper()
	testenv.RequireRoot(t)
	ctx, cancel := context.WithTimeout(context.Background(), limit)
	t.Cleanup(cancel)
	return ctx
}

func boot(t *testing.T, ctx context.Context, spec vmm.Spec) running {
	t.Helper()
	vm, err := Driver{}.Start(ctx, spec)
	if err != nil {
		t.Fatal(err)
	}
	return attend(t, ctx, vm)
}

// files are empty files that nobody but root may open.
func files(t *testing.T) vmm.Saved {
	t.Helper()
	dir := t.TempDir()
	return vmm.Saved{
		Memory: open(t, filepath.Join(dir, "memory"), os.O_RDWR|os.O_CREATE|os.O_EXCL),
		State:  open(t, filepath.Join(dir, "state"), os.O_RDWR|os.O_CREATE|os.O_EXCL),
	}
}

// rest pauses, saves and seals a machine.
func rest(t *testing.T, ctx context.Context, vm vmm.VM, spec vmm.Spec) vmm.Saved {
	t.Helper()
	stream, sealed := files(t), files(t)
	if err := vm.Pause(ctx); err != nil {
		t.Fatal(err)
	}
	if err := vm.Save(ctx, stream); err != nil {
		t.Fatal(err)
	}
	spec.Jail.Root, spec.Disks = t.TempDir(), slicesOfNames(spec.Disks)
	if err := (Driver{}).Seal(ctx, spec, stream, sealed); err != nil {
		t.Fatal(err)
	}
	return sealed
}

func slicesOfNames(disks []vmm.Disk) (names []vmm.Disk) {
	for _, d := range disks {
		names = append(names, vmm.Disk{Name: d.Name, ReadOnly: d.ReadOnly})
	}
	return names
}

func wake(t *testing.T, ctx context.Context, spec vmm.Spec, from vmm.Saved) running {
	t.Helper()
	spec.Jail.Root = t.TempDir()
	vm, err := Driver{}.Restore(ctx, spec, from)
	if err != nil {
		t.Fatal(err)
	}
	if err := vm.Resume(ctx); err != nil {
		t.Fatal(err)
	}
	return attend(t, ctx, vm)
}

// The processes of a machine with network and two CPUs go on: one that counts
// in its memory, with a file open, and one that sleeps.
func TestRestoredProcesses(t *testing.T) {
	ctx := testContext(t)
	spec := machineSpec(t)
	source := boot(t, ctx, spec)
	source.sh(t, ctx, `(exec 3>/run/count; n=0; while :; do n=$((n+1)); echo $n >&3; sleep 0.01; done) >/dev/null 2>&1 &`)
	source.sh(t, ctx, `sleep 1000 >/dev/null 2>&1 & echo $! >/run/sleeper; until [ -s /run/count ]; do sleep 0.01; done`)
	before := count(t, ctx, source)
	from := rest(t, ctx, source, spec)
	if err := source.Stop(ctx); err != nil {
		t.Fatal(err)
	}
	restored := wake(t, ctx, spec, from)
	first := count(t, ctx, restored)
	if first < before {
		t.Errorf("the counter went from %d back to %d", before, first)
	}
	restored.sh(t, ctx, fmt.Sprintf(`while [ $(tail -n 1 /run/count) -le %d ]; do sleep 0.01; done`, first))
	if got := restored.sh(t, ctx, `wc -l </run/count`); got == "0" {
		t.Error("the open file was lost")
	}
	restored.sh(t, ctx, `kill -0 $(cat /run/sleeper)`)
	if got := restored.sh(t, ctx, `cat /sys/class/net/e*/address; nproc`); got != "02:00:00:00:00:01\n2" {
		t.Errorf("got network device and CPUs %q", got)
	}
}

func count(t *testing.T, ctx context.Context, vm running) int {
	t.Helper()
	n, err := strconv.Atoi(vm.sh(t, ctx, "tail -n 1 /run/count"))
	if err != nil {
		t.Fatal(err)
	}
	return n
}

// A machine that is saved in the middle of writing goes on writing, to a copy
// of its disk, and so does the one that it was copied from: what is in memory
// and what is on the disk fit together on both sides.
func TestRestoredDisk(t *testing.T) {
	ctx := testContext(t)
	spec := machineSpec(t)
	source := boot(t, ctx, spec)
	source.sh(t, ctx, `cd /root && head -c 20M /dev/urandom >before && sha256sum before >sums`) // and not synced
	source.sh(t, ctx, `cd /root && (for n in 1 2 3 4 5 6; do head -c 4M /dev/urandom >f$n; sha256sum f$n >>sums; sync; done; touch done) >/dev/null 2>&1 &
		until [ -e f1 ]; do sleep 0.01; done`)
	from := rest(t, ctx, source, spec)
	copied := spec
	copied.Disks = slices.Clone(spec.Disks)
	overlay := filepath.Join(t.TempDir(), "overlay")
	if out, err := exec.Command("cp", "--sparse=always", spec.Disks[1].File.Name(), overlay).CombinedOutput(); err != nil {
		t.Fatalf("copy disk: %v: %s", err, out)
	}
	copied.Disks[1].File = open(t, overlay, os.O_RDWR)
	if err := source.Resume(ctx); err != nil {
		t.Fatal(err)
	}
	restored := wake(t, ctx, copied, from)
	for name, vm := range map[string]running{"the source": source, "the copy": restored} {
		got := vm.sh(t, ctx, `cd /root && until [ -e done ]; do sleep 0.05; done; echo 3 >/proc/sys/vm/drop_caches; sha256sum --quiet -c sums && wc -l <sums`)
		if got != "7" {
			t.Errorf("%s has %s intact files, want 7", name, got)
		}
	}
}

// The clock that a guest measures time with stands still while the guest is at
// rest, whatever the host's counters did meanwhile, and then goes on at the
// rate of the host's.
func TestRestoredClock(t *testing.T) {
	ctx := testContext(t)
	spec := machineSpec(t)
	source := boot(t, ctx, spec)
	before, begin := uptime(t, ctx, source), time.Now()
	from := rest(t, ctx, source, spec)
	awake := time.Since(begin)
	if err := source.Stop(ctx); err != nil {
		t.Fatal(err)
	}
	time.Sleep(3 * time.Second)
	begin = time.Now()
	restored := wake(t, ctx, spec, from)
	first := uptime(t, ctx, restored)
	if passed := first - before; passed < 0 || passed > awake+time.Since(begin) {
		t.Errorf("%s passed for a guest that ran for less than %s", passed, awake+time.Since(begin))
	}
	begin = time.Now()
	time.Sleep(2 * time.Second)
	last := uptime(t, ctx, restored)
	if passed, here := last-first, time.Since(begin); passed < 2*time.Second || passed > here+time.Second/2 {
		t.Errorf("%s passed in the guest, %s on the host", passed, here)
	}
}

// uptime reads CLOCK_BOOTTIME, which no clock set by anybody moves.
func uptime(t *testing.T, ctx context.Context, vm running) time.Duration {
	t.Helper()
	text, _, _ := strings.Cut(vm.sh(t, ctx, "cat /proc/uptime"), " ")
	seconds, err := strconv.ParseFloat(text, 64)
	if err != nil {
		t.Fatal(err)
	}
	return time.Duration(seconds * float64(time.Second))
}

// walls are what keeps a VMM in, as the kernel tells it.
func walls(t *testing.T, pid int) map[string]string {
	t.Helper()
	status, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", pid))
	if err != nil {
		t.Fatal(err)
	}
	found := map[string]string{}
	for line := range strings.Lines(string(status)) {
		name, value, _ := strings.Cut(strings.TrimSpace(line), ":")
		switch name {
		case "Uid", "Gid", "Groups", "NoNewPrivs", "Seccomp", "CapInh", "CapPrm", "CapEff", "CapBnd", "CapAmb":
			found[name] = value
		}
	}
	for _, name := range []string{"mnt", "net", "pid", "ipc", "uts"} {
		link, err := os.Readlink(fmt.Sprintf("/proc/%d/ns/%s", pid, name))
		if err != nil {
			t.Fatal(err)
		}
		own, err := os.Readlink("/proc/self/ns/" + name)
		if err != nil {
			t.Fatal(err)
		}
		found[name+" is the host's"] = fmt.Sprint(link == own)
	}
	return found
}

func TestRestoredIsShutIn(t *testing.T) {
	ctx := testContext(t)
	spec := machineSpec(t)
	source := boot(t, ctx, spec)
	want := walls(t, source.PID())
	from := rest(t, ctx, source, spec)
	if err := source.Stop(ctx); err != nil {
		t.Fatal(err)
	}
	restored := wake(t, ctx, spec, from)
	if diff := cmp.Diff(walls(t, restored.PID()), want); diff != "" {
		t.Errorf("got the walls with -, one that booted has those with +:\n%s", diff)
	}
	// It has the memory and the state open for reading at most.
	for _, file := range []*os.File{from.Memory, from.State} {
		modes := openModes(t, restored.PID(), file)
		if file == from.Memory && len(modes) == 0 {
			t.Error("the memory is not open")
		}
		for _, mode := range modes {
			if mode&unix.O_ACCMODE != unix.O_RDONLY {
				t.Errorf("%s is open with the flags %#o", filepath.Base(file.Name()), mode)
			}
		}
	}
}

// openModes are the flags with which a process has a file open.
func openModes(t *testing.T, pid int, file *os.File) (modes []int) {
	t.Helper()
	want, err := file.Stat()
	if err != nil {
		t.Fatal(err)
	}
	entries, err := os.ReadDir(fmt.Sprintf("/proc/%d/fd", pid))
	if err != nil {
		t.Fatal(err)
	}
	for _, e := range entries {
		info, err := os.Stat(fmt.Sprintf("/proc/%d/fd/%s", pid, e.Name()))
		if err != nil || !os.SameFile(info, want) {
			continue
		}
		text, err := os.ReadFile(fmt.Sprintf("/proc/%d/fdinfo/%s", pid, e.Name()))
		if err != nil {
			t.Fatal(err)
		}
		_, after, _ := strings.Cut(string(text), "flags:")
		mode, err := strconv.ParseInt(strings.Fields(after)[0], 8, 32)
		if err != nil {
			t.Fatal(err)
		}
		modes = append(modes, int(mode))
	}
	return modes
}

// onSmallDisk moves one of the files to a disk that is full soon.
func onSmallDisk(t *testing.T, file **os.File) {
	t.Helper()
	dir := t.TempDir()
	if err := unix.Mount("tmpfs", dir, "tmpfs", 0, "size=8m"); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := unix.Unmount(dir, unix.MNT_DETACH); err != nil {
			t.Error(err)
		}
	})
	*file = open(t, filepath.Join(dir, "file"), os.O_RDWR|os.O_CREATE)
}

// A QEMU that nobody can give orders to is of no use, and does not stay.
func TestDeafQEMU(t *testing.T) {
	t.Parallel()
	ctx := testContext(t)
	vm := boot(t, ctx, machineSpec(t))
	vm.VM.(*virtualMachine).monitor.conn.Close()
	select {
	case <-vm.Done():
	case <-ctx.Done():
		t.Fatal("it stays")
	}
	if exit := vm.Exit(); exit.Clean || !strings.Contains(exit.Reason, "did not take commands") {
		t.Errorf("it ended so: %+v", exit)
	}
}

func TestFullDisk(t *testing.T) {
	ctx := testContext(t)
	spec := machineSpec(t)
	vm := boot(t, ctx, spec)
	stream, small := files(t), files(t)
	onSmallDisk(t, &small.State)
	if err := vm.Pause(ctx); err != nil {
		t.Fatal(err)
	}
	if err := vm.Save(ctx, small); !errors.Is(err, unix.ENOSPC) {
		t.Errorf("save: got %v, want that the disk is full", err)
	}
	// The machine is none the worse for it.
	if err := vm.Resume(ctx); err != nil {
		t.Fatal(err)
	}
	vm.sh(t, ctx, "echo hello >/root/file && sync")
	if err := vm.Pause(ctx); err != nil {
		t.Fatal(err)
	}
	if err := vm.Save(ctx, stream); err != nil {
		t.Fatal(err)
	}
	sealed := files(t)
	onSmallDisk(t, &sealed.Memory)
	spec.Jail.Root = t.TempDir()
	if err := (Driver{}).Seal(ctx, spec, stream, sealed); !errors.Is(err, unix.ENOSPC) {
		t.Errorf("seal: got %v, want that the disk is full", err)
	}
}

// A machine is not put onto the state of one with other devices.
func TestRestoreOfAnotherMachine(t *testing.T) {
	ctx := testContext(t)
	spec := machineSpec(t)
	vm := boot(t, ctx, spec)
	from := rest(t, ctx, vm, spec)
	for name, change := range map[string]func(*vmm.Spec){
		"CPUs":           func(s *vmm.Spec) { s.VCPUs = 1 },
		"disks":          func(s *vmm.Spec) { s.Disks = s.Disks[:1] },
		"network device": func(s *vmm.Spec) { s.NIC = nil },
	} {
		other := spec
		other.Jail.Root = t.TempDir()
		change(&other)
		vm, err := Driver{}.Restore(ctx, other, from)
		if err == nil {
			vm.Stop(ctx)
			t.Errorf("a machine with other %s was restored", name)
			continue
		}
		t.Logf("other %s: %v", name, err)
		if ctx.Err() != nil {
			t.Fatal(err)
		}
	}
}
