// Package disk makes sandboxes' own disks: sparse files with an empty ext4,
// formatted once per size and then copied.
package disk

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"strings"

	"github.com/vmsan/vmsan/api"
	"github.com/vmsan/vmsan/internal/scratch"
	"github.com/vmsan/vmsan/internal/store"
)

// A disk's size in bytes is a multiple of BlockSize from MinSize to MaxSize.
const (
	BlockSize = 4096
	MinSize   = 16 << 20
	MaxSize   = 16 << 40
)

// features is the format of all disks, whatever the host's mke2fs would
// choose: newer ones take features that older guest kernels cannot write.
const features = "none,has_journal,ext_attr,resize_inode,dir_index,filetype,extent,64bit,flex_bg," +
	"sparse_super,large_file,huge_file,dir_nlink,extra_isize,metadata_csum"

// EnsureBlank returns the path of an empty formatted disk of size bytes, and
// makes it if there is none yet. It may be called from several processes and
// goroutines at a time.
func EnsureBlank(ctx context.Context, l store.Layout, size int64) (string, error) {
	if err := checkSize(size); err != nil {
		return "", err
	}
	path := l.Blank(size)
	if isBlank(path, size) {
		return path, nil
	}
	if err := makeBlank(ctx, l, path, size); err != nil {
		return "", scratch.Explain(fmt.Errorf("make blank disk of %d bytes: %w", size, err))
	}
	return path, nil
}

func checkSize(size int64) error {
	if size < MinSize || size > MaxSize || size%BlockSize != 0 {
		return api.Errorf(api.ErrValidationDiskSize, "disk of %d bytes: sizes are multiples of %d from %d to %d", size, BlockSize, MinSize, int64(MaxSize))
	}
	return nil
}

// isBlank trusts a file with the right size: blanks appear by renaming, and
// are read-only.
func isBlank(path string, size int64) bool {
	info, err := os.Stat(path)
	return err == nil && info.Mode().IsRegular() && info.Size() == size
}

func makeBlank(ctx context.Context, l store.Layout, path string, size int64) error {
	parent := filepath.Dir(path)
	if err := os.MkdirAll(parent, 0o755); err != nil {
		return err
	}
	unlock, err := scratch.Lock(ctx, parent)
	if err != nil {
		return err
	}
	defer unlock()
	if isBlank(path, size) {
		return nil
	}
	dir, err := scratch.New(l.Tmp(), "blank")
	if err != nil {
		return err
	}
	defer dir.Close()
	if err := format(ctx, dir.Join("blank"), size); err != nil {
		return err
	}
	return dir.Publish("blank", path)
}

func format(ctx context.Context, path string, size int64) error {
	f, err := os.OpenFile(path, os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o600)
	if err != nil {
		return err
	}
	defer f.Close()
	if err := f.Truncate(size); err != nil {
		return err
	}
	if err := mkfs(ctx, path, size); err != nil {
		return err
	}
	if err := f.Chmod(0o444); err != nil {
		return err
	}
	return f.Sync()
}

// mkfs runs e2fsprogs, the one thing here that pure Go cannot do: the only
// ext4 writer there is in Go makes file systems without a journal.
func mkfs(ctx context.Context, path string, size int64) error {
	program, err := findMkfs()
	if err != nil {
		return err
	}
	cmd := exec.CommandContext(ctx, program, append(mkfsArgs(size), path)...)
	cmd.Env = append(os.Environ(), "LC_ALL=C")
	out, err := cmd.CombinedOutput()
	if ctx.Err() != nil {
		return ctx.Err()
	}
	if err == nil {
		return nil
	}
	said := strings.Join(strings.Fields(string(out[:min(len(out), 1024)])), " ")
	if strings.Contains(said, "No space left on device") {
		return api.Errorf(api.ErrDiskFull, "mkfs.ext4: %s", said)
	}
	return fmt.Errorf("mkfs.ext4: %w: %s", err, said)
}

// mkfsArgs leaves as little as possible to the host's mke2fs.conf.
func mkfsArgs(size int64) []string {
	return []string{
		"-q", "-F", "-b", "4096", "-I", "256", "-i", "16384", "-m", "0",
		"-O", features,
		"-J", fmt.Sprintf("size=%d", journalMiB(size)),
		// The file is a hole, so all of it is zero already. Yet the inode
		// tables are not left for later ("lazy"): the guest's kernel would
		// write them, 160 MB for a disk of 10 GB, into every sandbox's disk.
		// mke2fs itself makes holes of them, unless told not to discard. The
		// journal it would rather write, so that one is left as it is.
		"-E", fmt.Sprintf("lazy_itable_init=0,lazy_journal_init=1,resize=%d", growsTo(size)/BlockSize),
	}
}

// growsTo is the size up to which a mounted disk can grow without another
// layout of its groups' descriptors, in bytes. mke2fs would keep more blocks
// for them, and a mounted ext4 that grows changes all of these at once: they
// have to fit into a quarter of the journal, or it cannot grow at all.
func growsTo(size int64) int64 {
	const (
		most  = 1 << 42
		times = 1000
	)
	if size > most/times {
		return size + most
	}
	return size * times
}

// journalMiB keeps journals smaller than mke2fs would. A journal's blocks are
// all written sooner or later, in every sandbox.
func journalMiB(size int64) int {
	if size < 512<<20 {
		return 4
	}
	return 16
}

// findMkfs looks where it is even if the user's PATH does not say so, as
// Debian's does not for anybody but root.
func findMkfs() (string, error) {
	path, err := exec.LookPath("mkfs.ext4")
	if err == nil {
		return path, nil
	}
	for _, dir := range []string{"/usr/sbin", "/sbin"} {
		if path, err = exec.LookPath(filepath.Join(dir, "mkfs.ext4")); err == nil {
			return path, nil
		}
	}
	if !errors.Is(err, exec.ErrNotFound) && !errors.Is(err, fs.ErrNotExist) {
		return "", err
	}
	return "", api.Errorf(api.ErrSetupMissingBinary, "mkfs.ext4 is not installed, so vmsan cannot make disks").
		WithHint("apt-get install e2fsprogs")
}
