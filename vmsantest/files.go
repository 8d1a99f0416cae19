package vmsantest

import (
	"io/fs"
	"maps"
	"path"
	"strings"
	"sync"
	"testing/fstest"
	"time"
)

// tree is the files of a sandbox. It implements vmsan.Files.
type tree struct {
	mu    sync.RWMutex
	files fstest.MapFS // directories only where they are empty
}

func newTree() *tree { return &tree{files: fstest.MapFS{}} }

func (t *tree) clone() *tree {
	t.mu.RLock()
	defer t.mu.RUnlock()
	return &tree{files: maps.Clone(t.files)} // what is in it is never changed
}

func (t *tree) Open(name string) (fs.File, error) {
	t.mu.RLock()
	defer t.mu.RUnlock()
	return maps.Clone(t.files).Open(name)
}

func (t *tree) Stat(name string) (fs.FileInfo, error) {
	t.mu.RLock()
	defer t.mu.RUnlock()
	return t.files.Stat(name)
}

func (t *tree) ReadDir(name string) ([]fs.DirEntry, error) {
	t.mu.RLock()
	defer t.mu.RUnlock()
	return t.files.ReadDir(name)
}

func (t *tree) ReadFile(name string) ([]byte, error) {
	t.mu.RLock()
	defer t.mu.RUnlock()
	return t.files.ReadFile(name)
}

// Close is there for what has something to close.
func (t *tree) Close() error { return nil }

func failed(op, name string, err error) error { return &fs.PathError{Op: op, Path: name, Err: err} }

// changeable tells whether name can be made, replaced or removed.
func changeable(op, name string) error {
	if !fs.ValidPath(name) || name == "." {
		return failed(op, name, fs.ErrInvalid)
	}
	return nil
}

func (t *tree) WriteFile(name string, data []byte, mode fs.FileMode) error {
	if err := changeable("write", name); err != nil {
		return err
	}
	t.mu.Lock()
	defer t.mu.Unlock()
	if directory, err := t.files.Stat(path.Dir(name)); err != nil || !directory.IsDir() {
		return failed("write", name, fs.ErrNotExist)
	}
	if there, err := t.files.Stat(name); err == nil && there.IsDir() {
		return failed("write", name, fs.ErrExist)
	}
	t.files[name] = &fstest.MapFile{Data: append([]byte(nil), data...), Mode: mode.Perm(), ModTime: time.Now()}
	return nil
}

func (t *tree) MkdirAll(name string) error {
	if err := changeable("mkdir", name); err != nil {
		return err
	}
	t.mu.Lock()
	defer t.mu.Unlock()
	return t.makeDirectories(name)
}

// makeDirectories makes a directory with its parents. The lock is held.
func (t *tree) makeDirectories(name string) error {
	if name == "." {
		return nil
	}
	if err := t.makeDirectories(path.Dir(name)); err != nil {
		return err
	}
	there, err := t.files.Stat(name)
	switch {
	case err != nil:
		t.files[name] = &fstest.MapFile{Mode: fs.ModeDir | 0o755, ModTime: time.Now()}
	case !there.IsDir():
		return failed("mkdir", name, fs.ErrExist)
	}
	return nil
}

// below tells whether name is top or in it.
func below(name, top string) bool { return name == top || strings.HasPrefix(name, top+"/") }

func (t *tree) Rename(from, to string) error {
	for _, name := range []string{from, to} {
		if err := changeable("rename", name); err != nil {
			return err
		}
	}
	t.mu.Lock()
	defer t.mu.Unlock()
	if _, err := t.files.Stat(from); err != nil {
		return failed("rename", from, fs.ErrNotExist)
	}
	if below(to, from) && to != from {
		return failed("rename", from, fs.ErrInvalid)
	}
	if err := t.makeDirectories(path.Dir(to)); err != nil {
		return err
	}
	for name, file := range maps.Clone(t.files) {
		if below(name, from) {
			delete(t.files, name)
			t.files[to+strings.TrimPrefix(name, from)] = file
		}
	}
	return nil
}

func (t *tree) RemoveAll(name string) error {
	if err := changeable("remove", name); err != nil {
		return err
	}
	t.mu.Lock()
	defer t.mu.Unlock()
	maps.DeleteFunc(t.files, func(at string, _ *fstest.MapFile) bool { return below(at, name) })
	return nil
}
