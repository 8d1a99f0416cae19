package monitor_test

import (
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/vmsan/vmsan/api"
	"github.com/vmsan/vmsan/internal/setup"
	"github.com/vmsan/vmsan/internal/store"
	"github.com/vmsan/vmsan/internal/testenv"
)

// patience bounds what should happen at once, on a busy host.
const patience = time.Minute

// process is a process that a test looks at, whatever becomes of its number.
type process struct{ fd int }

func hold(t *testing.T, pid int) process {
	t.Helper()
	fd, err := unix.PidfdOpen(pid, 0)
	if err != nil {
		t.Fatalf("process %d: %v", pid, err)
	}
	t.Cleanup(func() { unix.Close(fd) })
	return process{fd}
}

func (p process) signal(t *testing.T, s unix.Signal) {
	t.Helper()
	if err := unix.PidfdSendSignal(p.fd, s, nil, 0); err != nil {
		t.Fatal(err)
	}
}

// awaitEnd fails t if p does not end.
func (p process) awaitEnd(t *testing.T, name string) {
	t.Helper()
	n, err := unix.Poll([]unix.PollFd{{Fd: int32(p.fd), Events: unix.POLLIN}}, int(patience.Milliseconds()))
	if err != nil || n != 1 {
		t.Fatalf("%s lives on: %d, %v", name, n, err)
	}
}

func (p process) lives() bool {
	n, _ := unix.Poll([]unix.PollFd{{Fd: int32(p.fd), Events: unix.POLLIN}}, 0)
	return n == 0
}

// eventually waits until holds does.
func eventually(t *testing.T, what string, holds func() bool) {
	t.Helper()
	for deadline := time.Now().Add(patience); !holds(); time.Sleep(20 * time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatalf("it never came about: %s", what)
		}
	}
}

// checkNothingLeft wants a sandbox that ended to have nothing on the host but
// its files.
func checkNothingLeft(t *testing.T, vmsan testenv.Vmsan, id string) {
	t.Helper()
	for _, pattern := range []string{
		"/sys/fs/cgroup/*/vmsan-" + id + "*", "/sys/fs/cgroup/vmsan-" + id + "*", vmsan.Layout.SandboxRun(id),
	} {
		if found, err := filepath.Glob(pattern); err != nil || len(found) > 0 {
			t.Errorf("left behind: %v, %v", found, err)
		}
	}
}

// A gate that dies takes the streams through it along, and nothing else.
func TestGateDeath(t *testing.T) {
	vmsan := testenv.RequireVmsan(t)
	id := vmsan.Create(t)
	vm := vmsan.Inspect(t, id)
	vmm, monitor, gate := hold(t, vm.PIDs.VMM), hold(t, vm.PIDs.Monitor), hold(t, vm.PIDs.Gate)

	vmsan.Exec(t, id, "sh", "-c", "echo before > /dev/console; echo kept > /root/file")
	broken := make(chan api.Error, 1)
	go func() { broken <- vmsan.Fail(t, "exec", "--no-stdin", id, "sh", "-c", "touch /root/began; sleep 600") }()
	vmsan.Exec(t, id, "sh", "-c", "until [ -e /root/began ]; do sleep 0.01; done")
	gate.signal(t, unix.SIGKILL)

	if failure := <-broken; failure.Code != api.ErrGuestLink || failure.Hint == "" {
		t.Errorf("the stream ended with %+v", failure)
	}
	if got := vmsan.Exec(t, id, "cat", "/root/file"); got != "kept" {
		t.Errorf("after the gate's death the guest says %q", got)
	}
	vmsan.Exec(t, id, "sh", "-c", "echo after > /dev/console")
	eventually(t, "the console log goes on", func() bool {
		console := vmsan.Run(t, "logs", id)
		return strings.Contains(console, "before") && strings.Contains(console, "after")
	})
	if !vmm.lives() || !monitor.lives() {
		t.Error("the VMM or the monitor died with the gate")
	}
	now := vmsan.Inspect(t, id)
	if now.Status != api.StatusRunning || now.PIDs.Gate == vm.PIDs.Gate {
		t.Errorf("the sandbox is %s, with gate %d, before %d", now.Status, now.PIDs.Gate, vm.PIDs.Gate)
	}
	checkPrivileges(t, "the new gate", now.PIDs.Gate, "2")
	// In the moment after the death a stop is as orderly as ever.
	hold(t, now.PIDs.Gate).signal(t, unix.SIGKILL)
	vmsan.Run(t, "stop", id)
	if got := vmsan.Inspect(t, id); got.Status != api.StatusStopped || got.Reason != "stopped" {
		t.Errorf("the sandbox is %s: %s", got.Status, got.Reason)
	}
	checkNothingLeft(t, vmsan, id)
}

func TestVMMDeath(t *testing.T) {
	vmsan := testenv.RequireVmsan(t)
	id := vmsan.Create(t)
	vm := vmsan.Inspect(t, id)
	monitor, gate := hold(t, vm.PIDs.Monitor), hold(t, vm.PIDs.Gate)
	hold(t, vm.PIDs.VMM).signal(t, unix.SIGKILL)
	monitor.awaitEnd(t, "the monitor")
	gate.awaitEnd(t, "the gate")
	got := vmsan.Inspect(t, id)
	if got.Status != api.StatusStopped || got.Reason != "QEMU ended: signal: killed" || got.PIDs != nil {
		t.Errorf("the sandbox is %s (%s), with processes %v", got.Status, got.Reason, got.PIDs)
	}
	checkNothingLeft(t, vmsan, id)
	if failure := vmsan.Fail(t, "exec", "--no-stdin", id, "true"); failure.Code != api.ErrVMNotRunning {
		t.Errorf("exec fails with %+v", failure)
	}
}

// A monitor that is killed takes VMM and gate along; the next command repairs
// the rest.
func TestMonitorDeath(t *testing.T) {
	vmsan := testenv.RequireVmsan(t)
	id := vmsan.Create(t)
	vm := vmsan.Inspect(t, id)
	vmm, gate := hold(t, vm.PIDs.VMM), hold(t, vm.PIDs.Gate)
	monitor := hold(t, vm.PIDs.Monitor)
	monitor.signal(t, unix.SIGKILL)
	monitor.awaitEnd(t, "the monitor")
	vmm.awaitEnd(t, "the VMM")
	gate.awaitEnd(t, "the gate")
	if got := vmsan.Inspect(t, id); got.Status != api.StatusStopped || got.Reason != "its monitor died" {
		t.Errorf("the sandbox is %s (%s)", got.Status, got.Reason)
	}
	checkNothingLeft(t, vmsan, id)
	vmsan.Run(t, "start", id)
	vmsan.Exec(t, id, "true")
}

// A monitor that is killed while it brings a sandbox up leaves no more than
// one that was told to give up.
func TestMonitorDeathAtBoot(t *testing.T) {
	vmsan := testenv.RequireVmsan(t)
	for name, s := range map[string]unix.Signal{"killed": unix.SIGKILL, "told to stop": unix.SIGTERM} {
		failed := make(chan api.Error, 1)
		go func() { failed <- vmsan.Fail(t, "create", "--no-setup", "--cold") }()
		var id string
		eventually(t, "the VMM has started", func() bool {
			found, _ := filepath.Glob("/sys/fs/cgroup/*/vmsan-vm*-gate")
			if found == nil {
				found, _ = filepath.Glob("/sys/fs/cgroup/vmsan-vm*-gate")
			}
			for _, dir := range found {
				id = strings.TrimSuffix(strings.TrimPrefix(filepath.Base(dir), "vmsan-"), "-gate")
				if _, err := os.Stat(vmsan.Layout.Sandbox(id)); err == nil {
					return true
				}
			}
			return false
		})
		record, err := vmsan.Layout.Load(id)
		if err != nil {
			t.Fatal(err)
		}
		hold(t, record.Host.Monitor.PID).signal(t, s)
		failure := <-failed
		t.Logf("%s: %s", name, failure.Message)
		failure.VM = id
		checkFailedCreate(t, vmsan, failure, failure.Code, "monitor")
	}
}

// SIGTERM to the monitor is an orderly stop: the guest's disk is synced.
func TestMonitorTermination(t *testing.T) {
	vmsan := testenv.RequireVmsan(t)
	id := vmsan.Create(t)
	vmsan.Exec(t, id, "sh", "-c", "echo not synced > /root/file")
	monitor := hold(t, vmsan.Inspect(t, id).PIDs.Monitor)
	monitor.signal(t, unix.SIGTERM)
	monitor.awaitEnd(t, "the monitor")
	if got := vmsan.Inspect(t, id); got.Status != api.StatusStopped || got.Reason != "stopped with the host" {
		t.Errorf("the sandbox is %s (%s)", got.Status, got.Reason)
	}
	checkNothingLeft(t, vmsan, id)
	vmsan.Run(t, "start", id)
	if got := vmsan.Exec(t, id, "cat", "/root/file"); got != "not synced" {
		t.Errorf("the file holds %q", got)
	}
}

// A guest can print what it likes: the log holds the last of it.
func TestConsoleIsBounded(t *testing.T) {
	vmsan := testenv.RequireVmsan(t)
	id := vmsan.Create(t)
	vmsan.Exec(t, id, "sh", "-c", "head -c 1150000 /dev/zero | tr '\\0' x | fold -w 1000 > /dev/console; echo the end > /dev/console")
	eventually(t, "the end is in the log", func() bool {
		return strings.Contains(vmsan.Run(t, "logs", id), "the end")
	})
	info, err := os.Stat(vmsan.Layout.Console(id))
	if err != nil || info.Size() > 1<<20 {
		t.Errorf("the log has %d bytes, %v", info.Size(), err)
	}
	vm := vmsan.Inspect(t, id)
	for name, pid := range map[string]int{"monitor": vm.PIDs.Monitor, "gate": vm.PIDs.Gate} {
		if resident := status(t, pid)["VmHWM"]; len(resident) > len("99999 kB") {
			t.Errorf("the %s took %s", name, resident)
		}
	}
}

// breakKernel puts other files in the place of the kernel's.
func breakKernel(t *testing.T, layout store.Layout, files map[string]string) {
	t.Helper()
	record, err := setup.Load(layout)
	if err != nil {
		t.Fatal(err)
	}
	for name, content := range files {
		path := filepath.Join(layout.Kernel(record.Kernel), name)
		// The original is shared by hard link.
		if err := os.Remove(path); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(path, []byte(content), 0o444); err != nil {
			t.Fatal(err)
		}
	}
}

// checkFailedCreate wants a create that failed to have left nothing.
func checkFailedCreate(t *testing.T, vmsan testenv.Vmsan, failure api.Error, code api.Code, message string) {
	t.Helper()
	if failure.Code != code || !strings.Contains(failure.Message, message) {
		t.Errorf("got %s: %s\nwant %s: ...%s...", failure.Code, failure.Message, code, message)
	}
	if strings.Contains(failure.Message, "\n") {
		t.Errorf("the message has several lines: %q", failure.Message)
	}
	if got := vmsan.Run(t, "list", "--quiet"); got != "" {
		t.Errorf("list shows %q", got)
	}
	if failure.VM != "" {
		checkNothingLeft(t, vmsan, failure.VM)
	}
}

func TestGuestWithoutInitramfs(t *testing.T) {
	vmsan := testenv.RequireVmsan(t)
	breakKernel(t, vmsan.Layout, map[string]string{"initramfs": "this is no archive"})
	failure := vmsan.Fail(t, "create", "--no-setup", "--cold")
	checkFailedCreate(t, vmsan, failure, api.ErrVMBoot, "the guest ended before it said ready: the guest shut down or its kernel panicked")
	if !slices.ContainsFunc(failure.Console, func(line string) bool { return strings.Contains(line, "Kernel panic") }) {
		t.Errorf("the console does not tell of the panic: %q", failure.Console)
	}
}

func TestKernelThatIsNone(t *testing.T) {
	vmsan := testenv.RequireVmsan(t)
	breakKernel(t, vmsan.Layout, map[string]string{"vmlinux": strings.Repeat("no kernel ", 1000)})
	failure := vmsan.Fail(t, "create", "--no-setup", "--cold", "--boot-timeout", "10s")
	if failure.Code != api.ErrVMBoot && failure.Code != api.ErrTimeoutAgent {
		t.Errorf("got %+v", failure)
	}
	checkFailedCreate(t, vmsan, failure, failure.Code, "")
}

func TestGuestThatIsTooSlow(t *testing.T) {
	vmsan := testenv.RequireVmsan(t)
	// No second is enough for one that has to be emulated, and without a
	// kernel that says so it would wait for ever.
	failure := vmsan.Fail(t, "create", "--no-setup", "--cold", "--boot-timeout", "1s", "--memory", "1g", "--vcpus", "4")
	checkFailedCreate(t, vmsan, failure, api.ErrTimeoutAgent, "the guest did not say ready within 1s")
	if failure.Hint == "" {
		t.Error("there is no hint")
	}
}

// pathOnly runs the binary with programs of the test's own.
func pathOnly(t *testing.T, programs map[string]string) {
	t.Helper()
	dir := t.TempDir()
	for name, script := range programs {
		if err := os.WriteFile(filepath.Join(dir, name), []byte(script), 0o755); err != nil {
			t.Fatal(err)
		}
	}
	t.Setenv("PATH", dir)
}

func TestQEMUMissing(t *testing.T) {
	vmsan := testenv.RequireVmsan(t)
	pathOnly(t, nil)
	failure := vmsan.Fail(t, "create", "--no-setup", "--cold")
	checkFailedCreate(t, vmsan, failure, api.ErrSetupMissingBinary, "qemu-system-")
	if !strings.Contains(failure.Hint, "apt-get install") {
		t.Errorf("the hint is %q", failure.Hint)
	}
}

// A QEMU that dies at once is quoted. Its memory limit has it fail.
func TestQEMUDiesAtOnce(t *testing.T) {
	vmsan := testenv.RequireVmsan(t)
	failure := vmsan.Fail(t, "create", "--no-setup", "--cold", "--memory", "1048576", "--overcommit")
	checkFailedCreate(t, vmsan, failure, api.ErrVMBoot, "start VMM: QEMU ended: exit status 1: ")
}
