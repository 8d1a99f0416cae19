package hooks

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"syscall"

	"github.com/vmsan/vmsan/api"
)

// find returns the executables of a hook in the order of their names: the files
// in HOOK.d that somebody may execute. Who runs them has all rights of the
// caller, so nobody else may have had a hand in them: if that cannot be said of
// one, none is returned.
func find(dir string, hook api.Hook) (paths []string, err error) {
	if dir == "" {
		return nil, nil
	}
	dir = filepath.Join(dir, string(hook)+".d")
	entries, err := os.ReadDir(dir)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, api.Errorf(api.ErrHook, "look for hooks: %w", err)
	}
	for _, e := range entries {
		if strings.HasPrefix(e.Name(), ".") || strings.HasSuffix(e.Name(), "~") {
			continue // what editors and package managers leave
		}
		path, ok, err := usable(filepath.Join(dir, e.Name()))
		if err != nil {
			return nil, err
		}
		if ok {
			paths = append(paths, path)
		}
	}
	return paths, nil
}

// usable tells whether there is a file at path that is executable, and fails if
// somebody else could have put it there. It returns where links lead to, which
// is what was looked at.
func usable(path string) (real string, ok bool, err error) {
	real, err = filepath.EvalSymlinks(path)
	if err != nil {
		return "", false, api.Errorf(api.ErrHook, "look at hook: %w", err).WithHint("rm %s", path)
	}
	info, err := os.Stat(real)
	if err != nil {
		return "", false, api.Errorf(api.ErrHook, "look at hook: %w", err)
	}
	if !info.Mode().IsRegular() || info.Mode()&0o111 == 0 {
		return "", false, nil
	}
	// The link's own directories count as much as the file's.
	for _, end := range []string{path, real} {
		if err := checkPath(end); err != nil {
			return "", false, err
		}
	}
	return real, true, nil
}

// checkPath checks a file, or link, and all directories above it.
func checkPath(path string) error {
	for {
		info, err := os.Lstat(path)
		if err != nil {
			return api.Errorf(api.ErrHook, "look at hook: %w", err)
		}
		if err := checkAlone(path, info, os.Geteuid()); err != nil {
			return err
		}
		if path == "/" {
			return nil
		}
		path = filepath.Dir(path)
	}
}

// checkAlone fails unless only root and the user can change what is at path. In
// a directory that is sticky nobody can change what belongs to another.
func checkAlone(path string, info fs.FileInfo, user int) error {
	status, ok := info.Sys().(*syscall.Stat_t)
	if !ok {
		return fmt.Errorf("find the owner of %s", path)
	}
	link, sticky := info.Mode()&fs.ModeSymlink != 0, info.IsDir() && info.Mode()&fs.ModeSticky != 0
	switch {
	case status.Uid != 0 && int(status.Uid) != user:
		return api.Errorf(api.ErrPermission, "hook refused: %s belongs to user %d, who could have it do anything in the name of user %d",
			path, status.Uid, user).WithHint("chown %d %s", user, path)
	case info.Mode()&0o022 != 0 && !link && !sticky:
		return api.Errorf(api.ErrPermission, "hook refused: %s can be changed by others (mode %#o)", path, info.Mode().Perm()).
			WithHint("chmod go-w %s", path)
	}
	return nil
}
