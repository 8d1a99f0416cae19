package agent

import (
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"syscall"

	"connectrpc.com/connect"
	"golang.org/x/sys/unix"
	"google.golang.org/protobuf/types/known/timestamppb"

	"github.com/vmsan/vmsan/internal/guest/proto/filesystem"
)

// metadataPrefix begins the names of the extended attributes that hold metadata.
const metadataPrefix = "user.e2b."

// describe tells what is at a path. A symlink is described by what it leads to, if it leads anywhere.
func describe(path string, names *ownerNames) (*filesystem.EntryInfo, error) {
	link, err := os.Lstat(path)
	if err != nil {
		return nil, err
	}
	entry := &filesystem.EntryInfo{
		Name:         filepath.Base(path),
		Path:         path,
		Type:         fileType(link.Mode()),
		Size:         link.Size(),
		Mode:         uint32(link.Mode().Perm()),
		Permissions:  link.Mode().String(),
		ModifiedTime: timestamppb.New(link.ModTime()),
	}
	if stat, ok := link.Sys().(*syscall.Stat_t); ok {
		entry.Owner, entry.Group = names.user(stat.Uid), names.group(stat.Gid)
	}
	if link.Mode()&fs.ModeSymlink != 0 {
		followLink(path, entry)
	}
	if entry.Type == filesystem.FileType_FILE_TYPE_FILE {
		entry.Metadata = readMetadata(path)
	}
	return entry, nil
}

// followLink leaves an entry as it is if its link is broken.
func followLink(path string, entry *filesystem.EntryInfo) {
	target, err := filepath.EvalSymlinks(path)
	if err != nil {
		// What the link itself says is better than nothing.
		if target, err = os.Readlink(path); err == nil {
			entry.SymlinkTarget = &target
		}
		return
	}
	if !filepath.IsAbs(target) {
		target = filepath.Join(filepath.Dir(path), target)
	}
	entry.SymlinkTarget = &target
	info, err := os.Stat(target)
	if err != nil {
		return
	}
	entry.Type = fileType(info.Mode())
	entry.Mode = uint32(info.Mode().Perm())
}

func fileType(mode fs.FileMode) filesystem.FileType {
	switch {
	case mode.IsRegular():
		return filesystem.FileType_FILE_TYPE_FILE
	case mode.IsDir():
		return filesystem.FileType_FILE_TYPE_DIRECTORY
	case mode&fs.ModeSymlink != 0:
		return filesystem.FileType_FILE_TYPE_SYMLINK
	}
	return filesystem.FileType_FILE_TYPE_UNSPECIFIED
}

// readMetadata returns nil if there is none, or the filesystem has no user attributes.
func readMetadata(path string) map[string]string {
	var metadata map[string]string
	for _, name := range attributeNames(path) {
		key, ok := strings.CutPrefix(name, metadataPrefix)
		if !ok {
			continue
		}
		value := make([]byte, maxMetadata)
		n, err := unix.Getxattr(path, name, value)
		if err != nil || !printable(string(value[:n])) {
			continue
		}
		if metadata == nil {
			metadata = map[string]string{}
		}
		metadata[key] = string(value[:n])
	}
	return metadata
}

func attributeNames(path string) []string {
	list := make([]byte, 64<<10) // XATTR_LIST_MAX
	n, err := unix.Listxattr(path, list)
	if err != nil || n <= 0 {
		return nil
	}
	return strings.Split(strings.TrimSuffix(string(list[:n]), "\x00"), "\x00")
}

// writeMetadata replaces all metadata of an open file.
func writeMetadata(file *os.File, metadata map[string]string) error {
	for _, name := range attributeNames(file.Name()) {
		key, ok := strings.CutPrefix(name, metadataPrefix)
		if _, stays := metadata[key]; !ok || stays {
			continue
		}
		if err := unix.Fremovexattr(int(file.Fd()), name); err != nil && err != unix.ENODATA {
			return fmt.Errorf("remove metadata %s: %w", key, err)
		}
	}
	for key, value := range metadata {
		if err := unix.Fsetxattr(int(file.Fd()), metadataPrefix+key, []byte(value), 0); err != nil {
			return fmt.Errorf("write metadata %s: %w", key, err)
		}
	}
	return nil
}

func printable(s string) bool {
	for i := range len(s) {
		if s[i] < 0x20 || s[i] > 0x7e {
			return false
		}
	}
	return true
}

// makeParents makes the directories a path lacks, for the account.
func makeParents(path string, owner account) error {
	return makeDirectories(filepath.Dir(path), owner)
}

// makeDirectories is MkdirAll that gives what it makes to the account, and only that.
func makeDirectories(path string, owner account) error {
	info, err := os.Stat(path)
	if err == nil && info.IsDir() {
		return nil
	}
	if err == nil {
		return &fs.PathError{Op: "mkdir", Path: path, Err: syscall.ENOTDIR}
	}
	if !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	if err := makeParents(path, owner); err != nil {
		return err
	}
	if err := os.Mkdir(path, 0o755); err != nil {
		if errors.Is(err, fs.ErrExist) { // another call was faster
			return nil
		}
		return err
	}
	return own(path, owner)
}

// own gives a file to an account, where there is something to give.
func own(path string, owner account) error {
	if owner.credential() == nil {
		return nil
	}
	return os.Lchown(path, int(owner.uid), int(owner.gid))
}

// fileCode sorts errors of file calls.
func fileCode(err error) connect.Code {
	switch {
	case errors.Is(err, fs.ErrNotExist):
		return connect.CodeNotFound
	case errors.Is(err, fs.ErrExist):
		return connect.CodeAlreadyExists
	case errors.Is(err, fs.ErrPermission), errors.Is(err, syscall.EROFS):
		return connect.CodePermissionDenied
	case errors.Is(err, syscall.ENOTDIR), errors.Is(err, syscall.EISDIR), errors.Is(err, syscall.EINVAL),
		errors.Is(err, syscall.ELOOP), errors.Is(err, syscall.ENAMETOOLONG), errors.Is(err, syscall.ENOTEMPTY):
		return connect.CodeInvalidArgument
	case errors.Is(err, syscall.ENOSPC), errors.Is(err, syscall.EDQUOT):
		return connect.CodeResourceExhausted
	}
	return connect.CodeInternal
}

// fileError words an error about a path for a Connect call.
func fileError(path string, err error) error {
	var already *connect.Error
	if err == nil || errors.As(err, &already) {
		return err
	}
	if errors.Is(err, fs.ErrNotExist) {
		err = fmt.Errorf("path '%s' does not exist", path)
		return connect.NewError(connect.CodeNotFound, err)
	}
	return connect.NewError(fileCode(err), err)
}

// readBounded reads a file that should be small.
func readBounded(path string, limit int64) ([]byte, error) {
	file, err := os.Open(path)
	if err != nil {
		return nil, err
	}
	defer file.Close()
	data, err := io.ReadAll(io.LimitReader(file, limit+1))
	if err == nil && int64(len(data)) > limit {
		return nil, fmt.Errorf("%s is larger than %d bytes", path, limit)
	}
	return data, err
}
