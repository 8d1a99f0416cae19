package registry

import (
	"context"
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"github.com/vmsan/vmsan/internal/scratch"
)

// Cache keeps blobs by their SHA-256, for images that share layers and for
// downloads that go on where they were interrupted. It may be used by several
// processes at a time.
//
// A blob in sha256/ is complete; it is not synced, and so checked whenever it
// is read. One in partial/ belongs to whoever has it locked (flock).
type Cache struct{ Dir string }

func (c Cache) blob(hex string) string    { return filepath.Join(c.Dir, "sha256", hex) }
func (c Cache) partial(hex string) string { return filepath.Join(c.Dir, "partial", hex) }

func (c Cache) init() error {
	for _, dir := range []string{c.blob(""), c.partial("")} {
		if err := os.MkdirAll(dir, 0o700); err != nil {
			return err
		}
	}
	return nil
}

// open returns the blob, or fs.ErrNotExist. One of another size is damaged,
// and removed.
func (c Cache) open(hex string, size int64) (*os.File, error) {
	f, err := os.Open(c.blob(hex))
	if err != nil {
		return nil, err
	}
	info, err := f.Stat()
	if err == nil && info.Size() == size {
		now := time.Now()
		// Prune goes by it. It fails on a state directory that can only be
		// read, where nothing is pruned.
		os.Chtimes(c.blob(hex), now, now)
		return f, nil
	}
	f.Close()
	if err == nil {
		err = c.drop(hex)
	}
	return nil, errors.Join(err, fs.ErrNotExist)
}

// drop removes a blob that is damaged.
func (c Cache) drop(hex string) error { return os.Remove(c.blob(hex)) }

// claim returns the blob if it is there; else the begun one, for this caller
// alone to go on with. It waits for others that are at it.
func (c Cache) claim(ctx context.Context, hex string, size int64) (blob *os.File, begun *os.File, err error) {
	for {
		if blob, err = c.open(hex, size); err == nil || !errors.Is(err, fs.ErrNotExist) {
			return blob, nil, err
		}
		begun, err = os.OpenFile(c.partial(hex), os.O_RDWR|os.O_CREATE, 0o600)
		if err != nil {
			return nil, nil, err
		}
		if err = scratch.LockFile(ctx, begun); err != nil {
			begun.Close()
			return nil, nil, err
		}
		_, gone := os.Stat(c.blob(hex))
		if sameFile(begun, c.partial(hex)) && errors.Is(gone, fs.ErrNotExist) {
			return nil, begun, nil
		}
		// Another process has finished it, or given it up.
		if err := c.abandon(hex, begun); err != nil {
			return nil, nil, err
		}
	}
}

// finish makes the begun blob a complete one, which stays open.
func (c Cache) finish(hex string, begun *os.File) error {
	if err := begun.Chmod(0o400); err != nil {
		return err
	}
	if err := os.Rename(c.partial(hex), c.blob(hex)); err != nil {
		return err
	}
	return unix.Flock(int(begun.Fd()), unix.LOCK_UN)
}

// abandon removes the begun blob, and closes it.
func (c Cache) abandon(hex string, begun *os.File) error {
	defer begun.Close()
	if !sameFile(begun, c.partial(hex)) {
		return nil
	}
	return os.Remove(c.partial(hex))
}

func sameFile(f *os.File, path string) bool {
	named, err := os.Lstat(path)
	if err != nil {
		return false
	}
	open, err := f.Stat()
	return err == nil && os.SameFile(named, open)
}

// Usage is the number of blobs, begun ones too, and their bytes on disk.
func (c Cache) Usage() (blobs int, bytes int64, err error) {
	err = c.each(func(_ string, info fs.FileInfo) error {
		blobs++
		bytes += diskSize(info)
		return nil
	})
	return blobs, bytes, err
}

// Prune removes blobs that were not used for as long as age, except begun ones
// that are being downloaded. Images do not need the blobs they were made of,
// and who is reading one keeps it.
func (c Cache) Prune(age time.Duration) (blobs int, bytes int64, err error) {
	err = c.each(func(path string, info fs.FileInfo) error {
		if time.Since(info.ModTime()) < age {
			return nil
		}
		removed, err := prune(path)
		if removed {
			blobs++
			bytes += diskSize(info)
		}
		return err
	})
	return blobs, bytes, err
}

func prune(path string) (bool, error) {
	f, err := os.Open(path)
	if errors.Is(err, fs.ErrNotExist) {
		return false, nil
	}
	if err != nil {
		return false, err
	}
	defer f.Close()
	if err := unix.Flock(int(f.Fd()), unix.LOCK_EX|unix.LOCK_NB); err != nil {
		if errors.Is(err, unix.EWOULDBLOCK) {
			return false, nil
		}
		return false, &fs.PathError{Op: "lock", Path: path, Err: err}
	}
	if !sameFile(f, path) {
		return false, nil
	}
	return true, os.Remove(path)
}

func (c Cache) each(do func(path string, info fs.FileInfo) error) error {
	for _, dir := range []string{c.blob(""), c.partial("")} {
		entries, err := os.ReadDir(dir)
		if errors.Is(err, fs.ErrNotExist) {
			continue
		}
		if err != nil {
			return err
		}
		for _, e := range entries {
			info, err := e.Info()
			if errors.Is(err, fs.ErrNotExist) {
				continue
			}
			if err == nil {
				err = do(filepath.Join(dir, e.Name()), info)
			}
			if err != nil {
				return err
			}
		}
	}
	return nil
}

func diskSize(info fs.FileInfo) int64 {
	if s, ok := info.Sys().(*syscall.Stat_t); ok {
		return s.Blocks * 512
	}
	return info.Size()
}
