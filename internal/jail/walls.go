package jail

import (
	"fmt"
	"math/bits"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
)

// Walls are what holds a process, as the kernel tells just now.
type Walls struct {
	// UID and GID are the process's user and group: effective, real, saved
	// and of the file system. Mixed tells that those differ.
	UID, GID uint32
	Mixed    bool
	// Groups are how many groups it is in beside its own.
	Groups int
	// Capabilities are how many it has or could get: capabilities(7).
	Capabilities int
	// NoNewPrivileges tells that no program it starts gives it more.
	NoNewPrivileges bool
	// Filters are how many filters of system calls it runs under: seccomp(2).
	Filters int
	// Namespaces are the kinds that it does not share with the calling
	// process, of the names in /proc/PID/ns, sorted.
	Namespaces []string
	// Writable are the mount points that it sees and that are not read-only,
	// as it calls them.
	Writable []string
	// KVM tells that it has a machine of KVM's.
	KVM bool
}

// Kinds are the namespaces that Look compares.
var Kinds = []string{"cgroup", "ipc", "mnt", "net", "pid", "uts"}

// Look finds out what holds a process. It takes root, or to be its user.
func Look(pid int) (w Walls, err error) {
	dir := fmt.Sprintf("/proc/%d", pid)
	for _, look := range []func(*Walls, string) error{(*Walls).status, (*Walls).namespaces, (*Walls).mounts, (*Walls).files} {
		if err := look(&w, dir); err != nil {
			return w, fmt.Errorf("look at process %d: %w", pid, err)
		}
	}
	return w, nil
}

// status reads proc_pid_status(5).
func (w *Walls) status(dir string) error {
	text, err := os.ReadFile(filepath.Join(dir, "status"))
	if err != nil {
		return err
	}
	fields := map[string][]string{}
	for line := range strings.Lines(string(text)) {
		name, value, _ := strings.Cut(line, ":")
		fields[name] = strings.Fields(value)
	}
	for name, id := range map[string]*uint32{"Uid": &w.UID, "Gid": &w.GID} {
		all := fields[name]
		if len(all) != 4 {
			return fmt.Errorf("%s/status has no %s", dir, name)
		}
		n, err := strconv.ParseUint(all[1], 10, 32)
		if err != nil {
			return err
		}
		*id = uint32(n)
		w.Mixed = w.Mixed || len(slices.Compact(slices.Clone(all))) != 1
	}
	w.Groups = len(slices.DeleteFunc(fields["Groups"], func(g string) bool { return g == strconv.Itoa(int(w.GID)) }))
	for _, name := range []string{"CapInh", "CapPrm", "CapEff", "CapBnd", "CapAmb"} {
		set, err := strconv.ParseUint(strings.Join(fields[name], ""), 16, 64)
		if err != nil {
			return err
		}
		w.Capabilities = max(w.Capabilities, bits.OnesCount64(set))
	}
	w.NoNewPrivileges = slices.Equal(fields["NoNewPrivs"], []string{"1"})
	if slices.Equal(fields["Seccomp"], []string{"2"}) {
		w.Filters = 1 // older kernels than 5.9 do not count them
		if n, err := strconv.Atoi(strings.Join(fields["Seccomp_filters"], "")); err == nil {
			w.Filters = n
		}
	}
	return nil
}

func (w *Walls) namespaces(dir string) error {
	for _, kind := range Kinds {
		theirs, err := os.Readlink(filepath.Join(dir, "ns", kind))
		if err != nil {
			return err
		}
		ours, err := os.Readlink("/proc/self/ns/" + kind)
		if err != nil {
			return err
		}
		if theirs != ours {
			w.Namespaces = append(w.Namespaces, kind)
		}
	}
	return nil
}

// mounts reads proc_pid_mountinfo(5).
func (w *Walls) mounts(dir string) error {
	text, err := os.ReadFile(filepath.Join(dir, "mountinfo"))
	if err != nil {
		return err
	}
	for line := range strings.Lines(string(text)) {
		fields := strings.Fields(line)
		if len(fields) < 6 {
			return fmt.Errorf("%s/mountinfo has the line %q", dir, line)
		}
		if !slices.Contains(strings.Split(fields[5], ","), "ro") {
			w.Writable = append(w.Writable, fields[4])
		}
	}
	return nil
}

// kvmFile is what a machine of KVM's is called among open files
// (virt/kvm/kvm_main.c, kvm_dev_ioctl_create_vm).
const kvmFile = "anon_inode:kvm-vm"

func (w *Walls) files(dir string) error {
	entries, err := os.ReadDir(filepath.Join(dir, "fd"))
	if err != nil {
		return err
	}
	for _, e := range entries {
		target, err := os.Readlink(filepath.Join(dir, "fd", e.Name()))
		w.KVM = w.KVM || err == nil && target == kvmFile
	}
	return nil
}
