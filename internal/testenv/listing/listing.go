// Package listing describes a tree of files, a line for each, so that what a
// guest sees can be compared with what the host has.
package listing

import (
	"fmt"
	"hash/crc32"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"golang.org/x/sys/unix"
)

// inode tells files from names of files.
type inode struct{ dev, ino uint64 }

// List describes all that is in the directory root and not on another file
// system: path, type and mode, owner, what the file holds, its attributes, and
// for further names of a file the first. Directories have no time here: a
// guest writes to some of them at its start.
func List(root string, visit func(path, line string) error) error {
	var top unix.Stat_t
	if err := unix.Lstat(root, &top); err != nil {
		return err
	}
	seen := map[inode]string{}
	return filepath.WalkDir(root, func(path string, _ fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		var st unix.Stat_t
		if err := unix.Lstat(path, &st); err != nil {
			return err
		}
		isDir := st.Mode&unix.S_IFMT == unix.S_IFDIR
		if isDir && st.Dev != top.Dev {
			return fs.SkipDir
		}
		name := strings.TrimPrefix(strings.TrimPrefix(path, strings.TrimSuffix(root, "/")), "/")
		line, err := describe(path, &st)
		if err != nil {
			return fmt.Errorf("%s: %w", path, err)
		}
		if key := (inode{st.Dev, st.Ino}); !isDir && st.Nlink > 1 {
			if seen[key] != "" {
				line += " = " + seen[key]
			} else {
				seen[key] = name
			}
		}
		return visit(name, line)
	})
}

func describe(path string, st *unix.Stat_t) (string, error) {
	line := fmt.Sprintf("%o %d:%d", st.Mode, st.Uid, st.Gid)
	switch st.Mode & unix.S_IFMT {
	case unix.S_IFDIR:
	case unix.S_IFLNK:
		target, err := os.Readlink(path)
		if err != nil {
			return "", err
		}
		line += " -> " + target
	case unix.S_IFCHR, unix.S_IFBLK:
		line += fmt.Sprintf(" device %d:%d", unix.Major(st.Rdev), unix.Minor(st.Rdev))
	case unix.S_IFREG:
		sum, err := checksum(path, st.Size)
		if err != nil {
			return "", err
		}
		line += fmt.Sprintf(" %d bytes %08x", st.Size, sum)
	}
	if st.Mode&unix.S_IFMT != unix.S_IFDIR {
		line += fmt.Sprintf(" at %d", st.Mtim.Sec)
	}
	attributes, err := attributes(path)
	return line + attributes, err
}

// part is how much of each end of a file is read: guests without KVM are
// slow.
const part = 32 << 10

func checksum(path string, size int64) (uint32, error) {
	f, err := os.Open(path)
	if err != nil {
		return 0, err
	}
	defer f.Close()
	sum := crc32.NewIEEE()
	if _, err := io.CopyN(sum, f, min(size, part)); err != nil {
		return 0, err
	}
	rest := max(size-part, min(size, part))
	_, err = io.Copy(sum, io.NewSectionReader(f, rest, size-rest))
	return sum.Sum32(), err
}

// buffer has room for any attribute.
var buffer [64 << 10]byte

// attributes are a file's extended attributes, but for those of the kernel.
func attributes(path string) (string, error) {
	names := buffer[:]
	n, err := unix.Llistxattr(path, names)
	if err == unix.EOPNOTSUPP {
		return "", nil
	}
	if err != nil {
		return "", err
	}
	var list []string
	if n == 0 {
		return "", nil
	}
	for name := range strings.SplitSeq(strings.TrimSuffix(string(names[:n]), "\x00"), "\x00") {
		if !strings.HasPrefix(name, "user.") && !strings.HasPrefix(name, "security.") {
			continue
		}
		value := buffer[:]
		// By its name, as programs ask: the kernel looks for it in order.
		n, err := unix.Lgetxattr(path, name, value)
		if err != nil {
			return "", fmt.Errorf("%s: %w", name, err)
		}
		list = append(list, fmt.Sprintf(" %s=%x", name, value[:n]))
	}
	slices.Sort(list)
	return strings.Join(list, ""), nil
}
