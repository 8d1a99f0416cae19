package doctor

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"syscall"

	"golang.org/x/sys/unix"

	"github.com/vmsan/vmsan/api"
	"github.com/vmsan/vmsan/internal/disk"
	"github.com/vmsan/vmsan/internal/image"
	"github.com/vmsan/vmsan/internal/kernel"
	"github.com/vmsan/vmsan/internal/scratch"
)

func checkKernel(_ context.Context, o *Options) verdict {
	r, v, ok := o.ready()
	if !ok {
		return v
	}
	if r.Kernel == "" {
		return fail(remedySetup, "no kernel is installed")
	}
	k, err := kernel.Check(o.Layout, r.Kernel)
	switch {
	case err != nil:
		return fail(remedySetup, "%v", err)
	case k.AgentDigest != o.Agent:
		return fail(remedySetup, "kernel %s has the agent of another vmsan", k.Version)
	case !k.Current():
		return fail(remedySetup, "kernel %s lacks modules that guests need by now", k.Version)
	}
	return pass("%s, with this vmsan's agent", k.Version)
}

// checkImages reads the default image first, and the others as far as there is
// time.
func checkImages(ctx context.Context, o *Options) verdict {
	r, v, ok := o.ready()
	if !ok {
		return v
	}
	images := image.Store{Layout: o.Layout}
	var digests []string
	if r.Image != "" {
		digests = append(digests, r.Image)
	}
	list, broken, err := images.List()
	for digest := range broken {
		digests = append(digests, digest) // and Verify says why
	}
	if err != nil {
		return fail(remedySetup, "%v", err)
	}
	for _, img := range list {
		if img.Digest != r.Image {
			digests = append(digests, img.Digest)
		}
	}
	for done, digest := range digests {
		_, err := images.Verify(ctx, digest)
		switch {
		case ctx.Err() != nil:
			return pass("%d of %d images are undamaged; there was no time for the others", done, len(digests))
		case err != nil && digest == r.Image:
			return fail(remedySetup, "%v", err)
		case err != nil:
			return fail("vmsan image rm "+digest[:12]+", and pull or import it again", "%v", err)
		}
	}
	if r.Image == "" {
		return pass("%d images are undamaged; setup was told to make no default one", len(digests))
	}
	return pass("%d images are undamaged, the default one among them", len(digests))
}

func checkRecords(_ context.Context, o *Options) verdict {
	records, broken, err := o.Layout.List()
	if err != nil {
		return fail("ls -l "+o.Layout.Sandboxes(), "%v", err)
	}
	for _, id := range slices.Sorted(maps.Keys(broken)) {
		return warn("vmsan rm -f "+id+", which removes its disk too",
			"of the records of sandboxes %d cannot be read: %v", len(broken), broken[id])
	}
	ids, err := o.Layout.IDs()
	if err != nil {
		return fail("ls -l "+o.Layout.Sandboxes(), "%v", err)
	}
	for _, id := range ids {
		if _, err := os.Lstat(o.Layout.Record(id)); errors.Is(err, fs.ErrNotExist) && exists(o.Layout.Sandbox(id)) {
			return warn("rm -r "+o.Layout.Sandbox(id)+", if nothing in it is wanted", "%s has no record", o.Layout.Sandbox(id))
		}
	}
	return pass("all %d can be read", len(records))
}

func exists(path string) bool {
	_, err := os.Lstat(path)
	return err == nil
}

// existing is path, or the nearest directory above that there is.
func existing(path string) string {
	for !exists(path) && path != "/" {
		path = filepath.Dir(path)
	}
	return path
}

// flagRemedy mounts a file system without a flag.
func flagRemedy(path, without string) string {
	return fmt.Sprintf("findmnt -T %s names the mount point; mount -o remount,%s MOUNTPOINT, or choose another --dir", path, without)
}

func checkState(_ context.Context, o *Options) verdict {
	if err := o.Layout.CheckDir(); err != nil {
		return fail("choose another --dir", "%v", err)
	}
	path := existing(o.Layout.Dir)
	info, err := os.Stat(path)
	var file unix.Statfs_t
	if err == nil {
		err = unix.Statfs(path, &file)
	}
	if err != nil {
		return fail("ls -ld "+path, "%v", err)
	}
	owner := info.Sys().(*syscall.Stat_t).Uid
	const anybody = 0o002
	switch {
	case !info.IsDir():
		return fail("choose another --dir", "%s is no directory", path)
	case file.Flags&unix.ST_RDONLY != 0:
		return fail(flagRemedy(path, "rw"), "%s is on a file system that is mounted read-only", path)
	case path != o.Layout.Dir && unix.Access(path, unix.W_OK) != nil:
		return fail("choose another --dir, or let root make "+o.Layout.Dir+" and chown it to you",
			"user %d may not make %s: %s belongs to user %d", os.Geteuid(), o.Layout.Dir, path, owner)
	case unix.Access(path, unix.W_OK) != nil:
		return fail("choose another --dir, or sudo chown -R $USER "+path, "user %d may not write into %s", os.Geteuid(), path)
	case path == o.Layout.Dir && owner != uint32(os.Geteuid()):
		return warn("run vmsan as its owner, or chown -R "+fmt.Sprint(os.Geteuid())+" "+path, "%s belongs to user %d", path, owner)
	case path == o.Layout.Dir && info.Mode().Perm()&anybody != 0:
		return fail("chmod go-w "+path, "everybody may write into %s", path)
	case isRemote(file.Type):
		return warn("vmsan --dir DIRECTORY, on a disk of this host's", "%s is on a network file system, whose locks and holes cannot be relied on", path)
	case file.Flags&unix.ST_NODEV != 0:
		return warn(flagRemedy(path, "dev"), "%s is mounted nodev: a jail below it can have no devices, which Firecracker's jailer makes there; QEMU does not mind", path)
	case file.Flags&unix.ST_NOEXEC != 0:
		return warn(flagRemedy(path, "exec"), "%s is mounted noexec: no program that is kept in it can run; QEMU does not mind", path)
	case path != o.Layout.Dir:
		return pass("%s is not there yet, and can be made", o.Layout.Dir)
	}
	return pass("%s belongs to this user, and nothing in its mount is in the way", path)
}

// isRemote knows file systems by their numbers: statfs(2).
func isRemote(kind int64) bool {
	const afs = 0x5346414f
	return slices.Contains([]int64{unix.NFS_SUPER_MAGIC, unix.SMB_SUPER_MAGIC, unix.SMB2_SUPER_MAGIC, unix.CIFS_SUPER_MAGIC,
		unix.V9FS_MAGIC, unix.CEPH_SUPER_MAGIC, afs}, kind)
}

// Room for an image and a few sandboxes, and for no more than starting one.
const (
	wantedBytes   = 5 << 30
	neededBytes   = 512 << 20
	neededRunning = 1 << 20
	neededFiles   = 1000
)

func checkSpace(_ context.Context, o *Options) verdict {
	state, run := existing(o.Layout.Dir), existing(o.Layout.Run)
	bytes, files, err := room(state)
	if err != nil {
		return fail("df -h "+state, "%v", err)
	}
	sockets, _, err := room(run)
	if err != nil {
		return fail("df -h "+run, "%v", err)
	}
	const prune = "vmsan image prune --all; vmsan template prune; vmsan list"
	gigabytes := float64(bytes) / (1 << 30)
	switch {
	case bytes < neededBytes:
		return fail(prune, "%.1f GiB are free in %s", gigabytes, state)
	case files < neededFiles:
		return fail(prune, "%d more files can be made in %s", files, state)
	case sockets < neededRunning:
		return fail("df -h "+run, "%s, where sockets are made, is full", run)
	case bytes < wantedBytes:
		return warn(prune, "%.1f GiB are free in %s", gigabytes, state)
	}
	return pass("%.1f GiB are free in %s", gigabytes, state)
}

// room is what this user can still write.
func room(path string) (bytes, files uint64, err error) {
	var file unix.Statfs_t
	if err := unix.Statfs(path, &file); err != nil {
		return 0, 0, fmt.Errorf("ask for room in %s: %w", path, err)
	}
	files = file.Ffree
	if file.Files == 0 { // as many as fit
		files = neededFiles
	}
	return file.Bavail * uint64(file.Bsize), files, nil
}

// A file to clone: mostly a hole.
const (
	trialSize = 64 << 20
	trialData = 64 << 10
)

func checkClones(ctx context.Context, o *Options) verdict {
	if !exists(o.Layout.Sandboxes()) {
		return pass("%s is not there yet", o.Layout.Sandboxes())
	}
	dir, err := scratch.New(o.Layout.Tmp(), "doctor")
	if err != nil {
		return fail("ls -ld "+o.Layout.Tmp(), "%v", err)
	}
	defer dir.Close()
	source, clone := dir.Join("source"), dir.Join("clone")
	if err := writeTrial(source); err != nil {
		return fail("df -h "+o.Layout.Dir, "%v", err)
	}
	method, err := disk.Clone(ctx, clone, source)
	if err != nil {
		return fail("df -h "+o.Layout.Dir, "%v", err)
	}
	info, err := os.Stat(clone)
	if err != nil {
		return fail("df -h "+o.Layout.Dir, "%v", err)
	}
	if taken := info.Sys().(*syscall.Stat_t).Blocks * 512; taken > trialSize/2 {
		return fail("vmsan --dir DIRECTORY, on ext4, XFS or btrfs", "the file system of %s keeps no holes: each sandbox takes all of its disk's size", o.Layout.Dir)
	}
	if method == disk.Reflink {
		return pass("clones of disks share blocks")
	}
	return pass("clones of disks copy the data there is; XFS and btrfs would share it")
}

func writeTrial(path string) error {
	f, err := os.OpenFile(path, os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o600)
	if err != nil {
		return err
	}
	_, err = f.Write([]byte(strings.Repeat("x", trialData)))
	return errors.Join(err, f.Truncate(trialSize), f.Close())
}

// checkLeftovers mends, too.
func checkLeftovers(ctx context.Context, o *Options) verdict {
	var fixed []string
	if o.Fix {
		c, err := o.Collect(ctx, false)
		for _, l := range c.Removed {
			fixed = append(fixed, "removed "+leftover(l))
		}
		for _, l := range c.Failed {
			err = errors.Join(err, errors.New(l.Error))
		}
		if err != nil {
			return verdict{api.HealthFail, err.Error(), "vmsan doctor leftovers --fix", fixed}
		}
	}
	found, err := o.Collect(ctx, true)
	if err != nil {
		return verdict{api.HealthFail, fmt.Sprintf("leftovers cannot be looked for: %v", err), "vmsan doctor leftovers", fixed}
	}
	v := judgeLeftovers(found)
	v.fixed = fixed
	return v
}

func judgeLeftovers(found api.Collection) verdict {
	var dead, kept []string
	for _, l := range found.Removed {
		dead = append(dead, leftover(l))
	}
	for _, l := range found.Kept {
		kept = append(kept, leftover(l)+": "+l.Kept)
	}
	switch {
	case len(dead) > 0:
		return warn("vmsan doctor leftovers --fix", "of dead sandboxes and commands is left: %s", strings.Join(append(dead, kept...), "; "))
	case len(kept) > 0:
		return pass("what looks like leftovers cannot be proved to be: %s", strings.Join(kept, "; "))
	}
	return pass("none")
}

func leftover(l api.Leftover) string {
	if l.VM == "" {
		return l.What
	}
	return l.VM + ": " + l.What
}
