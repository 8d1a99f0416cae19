package doctor

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"os/user"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"github.com/vmsan/vmsan/internal/setup"
)

// neededCapabilities are what root may lack in a container.
var neededCapabilities = []struct {
	bit  uint
	name string
}{
	{unix.CAP_CHOWN, "CAP_CHOWN"}, {unix.CAP_DAC_OVERRIDE, "CAP_DAC_OVERRIDE"}, {unix.CAP_KILL, "CAP_KILL"},
	{unix.CAP_MKNOD, "CAP_MKNOD"}, {unix.CAP_NET_ADMIN, "CAP_NET_ADMIN"}, {unix.CAP_SETGID, "CAP_SETGID"},
	{unix.CAP_SETPCAP, "CAP_SETPCAP"}, {unix.CAP_SETUID, "CAP_SETUID"}, {unix.CAP_SYS_ADMIN, "CAP_SYS_ADMIN"},
	{unix.CAP_SYS_CHROOT, "CAP_SYS_CHROOT"},
}

func checkPermission(context.Context, *Options) verdict {
	if !isRoot() {
		return warn("sudo vmsan doctor", "user %d runs vmsan: sandboxes have no network, no limits and no users of their own, "+
			"and the machine and system call filters are their only walls", os.Geteuid())
	}
	header := unix.CapUserHeader{Version: unix.LINUX_CAPABILITY_VERSION_3}
	var sets [2]unix.CapUserData
	if err := unix.Capget(&header, &sets[0]); err != nil {
		return fail("grep Cap /proc/self/status", "root's capabilities cannot be read: %v", err)
	}
	return judgeCapabilities(uint64(sets[1].Effective)<<32 | uint64(sets[0].Effective))
}

func judgeCapabilities(have uint64) verdict {
	var lacking []string
	for _, c := range neededCapabilities {
		if have&(1<<c.bit) == 0 {
			lacking = append(lacking, c.name)
		}
	}
	if len(lacking) > 0 {
		return fail("docker run --privileged, or give the container "+strings.Join(lacking, ", "),
			"this root lacks %s", strings.Join(lacking, ", "))
	}
	return pass("root, with every capability that sandboxes need")
}

// kvmDevice is KVM's.
const kvmDevice = "/dev/kvm"

// checkKVM warns if KVM cannot be used and emulation can.
func checkKVM(ctx context.Context, o *Options) verdict {
	device := checkDevice(kvmDevice)
	r, v, ok := o.ready()
	if !ok && device != nil {
		v.detail, v.remedy = v.detail+", and "+device.detail, device.remedy+"; then vmsan setup"
	}
	if !ok {
		return v
	}
	if o.Boot != nil {
		bootAgain(ctx, o, &r)
	}
	return judgeKVM(r, device)
}

// bootAgain replaces what setup found out about accelerators.
func bootAgain(ctx context.Context, o *Options, r *setup.Record) {
	r.Accel = ""
	for i := range r.Verdicts {
		began := time.Now()
		err := o.Boot(ctx, r.Verdicts[i].Accel)
		r.Verdicts[i].Works, r.Verdicts[i].Reason, r.Verdicts[i].Seconds = err == nil, "", time.Since(began).Seconds()
		if err != nil {
			r.Verdicts[i].Reason = err.Error()
		} else if r.Accel == "" {
			r.Accel = r.Verdicts[i].Accel
		}
	}
}

func judgeKVM(r setup.Record, device *problem) verdict {
	at := slices.IndexFunc(r.Verdicts, func(v setup.Verdict) bool { return v.Accel == "kvm" })
	switch {
	case r.Accel == "":
		return fail(remedySetup, "no accelerator boots a guest: %s", reasons(r.Verdicts))
	case r.Accel == "kvm" && device != nil:
		return fail(device.remedy, "KVM booted a guest when setup tried it, and now: %s", device.detail)
	case r.Accel == "kvm":
		return pass("KVM boots a guest in %.1f s", r.Verdicts[at].Seconds)
	case device != nil:
		return warn(device.remedy, "%s; sandboxes run by %s", device.detail, emulation(r.Accel))
	case at >= 0 && r.Verdicts[at].Works:
		return warn(remedySetup, "KVM boots a guest, but sandboxes run by %s", emulation(r.Accel))
	case at >= 0:
		return warn("vmsan setup, once KVM is mended in the firmware or by the host of this machine",
			"KVM does not boot a guest (%s); sandboxes run by %s", r.Verdicts[at].Reason, emulation(r.Accel))
	}
	return warn(remedySetup, "KVM was not tried; sandboxes run by %s", emulation(r.Accel))
}

func emulation(accel string) string {
	return accel + ", software emulation, which is slow and which its makers call no security boundary"
}

func reasons(verdicts []setup.Verdict) string {
	var list []string
	for _, v := range verdicts {
		list = append(list, v.Accel+": "+v.Reason)
	}
	if list == nil {
		return "none was tried"
	}
	return strings.Join(list, "; ")
}

// problem is what is wrong, and the command against it.
type problem struct{ detail, remedy string }

// checkDevice opens a device for reading and writing.
func checkDevice(path string) *problem {
	f, err := os.OpenFile(path, os.O_RDWR, 0)
	switch {
	case err == nil:
		f.Close()
		return nil
	case errors.Is(err, fs.ErrNotExist):
		return &problem{"there is no " + path, "modprobe kvm_intel || modprobe kvm_amd; if neither works, switch virtualization on in the firmware, " +
			"or nested virtualization on in the host of this machine"}
	case errors.Is(err, fs.ErrPermission):
		return &problem{fmt.Sprintf("user %d may not open %s", os.Geteuid(), path), groupRemedy(path)}
	case errors.Is(err, unix.ENODEV), errors.Is(err, unix.ENXIO):
		return &problem{path + " has no driver", "modprobe kvm_intel || modprobe kvm_amd"}
	}
	return &problem{err.Error(), "ls -l " + path}
}

// groupRemedy lets this user at a device: by its group, if that may use it.
func groupRemedy(path string) string {
	info, err := os.Stat(path)
	if err != nil {
		return "ls -l " + path
	}
	name := "$USER"
	if u, err := user.Current(); err == nil {
		name = u.Username
	}
	const both = 0o060
	gid := info.Sys().(*syscall.Stat_t).Gid
	group, err := user.LookupGroupId(strconv.Itoa(int(gid)))
	if err != nil || gid == 0 || info.Mode().Perm()&both != both {
		return fmt.Sprintf("sudo groupadd -f kvm && sudo chgrp kvm %s && sudo chmod 660 %s && sudo usermod -aG kvm %s, and log in again", path, path, name)
	}
	return fmt.Sprintf("sudo usermod -aG %s %s, and log in again", group.Name, name)
}

func checkVMMs(ctx context.Context, o *Options) verdict {
	var found []string
	r, _, ready := o.ready()
	for _, vmm := range o.VMMs {
		version, err := vmm.Version(ctx)
		switch {
		case err != nil:
			return fail(vmm.Install, "%s cannot be used: %v", vmm.Name, err)
		case older(version, vmm.Oldest):
			return fail(vmm.Install, "%s %s is too old: %s is needed", vmm.Name, version, vmm.Oldest)
		}
		name := vmm.Name + " " + version
		for _, v := range r.Verdicts {
			if before, _, _ := strings.Cut(v.VMM, " "); ready && before == vmm.Name && v.VMM != name {
				return warn(remedySetup, "%s was %s when setup tried it; templates and snapshots are another version's", name, v.VMM)
			}
		}
		found = append(found, name)
	}
	return pass("%s", strings.Join(found, ", "))
}

// older compares the numbers that versions begin with.
func older(version, than string) bool {
	have, want := numbers(version), numbers(than)
	return slices.Compare(have, want) < 0 && !slices.Equal(have, want)
}

func numbers(version string) (list []int) {
	for part := range strings.SplitSeq(version, ".") {
		n := 0
		if _, err := fmt.Sscanf(part, "%d", &n); err != nil {
			break
		}
		list = append(list, n)
	}
	return list
}

// programs are those that vmsan runs besides VMMs.
var programs = []struct {
	name, purpose, install string
	needed                 bool // else only by some commands
}{
	{"mkfs.ext4", "makes the disks of sandboxes", "apt-get install e2fsprogs", true},
	{"mmdebstrap", "makes the default image, and images of Debian packages", "apt-get install mmdebstrap", false},
	{"apt-get", "gets the guest's kernel for setup", "vmsan setup --kernel-deb FILE, or --kernel FILE, on a system without apt", false},
}

func checkPrograms(context.Context, *Options) verdict {
	for _, p := range programs {
		if hasProgram(p.name) {
			continue
		}
		if p.needed {
			return fail(p.install, "there is no %s, which %s", p.name, p.purpose)
		}
		return warn(p.install, "there is no %s, which %s", p.name, p.purpose)
	}
	return pass("mkfs.ext4, mmdebstrap and apt-get are there")
}

// hasProgram looks where users' PATH does not lead, too.
func hasProgram(name string) bool {
	for _, path := range []string{name, "/usr/sbin/" + name, "/sbin/" + name} {
		if _, err := exec.LookPath(path); err == nil {
			return true
		}
	}
	return false
}

// backwards is how far the clock may be behind what was written down.
const backwards = time.Hour

func checkClock(_ context.Context, o *Options) verdict {
	var t unix.Timex
	state, err := unix.Adjtimex(&t)
	if err != nil {
		return warn("timedatectl status", "the kernel does not say whether the clock is set: %v", err)
	}
	r, _, _ := o.ready()
	return judgeClock(time.Now(), r.UpdatedAt, state)
}

func judgeClock(now, written time.Time, state int) verdict {
	switch {
	case now.Add(backwards).Before(written):
		return fail("timedatectl set-ntp true, or date --set", "it is %s here, before setup ran (%s): guests take certificates for not valid yet",
			now.Format(time.RFC3339), written.Format(time.RFC3339))
	case state == unix.TIME_ERROR:
		return warn("timedatectl set-ntp true", "nobody keeps the clock right: guests' clocks go wrong with it")
	}
	return pass("the clock is kept right")
}
