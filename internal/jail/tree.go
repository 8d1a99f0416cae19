package jail

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"

	"golang.org/x/sys/unix"
)

// Tree is a file system in memory, seen by the child alone, for a program
// that makes its own jail out of it and sheds its rights by itself. Unlike one
// with a Root, such a child sees the host's files too, and keeps the caller's
// rights until it gives them up. With the last process that sees it, the tree
// is gone.
type Tree struct {
	// Mount is an existing directory to mount it on. On the host it stays
	// empty.
	Mount string
	// Files are the host's files that the tree holds.
	Files []TreeFile
}

// TreeFile is a file or named pipe of the host's, which need not have a path
// any more.
type TreeFile struct {
	File     *os.File
	Path     string // in the tree
	Writable bool
}

// treeSize bounds what the child can store in its tree, in bytes: a copy of
// the VMM's program, and sockets.
const treeSize = "64m"

// enter gives the calling thread a mount namespace with t in it.
func (t *Tree) enter() error {
	// They can be taken from the namespace that they are in, and no other.
	var mounts []*os.File
	defer func() {
		for _, m := range mounts {
			m.Close()
		}
	}()
	for _, f := range t.Files {
		m, err := mountOf(f.File, f.Writable)
		if err != nil {
			return fmt.Errorf("take %s: %w", f.File.Name(), err)
		}
		mounts = append(mounts, m)
	}
	if err := unix.Unshare(unix.CLONE_FS | unix.CLONE_NEWNS); err != nil {
		return fmt.Errorf("make mount namespace: %w", err)
	}
	if err := unix.Mount("", "/", "", unix.MS_REC|unix.MS_PRIVATE, ""); err != nil {
		return fmt.Errorf("make mounts private: %w", err)
	}
	if err := unix.Mount("tmpfs", t.Mount, "tmpfs", unix.MS_NOSUID, "mode=0700,nr_inodes=256,size="+treeSize); err != nil {
		return fmt.Errorf("mount tree on %s: %w", t.Mount, err)
	}
	for i, f := range t.Files {
		if err := attach(mounts[i], filepath.Join(t.Mount, f.Path)); err != nil {
			return fmt.Errorf("bind %s: %w", f.File.Name(), err)
		}
	}
	return nil
}

// mountOf returns a mount of file alone that is attached nowhere yet.
func mountOf(file *os.File, writable bool) (*os.File, error) {
	fd, err := unix.OpenTree(int(file.Fd()), "", unix.AT_EMPTY_PATH|unix.OPEN_TREE_CLONE|unix.OPEN_TREE_CLOEXEC)
	if err != nil {
		return nil, err
	}
	mount := os.NewFile(uintptr(fd), file.Name())
	attr := unix.MountAttr{Attr_set: unix.MOUNT_ATTR_NOSUID | unix.MOUNT_ATTR_NODEV | unix.MOUNT_ATTR_NOEXEC}
	if !writable {
		attr.Attr_set |= unix.MOUNT_ATTR_RDONLY
	}
	if err := unix.MountSetattr(fd, "", unix.AT_EMPTY_PATH, &attr); err != nil {
		return nil, errors.Join(fmt.Errorf("restrict mount: %w", err), mount.Close())
	}
	return mount, nil
}

// attach mounts on a new file at path.
func attach(mount *os.File, path string) error {
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
		return err
	}
	target, err := os.OpenFile(path, os.O_CREATE|os.O_EXCL|unix.O_NOFOLLOW, 0o444)
	if err != nil {
		return err
	}
	defer target.Close()
	return unix.MoveMount(int(mount.Fd()), "", int(target.Fd()), "",
		unix.MOVE_MOUNT_F_EMPTY_PATH|unix.MOVE_MOUNT_T_EMPTY_PATH)
}

// Lend makes a file writable at path in the root of a mount namespace that
// somebody else lives in, who is not trusted, until it is taken back.
func Lend(namespace *os.File, file *os.File, path string) error {
	mount, err := mountOf(file, true)
	if err != nil {
		return fmt.Errorf("lend %s: %w", file.Name(), err)
	}
	defer mount.Close()
	if err := within(namespace, func() error { return attach(mount, path) }); err != nil {
		return fmt.Errorf("lend %s: %w", file.Name(), err)
	}
	return nil
}

// TakeBack undoes Lend. Who has opened the file keeps it open.
func TakeBack(namespace *os.File, path string) error {
	err := within(namespace, func() error {
		if err := unix.Unmount(path, unix.MNT_DETACH|unix.UMOUNT_NOFOLLOW); err != nil {
			return err
		}
		return unix.Unlink(path)
	})
	if err != nil {
		return fmt.Errorf("take %s back: %w", path, err)
	}
	return nil
}

// within calls f in a mount namespace, at whose root it then is.
func within(namespace *os.File, f func() error) error {
	done := make(chan error, 1)
	go onThreadOfItsOwn(func() {
		err := unix.Unshare(unix.CLONE_FS)
		if err == nil {
			err = unix.Setns(int(namespace.Fd()), unix.CLONE_NEWNS)
		}
		if err == nil {
			err = f()
		}
		done <- err
	})
	return <-done
}
