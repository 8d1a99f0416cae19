package sandbox

import (
	"errors"
	"io/fs"
	"os"

	"github.com/vmsan/vmsan/internal/scratch"
)

// removeFile removes a file that may not be there.
func removeFile(path string) error {
	if err := os.Remove(path); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	return nil
}

func renameFile(from, to string) error { return scratch.Explain(os.Rename(from, to)) }
