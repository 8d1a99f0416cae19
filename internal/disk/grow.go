package disk

import (
	"fmt"
	"os"

	"github.com/vmsan/vmsan/api"
	"github.com/vmsan/vmsan/internal/scratch"
)

// Grow makes the disk at path one of size bytes, which it may have already.
// What it gains is a hole. The file system on it stays as it is.
func Grow(path string, size int64) error {
	if err := checkSize(size); err != nil {
		return err
	}
	info, err := os.Stat(path)
	if err == nil && info.Size() > size {
		return api.Errorf(api.ErrValidationDiskSize, "disk %s has %d bytes already", path, info.Size())
	}
	if err == nil && info.Size() < size {
		err = os.Truncate(path, size)
	}
	if err != nil {
		return scratch.Explain(fmt.Errorf("grow disk %s to %d bytes: %w", path, size, err))
	}
	return nil
}
