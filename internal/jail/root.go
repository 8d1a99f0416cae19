package jail

import (
	"fmt"
	"os"
	"path/filepath"

	"golang.org/x/sys/unix"
)

// oldRoot is where pivot_root(2) leaves the host's root until it is let go.
const oldRoot = ".old"

// enter gives the calling thread a mount namespace and makes r its root. The
// thread is of no other use after that.
func (r *Root) enter(user *User) error {
	if err := unix.Unshare(unix.CLONE_FS | unix.CLONE_NEWNS); err != nil {
		return fmt.Errorf("make mount namespace: %w", err)
	}
	if err := unix.Mount("", "/", "", unix.MS_REC|unix.MS_PRIVATE, ""); err != nil {
		return fmt.Errorf("make mounts private: %w", err)
	}
	if err := unix.Mount("tmpfs", r.Mount, "tmpfs", unix.MS_NOSUID|unix.MS_NOEXEC, "mode=0755,size=64k,nr_inodes=64"); err != nil {
		return fmt.Errorf("mount root on %s: %w", r.Mount, err)
	}
	if err := r.fill(user); err != nil {
		return err
	}
	return pivot(r.Mount)
}

func (r *Root) fill(user *User) error {
	for _, b := range r.Binds {
		if err := b.mount(r.Mount); err != nil {
			return fmt.Errorf("bind %s: %w", b.Source, err)
		}
	}
	for _, d := range r.Devices {
		if err := d.make(r.Mount, user); err != nil {
			return fmt.Errorf("make device %s: %w", d.Path, err)
		}
	}
	for name, target := range r.Links {
		if err := os.Symlink(target, filepath.Join(r.Mount, name)); err != nil {
			return err
		}
	}
	return nil
}

func (b Bind) mount(root string) error {
	target := filepath.Join(root, b.Target)
	if err := b.makeTarget(target); err != nil {
		return err
	}
	if err := unix.Mount(b.Source, target, "", unix.MS_BIND, ""); err != nil {
		return err
	}
	// A bind mount takes its flags only when mounted again (mount(2)).
	return unix.Mount("", target, "", unix.MS_BIND|unix.MS_REMOUNT|unix.MS_RDONLY|unix.MS_NOSUID|unix.MS_NODEV, "")
}

func (b Bind) makeTarget(target string) error {
	info, err := os.Stat(b.Source)
	if err != nil {
		return err
	}
	if info.IsDir() {
		return os.MkdirAll(target, 0o755)
	}
	if err := os.MkdirAll(filepath.Dir(target), 0o755); err != nil {
		return err
	}
	file, err := os.OpenFile(target, os.O_CREATE|os.O_EXCL, 0o444)
	if err != nil {
		return err
	}
	return file.Close()
}

func (d Device) make(root string, user *User) error {
	path := filepath.Join(root, d.Path)
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
		return err
	}
	if err := unix.Mknod(path, unix.S_IFCHR|0o600, int(unix.Mkdev(d.Major, d.Minor))); err != nil {
		return err
	}
	if user == nil {
		return nil
	}
	return os.Lchown(path, int(user.UID), int(user.GID))
}

func pivot(root string) error {
	old := filepath.Join(root, oldRoot)
	if err := os.Mkdir(old, 0o700); err != nil {
		return err
	}
	if err := unix.PivotRoot(root, old); err != nil {
		return fmt.Errorf("pivot root to %s: %w", root, err)
	}
	if err := unix.Chdir("/"); err != nil {
		return err
	}
	if err := unix.Unmount(oldRoot, unix.MNT_DETACH); err != nil {
		return fmt.Errorf("let go of the host's root: %w", err)
	}
	if err := os.Remove(oldRoot); err != nil {
		return err
	}
	if err := unix.Mount("", "/", "", unix.MS_REMOUNT|unix.MS_RDONLY|unix.MS_NOSUID|unix.MS_NOEXEC, ""); err != nil {
		return fmt.Errorf("make root read-only: %w", err)
	}
	return nil
}
