// Package filetree turns files and directories into a tar stream and back:
// the agent and the commands that copy share it.
//
// What is unpacked is hostile on the host's side: no entry can touch anything
// outside the directory it is unpacked into, whatever names and links it has,
// and no file is seen under its name before it is whole.
package filetree

import (
	"errors"
	"fmt"
	"io/fs"
	"syscall"

	"golang.org/x/sys/unix"
)

// Bounds of one tree.
const (
	maxEntries    = 10_000_000
	maxName       = 4096     // bytes; PATH_MAX
	maxAttributes = 64 << 10 // bytes of one file's extended attributes
	maxDepth      = 1024     // directories in each other
)

// copyBuffer is how much of a file is read and written at once, in bytes.
const copyBuffer = 256 << 10

// Owner is whom files are made to belong to.
type Owner struct{ UID, GID int }

// Progress is called now and then, with what has been done so far.
type Progress func(Totals)

// Totals counts what was packed or unpacked.
type Totals struct {
	// Files counts everything else that is no directory.
	Files       int64 `json:"files"`
	Directories int64 `json:"directories"`
	// Bytes are those in files.
	Bytes int64 `json:"bytes"`
	// Skipped are the devices, sockets and pipes, which are not copied.
	Skipped int64 `json:"skipped"`
	// Removed is what was removed.
	Removed int64 `json:"removed,omitempty"`
}

// setID are the bits that lend a program its owner's rights.
const setID = fs.ModeSetuid | fs.ModeSetgid

// attributePrefix is how tar(5) names extended attributes in PAX headers.
const attributePrefix = "SCHILY.xattr."

// unsupported are the errors of a file system that has no attributes, or not
// this one.
func unsupported(err error) bool {
	return errors.Is(err, unix.ENOTSUP) || errors.Is(err, unix.ENODATA) || errors.Is(err, unix.EPERM)
}

// describe takes the operation and the path off an error: the message has
// them.
func describe(doing, name string, err error) error {
	var reason *fs.PathError
	if errors.As(err, &reason) {
		err = reason.Err
	}
	var number syscall.Errno
	if errors.As(err, &number) {
		err = number
	}
	return fmt.Errorf("%s %s: %w", doing, name, err)
}
