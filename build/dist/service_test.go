package main

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"golang.org/x/sys/unix"

	"github.com/vmsan/vmsan/api"
	"github.com/vmsan/vmsan/internal/image"
	"github.com/vmsan/vmsan/internal/testenv"
)

// TestService installs the package in a Debian system that systemd runs, and
// has its sandboxes go through a shutdown, a power cut and the service's stop.
func TestService(t *testing.T) {
	testenv.RequireRoot(t)
	m := newMachine(t)
	m.boot()
	m.run("dpkg --force-depends -i /root/vmsan.deb")
	if got := m.run("systemctl is-active vmsan-restore"); got != "active" {
		t.Fatalf("the service is %s after the package was installed", got)
	}
	for name, flags := range map[string]string{"always": "--restart always", "ended": "--restart always", "once": ""} {
		// The controllers may all be with the host's hierarchies of version 1.
		m.run("vmsan create --no-setup --no-cgroup --network none --quiet --name " + name + " " + flags)
	}
	m.run("vmsan stop ended")
	m.run("vmsan exec --no-stdin always -- sh -c 'echo kept >/kept'") // nobody syncs it

	m.shutDown()
	m.boot()
	want := map[string]string{"always": "running", "ended": "stopped (stopped)", "once": "stopped (stopped with the host)"}
	if diff := cmp.Diff(want, m.status()); diff != "" {
		t.Errorf("after a shutdown (-want +got):\n%s", diff)
	}
	if got := m.run("vmsan exec --no-stdin always -- cat /kept"); got != "kept" {
		t.Errorf("a file is %q after a shutdown", got)
	}

	m.run("vmsan start once")
	m.run("vmsan exec --no-stdin always -- sh -c 'echo synced >/kept; sync'")
	m.cutPower()
	m.boot()
	want["once"] = "stopped (host restarted)"
	if diff := cmp.Diff(want, m.status()); diff != "" {
		t.Errorf("after a power cut (-want +got):\n%s", diff)
	}
	if got := m.run("vmsan exec --no-stdin always -- cat /kept"); got != "synced" {
		t.Errorf("a file that was synced is %q after a power cut", got)
	}

	m.run("systemctl stop vmsan-restore")
	want["always"] = "stopped (stopped with the host)"
	if diff := cmp.Diff(want, m.status()); diff != "" {
		t.Errorf("after the service was stopped (-want +got):\n%s", diff)
	}
	m.run("systemctl start vmsan-restore")
	if got := m.status()["always"]; got != "running" {
		t.Errorf("always is %s when the service was started again", got)
	}
	const processes = "pgrep --list-full --exact 'qemu-system.*|vmsan|exe'" // which a jailed vmsan is called
	if got := m.run(processes); strings.Count(got, "\n") < 2 {
		t.Errorf("of a sandbox there is only %s", got)
	}
	m.run("dpkg --force-depends -P vmsan")
	if left := m.run("ls -A /var/lib/vmsan; " + processes + " || true"); left != "" {
		t.Errorf("a purge leaves %s", left)
	}
	m.shutDown()
}

// machine is a system of its own in namespaces: processes, mounts, network,
// names and control groups.
type machine struct {
	t      *testing.T
	root   string
	cgroup string // its part of the hierarchy of version 2
	boots  int

	outer *exec.Cmd       // waits for init, and ends it when it ends
	init  int             // its pid among ours
	ended <-chan struct{} // closed when outer has ended
	said  bytes.Buffer
}

// newMachine is a system with systemd, a state directory that was set up and
// the package in /root.
func newMachine(t *testing.T) *machine {
	t.Helper()
	runtime.LockOSThread() // until the test ends: see boot
	layout := testenv.RequireVM(t)
	images := image.Store{Layout: layout}
	img, err := images.Resolve(testenv.SystemdImage)
	if err != nil {
		t.Fatal(err)
	}
	m := &machine{t: t, root: debian(t, images.RootfsPath(img.Digest)), cgroup: newCgroup(t)}
	// The host's programs below the image's: QEMU is among them.
	usr := filepath.Join(filepath.Dir(m.root), "usr")
	makeDirs(t, usr, "upper", "work")
	overlay(t, filepath.Dir(m.root)+"/image/usr:/usr", usr, m.root+"/usr")
	// Hosts that are containers forbid packages to start what they install.
	if err := os.RemoveAll(m.root + "/usr/sbin/policy-rc.d"); err != nil {
		t.Fatal(err)
	}
	makeDirs(t, m.root, "var/lib/vmsan")
	mount(t, "--bind", layout.Dir, m.root+"/var/lib/vmsan")
	copyInto(t, m.root+"/root/vmsan.deb", makePackage(t))
	t.Cleanup(func() {
		if m.outer != nil {
			m.cutPower()
		}
	})
	return m
}

// outside is the control group of those who come in from outside.
const outside = "outside"

// newCgroup makes a control group that a system may take for the root of all.
func newCgroup(t *testing.T) string {
	t.Helper()
	dir := "/sys/fs/cgroup"
	if _, err := os.Stat(dir + "/cgroup.procs"); err != nil {
		dir += "/unified"
	}
	dir = filepath.Join(dir, testenv.CgroupPrefix()+"machine")
	makeDirs(t, dir)
	t.Cleanup(func() {
		if out, err := exec.Command("find", dir, "-depth", "-type", "d", "-delete").CombinedOutput(); err != nil {
			t.Errorf("remove %s: %v: %s", dir, err, out)
		}
	})
	return dir
}

// bootScript makes the namespaces' file systems, and becomes init. The kernel
// is the same after a restart, which its boot id must not say.
const bootScript = `
mount --make-rprivate /
cd "$ROOT"
mount -t proc proc proc
mount -t sysfs -o ro sysfs sys
mount -t cgroup2 cgroup2 sys/fs/cgroup
mount -t tmpfs -o mode=755 tmpfs run
mount -t tmpfs -o mode=755 tmpfs dev
mkdir dev/pts dev/shm dev/net
mount -t devpts -o newinstance,ptmxmode=0666 devpts dev/pts
ln -s pts/ptmx dev/ptmx
ln -s /proc/self/fd dev/fd
for device in null zero full random urandom tty net/tun; do
	touch dev/$device
	mount --bind /dev/$device dev/$device
done
# There is one of these for all systems of the kernel.
for shared in sys sysrq-trigger; do
	[ -e proc/$shared ] || continue
	mount --bind proc/$shared proc/$shared
	mount -o remount,bind,ro proc/$shared
done
echo "$BOOT_ID" >run/boot_id
mount --bind run/boot_id proc/sys/kernel/random/boot_id
mkdir -p host
pivot_root . host
umount -l /host
exec setpriv --bounding-set=-sys_module,-sys_time env -i container=vmsan-test /sbin/init
`

func (m *machine) boot() {
	m.t.Helper()
	m.boots, m.init = m.boots+1, 0
	makeDirs(m.t, m.cgroup, outside) // systemd removes it at its end
	m.said.Reset()
	unshare := append([]string{"unshare", "--fork", "--kill-child"}, namespaces...)
	m.outer = inCgroup(context.WithoutCancel(m.t.Context()), m.cgroup, append(unshare, "/bin/sh", "-ec", bootScript)...)
	m.outer.Env = append(os.Environ(), "ROOT="+m.root, fmt.Sprintf("BOOT_ID=%08x-0000-4000-8000-000000000000", m.boots))
	m.outer.Stdout, m.outer.Stderr = &m.said, &m.said
	// It ends with the test's thread, and init with it, whatever ends the test.
	m.outer.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	if err := m.outer.Start(); err != nil {
		m.t.Fatal(err)
	}
	ended := make(chan struct{})
	m.ended = ended
	go func(outer *exec.Cmd) {
		outer.Wait() // with whatever init ends with
		close(ended)
	}(m.outer)
	m.init = m.awaitInit()
	for deadline := time.Now().Add(2 * time.Minute); ; time.Sleep(50 * time.Millisecond) {
		out, err := m.try("systemctl is-system-running --wait")
		// Degraded is one with a unit that failed, which this environment may
		// be the cause of. Ours is asked for.
		if state := strings.TrimSpace(out); state == "running" || state == "degraded" {
			return
		}
		if time.Now().After(deadline) {
			m.t.Fatalf("the system did not start: %v: %s", err, out)
		}
	}
}

// namespaces are those that a system has of its own, as flags.
var namespaces = []string{"--mount", "--pid", "--net", "--uts", "--ipc", "--cgroup"}

// inCgroup runs a program in a control group.
func inCgroup(ctx context.Context, cgroup string, args ...string) *exec.Cmd {
	return exec.CommandContext(ctx, "/bin/sh", append([]string{"-ec", `echo $$ >"$0"/cgroup.procs; exec "$@"`, cgroup}, args...)...)
}

// awaitInit waits until the process that unshare has forked is init, and
// returns its pid. What is done in the system before is done to the host.
func (m *machine) awaitInit() int {
	m.t.Helper()
	for deadline := time.Now().Add(10 * time.Second); time.Now().Before(deadline); time.Sleep(time.Millisecond) {
		children, err := os.ReadFile(fmt.Sprintf("/proc/%d/task/%[1]d/children", m.outer.Process.Pid))
		if err != nil {
			break // it has ended
		}
		pid, err := strconv.Atoi(strings.TrimSpace(string(children)))
		if err != nil {
			continue // it has not forked
		}
		if name, err := os.ReadFile(fmt.Sprintf("/proc/%d/comm", pid)); err == nil && string(name) == "systemd\n" {
			return pid
		}
	}
	m.outer.Process.Kill()
	<-m.ended
	m.t.Fatalf("the system has no init: %s", &m.said)
	return 0
}

// try runs a script in the system, as somebody who has logged in.
func (m *machine) try(script string) (string, error) {
	ctx, cancel := context.WithTimeout(m.t.Context(), 3*time.Minute)
	defer cancel()
	select {
	case <-m.ended: // its pid may be another's
		return "", fmt.Errorf("the system has ended: %s", &m.said)
	default:
	}
	enter := append([]string{"nsenter", "--target", strconv.Itoa(m.init)}, namespaces...)
	cmd := inCgroup(ctx, filepath.Join(m.cgroup, outside), append(enter,
		"env", "-i", "VMSAN_TEMPLATES=off", "PATH=/usr/sbin:/usr/bin:/sbin:/bin", "DEBIAN_FRONTEND=noninteractive", "LC_ALL=C", "/bin/sh", "-ec", script)...)
	cmd.WaitDelay = 10 * time.Second
	out, err := cmd.Output()
	return strings.TrimSpace(string(out)), err
}

func (m *machine) run(script string) string {
	m.t.Helper()
	out, err := m.try(script)
	if err != nil {
		var said []byte
		if exit, ok := err.(*exec.ExitError); ok {
			said = exit.Stderr
		}
		journal, _ := m.try("systemctl status --no-pager --full vmsan-restore; journalctl --no-pager --lines 30")
		m.t.Fatalf("%s: %v: %s%s\n%s", script, err, out, said, journal)
	}
	return out
}

// status is what list says of each sandbox.
func (m *machine) status() map[string]string {
	m.t.Helper()
	var list []api.VM
	if err := json.Unmarshal([]byte(m.run("vmsan list --json")), &list); err != nil {
		m.t.Fatal(err)
	}
	all := map[string]string{}
	for _, vm := range list {
		all[vm.Name] = string(vm.Status)
		if vm.Reason != "" {
			all[vm.Name] += " (" + vm.Reason + ")"
		}
	}
	return all
}

// shutDown has the system end by itself.
func (m *machine) shutDown() {
	m.t.Helper()
	if _, err := m.try("systemctl poweroff"); err != nil {
		m.t.Log("poweroff:", err) // it ends whoever is inside, too
	}
	m.await()
}

// cutPower ends the system at once.
func (m *machine) cutPower() {
	m.t.Helper()
	select {
	case <-m.ended:
	default:
		if err := unix.Kill(m.init, unix.SIGKILL); err != nil {
			m.t.Error(err)
		}
	}
	m.await()
}

// await waits for the system's end.
func (m *machine) await() {
	m.t.Helper()
	select {
	case <-m.ended:
	case <-time.After(2 * time.Minute):
		m.outer.Process.Kill()
		<-m.ended
		m.t.Errorf("the system did not end:\n%s", &m.said)
	}
	m.outer = nil
}
