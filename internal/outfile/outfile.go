// Package outfile writes the files that users name for archives.
package outfile

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"

	"github.com/google/renameio/v2"
	"golang.org/x/sys/unix"

	"github.com/vmsan/vmsan/api"
)

// File is being written. It is not safe for concurrent use.
type File struct {
	*os.File
	pending *renameio.PendingFile // nil: what is written is there at once
}

// Create begins a file at path. A regular one has its name when it is
// committed, and what had it before then keeps it until then; links are
// followed. Devices, pipes and terminals, and what standard output goes to, are
// written to as they are. The caller has to call Cleanup.
func Create(path string, mode fs.FileMode) (*File, error) {
	file, err := create(path, mode)
	if err != nil {
		return nil, api.Errorf(api.ErrValidationPath, "write %s: %w", path, err)
	}
	return file, nil
}

func create(path string, mode fs.FileMode) (*File, error) {
	info, err := os.Stat(path)
	switch {
	case errors.Is(err, fs.ErrNotExist):
		if _, err := os.Lstat(path); err == nil {
			return nil, errors.New("it is a link that leads nowhere")
		}
		if _, err := os.Stat(filepath.Dir(path)); err != nil {
			return nil, err
		}
	case err != nil:
		return nil, err
	case info.IsDir():
		return nil, errors.New("it is a directory")
	case isOutput(info):
		// Like /dev/stdout, with a file behind it that others write to as well.
		fd, err := unix.FcntlInt(os.Stdout.Fd(), unix.F_DUPFD_CLOEXEC, 0)
		return &File{File: os.NewFile(uintptr(fd), path)}, err
	case !info.Mode().IsRegular():
		file, err := os.OpenFile(path, os.O_WRONLY, 0)
		return &File{File: file}, err
	default:
		if path, err = filepath.EvalSymlinks(path); err != nil {
			return nil, err
		}
	}
	pending, err := renameio.NewPendingFile(path, renameio.WithTempDir(filepath.Dir(path)), renameio.WithPermissions(mode))
	if err != nil {
		// Its own name says nothing to the user.
		var failed *fs.PathError
		if errors.As(err, &failed) {
			err = fmt.Errorf("make a file in %s: %w", filepath.Dir(path), failed.Err)
		}
		return nil, err
	}
	return &File{pending.File, pending}, nil
}

// isOutput tells whether a file is this program's standard output.
func isOutput(info fs.FileInfo) bool {
	output, err := os.Stdout.Stat()
	return err == nil && os.SameFile(info, output)
}

// Commit gives a whole file its name, and has it survive a loss of power.
func (f *File) Commit() error {
	if f.pending == nil {
		return f.Close()
	}
	return f.pending.CloseAtomicallyReplace()
}

// Cleanup gives up a file that was not committed.
func (f *File) Cleanup() {
	if f.pending == nil {
		f.Close()
		return
	}
	_ = f.pending.Cleanup() // of what nobody knows the name
}
