package filetree

import (
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path"
	"path/filepath"
	"slices"
	"strings"

	"golang.org/x/sys/unix"
)

// ListOptions say what a listing has.
type ListOptions struct {
	// Name is what the top of the tree is called in it.
	Name string
	// Destination is for where a copy is to go: the top is not followed if it
	// is a link and need not be there, and partial files have digests.
	Destination bool
	// Digests are wanted of all regular files.
	Digests bool
	// Skip leaves a file out, and a directory with all in it. Optional.
	Skip func(name string, directory bool) bool
	// Enter is called with the path of each directory before its names are
	// read. Optional.
	Enter func(path string) error
}

// List tells what is at top, a directory before what is in it. What vanishes
// meanwhile is left out.
func List(ctx context.Context, top string, o ListOptions, each func(Entry) error) error {
	l := lister{ctx: ctx, options: o, each: each, buffer: make([]byte, copyBuffer)}
	stat := os.Stat
	if o.Destination {
		stat = os.Lstat
	}
	info, err := stat(top)
	if o.Destination && (err == nil && !info.IsDir() || errors.Is(err, fs.ErrNotExist)) {
		return l.destination(top)
	}
	if err != nil {
		return err
	}
	if info.IsDir() {
		root, err := os.OpenRoot(top)
		if err != nil {
			return err
		}
		return l.directory(root, o.Name)
	}
	return l.file(o.Name, info, func() (*os.File, error) { return os.OpenFile(top, openFlags, 0) })
}

type lister struct {
	ctx     context.Context
	options ListOptions
	each    func(Entry) error
	buffer  []byte
}

// destination lists what is in the way of one file, and its partial.
func (l *lister) destination(top string) error {
	root, err := os.OpenRoot(filepath.Dir(top))
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return err
	}
	defer root.Close()
	base := filepath.Base(top)
	if err := l.add(root, base, l.options.Name); err != nil {
		return err
	}
	return l.add(root, PartialName(base), PartialName(l.options.Name))
}

// directory lists root, and closes it.
func (l *lister) directory(root *os.Root, name string) error {
	defer root.Close()
	if l.options.Enter != nil {
		if err := l.options.Enter(root.Name()); err != nil {
			return err
		}
	}
	handle, err := root.Open(".")
	if err != nil {
		return err
	}
	defer handle.Close()
	info, err := handle.Stat()
	if err != nil {
		return err
	}
	if err := l.each(entryOf(name, info)); err != nil {
		return err
	}
	names, err := handle.Readdirnames(-1)
	if err != nil {
		return err
	}
	slices.Sort(names)
	for _, base := range names {
		if err := l.add(root, base, path.Join(name, base)); err != nil {
			return err
		}
	}
	return nil
}

// add lists what is called base in a directory.
func (l *lister) add(directory *os.Root, base, name string) error {
	if err := l.ctx.Err(); err != nil {
		return err
	}
	if strings.Count(name, "/") >= maxDepth {
		return fmt.Errorf("%.200q is too deep", name)
	}
	info, err := directory.Lstat(base)
	if err != nil {
		return unlessGone(err)
	}
	if l.options.Skip != nil && l.options.Skip(name, info.IsDir()) {
		return nil
	}
	switch {
	case info.IsDir():
		root, err := directory.OpenRoot(base)
		if err != nil {
			return unlessGone(err)
		}
		return l.directory(root, name)
	case info.Mode()&fs.ModeSymlink != 0:
		e := entryOf(name, info)
		if e.Target, err = directory.Readlink(base); err != nil {
			return unlessGone(err)
		}
		return l.each(e)
	}
	return l.file(name, info, func() (*os.File, error) { return directory.OpenFile(base, openFlags, 0) })
}

// file lists what is neither a directory nor a link.
func (l *lister) file(name string, info fs.FileInfo, open func() (*os.File, error)) error {
	e := entryOf(name, info)
	if info.Mode().IsRegular() && l.options.Digests || l.options.Destination && IsPartial(path.Base(name)) && ownFile(info) {
		handle, err := open()
		if err != nil {
			return unlessGone(err)
		}
		defer handle.Close()
		if e.Digest, err = l.digest(handle, e.Size); err != nil {
			return fmt.Errorf("read %s: %w", name, err)
		}
	}
	return l.each(e)
}

func (l *lister) digest(handle *os.File, size int64) ([]byte, error) {
	return digest(l.ctx, handle, size, l.buffer)
}

// digest is that of a file's first bytes, which it may lack by now.
func digest(ctx context.Context, r io.Reader, size int64, buffer []byte) ([]byte, error) {
	sum := sha256.New()
	for size > 0 {
		if err := ctx.Err(); err != nil {
			return nil, err
		}
		n, err := r.Read(buffer[:min(size, int64(len(buffer)))])
		sum.Write(buffer[:n])
		size -= int64(n)
		if err == io.EOF {
			break
		}
		if err != nil {
			return nil, err
		}
	}
	return sum.Sum(nil), nil
}

func entryOf(name string, info fs.FileInfo) Entry {
	e := Entry{Name: name, Mode: info.Mode() & modeBits, Modified: info.ModTime()}
	if info.Mode().IsRegular() {
		e.Size = info.Size()
	}
	return e
}

// unlessGone makes light of what others have removed meanwhile.
func unlessGone(err error) error {
	if errors.Is(err, fs.ErrNotExist) || errors.Is(err, unix.ENOTDIR) {
		return nil
	}
	return err
}
