package agent

import (
	"fmt"
	"path/filepath"
	"strings"
)

// resolve makes a path of a request absolute. "~" is the home of the user, a relative path begins there,
// and an empty one is workdir, or home if that is empty too.
func resolve(path, home, workdir string) (string, error) {
	if len(path) > maxPath {
		return "", fmt.Errorf("path is longer than %d bytes", maxPath)
	}
	if strings.ContainsRune(path, 0) {
		return "", fmt.Errorf("path %q has a NUL byte", path)
	}
	switch {
	case path == "":
		return resolveDefault(home, workdir), nil
	case path == "~" || strings.HasPrefix(path, "~/"):
		return filepath.Join(home, path[1:]), nil
	case strings.HasPrefix(path, "~"):
		return "", fmt.Errorf("path '%s': the home of another user has no short name here", path)
	case filepath.IsAbs(path):
		return filepath.Clean(path), nil
	}
	return filepath.Join(home, path), nil
}

func resolveDefault(home, workdir string) string {
	switch {
	case workdir == "":
		return filepath.Clean(home)
	case workdir == "~" || strings.HasPrefix(workdir, "~/"):
		return filepath.Join(home, workdir[1:])
	case filepath.IsAbs(workdir):
		return filepath.Clean(workdir)
	}
	return filepath.Join(home, workdir)
}
