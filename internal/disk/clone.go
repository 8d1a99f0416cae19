package disk

import (
	"errors"
	"fmt"
	"io"
	"os"

	"golang.org/x/sys/unix"

	"github.com/vmsan/vmsan/internal/scratch"
	"github.com/vmsan/vmsan/internal/sparse"
)

// Method is how a disk was cloned.
type Method string

// The methods.
const (
	// Reflink shares the blocks until one side writes: btrfs, XFS, bcachefs.
	Reflink Method = "reflink"
	// Extents copies the blocks that have data, and leaves out the holes.
	Extents Method = "extents"
)

// Clone makes dst, which must not exist, a copy of the disk src. Nobody may
// write to src meanwhile. On error there is no dst.
//
// The copy is not synced. A clone that a loss of power takes away is one of a
// sandbox whose creation had not been recorded, or of one that did not run
// either; what a guest syncs later syncs the blocks it means.
func Clone(dst, src string) (Method, error) {
	m, err := clone(dst, src)
	if err != nil {
		return "", scratch.Explain(fmt.Errorf("clone disk %s: %w", src, err))
	}
	return m, nil
}

func clone(dst, src string) (method Method, err error) {
	in, err := os.Open(src)
	if err != nil {
		return "", err
	}
	defer in.Close()
	out, err := os.OpenFile(dst, os.O_RDWR|os.O_CREATE|os.O_EXCL, 0o600)
	if err != nil {
		return "", err
	}
	method, err = cloneFile(out, in)
	err = errors.Join(err, out.Close())
	if err != nil {
		return "", errors.Join(err, os.Remove(dst))
	}
	return method, nil
}

func cloneFile(out, in *os.File) (Method, error) {
	err := unix.IoctlFileClone(int(out.Fd()), int(in.Fd()))
	if err == nil {
		return Reflink, nil
	}
	// Which error says "cannot" differs between file systems; the only one
	// that copying would not get around is the full disk, which it will find.
	return Extents, copyExtents(out, in)
}

func copyExtents(out, in *os.File) error {
	info, err := in.Stat()
	if err != nil {
		return err
	}
	if err := out.Truncate(info.Size()); err != nil {
		return err
	}
	for e, err := range sparse.Extents(in) {
		if err == nil {
			err = copyRange(out, in, e.Start, e.End-e.Start)
		}
		if err != nil {
			return err
		}
	}
	return nil
}

func copyRange(out, in *os.File, at, n int64) error {
	if _, err := in.Seek(at, io.SeekStart); err != nil {
		return err
	}
	if _, err := out.Seek(at, io.SeekStart); err != nil {
		return err
	}
	// Between files this is copy_file_range(2) where the kernel can.
	_, err := io.CopyN(out, in, n)
	return err
}
