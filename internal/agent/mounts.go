package agent

import (
	"fmt"
	"os"
	"path/filepath"

	"golang.org/x/sys/unix"
)

// mount is one mount(2) of the bring-up, with the directory made first.
type mount struct {
	source, target, fstype string
	flags                  uintptr
	data                   string
}

// Where the parts of the guest's root live before they are put together.
const (
	imageMount   = "/mnt/image"
	overlayMount = "/mnt/overlay"
	rootMount    = "/mnt/root"
)

// earlyMounts are what the agent needs before it can look for its disks.
var earlyMounts = []mount{
	{"devtmpfs", "/dev", "devtmpfs", unix.MS_NOSUID, "mode=0755"},
	{"proc", "/proc", "proc", unix.MS_NOSUID | unix.MS_NODEV | unix.MS_NOEXEC, ""},
	{"sysfs", "/sys", "sysfs", unix.MS_NOSUID | unix.MS_NODEV | unix.MS_NOEXEC, ""},
}

// rootMounts put the image (read-only) and the sandbox's own disk together.
// The image has no journal to replay; noload would say so, but the kernel
// refuses it for a file system without one.
var rootMounts = []mount{
	{"/dev/vda", imageMount, "ext4", unix.MS_RDONLY, ""},
	{"/dev/vdb", overlayMount, "ext4", unix.MS_NOATIME, "discard"},
	{"overlay", rootMount, "overlay", 0,
		"lowerdir=" + imageMount + ",upperdir=" + overlayMount + "/upper,workdir=" + overlayMount + "/work"},
}

// lateMounts are made inside the new root. An image need not have the
// directories: they are made in the overlay.
var lateMounts = []mount{
	{"devpts", "/dev/pts", "devpts", unix.MS_NOSUID | unix.MS_NOEXEC, "gid=5,mode=0620,ptmxmode=0666"},
	{"tmpfs", "/dev/shm", "tmpfs", unix.MS_NOSUID | unix.MS_NODEV, "mode=1777"},
	{"tmpfs", "/run", "tmpfs", unix.MS_NOSUID | unix.MS_NODEV, "mode=0755"},
	{"cgroup2", "/sys/fs/cgroup", "cgroup2", unix.MS_NOSUID | unix.MS_NODEV | unix.MS_NOEXEC, "nsdelegate"},
}

// moved are the mounts that go along into the new root.
var moved = []string{"/dev", "/proc", "/sys"}

func (m mount) make() error {
	if err := os.MkdirAll(m.target, 0o755); err != nil {
		return err
	}
	if err := unix.Mount(m.source, m.target, m.fstype, m.flags, m.data); err != nil {
		return fmt.Errorf("mount %s on %s: %w", m.source, m.target, err)
	}
	return nil
}

func mountAll(mounts []mount) error {
	for _, m := range mounts {
		if err := m.make(); err != nil {
			return err
		}
	}
	return nil
}

// mountRoot mounts image and overlay and makes them the root directory. It
// returns a descriptor of the overlay's disk.
func mountRoot() (disk int, err error) {
	image, own := rootMounts[0], rootMounts[1]
	if hasWord(ephemeralWord) {
		// A journal is for whoever mounts the disk after a crash.
		own.data += ",noload"
	}
	if err := mountAll([]mount{image, own}); err != nil {
		return 0, err
	}
	for _, dir := range []string{"upper", "work"} {
		if err := os.MkdirAll(filepath.Join(overlayMount, dir), 0o755); err != nil {
			return 0, err
		}
	}
	if disk, err = unix.Open(overlayMount, unix.O_RDONLY|unix.O_DIRECTORY|unix.O_CLOEXEC, 0); err != nil {
		return 0, fmt.Errorf("open %s: %w", overlayMount, err)
	}
	if err := mountAll(rootMounts[2:]); err != nil {
		return 0, err
	}
	return disk, switchRoot(rootMount)
}

// switchRoot makes dir the root. pivot_root(2) cannot move the initramfs
// away (Documentation/filesystems/ramfs-rootfs-initramfs.rst), so dir is
// moved over it instead.
func switchRoot(dir string) error {
	for _, m := range moved {
		target := filepath.Join(dir, m)
		if err := os.MkdirAll(target, 0o755); err != nil {
			return err
		}
		if err := unix.Mount(m, target, "", unix.MS_MOVE, ""); err != nil {
			return fmt.Errorf("move %s to %s: %w", m, target, err)
		}
	}
	if err := unix.Chdir(dir); err != nil {
		return fmt.Errorf("enter %s: %w", dir, err)
	}
	if err := unix.Mount(dir, "/", "", unix.MS_MOVE, ""); err != nil {
		return fmt.Errorf("move %s to /: %w", dir, err)
	}
	if err := unix.Chroot("."); err != nil {
		return fmt.Errorf("change root to %s: %w", dir, err)
	}
	return unix.Chdir("/")
}
