package firecracker

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"regexp"
	"strconv"

	"golang.org/x/sys/unix"

	"github.com/vmsan/vmsan/internal/jail"
	"github.com/vmsan/vmsan/internal/vmm"
)

// validID is what the jailer takes for a name.
var validID = regexp.MustCompile(`^[a-zA-Z0-9-]{1,64}$`)

// order is what a jailer is to start.
type order struct {
	programs
	spec    vmm.Spec
	files   []jail.TreeFile // in the jail
	largest int64           // that Firecracker may make a file, in bytes
}

// newOrder opens nothing: what files there are besides the disks the caller
// adds.
func (d Driver) newOrder(spec vmm.Spec) (*order, error) {
	switch {
	case spec.Jail.User == nil:
		return nil, errors.New("run Firecracker's jailer: it needs root")
	case spec.Jail.User.UID == 0 || spec.Jail.User.GID == 0:
		return nil, errors.New("run Firecracker as root: it is not to")
	case spec.Accelerator != vmm.KVM:
		return nil, fmt.Errorf("run Firecracker with %q: it has no accelerator but KVM", spec.Accelerator)
	case !validID.MatchString(spec.ID):
		return nil, fmt.Errorf("the jailer takes no id like %.80q", spec.ID)
	}
	found, err := d.find()
	if err != nil {
		return nil, err
	}
	o := &order{programs: found, spec: spec, largest: int64(spec.MemoryMiB) << 20}
	for _, d := range spec.Disks {
		if err := o.addDisk(d); err != nil {
			return nil, fmt.Errorf("hand over disk %s: %w", d.Name, err)
		}
	}
	if filter := spec.Jail.Filter; filter != nil {
		o.add(filter, jailFilter, false)
		return o, readable(filter)
	}
	return o, nil
}

func (o *order) addDisk(d vmm.Disk) error {
	info, err := d.File.Stat()
	if err != nil {
		return err
	}
	o.largest = max(o.largest, info.Size())
	o.add(d.File, diskDirectory+d.Name, !d.ReadOnly)
	if d.ReadOnly {
		return readable(d.File)
	}
	// It is this sandbox's alone.
	return d.File.Chown(int(o.spec.Jail.User.UID), int(o.spec.Jail.User.GID))
}

func (o *order) add(f *os.File, path string, writable bool) {
	o.files = append(o.files, jail.TreeFile{File: f, Path: filepath.Join(o.root(), path), Writable: writable})
}

// readable lets everybody read a file that many sandboxes have and none may
// write. Who is not in one of their jails does not get through to it: the
// directories that it is in are root's alone.
func readable(f *os.File) error {
	info, err := f.Stat()
	if err != nil || info.Mode().Perm()&0o004 != 0 {
		return err
	}
	return f.Chmod(info.Mode().Perm() | 0o444)
}

// root is the jail's root below the jailer's base directory: the jailer's own
// names.
func (o *order) root() string {
	return filepath.Join(filepath.Base(o.firecracker), o.spec.ID, "root")
}

// maxFiles is how many files Firecracker may have open: it has a few for
// itself, and one for each connection over vsock.
const maxFiles = 2048

// slack is what Firecracker may write beyond the largest file, in bytes: the
// state that it saves.
const slack = 64 << 20

// arguments is the jailer's command line. Limits on CPU, memory and processes
// come from the cgroup that the jailer is born in, and the network and process
// namespaces from whoever starts it, who so remains Firecracker's parent.
func (o *order) arguments() []string {
	user := o.spec.Jail.User
	args := []string{
		"--id", o.spec.ID,
		"--exec-file", o.firecracker,
		"--uid", strconv.FormatUint(uint64(user.UID), 10),
		"--gid", strconv.FormatUint(uint64(user.GID), 10),
		"--chroot-base-dir", o.spec.Jail.Root,
		"--resource-limit", fmt.Sprintf("no-file=%d", maxFiles),
		"--resource-limit", fmt.Sprintf("fsize=%d", o.largest+slack),
		// The log is beside what Firecracker prints, which is the guest's
		// serial console.
		"--", "--api-sock", jailAPI, "--log-path", jailLog, "--level", "Warning", "--show-level",
		"--metrics-path", jailMetrics,
	}
	switch {
	case o.spec.Jail.NoSeccomp:
		args = append(args, "--no-seccomp")
	case o.spec.Jail.Filter != nil:
		args = append(args, "--seccomp-filter", jailFilter)
	}
	return args
}

// start starts the jailer, which becomes Firecracker.
func (o *order) start(console, output *os.File) (*jail.Process, error) {
	spec := jail.Spec{
		Path: o.jailer, Args: o.arguments(), Stdout: console, Stderr: output, Cgroup: o.spec.Jail.Cgroup,
		Namespaces: o.spec.Jail.Namespaces(),
		Tree:       &jail.Tree{Mount: o.spec.Jail.Root, Files: o.files},
	}
	if nic := o.spec.NIC; nic != nil {
		spec.Namespaces &^= unix.CLONE_NEWNET
		spec.Network = nic.Namespace
	}
	return jail.Start(spec)
}
