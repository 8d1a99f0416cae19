// Package scratch makes directories for work in progress. Each belongs to the
// process that made it, which a flock on the directory proves, so that what a
// killed process left behind can be told from what is still being made.
package scratch

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/vmsan/vmsan/api"
	"github.com/vmsan/vmsan/internal/fault"
)

// suffix ends the names of scratch directories. Nothing else is swept: who
// gives the wrong directory as vmsan's may have a tmp in it.
const suffix = ".scratch"

// attempts bounds how often New tries again after losing its directory to a
// concurrent Sweep; losing even once takes a sweep within microseconds.
const attempts = 16

// Dir is a directory of this process's own. It is not safe for concurrent
// use.
type Dir struct {
	// Path is the directory's absolute path.
	Path string
	lock *os.File
}

// New makes a directory in parent, which is made too if it is missing. Its name
// begins with prefix and ends in ".scratch". The caller has to Close it.
func New(parent, prefix string) (*Dir, error) {
	if err := os.MkdirAll(parent, 0o755); err != nil {
		return nil, fmt.Errorf("make scratch directory: %w", err)
	}
	for range attempts {
		d, err := try(parent, prefix)
		if err != nil {
			return nil, fmt.Errorf("make scratch directory in %s: %w", parent, err)
		}
		if d != nil {
			return d, nil
		}
	}
	return nil, fmt.Errorf("make scratch directory in %s: swept away %d times", parent, attempts)
}

// try returns nil if Sweep took the directory in the moment between its
// making and its locking.
func try(parent, prefix string) (*Dir, error) {
	path, err := os.MkdirTemp(parent, prefix+"-*"+suffix)
	if err != nil {
		return nil, err
	}
	lock, err := lockDir(path)
	if errors.Is(err, fs.ErrNotExist) || errors.Is(err, unix.EWOULDBLOCK) {
		return nil, nil
	}
	if err != nil {
		return nil, errors.Join(err, os.Remove(path))
	}
	if !isStill(path, lock) {
		return nil, lock.Close()
	}
	return &Dir{Path: path, lock: lock}, nil
}

// Join returns the path of name in the directory.
func (d *Dir) Join(name string) string { return filepath.Join(d.Path, name) }

// Lock is the open file whose flock keeps the directory. A child process that
// gets it keeps the directory from being swept for as long as it runs.
func (d *Dir) Lock() *os.File { return d.lock }

// Publish moves name out of the directory to target, with all it holds safely
// on disk: a target that exists is complete, even after a loss of power. The
// files in name have to be synced already. What is at target moves to the
// directory, to go with it.
func (d *Dir) Publish(name, target string) error {
	if err := d.publish(name, target); err != nil {
		return fmt.Errorf("publish %s: %w", target, err)
	}
	return nil
}

func (d *Dir) publish(name, target string) error {
	parent := filepath.Dir(target)
	if err := os.MkdirAll(parent, 0o755); err != nil {
		return err
	}
	err := os.Rename(target, d.Join(name+".old"))
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	if err := fault.After("publish: synced", sync(d.Join(name))); err != nil {
		return err
	}
	if err := os.Rename(d.Join(name), target); err != nil {
		return err
	}
	if err := fault.After("publish: renamed", sync(parent)); err != nil {
		// Whoever hears of the error does not expect it there.
		return errors.Join(err, os.Rename(target, d.Join(name)))
	}
	return nil
}

func sync(path string) error {
	f, err := os.Open(path)
	if err != nil {
		return err
	}
	defer f.Close()
	return f.Sync()
}

// Explain gives err the code for a full disk, if that is what it says.
func Explain(err error) error {
	if !errors.Is(err, unix.ENOSPC) && !errors.Is(err, unix.EDQUOT) || api.HasCode(err, api.ErrDiskFull) {
		return err
	}
	return api.Errorf(api.ErrDiskFull, "%w", err)
}

// Close removes the directory with all that is in it. It may be called more
// than once.
func (d *Dir) Close() error {
	if d.lock == nil {
		return nil
	}
	// Removed before it is unlocked: no Sweep sees a half-removed directory.
	err := removeAll(d.Path)
	err = errors.Join(err, d.lock.Close())
	d.lock = nil
	return err
}

// Sweep removes from parent every scratch directory whose maker is gone, and
// returns the names of those. A missing parent is empty. It may run beside New.
func Sweep(parent string) (swept []string, failures error) {
	all, err := List(parent)
	if err != nil {
		return nil, fmt.Errorf("sweep scratch directories: %w", err)
	}
	for _, name := range all {
		gone, err := sweepOne(filepath.Join(parent, name))
		failures = errors.Join(failures, err)
		if gone {
			swept = append(swept, name)
		}
	}
	return swept, failures
}

// List has the names of the scratch directories in parent.
func List(parent string) (names []string, err error) {
	entries, err := os.ReadDir(parent)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	for _, e := range entries {
		if e.IsDir() && strings.HasSuffix(e.Name(), suffix) {
			names = append(names, e.Name())
		}
	}
	return names, err
}

// Dead lists the scratch directories in parent whose maker is gone: those that
// Sweep would remove.
func Dead(parent string) (names []string, err error) {
	all, err := List(parent)
	if err != nil {
		return nil, fmt.Errorf("look through scratch directories: %w", err)
	}
	for _, name := range all {
		lock, err := lockDir(filepath.Join(parent, name))
		if err == nil {
			lock.Close()
			names = append(names, name)
		}
	}
	return names, nil
}

// Remove removes a directory whose maker is gone, with what is mounted in it.
// One that is alive, or gone as well, is left as it is.
func Remove(path string) error {
	lock, err := lockDir(path)
	if errors.Is(err, unix.EWOULDBLOCK) || errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return fmt.Errorf("remove scratch directory: %w", err)
	}
	defer lock.Close()
	if err := UnmountBelow(path); err != nil {
		return fmt.Errorf("remove scratch directory: %w", err)
	}
	return removeAll(path)
}

func sweepOne(path string) (bool, error) {
	lock, err := lockDir(path)
	if errors.Is(err, unix.EWOULDBLOCK) || errors.Is(err, fs.ErrNotExist) {
		return false, nil
	}
	if err != nil {
		return false, fmt.Errorf("sweep %s: %w", path, err)
	}
	defer lock.Close()
	if err := removeAll(path); err != nil {
		return false, fmt.Errorf("sweep %s: %w", path, err)
	}
	return true, nil
}

// lockDir locks the directory at path, or returns EWOULDBLOCK at once.
func lockDir(path string) (*os.File, error) {
	f, err := os.OpenFile(path, os.O_RDONLY|unix.O_DIRECTORY|unix.O_NOFOLLOW, 0)
	if err != nil {
		return nil, err
	}
	if err := unix.Flock(int(f.Fd()), unix.LOCK_EX|unix.LOCK_NB); err != nil {
		f.Close()
		return nil, &os.PathError{Op: "lock", Path: path, Err: err}
	}
	return f, nil
}

// isStill tells whether path still names the directory that lock has open.
func isStill(path string, lock *os.File) bool {
	named, err := os.Lstat(path)
	if err != nil {
		return false
	}
	held, err := lock.Stat()
	return err == nil && os.SameFile(named, held)
}

// removeAll is os.RemoveAll for trees with read-only directories, which stop
// the removal of what is in them for everybody but root. It does not touch a
// tree in which something is mounted: a builder of root file systems that was
// killed may have left the host's /dev there.
func removeAll(path string) error {
	mounts, err := mountsBelow(path)
	if err != nil {
		return err
	}
	if len(mounts) > 0 {
		return fmt.Errorf("remove %s: something is mounted on %s", path, mounts[0])
	}
	err = os.RemoveAll(path)
	if err == nil || !errors.Is(err, fs.ErrPermission) {
		return err
	}
	if err := makeWritable(path); err != nil {
		return err
	}
	return os.RemoveAll(path)
}

// UnmountBelow takes away what is mounted below a directory that belongs to
// nobody any more. What is in use stays, and is an error.
func UnmountBelow(path string) error {
	mounts, err := mountsBelow(path)
	if err != nil {
		return err
	}
	// Those on top of others come later.
	for _, at := range slices.Backward(mounts) {
		if err := unix.Unmount(at, unix.UMOUNT_NOFOLLOW); err != nil {
			return fmt.Errorf("unmount %s: %w", at, err)
		}
	}
	return nil
}

func mountsBelow(path string) ([]string, error) {
	info, err := os.ReadFile("/proc/self/mountinfo")
	if err != nil {
		return nil, err
	}
	return mountPointsBelow(string(info), path), nil
}

// unescape undoes what the kernel does to mount points:
// proc_pid_mountinfo(5).
var unescape = strings.NewReplacer(`\040`, " ", `\011`, "\t", `\012`, "\n", `\134`, `\`)

// mountPointsBelow lists the mount points below path, in the order of their
// mounting.
func mountPointsBelow(mountinfo, path string) (list []string) {
	for line := range strings.Lines(mountinfo) {
		fields := strings.Fields(line)
		if len(fields) <= 4 {
			continue
		}
		if at := unescape.Replace(fields[4]); strings.HasPrefix(at, path+"/") {
			list = append(list, at)
		}
	}
	return list
}

func makeWritable(path string) error {
	return filepath.WalkDir(path, func(p string, e fs.DirEntry, err error) error {
		if err != nil || !e.IsDir() {
			return err
		}
		return os.Chmod(p, 0o700)
	})
}
