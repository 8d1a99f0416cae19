package contract

import (
	"errors"
	"fmt"
	"io"
	"math"
	"os"
	"path/filepath"
	"regexp"
	"runtime"
	"slices"
	"strconv"
	"strings"
	"syscall"

	"golang.org/x/sys/unix"
)

// jailerArguments are what the jailer takes: whether there is a value behind
// it, and whether it may be there more than once.
var jailerArguments = map[string]struct{ value, many bool }{
	"id": {value: true}, "exec-file": {value: true}, "uid": {value: true}, "gid": {value: true},
	"chroot-base-dir": {value: true}, "netns": {value: true}, "daemonize": {}, "new-pid-ns": {},
	"cgroup": {value: true, many: true}, "resource-limit": {value: true, many: true},
	"cgroup-version": {value: true}, "parent-cgroup": {value: true}, "version": {},
}

var required = []string{"id", "exec-file", "uid", "gid"}

// parseArguments takes a command line apart; rest is what is behind "--".
func parseArguments(args []string, known map[string]struct{ value, many bool }) (values map[string][]string, rest []string, err error) {
	values = map[string][]string{}
	for i := 0; i < len(args); i++ {
		if args[i] == "--" {
			return values, args[i+1:], nil
		}
		name, ok := strings.CutPrefix(args[i], "--")
		kind, is := known[name]
		switch {
		case !ok || !is:
			return nil, nil, faultf("Found argument '%s' which wasn't expected, or isn't valid in this context.", args[i])
		case len(values[name]) > 0 && !kind.many:
			return nil, nil, faultf("The argument '%s' was provided more than once.", name)
		case !kind.value:
			values[name] = []string{""}
			continue
		case i+1 == len(args):
			return nil, nil, faultf("The argument '%s' requires a value, but none was supplied.", name)
		}
		i++
		values[name] = append(values[name], args[i])
	}
	return values, nil, nil
}

// jailer is what the arguments say.
type jailer struct {
	id, exec, root string
	uid, gid       int
	netns          string
	limits         map[int]uint64
	args           []string
}

var instanceID = regexp.MustCompile(`^[a-zA-Z0-9-]{1,64}$`)

func runJailer(args []string) error {
	runtime.LockOSThread()
	// What was inherited is nobody's business.
	if err := unix.CloseRange(3, math.MaxUint32, unix.CLOSE_RANGE_CLOEXEC); err != nil {
		return err
	}
	values, rest, err := parseArguments(args, jailerArguments)
	if err != nil {
		return err
	}
	if values["version"] != nil {
		fmt.Printf("Jailer v%s\n", Version)
		return nil
	}
	j, err := newJailer(values)
	if err != nil {
		return err
	}
	j.args = rest
	return j.run()
}

func newJailer(values map[string][]string) (j *jailer, err error) {
	for _, name := range required {
		if values[name] == nil {
			return nil, faultf("Argument '%s' required, but not found.", name)
		}
	}
	for _, name := range []string{"daemonize", "new-pid-ns"} {
		if values[name] != nil {
			return nil, fmt.Errorf("--%s leaves nobody who can wait for the VMM", name)
		}
	}
	if values["cgroup"] != nil || values["parent-cgroup"] != nil {
		return nil, faultf("Hierarchy not found: the limits are the parent's to set")
	}
	j = &jailer{id: values["id"][0], limits: map[int]uint64{}}
	if !instanceID.MatchString(j.id) {
		return nil, faultf("Invalid instance ID: %s", j.id)
	}
	if j.exec, err = filepath.EvalSymlinks(values["exec-file"][0]); err != nil {
		return nil, faultf("Failed to canonicalize path %s: %w", values["exec-file"][0], err)
	}
	base := "/srv/jailer"
	if values["chroot-base-dir"] != nil {
		base = values["chroot-base-dir"][0]
	}
	if base, err = filepath.EvalSymlinks(base); err != nil {
		return nil, faultf("Failed to canonicalize path %s: %w", base, err)
	}
	j.root = filepath.Join(base, filepath.Base(j.exec), j.id, "root")
	for name, number := range map[string]*int{"uid": &j.uid, "gid": &j.gid} {
		n, err := strconv.ParseUint(values[name][0], 10, 32)
		if err != nil {
			return nil, faultf("Invalid %s: %s", name, values[name][0])
		}
		*number = int(n)
	}
	if values["netns"] != nil {
		j.netns = values["netns"][0]
	}
	return j, j.parseLimits(values["resource-limit"])
}

func (j *jailer) parseLimits(limits []string) error {
	j.limits[unix.RLIMIT_NOFILE] = 2048
	for _, limit := range limits {
		name, value, ok := strings.Cut(limit, "=")
		kind, known := map[string]int{"fsize": unix.RLIMIT_FSIZE, "no-file": unix.RLIMIT_NOFILE}[name]
		n, err := strconv.ParseUint(value, 10, 64)
		if !ok || !known || err != nil {
			return faultf("Invalid resource argument: %s", limit)
		}
		j.limits[kind] = n
	}
	return nil
}

func (j *jailer) run() error {
	if err := os.MkdirAll(j.root, 0o755); err != nil {
		return err
	}
	if err := j.copyProgram(); err != nil {
		return err
	}
	if j.netns != "" {
		if err := j.joinNetwork(); err != nil {
			return err
		}
	}
	// The guest has a loopback of its own; the one that stands in for it has
	// the jail's.
	if err := loopbackUp(); err != nil {
		return err
	}
	for kind, n := range j.limits {
		if err := syscall.Setrlimit(kind, &syscall.Rlimit{Cur: n, Max: n}); err != nil {
			return faultf("Failed to set limit for resource: %w", err)
		}
	}
	if err := j.enter(); err != nil {
		return err
	}
	if err := j.furnish(); err != nil {
		return err
	}
	return j.becomeVMM()
}

func (j *jailer) copyProgram() error {
	source, err := os.Open(j.exec)
	if err != nil {
		return err
	}
	defer source.Close()
	target, err := os.OpenFile(filepath.Join(j.root, filepath.Base(j.exec)), os.O_WRONLY|os.O_CREATE|unix.O_NOFOLLOW, 0o755)
	if err != nil {
		return err
	}
	defer target.Close()
	if err := target.Chown(j.uid, j.gid); err != nil {
		return err
	}
	_, err = io.Copy(target, source)
	return err
}

func (j *jailer) joinNetwork() error {
	ns, err := os.Open(j.netns)
	if err != nil {
		return err
	}
	defer ns.Close()
	if err := unix.Setns(int(ns.Fd()), unix.CLONE_NEWNET); err != nil {
		return faultf("Failed to join network namespace: netns: %w", err)
	}
	return nil
}

func loopbackUp() error {
	fd, err := unix.Socket(unix.AF_INET, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return err
	}
	defer unix.Close(fd)
	request, err := unix.NewIfreq("lo")
	if err == nil {
		request.SetUint16(unix.IFF_UP)
		err = unix.IoctlIfreq(fd, unix.SIOCSIFFLAGS, request)
	}
	return err
}

// enter makes the jail the root.
func (j *jailer) enter() error {
	for _, step := range []func() error{
		func() error { return unix.Unshare(unix.CLONE_NEWNS) },
		func() error { return unix.Mount("", "/", "", unix.MS_SLAVE|unix.MS_REC, "") },
		func() error { return unix.Mount(j.root, j.root, "", unix.MS_BIND|unix.MS_REC, "") },
		func() error { return unix.Chdir(j.root) },
		func() error { return unix.Mkdir("old_root", 0o600) },
		func() error { return unix.PivotRoot(".", "old_root") },
		func() error { return unix.Chdir("/") },
		func() error { return unix.Unmount("old_root", unix.MNT_DETACH) },
		func() error { return unix.Rmdir("old_root") },
	} {
		if err := step(); err != nil {
			return fmt.Errorf("enter %s: %w", j.root, err)
		}
	}
	return nil
}

// furnish makes directories and devices. Those that a tree has already are
// whoever made it's fault.
func (j *jailer) furnish() error {
	for _, dir := range []string{"/", "/dev", "/dev/net", "/run"} {
		err := os.MkdirAll(dir, 0o700)
		if err == nil {
			err = errors.Join(os.Chmod(dir, 0o700), os.Chown(dir, j.uid, j.gid))
		}
		if err != nil {
			return err
		}
	}
	for path, device := range map[string]uint64{
		"/dev/net/tun": unix.Mkdev(10, 200), "/dev/kvm": unix.Mkdev(10, 232), "/dev/urandom": unix.Mkdev(1, 9),
	} {
		err := unix.Mknod(path, unix.S_IFCHR|0o600, int(device))
		if err == nil {
			err = os.Chown(path, j.uid, j.gid)
		}
		if err != nil {
			return faultf("Failed to create %s via mknod inside the jail: %w", path, err)
		}
	}
	return nil
}

func (j *jailer) becomeVMM() error {
	program := "/" + filepath.Base(j.exec)
	pid, err := os.OpenFile(program+".pid", os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o644)
	if err != nil {
		return err
	}
	fmt.Fprint(pid, os.Getpid())
	pid.Close()
	err = errors.Join(syscall.Setgroups(nil), syscall.Setgid(j.gid), syscall.Setuid(j.uid))
	if err != nil {
		return err
	}
	args := slices.Concat([]string{program, "--id", j.id, "--start-time-us", "1", "--start-time-cpu-us", "1",
		"--parent-cpu-time-us", "1"}, j.args)
	return faultf("Failed to exec into Firecracker: %w", syscall.Exec(program, args, nil))
}
