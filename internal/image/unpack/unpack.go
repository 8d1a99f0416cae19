// Package unpack applies the layers of an image, which are hostile tar
// archives, to a file system that is being made. No path of theirs is ever
// one of the host's.
package unpack

import (
	"archive/tar"
	"context"
	"errors"
	"fmt"
	"io"
	"maps"
	"path"
	"slices"
	"strings"

	"github.com/vmsan/vmsan/api"
	"github.com/vmsan/vmsan/internal/ext4"
)

// Bounds on an image. Each file costs some 500 bytes of memory until the
// import is done.
const (
	maxEntries   = 2_000_000
	maxMeta      = 256 << 20 // names, link targets and attributes
	maxPathBytes = 4095      // PATH_MAX without its NUL
	maxXattrs    = 64
	maxDepth     = 1024 // of directories
	maxFollowed  = 40   // symbolic links in one path, as in Linux
	maxSteps     = 10 * maxEntries
	maxTrailer   = 64 << 20 // what may follow an archive's end: padding
)

// Unpacker fills a file system. It is not safe for concurrent use.
type Unpacker struct {
	fs            *ext4.Writer
	entries, meta int
	steps         int   // names looked at, which entries may make many of
	left          int64 // bytes that files may still have
	whiteouts     bool
	// touched are the names that this layer set, or has something below of;
	// true for those it set.
	touched map[place]bool
	// The directory that the last entry was in. Layers list a directory's
	// files together.
	lastPath string
	lastDir  *ext4.Inode
}

// place is a name in a directory.
type place struct {
	dir  *ext4.Inode
	name string
}

// New returns an unpacker that puts at most most bytes of files into fs.
func New(fs *ext4.Writer, most int64) *Unpacker { return &Unpacker{fs: fs, left: most} }

// Entries is how many entries there were so far.
func (u *Unpacker) Entries() int { return u.entries }

// Layer applies the layer in r, a tar archive, to those before it. With
// whiteouts, files named .wh.NAME remove what is below as the OCI's image
// specification says; without they are files. Errors of the archive are
// api.ErrImageInvalid.
func (u *Unpacker) Layer(ctx context.Context, r io.Reader, whiteouts bool) error {
	u.whiteouts, u.touched = whiteouts, make(map[place]bool)
	u.lastDir = nil
	tail := &tailReader{r: r}
	in := tar.NewReader(tail)
	for {
		if err := ctx.Err(); err != nil {
			return err
		}
		h, err := in.Next()
		if errors.Is(err, io.EOF) {
			break
		}
		if err != nil {
			return archiveError(err)
		}
		if err := u.entry(h, in); err != nil {
			return archiveError(fmt.Errorf("entry %.200q: %w", h.Name, err))
		}
	}
	if tail.read == 0 {
		return Invalid(errors.New("it is empty"))
	}
	// archive/tar takes a missing end for an end.
	if !tail.ended() {
		return archiveError(io.ErrUnexpectedEOF)
	}
	return drain(tail)
}

// Invalid says that what is imported is no image.
func Invalid(err error) error {
	return api.Errorf(api.ErrImageInvalid, "archive is not a root file system: %w", err)
}

// entryError is an entry that a root file system cannot have.
type entryError string

func (e entryError) Error() string { return string(e) }

// archiveError tells errors of the archive from those of reading it and of
// writing the file system, which keep their own meaning.
func archiveError(err error) error {
	switch {
	case api.HasCode(err, api.ErrImageInvalid): // what was inside of a compressed one
		return err
	case errors.Is(err, io.ErrUnexpectedEOF), errors.Is(err, ext4.ErrShort):
		return Invalid(errors.New("it is cut short"))
	case errors.Is(err, tar.ErrHeader), errors.Is(err, tar.ErrFieldTooLong), errors.Is(err, tar.ErrInsecurePath),
		errors.Is(err, ext4.ErrTooLarge), errors.Is(err, ext4.ErrXattrs), errors.Is(err, ext4.ErrLinks), errors.As(err, new(entryError)):
		return Invalid(err)
	}
	return fmt.Errorf("read archive: %w", err)
}

// drain reads to the end of r: a pipe's writer should not be cut off, and a
// reader may have an error to say at its end.
func drain(r io.Reader) error {
	n, err := io.Copy(io.Discard, io.LimitReader(r, maxTrailer+1))
	if err != nil {
		return archiveError(err)
	}
	if n > maxTrailer {
		return Invalid(fmt.Errorf("more than %d bytes follow its end", maxTrailer))
	}
	return nil
}

// hasBody tells whether bytes follow a header that says so: tar(5).
func hasBody(h *tar.Header) bool {
	switch h.Typeflag {
	case tar.TypeLink, tar.TypeSymlink, tar.TypeChar, tar.TypeBlock, tar.TypeDir, tar.TypeFifo:
		return false
	}
	return true
}

// entry applies one entry.
func (u *Unpacker) entry(h *tar.Header, body io.Reader) error {
	if h.Typeflag == tar.TypeXGlobalHeader {
		return u.count(wordBytes(h.PAXRecords))
	}
	// Also of what is not kept, for it is read all the same.
	if hasBody(h) {
		if h.Size > u.left {
			return entryError("the files have more bytes than an image may have")
		}
		u.left -= h.Size
	}
	name, err := cleanPath(h.Name)
	if err != nil {
		return err
	}
	dir, base := path.Split(name)
	if hidden, ok := strings.CutPrefix(base, whiteout); ok && u.whiteouts {
		return u.hide(dir, hidden)
	}
	a, err := attributes(h)
	if err != nil {
		return err
	}
	if err := u.count(len(base) + len(a.Target) + wordBytes(a.Xattrs)); err != nil {
		return err
	}
	if name == "/" {
		return u.setRoot(a)
	}
	parent, err := u.makeDir(dir)
	if err != nil {
		return err
	}
	if h.Typeflag == tar.TypeLink {
		return u.link(parent, base, h.Linkname)
	}
	n := u.replace(parent, base, a)
	if n == nil {
		n = u.fs.New(a)
		if err := u.fill(n, h.Size, body); err != nil {
			return err
		}
		if err := u.fs.Link(parent, base, n); err != nil {
			return err
		}
	}
	u.touched[place{parent, base}] = true
	return nil
}

// Ensure makes a directory that commands are to begin in, if it is missing.
func (u *Unpacker) Ensure(dir string) error {
	name, err := cleanPath(dir)
	if err == nil {
		_, err = u.walk(name, true)
	}
	if err != nil {
		return archiveError(fmt.Errorf("working directory %.200q: %w", dir, err))
	}
	return nil
}

// count bounds what an image takes of memory.
func (u *Unpacker) count(meta int) error {
	u.entries++
	u.meta += meta
	if u.entries > maxEntries {
		return entryError(fmt.Sprintf("more than %d entries", maxEntries))
	}
	if u.meta > maxMeta {
		return entryError(fmt.Sprintf("more than %d bytes of names, link targets and attributes", maxMeta))
	}
	return nil
}

func wordBytes(all map[string]string) int {
	n := 0
	for name, value := range all {
		n += len(name) + len(value)
	}
	return n
}

func (u *Unpacker) setRoot(a ext4.Attr) error {
	if a.Mode&ext4.TypeMask != ext4.TypeDir {
		return entryError("the root is not a directory")
	}
	u.fs.Root().Attr = a
	return nil
}

func (u *Unpacker) fill(n *ext4.Inode, size int64, body io.Reader) error {
	if n.Mode&ext4.TypeMask != ext4.TypeRegular || size == 0 {
		return nil
	}
	return u.fs.Fill(n, body, size)
}

// replace takes away what has that name, unless that and what comes are both
// directories: then there is nothing more to do than to describe it anew, and
// the directory is returned.
func (u *Unpacker) replace(dir *ext4.Inode, name string, a ext4.Attr) *ext4.Inode {
	old := dir.Child(name)
	if old == nil {
		return nil
	}
	if old.IsDir() && a.Mode&ext4.TypeMask == ext4.TypeDir {
		old.Attr = a
		return old
	}
	u.remove(dir, name)
	return nil
}

func (u *Unpacker) remove(dir *ext4.Inode, name string) {
	u.lastDir = nil
	u.fs.Unlink(dir, name)
}

// link makes another name for a file of this layer or one before.
func (u *Unpacker) link(dir *ext4.Inode, name, linkname string) error {
	target, err := cleanPath(linkname)
	if err != nil {
		return err
	}
	file, err := u.find(target)
	if err != nil {
		return err
	}
	if file == nil || file.IsDir() {
		return entryError(fmt.Sprintf("hard link to %.200q: no such file", linkname))
	}
	if old := dir.Child(name); old != nil && old != file {
		u.remove(dir, name)
		if still, err := u.find(target); err != nil || still != file {
			return entryError(fmt.Sprintf("hard link to %.200q, which it replaces", linkname))
		}
	}
	if dir.Child(name) == nil {
		if err := u.fs.Link(dir, name, file); err != nil {
			return err
		}
	}
	u.touched[place{dir, name}] = true
	return nil
}

// find returns what is at a clean path, without following a link at its end;
// nil if there is nothing.
func (u *Unpacker) find(name string) (*ext4.Inode, error) {
	dir, base := path.Split(name)
	parent, err := u.walk(dir, false)
	if parent == nil || err != nil {
		return nil, err
	}
	return parent.Child(base), nil
}

// The names of files that remove others.
const (
	whiteout = ".wh."
	opaque   = ".wh..opq" // behind whiteout
)

// hide removes a name that layers before have, or for an opaque directory all
// of them.
func (u *Unpacker) hide(dir, name string) error {
	if name == "" || name == "." || name == ".." {
		return entryError("whiteout of nothing")
	}
	if err := u.count(0); err != nil {
		return err
	}
	if strings.HasPrefix(name, whiteout) && name != opaque {
		return nil // what AUFS writes for itself
	}
	parent, err := u.walk(dir, false)
	if parent == nil || err != nil {
		return err
	}
	if name == opaque {
		return u.hideAll(parent)
	}
	if parent.Child(name) != nil {
		return u.hideOne(parent, name)
	}
	return nil
}

func (u *Unpacker) hideAll(dir *ext4.Inode) error {
	if err := u.step(len(dir.Children())); err != nil {
		return err
	}
	for _, name := range slices.Sorted(maps.Keys(dir.Children())) {
		if err := u.hideOne(dir, name); err != nil {
			return err
		}
	}
	return nil
}

// step bounds what an image takes of time.
func (u *Unpacker) step(n int) error {
	if u.steps += n; u.steps > maxSteps {
		return entryError("all paths together have too many names")
	}
	return nil
}

// hideOne leaves what this layer has itself, before or behind the whiteout.
func (u *Unpacker) hideOne(dir *ext4.Inode, name string) error {
	described, touched := u.touched[place{dir, name}]
	n := dir.Child(name)
	switch {
	case !touched:
		u.remove(dir, name)
	case n.IsDir():
		if !described {
			n.Attr = missing
		}
		return u.hideAll(n)
	}
	return nil
}

// missing is a directory that nothing describes.
var missing = ext4.Attr{Mode: ext4.TypeDir | 0o755}

// makeDir returns the directory at a clean path; what is missing is made.
func (u *Unpacker) makeDir(dir string) (*ext4.Inode, error) {
	if u.lastDir != nil && dir == u.lastPath {
		return u.lastDir, nil
	}
	n, err := u.walk(dir, true)
	if err != nil {
		return nil, err
	}
	u.lastPath, u.lastDir = dir, n
	return n, nil
}

// walk follows a path from the root, and symbolic links as in a guest: none
// leads out of the root. What is missing is made, or leads to nil.
func (u *Unpacker) walk(name string, create bool) (*ext4.Inode, error) {
	dirs := []*ext4.Inode{u.fs.Root()}
	rest := strings.Split(name, "/")
	for followed := 0; len(rest) > 0; {
		part := rest[0]
		rest = rest[1:]
		dir := dirs[len(dirs)-1]
		if err := u.step(1); err != nil {
			return nil, err
		}
		switch part {
		case "", ".":
			continue
		case "..":
			dirs = dirs[:max(1, len(dirs)-1)]
			continue
		}
		n := dir.Child(part)
		if n == nil && !create {
			return nil, nil
		}
		if n == nil {
			var err error
			if n, err = u.makeMissing(dir, part); err != nil {
				return nil, err
			}
		}
		switch {
		case n.IsDir() && len(dirs) > maxDepth:
			return nil, entryError(fmt.Sprintf("more than %d directories in each other", maxDepth))
		case n.IsDir():
			if _, set := u.touched[place{dir, part}]; create && !set {
				u.touched[place{dir, part}] = false
			}
			dirs = append(dirs, n)
		case n.IsSymlink():
			if followed++; followed > maxFollowed {
				return nil, entryError("too many symbolic links in its path")
			}
			if path.IsAbs(n.Target) {
				dirs = dirs[:1]
			}
			rest = append(strings.Split(n.Target, "/"), rest...)
		case create:
			return nil, entryError(fmt.Sprintf("%.200q in its path is not a directory", part))
		default:
			return nil, nil
		}
	}
	return dirs[len(dirs)-1], nil
}

func (u *Unpacker) makeMissing(dir *ext4.Inode, name string) (*ext4.Inode, error) {
	if len(name) > ext4.MaxName {
		return nil, entryError("its name is too long")
	}
	if err := u.count(len(name)); err != nil {
		return nil, err
	}
	n := u.fs.New(missing)
	return n, u.fs.Link(dir, name, n)
}
