package doctor

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/vmsan/vmsan/api"
	"github.com/vmsan/vmsan/internal/setup"
	"github.com/vmsan/vmsan/internal/testenv"
)

func wantVerdict(t *testing.T, name string, got verdict, status api.Health, says, remedy string) {
	t.Helper()
	if got.status != status || !strings.Contains(got.detail, says) || !strings.Contains(got.remedy, remedy) {
		t.Errorf("%s: got %+v, want %s with %q and %q", name, got, status, says, remedy)
	}
}

func TestPermission(t *testing.T) {
	all := ^uint64(0)
	wantVerdict(t, "all", judgeCapabilities(all), api.HealthPass, "root", "")
	for _, c := range neededCapabilities {
		wantVerdict(t, c.name, judgeCapabilities(all&^(1<<c.bit)), api.HealthFail, "lacks "+c.name, "--privileged")
	}
	o := options(t)
	if isRoot() {
		o.want(t, "permission", api.HealthPass, "root", "")
		return
	}
	o.want(t, "permission", api.HealthWarn, "no network", "sudo")
}

func TestKVM(t *testing.T) {
	kvm := setup.Verdict{Accel: "kvm", Works: true, Seconds: 0.5}
	broken := setup.Verdict{Accel: "kvm", Reason: "it crashed"}
	tcg := setup.Verdict{Accel: "tcg", Works: true}
	record := func(accel string, v ...setup.Verdict) setup.Record { return setup.Record{Accel: accel, Verdicts: v} }
	denied := &problem{"user 1000 may not open /dev/kvm", "usermod"}
	for _, c := range []struct {
		name         string
		record       setup.Record
		device       *problem
		status       api.Health
		says, remedy string
	}{
		{"works", record("kvm", kvm, tcg), nil, api.HealthPass, "in 0.5 s", ""},
		{"worked once", record("kvm", kvm, tcg), denied, api.HealthFail, "and now: user 1000 may not", "usermod"},
		{"denied", record("tcg", broken, tcg), denied, api.HealthWarn, "may not open /dev/kvm; sandboxes run by tcg", "usermod"},
		{"opens, and does not boot", record("tcg", broken, tcg), nil, api.HealthWarn, "does not boot a guest (it crashed)", "vmsan setup"},
		{"not used", record("tcg", kvm, tcg), nil, api.HealthWarn, "but sandboxes run by tcg", "vmsan setup"},
		{"not tried", record("tcg", tcg), nil, api.HealthWarn, "was not tried", "vmsan setup"},
		{"nothing works", record("", broken, setup.Verdict{Accel: "tcg", Reason: "no kernel"}), nil, api.HealthFail, "kvm: it crashed; tcg: no kernel", "vmsan setup"},
		{"nothing was tried", record(""), denied, api.HealthFail, "none was tried", "vmsan setup"},
	} {
		wantVerdict(t, c.name, judgeKVM(c.record, c.device), c.status, c.says, c.remedy)
	}
}

// TestBootAgain believes what happens, not what setup has written down.
func TestBootAgain(t *testing.T) {
	o := options(t)
	o.setUp(t, setup.Record{Accel: "tcg", Verdicts: []setup.Verdict{{Accel: "kvm"}, {Accel: "tcg", Works: true}}})
	works := map[string]bool{}
	o.Boot = func(_ context.Context, accel string) error {
		if works[accel] {
			return nil
		}
		return errors.New("the guest did not come up")
	}
	o.want(t, "kvm", api.HealthFail, "no accelerator boots a guest: kvm: the guest did not come up; tcg: the guest", "vmsan setup")
	works["tcg"] = true
	o.want(t, "kvm", api.HealthWarn, "sandboxes run by tcg", "")
}

// TestDevice has devices that there are not, that have no driver, and that this
// user may not open.
func TestDevice(t *testing.T) {
	testenv.RequireRoot(t)
	dir := t.TempDir()
	for _, d := range []string{dir, filepath.Dir(dir)} {
		if err := os.Chmod(d, 0o755); err != nil {
			t.Fatal(err)
		}
	}
	device := func(name string, mode os.FileMode, gid int) string {
		path := filepath.Join(dir, name)
		err := unix.Mknod(path, unix.S_IFCHR, int(unix.Mkdev(60, 7))) // for experiments
		if err == nil {
			err = os.Chown(path, 0, gid)
		}
		if err == nil {
			err = os.Chmod(path, mode)
		}
		if err != nil {
			t.Fatal(err)
		}
		return path
	}
	for _, c := range []struct{ path, says, remedy string }{
		{filepath.Join(dir, "missing"), "there is no", "modprobe kvm_intel"},
		{device("driverless", 0o666, 0), "no driver", "modprobe kvm_intel"},
		{device("grouped", 0o660, 5), "may not open", "usermod -aG tty root"},
		{device("closed", 0o600, 0), "may not open", "chgrp kvm " + filepath.Join(dir, "closed")},
	} {
		var got *problem
		asNobody(t, func() { got = checkDevice(c.path) })
		if got == nil || !strings.Contains(got.detail, c.says) || !strings.Contains(got.remedy, c.remedy) {
			t.Errorf("%s: got %+v, want %q and %q", c.path, got, c.says, c.remedy)
		}
	}
	if got := checkDevice(os.DevNull); got != nil {
		t.Errorf("/dev/null: got %+v", got)
	}
}

// asNobody calls f on a thread whose opens are those of a user without rights.
func asNobody(t *testing.T, f func()) {
	t.Helper()
	done := make(chan error)
	go func() {
		runtime.LockOSThread() // and so it ends with the goroutine
		err := unix.Setfsuid(65534)
		if err == nil {
			err = unix.Setfsgid(65534)
		}
		if err == nil {
			f()
		}
		done <- err
	}()
	if err := <-done; err != nil {
		t.Fatal(err)
	}
}

func TestVMMs(t *testing.T) {
	o := options(t)
	o.want(t, "vmm", api.HealthPass, "vmm 7.2.22", "")
	o.setUp(t, setup.Record{Verdicts: []setup.Verdict{{Basis: setup.Basis{VMM: "vmm 7.2.9"}}}})
	o.want(t, "vmm", api.HealthWarn, "was vmm 7.2.9 when setup tried it", "vmsan setup")
	for version, tooOld := range map[string]bool{
		"7.2": false, "7.2.22": false, "7.1.9": true, "6.2": true, "10.0.2": false, "7.10": false, "7": true, "8.0~rc1": false, "7.2-rc1": false,
	} {
		if got := older(version, "7.2"); got != tooOld {
			t.Errorf("%s is older than 7.2: got %t", version, got)
		}
	}
	o.VMMs[0].Version = func(context.Context) (string, error) { return "5.2", nil }
	o.want(t, "vmm", api.HealthFail, "too old: 7.2 is needed", "install it")
	o.VMMs[0].Version = func(context.Context) (string, error) { return "", fmt.Errorf("no such file") }
	o.want(t, "vmm", api.HealthFail, "no such file", "install it")
}

// TestPrograms hides them.
func TestPrograms(t *testing.T) {
	testenv.RequireRoot(t)
	testenv.Lab(t) // a mount namespace
	o := options(t)
	t.Setenv("PATH", "/nonexistent")
	o.want(t, "programs", api.HealthWarn, "no mmdebstrap", "apt-get install mmdebstrap")
	for _, dir := range []string{"/usr/sbin", "/sbin"} {
		hide(t, dir, 0)
	}
	o.want(t, "programs", api.HealthFail, "no mkfs.ext4", "apt-get install e2fsprogs")
}

// hide mounts an empty file system over a directory, in the lab alone.
func hide(t *testing.T, dir string, flags uintptr) {
	t.Helper()
	if err := unix.Mount("none", dir, "tmpfs", flags, ""); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := unix.Unmount(dir, 0); err != nil {
			t.Error(err)
		}
	})
}

func TestClock(t *testing.T) {
	now := time.Date(2026, 5, 6, 7, 8, 9, 0, time.UTC)
	const ok, unset = 0, unix.TIME_ERROR
	wantVerdict(t, "kept", judgeClock(now, now.Add(-time.Hour), ok), api.HealthPass, "kept right", "")
	wantVerdict(t, "unset", judgeClock(now, now.Add(-time.Hour), unset), api.HealthWarn, "nobody keeps", "timedatectl")
	wantVerdict(t, "behind", judgeClock(now, now.Add(2*time.Hour), ok), api.HealthFail, "before setup ran", "timedatectl")
	o := options(t)
	o.setUp(t, setup.Record{UpdatedAt: time.Now().Add(48 * time.Hour)})
	o.want(t, "clock", api.HealthFail, "before setup ran", "timedatectl")
}
