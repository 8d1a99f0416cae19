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

// syncFile has what is in a file survive a loss of power.
func syncFile(path string) error {
	file, err := os.Open(path)
	if err != nil {
		return err
	}
	defer file.Close()
	return scratch.Explain(file.Sync())
}
