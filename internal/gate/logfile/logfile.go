// Package logfile is a file that forgets its beginning: a guest can have as
// much written to it as it likes.
package logfile

import (
	"bytes"
	"fmt"
	"io"
	"os"
)

// A log is cut to Keep bytes, the last ones, whenever it has grown to Max.
const (
	Max  = 1 << 20
	Keep = 256 << 10
)

// File is written through one descriptor, because a gate could not open
// another.
type File struct {
	file  *os.File
	size  int64
	lines bool
}

// Open goes on at the end of file.
func Open(file *os.File) (*File, error) {
	size, err := file.Seek(0, io.SeekEnd)
	if err != nil {
		return nil, fmt.Errorf("open %s: %w", file.Name(), err)
	}
	return &File{file: file, size: size}, nil
}

// OpenLines is Open for a file of lines, which begins with a whole one after
// it was cut.
func OpenLines(file *os.File) (*File, error) {
	f, err := Open(file)
	if err == nil {
		f.lines = true
	}
	return f, err
}

func (f *File) Write(b []byte) (int, error) {
	if f.size+int64(len(b)) > Max {
		if err := f.cut(); err != nil {
			return 0, fmt.Errorf("cut %s: %w", f.file.Name(), err)
		}
	}
	n, err := f.file.WriteAt(b, f.size)
	f.size += int64(n)
	return n, err
}

func (f *File) cut() error {
	kept := make([]byte, min(f.size, Keep))
	n, err := f.file.ReadAt(kept, f.size-int64(len(kept)))
	if err != nil && err != io.EOF {
		return err
	}
	kept = kept[:n]
	if f.lines {
		kept = kept[bytes.IndexByte(kept, '\n')+1:]
	}
	if err := f.file.Truncate(0); err != nil {
		return err
	}
	f.size = 0
	written, err := f.file.WriteAt(kept, 0)
	f.size = int64(written)
	return err
}

// Size is how long the file is, in bytes.
func (f *File) Size() int64 { return f.size }
