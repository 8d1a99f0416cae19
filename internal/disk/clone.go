package disk

import (
	"context"
	"errors"
	"fmt"
	"os"

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
// write to src meanwhile. On error there is no dst, nor if ctx ends while it is
// being copied.
//
// The copy is not synced. A clone that a loss of power takes away is one of a
// sandbox whose creation had not been recorded, or of one that did not run
// either; what a guest syncs later syncs the blocks it means.
func Clone(ctx context.Context, dst, src string) (Method, error) {
	m, err := clone(ctx, dst, src)
	if err != nil {
		return "", scratch.Explain(fmt.Errorf("clone disk %s: %w", src, err))
	}
	return m, nil
}

func clone(ctx context.Context, dst, src string) (method Method, err error) {
	in, err := os.Open(src)
	if err != nil {
		return "", err
	}
	defer in.Close()
	out, err := os.OpenFile(dst, os.O_RDWR|os.O_CREATE|os.O_EXCL, 0o600)
	if err != nil {
		return "", err
	}
	shared, err := sparse.Clone(ctx, out, in)
	err = errors.Join(err, out.Close())
	switch {
	case err != nil:
		return "", errors.Join(err, os.Remove(dst))
	case shared:
		return Reflink, nil
	}
	return Extents, nil
}
