package filetree

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path"
	"strconv"
	"strings"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// Part is how much of a file the other side has already.
type Part struct {
	// Offset is where the file goes on, in bytes, and Digest the SHA-256 of
	// what is before it. A file that does not begin so is sent from its
	// beginning.
	Offset int64
	Digest []byte
}

// partialPrefix begins the names of files that are not whole. A copy neither
// takes nor makes others of such names.
const partialPrefix = ".vmsan-part-"

// PartialName is where a file is kept, beside its own name, until it is whole.
// It is as long for any name: a file's own may leave no room.
func PartialName(name string) string {
	directory, base := path.Split(name)
	sum := sha256.Sum256([]byte(base))
	return directory + partialPrefix + hex.EncodeToString(sum[:12])
}

// IsPartial tells whether a file with that base name is one that a copy has not
// finished.
func IsPartial(base string) bool { return strings.HasPrefix(base, partialPrefix) }

// offsetRecord is the key of a PAX record: of this file only what is behind
// that many bytes is in the stream. removeRecord marks what is to be removed.
const (
	offsetRecord = "VMSAN.offset"
	removeRecord = "VMSAN.remove"
)

// worthKeeping is how much of a file has to be there for it to be kept, in
// bytes.
const worthKeeping = 1 << 20

// partialWait is how long a copy waits for another one to let go of a file
// that both write: one whose client was killed does at once.
const partialWait = 10 * time.Second

// openPartial opens what is kept of a file, or makes it, and locks it. What
// others may have made in its place is put away: a link leads to a file that is
// not ours to write.
func openPartial(ctx context.Context, directory *os.Root, name string) (*os.File, error) {
	for deadline := time.Now().Add(partialWait); ; {
		handle, err := tryPartial(directory, name)
		if !errors.Is(err, errPartialBusy) {
			return handle, err
		}
		if time.Now().After(deadline) {
			return nil, fmt.Errorf("another copy is writing %s", name)
		}
		select {
		case <-ctx.Done():
			return nil, ctx.Err()
		case <-time.After(20 * time.Millisecond):
		}
	}
}

var errPartialBusy = errors.New("in use")

// tryPartial opens and locks a partial file, or makes it.
func tryPartial(directory *os.Root, name string) (*os.File, error) {
	there, err := directory.Lstat(name)
	if err == nil && !ownFile(there) {
		if err := directory.RemoveAll(name); err != nil {
			return nil, err
		}
		err = fs.ErrNotExist
	}
	flags := os.O_RDWR | unix.O_NONBLOCK
	if errors.Is(err, fs.ErrNotExist) {
		flags |= os.O_CREATE | os.O_EXCL
	} else if err != nil {
		return nil, err
	}
	handle, err := directory.OpenFile(name, flags, 0o600)
	if errors.Is(err, fs.ErrExist) || errors.Is(err, fs.ErrNotExist) {
		return nil, errPartialBusy // it came or went since we looked
	}
	if err != nil {
		return nil, err
	}
	if err := unix.Flock(int(handle.Fd()), unix.LOCK_EX|unix.LOCK_NB); err != nil {
		handle.Close()
		if errors.Is(err, unix.EWOULDBLOCK) {
			return nil, errPartialBusy
		}
		return nil, fmt.Errorf("lock: %w", err)
	}
	// Whoever had the lock may have given it its own name.
	opened, err := handle.Stat()
	if err == nil {
		there, err = directory.Lstat(name)
	}
	if err != nil || !os.SameFile(opened, there) || !ownFile(there) {
		handle.Close()
		return nil, errPartialBusy
	}
	return handle, nil
}

// ownFile tells whether a file is one that a copy of ours may have made, and
// has no other name.
func ownFile(info fs.FileInfo) bool {
	stat, ok := info.Sys().(*syscall.Stat_t)
	return ok && info.Mode().IsRegular() && stat.Nlink == 1 && int(stat.Uid) == os.Geteuid()
}

// keepUntil leaves the first bytes of a file, and goes to their end.
func keepUntil(handle *os.File, offset int64) error {
	info, err := handle.Stat()
	if err != nil {
		return err
	}
	if info.Size() < offset {
		return fmt.Errorf("of the partial file only %d bytes are left, of %d", info.Size(), offset)
	}
	if err := handle.Truncate(offset); err != nil {
		return err
	}
	_, err = handle.Seek(offset, io.SeekStart)
	return err
}

// parseOffset reads the record of a header: 0 if it has none.
func parseOffset(records map[string]string) (int64, error) {
	text, ok := records[offsetRecord]
	if !ok {
		return 0, nil
	}
	offset, err := strconv.ParseInt(text, 10, 64)
	if err != nil || offset <= 0 {
		return 0, fmt.Errorf("it goes on at %.40q, which is no place in a file", text)
	}
	return offset, nil
}
