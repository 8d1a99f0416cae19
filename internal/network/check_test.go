package network

import (
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"

	"golang.org/x/sys/unix"
)

// wantHostError fails t unless err is one, with the hint.
func wantHostError(t *testing.T, err error, cause, hint string) {
	t.Helper()
	var host *HostError
	if !errors.As(err, &host) {
		t.Fatalf("got %v, which is no HostError", err)
	}
	if !strings.Contains(err.Error(), cause) || !strings.Contains(host.Hint, hint) {
		t.Errorf("got %q and the hint %q, want %q and %q", err, host.Hint, cause, hint)
	}
}

// TestCheckHost leaves the host without even the table that sandboxes share.
func TestCheckHost(t *testing.T) {
	inLab(t)
	state := func() string { return run(t, "nft", "list", "ruleset") + run(t, "ip", "-br", "link") }
	before := state()
	if err := CheckHost(t.Context()); err != nil {
		t.Fatal(err)
	}
	if after := state(); after != before {
		t.Errorf("before:\n%s\nafter:\n%s", before, after)
	}
}

// overDevNet mounts an empty file system over /dev/net, in the lab alone.
func overDevNet(t *testing.T, flags uintptr) {
	t.Helper()
	if err := unix.Mount("none", "/dev/net", "tmpfs", flags, ""); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := unix.Unmount("/dev/net", 0); err != nil {
			t.Error(err)
		}
	})
}

func TestNoTun(t *testing.T) {
	inLab(t)
	overDevNet(t, 0)
	wantHostError(t, CheckHost(t.Context()), "/dev/net/tun: no such file", "modprobe tun")
	_, err := Create(t.Context(), Config{ID: testID(1), Pool: testPool})
	wantHostError(t, err, "/dev/net/tun: no such file", "mknod")
	if tap, err := BareTap(); tap != nil {
		t.Error("made a tap")
	} else {
		wantHostError(t, err, "/dev/net/tun", "modprobe tun")
	}
	if left := leftOnHost(t); left != "" {
		t.Error("left:", left)
	}
}

func TestTunWithoutDevices(t *testing.T) {
	inLab(t)
	overDevNet(t, unix.MS_NODEV)
	if err := unix.Mknod(filepath.Join("/dev/net", "tun"), unix.S_IFCHR|0o666, int(unix.Mkdev(10, 200))); err != nil {
		t.Fatal(err)
	}
	wantHostError(t, CheckHost(t.Context()), "/dev/net/tun: permission denied", "mount -o remount,dev")
}

func TestBareTap(t *testing.T) {
	inLab(t)
	tap, err := BareTap()
	if err != nil {
		t.Fatal(err)
	}
	if err := tap.Close(); err != nil {
		t.Fatal(err)
	}
}

// TestNoRoot has another user check the host.
func TestNoRoot(t *testing.T) {
	inLab(t)
	cmd := child("check")
	cmd.SysProcAttr = &syscall.SysProcAttr{Credential: &syscall.Credential{Uid: 65534, Gid: 65534}}
	out, err := cmd.CombinedOutput()
	if err != nil {
		t.Fatalf("%v: %s", err, out)
	}
	if got := string(out); !strings.HasPrefix(got, "make network namespace: operation not permitted") || !strings.Contains(got, "sudo vmsan") {
		t.Errorf("got %s", got)
	}
}

// childVar tells the test binary what to do instead of tests.
const childVar = "VMSAN_TEST_NETWORK_CHILD"

func child(what string) *exec.Cmd {
	cmd := exec.Command("/proc/self/exe")
	cmd.Env = append(os.Environ(), childVar+"="+what)
	return cmd
}

func TestExplain(t *testing.T) {
	wrapped := func(errno error) error { return fmt.Errorf("conn.Receive: %w", errno) }
	wantHostError(t, explainFirewall(wrapped(unix.EPERM)), "not permitted", "sudo")
	wantHostError(t, explainFirewall(wrapped(unix.EPROTONOSUPPORT)), "", "modprobe -a nf_tables")
	wantHostError(t, explainFirewall(wrapped(unix.EOPNOTSUPP)), "", "modprobe -a nf_tables")
	wantHostError(t, linkRemedies.explain(wrapped(unix.EOPNOTSUPP)), "", "modprobe veth")
	wantHostError(t, namespaceRemedies.explain(wrapped(unix.ENOSPC)), "", "sysctl")
	var host *HostError
	if err := explainFirewall(wrapped(unix.EEXIST)); errors.As(err, &host) || !errors.Is(err, unix.EEXIST) {
		t.Errorf("explained what is no fault of the host: %v", err)
	}
	for release, want := range map[string]bool{
		"4.19.0-27-amd64": true, "5.1.21": true, "5.2.0": false, "5.10.0-30": false, "6.1.0-56-cloud-amd64": false, "strange": false,
	} {
		if got := tooOld(release); got != want {
			t.Errorf("%s: got %t", release, got)
		}
	}
}
