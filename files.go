package vmsan

import (
	"context"
	"errors"
	"io"
	"io/fs"
	"path"
	"time"

	"github.com/vmsan/vmsan/internal/guest"
)

// Files are the files of a sandbox, as package io/fs has them: names are
// relative to its root, "etc/hostname". Symbolic links are followed, but not
// those that ReadDir lists. Errors are *fs.PathError, and fs.ErrNotExist can be
// told by errors.Is.
type Files interface {
	fs.StatFS
	fs.ReadDirFS
	fs.ReadFileFS

	// WriteFile makes or replaces a file, whose directory is there. It has all
	// of data or is as it was before.
	WriteFile(name string, data []byte, mode fs.FileMode) error
	// MkdirAll makes a directory with its parents. One that is there is left.
	MkdirAll(name string) error
	// Rename gives a file or directory another name, whose parents are made.
	Rename(from, to string) error
	// RemoveAll removes a file or tree, if it is there.
	RemoveAll(name string) error
	// Close lets go of the sandbox.
	Close() error
}

func (s *service) Files(ctx context.Context, vm string) (Files, error) {
	record, client, err := s.guest(ctx, vm)
	if err != nil {
		return nil, err
	}
	explain := func(err error) error { return s.inner.Explain(ctx, record, err) }
	return &files{ctx: ctx, client: client, explain: explain}, nil
}

// files is Files of a guest. Interfaces of io/fs have no contexts.
type files struct {
	ctx     context.Context
	client  *guest.Client
	explain func(error) error
}

// guestPath is the path in the guest that a name stands for.
func guestPath(op, name string) (string, error) {
	if !fs.ValidPath(name) {
		return "", &fs.PathError{Op: op, Path: name, Err: fs.ErrInvalid}
	}
	return path.Join("/", name), nil
}

// failed makes an error of what the guest said of a name.
func (f *files) failed(op, name string, err error) error {
	if err == nil {
		return nil
	}
	return &fs.PathError{Op: op, Path: name, Err: f.explain(err)}
}

func (f *files) Close() error {
	f.client.Close()
	return nil
}

func (f *files) Stat(name string) (fs.FileInfo, error) {
	at, err := guestPath("stat", name)
	if err != nil {
		return nil, err
	}
	found, err := f.client.Stat(f.ctx, at)
	if err != nil {
		return nil, f.failed("stat", name, err)
	}
	found.Name = path.Base(name)
	return info{found}, nil
}

func (f *files) ReadDir(name string) ([]fs.DirEntry, error) {
	at, err := guestPath("readdir", name)
	if err != nil {
		return nil, err
	}
	found, err := f.client.ReadDir(f.ctx, at)
	if err != nil {
		return nil, f.failed("readdir", name, err)
	}
	entries := make([]fs.DirEntry, len(found))
	for i, file := range found {
		entries[i] = fs.FileInfoToDirEntry(info{file})
	}
	return entries, nil
}

func (f *files) Open(name string) (fs.File, error) {
	at, err := guestPath("open", name)
	if err != nil {
		return nil, err
	}
	found, err := f.Stat(name)
	if err != nil {
		return nil, reop("open", err)
	}
	if found.IsDir() {
		entries, err := f.ReadDir(name)
		if err != nil {
			return nil, reop("open", err)
		}
		return &openDir{info: found, name: name, entries: entries}, nil
	}
	body, err := f.client.OpenFile(f.ctx, at)
	if err != nil {
		return nil, f.failed("open", name, err)
	}
	return &openFile{ReadCloser: body, info: found, name: name}, nil
}

// reop says of an error what was tried really.
func reop(op string, err error) error {
	var failed *fs.PathError
	if errors.As(err, &failed) {
		failed.Op = op
	}
	return err
}

func (f *files) ReadFile(name string) ([]byte, error) {
	at, err := guestPath("open", name)
	if err != nil {
		return nil, err
	}
	body, err := f.client.OpenFile(f.ctx, at)
	if err != nil {
		return nil, f.failed("open", name, err)
	}
	defer body.Close()
	data, err := io.ReadAll(body)
	return data, f.failed("read", name, err)
}

// change does something to what a name stands for, which is not the root.
func (f *files) change(op, name string, how func(at string) error) error {
	at, err := guestPath(op, name)
	if err == nil && at == "/" {
		err = &fs.PathError{Op: op, Path: name, Err: fs.ErrInvalid}
	}
	if err != nil {
		return err
	}
	return f.failed(op, name, how(at))
}

func (f *files) WriteFile(name string, data []byte, mode fs.FileMode) error {
	return f.change("write", name, func(at string) error { return f.client.WriteFile(f.ctx, at, data, mode) })
}

func (f *files) MkdirAll(name string) error {
	return f.change("mkdir", name, func(at string) error { return f.client.MakeDir(f.ctx, at) })
}

func (f *files) RemoveAll(name string) error {
	return f.change("remove", name, func(at string) error { return f.client.RemoveAll(f.ctx, at) })
}

func (f *files) Rename(from, to string) error {
	return f.change("rename", from, func(source string) error {
		return f.change("rename", to, func(destination string) error { return f.client.Rename(f.ctx, source, destination) })
	})
}

// info is what a guest says of a file.
type info struct{ file guest.File }

func (i info) Name() string       { return i.file.Name }
func (i info) Size() int64        { return i.file.Size }
func (i info) Mode() fs.FileMode  { return i.file.Mode }
func (i info) ModTime() time.Time { return i.file.Modified }
func (i info) IsDir() bool        { return i.file.Mode.IsDir() }
func (i info) Sys() any           { return nil }

// openFile is a file of a guest that is being read.
type openFile struct {
	io.ReadCloser
	info fs.FileInfo
	name string
}

func (f *openFile) Stat() (fs.FileInfo, error) { return f.info, nil }

// openDir is a directory of a guest as it was when it was opened.
type openDir struct {
	info    fs.FileInfo
	name    string
	entries []fs.DirEntry
}

func (d *openDir) Stat() (fs.FileInfo, error) { return d.info, nil }

func (d *openDir) Close() error { return nil }

func (d *openDir) Read([]byte) (int, error) {
	return 0, &fs.PathError{Op: "read", Path: d.name, Err: errors.New("it is a directory")}
}

func (d *openDir) ReadDir(n int) ([]fs.DirEntry, error) {
	if n > 0 && len(d.entries) == 0 {
		return nil, io.EOF
	}
	if n <= 0 || n > len(d.entries) {
		n = len(d.entries)
	}
	next := d.entries[:n]
	d.entries = d.entries[n:]
	return next, nil
}
