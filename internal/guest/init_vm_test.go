package guest_test

import (
	"archive/tar"
	"bytes"
	"strings"
	"testing"
	"time"

	"github.com/vmsan/vmsan/internal/image"
	"github.com/vmsan/vmsan/internal/testenv"
)

func TestSystemd(t *testing.T) {
	vmsan := testenv.RequireVmsan(t)
	id := vmsan.Create(t, "--init", "--image", testenv.SystemdImage, "--name", "with-systemd", "--memory", "320m")

	// The agent answers while systemd is still at it: its bus comes late.
	vmsan.Exec(t, id, "sh", "-c", "until [ -S /run/systemd/private ]; do sleep 0.1; done")
	if got := vmsan.Exec(t, id, "systemctl", "is-system-running", "--wait"); got != "running" {
		t.Errorf("systemd is %s: %s", got, vmsan.Exec(t, id, "systemctl", "--failed", "--no-pager"))
	}
	for _, c := range []struct{ what, script, want string }{
		{"PID 1", "cat /proc/1/comm", "systemd"},
		{"the target", "systemctl is-active multi-user.target", "active"},
		{"jobs", "systemctl list-jobs --no-legend --quiet", ""},
		{"the hostname", "hostnamectl hostname", "with-systemd"},
		{"the machine id", `[ "$(ls /var/log/journal)" = "$(cat /etc/machine-id)" ] && echo same`, "same"},
		{"the cgroup of a command", "cut -d/ -f2 /proc/self/cgroup", "vmsan"},
		{"systemd's opinion of where it is", "systemd-detect-virt --container", "none"},
		{"a service", "systemd-run --wait --pipe --quiet echo from a unit", "from a unit"},
		{"a session of its own", "ps -o sid= -p $$ | tr -d ' ' | grep -x $$ >/dev/null && echo own", "own"},
	} {
		if got := vmsan.Exec(t, id, "sh", "-c", c.script+" || true"); got != c.want {
			t.Errorf("%s: got %q, want %q", c.what, got, c.want)
		}
	}
	// systemd restarts itself and stays the agent's PID 1.
	vmsan.Exec(t, id, "systemctl", "daemon-reexec")
	vmsan.Exec(t, id, "systemctl", "is-active", "multi-user.target")
}

// A stop lets systemd end its services and close the disks.
func TestSystemdStops(t *testing.T) {
	vmsan := testenv.RequireVmsan(t)
	id := vmsan.Create(t, "--init", "--image", testenv.SystemdImage, "--memory", "320m")
	vmsan.Exec(t, id, "sh", "-c", "until [ -S /run/systemd/private ]; do sleep 0.1; done; systemctl is-system-running --wait")
	vmsan.Exec(t, id, "systemd-run", "--unit=witness", "--property=ExecStop=/bin/sh -c 'echo in order >/witness'",
		"sleep", "infinity")
	vmsan.Run(t, "stop", "--timeout", "2m", id)
	if console := vmsan.Run(t, "logs", id); !strings.Contains(console, "reboot: Restarting system") {
		t.Errorf("the guest did not end by itself; its console says:\n%s", console)
	}
	// systemd does not know of the sandbox's disk, and left it in use.
	vmsan.Run(t, "image", "commit", id, "witnessed", "--change",
		`ENTRYPOINT ["/bin/sh", "-c", "echo main says $(cat /witness); exec sleep infinity"]`)
	vmsan.Run(t, "start", id)
	if got := vmsan.Exec(t, id, "cat", "/witness"); got != "in order" {
		t.Errorf("the service's last words are %q", got)
	}
	vmsan.Exec(t, id, "sh", "-c", "until [ -S /run/systemd/private ]; do sleep 0.1; done; systemctl is-system-running --wait")

	beside := vmsan.Create(t, "--init", "--entrypoint", "--restart", "always", "--image", "witnessed", "--memory", "320m")
	for _, want := range []int{1, 2} {
		deadline := time.Now().Add(time.Minute)
		for strings.Count(vmsan.Run(t, "logs", beside), "main says in order") < want {
			if time.Now().After(deadline) {
				t.Fatalf("the main process did not say %d times what it has to:\n%s", want, vmsan.Run(t, "logs", beside))
			}
			time.Sleep(100 * time.Millisecond)
		}
		vmsan.Exec(t, beside, "pkill", "-f", "sleep infinity")
	}
	if got := vmsan.Exec(t, beside, "cat", "/proc/1/comm"); got != "systemd" {
		t.Errorf("PID 1 is %s", got)
	}
}

// An image without an init cannot have one as PID 1, and says so.
func TestInitThatIsNotThere(t *testing.T) {
	vmsan := testenv.RequireVmsan(t)
	for name, want := range map[string]string{
		image.DefaultName:    "/sbin/init: no such file or directory",
		brokenInit(t, vmsan): "/sbin/init: exec format error",
	} {
		stdout, stderr, err := vmsan.Try("create", "--no-setup", "--init", "--image", name)
		if err == nil {
			vmsan.Run(t, "rm", "-f", stdout)
			t.Errorf("%s came up with --init", name)
			continue
		}
		if !strings.Contains(stderr, want) {
			t.Errorf("%s: got %q, want it to say %q", name, stderr, want)
		}
	}
}

// brokenInit makes an image with nothing but an init that is not a program.
func brokenInit(t *testing.T, vmsan testenv.Vmsan) string {
	t.Helper()
	const text = "this is no program\n"
	var archive bytes.Buffer
	w := tar.NewWriter(&archive)
	if err := w.WriteHeader(&tar.Header{Name: "sbin/init", Mode: 0o755, Size: int64(len(text))}); err != nil {
		t.Fatal(err)
	}
	if _, err := w.Write([]byte(text)); err != nil {
		t.Fatal(err)
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	const name = "broken-init"
	if _, err := (image.Store{Layout: vmsan.Layout}).ImportTar(t.Context(), &archive, image.Meta{Name: name}); err != nil {
		t.Fatal(err)
	}
	return name
}
