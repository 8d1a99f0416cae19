package sparse

import (
	"context"
	"io"
	"os"

	"golang.org/x/sys/unix"
)

// Clone makes to, which is empty, the same as from: shared, where the file
// system can have both share their blocks until one side writes, and else by
// Copy.
func Clone(ctx context.Context, to, from *os.File) (shared bool, err error) {
	if unix.IoctlFileClone(int(to.Fd()), int(from.Fd())) == nil {
		return true, nil
	}
	// Which error says "cannot" differs between file systems; the only one
	// that copying would not get around is the full disk, which it will find.
	return false, Copy(ctx, to, from)
}

// Copy copies what are no holes of from to a file that is empty, until ctx ends.
// It changes both files' places.
func Copy(ctx context.Context, to, from *os.File) error {
	info, err := from.Stat()
	if err != nil {
		return err
	}
	if err := to.Truncate(info.Size()); err != nil {
		return err
	}
	for e, err := range Extents(from) {
		if err == nil {
			err = e.copy(ctx, to, from)
		}
		if err != nil {
			return err
		}
	}
	return nil
}

// copyStep is how many bytes are copied before ctx is looked at again.
const copyStep = 64 << 20

func (e Extent) copy(ctx context.Context, to, from *os.File) error {
	for _, f := range []*os.File{from, to} {
		if _, err := f.Seek(e.Start, io.SeekStart); err != nil {
			return err
		}
	}
	for left := e.End - e.Start; left > 0; {
		if ctx.Err() != nil {
			return context.Cause(ctx)
		}
		// Between files this is copy_file_range(2) where the kernel can.
		n, err := io.CopyN(to, from, min(left, copyStep))
		if err != nil {
			return err
		}
		left -= n
	}
	return nil
}
