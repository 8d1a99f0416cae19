package filetree

import (
	"archive/tar"
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"math/rand/v2"
	"os"
	"path"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

// UnpackOptions say what becomes of a stream.
type UnpackOptions struct {
	// Name is what the top of the tree is called that was asked for: the
	// stream may hold nothing but that one file or directory, and then nothing
	// leads out of it. "." and "" let the stream say what there is.
	Name string
	// Owner has all files; nil: those that the stream says.
	Owner *Owner
	// Trusted keeps the bits that lend a program its owner's rights.
	Trusted bool
	// Resume keeps a large file that is not whole when the stream breaks off, in
	// a partial file beside its name, and goes on with it where the stream does.
	Resume bool
	// Parts are where files may go on, if not all may: nobody else is to say
	// what is done with a file that is there.
	Parts map[string]Part
	// Removals lets the stream remove files.
	Removals bool
	// Direct keeps large files out of the page cache.
	Direct bool
	// Progress is optional.
	Progress Progress
}

// Unpack makes the files of a tar stream below directory, and replaces files
// that are there by those that come; directories stay, with what else is in
// them. A file has its name only when it is whole. No entry leads outside of
// directory, or of the tree in it that has a name, not by its own name and not
// by a symbolic link, whoever made it.
func Unpack(ctx context.Context, r io.Reader, directory string, o UnpackOptions) (Totals, error) {
	root, err := os.OpenRoot(directory)
	if err != nil {
		return Totals{}, err
	}
	u := &unpacker{
		ctx: ctx, options: o, tar: tar.NewReader(r), root: root, at: root, buffer: make([]byte, copyBuffer),
		born: map[fs.FileMode]bool{}, me: Owner{os.Geteuid(), os.Getegid()},
	}
	defer u.close()
	if err := u.unpack(); err != nil {
		return u.totals, err
	}
	return u.totals, u.finishDirectories()
}

type unpacker struct {
	ctx     context.Context
	options UnpackOptions
	tar     *tar.Reader
	totals  Totals
	buffer  []byte
	direct  direct

	root *os.Root
	// inside is true once root is the tree that was asked for, and not the
	// directory that it is put in; complete once a file was that tree.
	inside, complete bool
	// at is the directory of the last entry, below root: most have their
	// neighbours there.
	at   *os.Root
	path string // of at, "" for root itself
	// here is at, for what is called by its descriptor; nil until it is needed.
	here *os.File
	// born are the modes that files get in at by being made, and so need not be
	// given: not the umask's bits, nor any where a directory has default ACLs.
	born map[fs.FileMode]bool
	// me is whom new files belong to.
	me Owner

	// directories get what would be in the way, or would change, at the end.
	directories []madeDirectory
	// remembered is what they take, in bytes.
	remembered int
}

// madeDirectory is what a directory becomes once all is in it.
type madeDirectory struct {
	name string
	dress
}

// dress is what a file has besides its content.
type dress struct {
	mode       fs.FileMode
	uid, gid   int
	modified   time.Time
	attributes map[string]string
}

// maxRemembered bounds what is remembered of directories, in bytes: a stream
// may name one any number of times.
const maxRemembered = 256 << 20

func (u *unpacker) close() {
	u.leave()
	u.root.Close()
	u.direct.close()
}

// leave closes the directory of the last entry.
func (u *unpacker) leave() {
	if u.here != nil {
		u.here.Close()
		u.here = nil
	}
	if u.at != u.root {
		u.at.Close()
	}
	clear(u.born)
}

// descriptor is that of the directory of the last entry.
func (u *unpacker) descriptor() (int, error) {
	if u.here == nil {
		var err error
		if u.here, err = u.at.Open("."); err != nil {
			return -1, err
		}
	}
	return int(u.here.Fd()), nil
}

func (u *unpacker) unpack() error {
	for n := 0; ; n++ {
		if err := u.ctx.Err(); err != nil {
			return err
		}
		h, err := u.tar.Next()
		if err == io.EOF {
			return nil
		}
		if err != nil {
			return fmt.Errorf("read the stream: %w", err)
		}
		if n >= maxEntries {
			return fmt.Errorf("more than %d files", maxEntries)
		}
		if err := u.entry(h); err != nil {
			return err
		}
	}
}

// entry makes one file.
func (u *unpacker) entry(h *tar.Header) error {
	name, err := localName(h.Name)
	if err == nil {
		name, err = u.place(h, name)
	}
	if err != nil {
		return err
	}
	h.Name = name
	if IsPartial(path.Base(name)) {
		return fmt.Errorf("%.200q is the name of a partial file, and no other gets it", name)
	}
	if isSparse(h) {
		return fmt.Errorf("%.200q is a sparse entry, as tar --sparse makes them, and only plain ones are taken", name)
	}
	if h.PAXRecords[removeRecord] != "" {
		return u.remove(name)
	}
	if h.Typeflag == tar.TypeDir {
		return u.directory(h)
	}
	if name == "." {
		return fmt.Errorf("a file without a name")
	}
	if err := u.enter(path.Dir(name)); err != nil {
		return describe("open", path.Dir(name), err)
	}
	switch h.Typeflag {
	case tar.TypeReg:
		err = u.file(h)
	case tar.TypeSymlink:
		err = u.symlink(h)
	case tar.TypeLink:
		err = u.link(h)
	case tar.TypeXGlobalHeader:
		return nil // no file, but words for all that follow
	default:
		u.totals.Skipped++
		return nil
	}
	if err != nil {
		return describe("write", name, err)
	}
	u.totals.Files++
	u.totals.Bytes += h.Size
	if u.options.Progress != nil {
		u.options.Progress(u.totals)
	}
	return nil
}

// place is where an entry belongs below root, which becomes the tree that was
// asked for as soon as that begins.
func (u *unpacker) place(h *tar.Header, name string) (string, error) {
	top := u.options.Name
	if top == "" || top == "." {
		return name, nil
	}
	if below, ok := u.below(name); ok {
		return below, nil
	}
	if name != top || u.inside || u.complete {
		return "", fmt.Errorf("%.200q is not of %.200q, which was asked for", name, top)
	}
	if h.Typeflag != tar.TypeDir {
		u.complete = true
		if h.Typeflag == tar.TypeSymlink || h.Typeflag == tar.TypeLink {
			return "", fmt.Errorf("%.200q is a link, and not what it leads to", name)
		}
		return name, nil
	}
	return ".", u.step(top)
}

// below is a name without that of the tree that was asked for.
func (u *unpacker) below(name string) (string, bool) {
	if !u.inside {
		return name, u.options.Name == "" || u.options.Name == "."
	}
	return strings.CutPrefix(name, u.options.Name+"/")
}

// step makes a directory of root the root.
func (u *unpacker) step(directory string) error {
	if err := u.root.MkdirAll(directory, 0o700); err != nil {
		return describe("make directory", directory, err)
	}
	next, err := u.root.OpenRoot(directory)
	if err != nil {
		return describe("open", directory, err)
	}
	u.close()
	u.root, u.at, u.inside = next, next, true
	return nil
}

// isSparse is true for entries in a GNU format that may stand for far more
// than the stream has to hold for them. Pack makes none.
func isSparse(h *tar.Header) bool {
	if h.Typeflag == tar.TypeGNUSparse {
		return true
	}
	for key := range h.PAXRecords {
		if strings.HasPrefix(key, "GNU.sparse.") {
			return true
		}
	}
	return false
}

// localName is a name that stays below where it is unpacked.
func localName(name string) (string, error) {
	if len(name) > maxName {
		return "", fmt.Errorf("a name of %d bytes", len(name))
	}
	if strings.ContainsRune(name, 0) || path.IsAbs(name) {
		return "", fmt.Errorf("the name %.100q is not a relative path", name)
	}
	clean := path.Clean(name)
	if clean == ".." || strings.HasPrefix(clean, "../") {
		return "", fmt.Errorf("the name %.100q leads out of the tree", name)
	}
	if strings.Count(clean, "/") >= maxDepth {
		return "", fmt.Errorf("the name %.100q is too deep", name)
	}
	return clean, nil
}

// enter makes directory the one that names of entries are in.
func (u *unpacker) enter(directory string) error {
	if directory == "." {
		directory = ""
	}
	if directory == u.path {
		return nil
	}
	next := u.root
	if directory != "" {
		if err := u.root.MkdirAll(directory, 0o755); err != nil {
			return err
		}
		var err error
		if next, err = u.root.OpenRoot(directory); err != nil {
			return err
		}
	}
	u.leave()
	u.at, u.path = next, directory
	return nil
}

func (u *unpacker) directory(h *tar.Header) error {
	u.totals.Directories++
	if h.Name == "." && !u.inside {
		// It was there before, and is not what was asked for.
		return nil
	}
	// Open to us while things are put into it.
	if err := u.root.MkdirAll(h.Name, 0o700); err != nil {
		return describe("make directory", h.Name, err)
	}
	made := madeDirectory{strings.Clone(h.Name), u.dressOf(h)}
	u.remembered += len(made.name) + rememberedOverhead
	for name, value := range made.attributes {
		u.remembered += len(name) + len(value) + rememberedOverhead
	}
	if u.remembered > maxRemembered {
		return fmt.Errorf("directories take more than %d MiB to remember", maxRemembered>>20)
	}
	u.directories = append(u.directories, made)
	return nil
}

// finishDirectories goes from the last to the first, so that those inside
// come before those around them.
func (u *unpacker) finishDirectories() error {
	for i := len(u.directories) - 1; i >= 0; i-- {
		d := u.directories[i]
		if err := u.finishDirectory(d); err != nil {
			return describe("set mode and owner of", d.name, err)
		}
	}
	return nil
}

// rememberedOverhead is roughly what maps, slices and strings take for each.
const rememberedOverhead = 128

func (u *unpacker) finishDirectory(d madeDirectory) error {
	handle, err := u.root.OpenFile(d.name, os.O_RDONLY|unix.O_DIRECTORY|unix.O_NONBLOCK, 0)
	if err != nil {
		return err
	}
	defer handle.Close()
	return u.put(d.dress, int(handle.Fd()), unknownMode)
}

// dressOf is what the file of an entry gets.
func (u *unpacker) dressOf(h *tar.Header) dress {
	d := dress{mode: h.FileInfo().Mode() & (fs.ModePerm | fs.ModeSticky | setID), uid: h.Uid, gid: h.Gid, modified: h.ModTime}
	if !u.options.Trusted {
		d.mode &^= setID
	}
	if o := u.options.Owner; o != nil {
		d.uid, d.gid = o.UID, o.GID
	}
	for key, value := range h.PAXRecords {
		if name, ok := strings.CutPrefix(key, attributePrefix); ok && strings.HasPrefix(name, "user.") {
			if d.attributes == nil {
				d.attributes = map[string]string{}
			}
			d.attributes[strings.Clone(name)] = strings.Clone(value)
		}
	}
	return d
}

// unknownMode is none that a file has.
const unknownMode = fs.ModeIrregular

// put gives an open file its attributes, owner, mode and time, in this order:
// a change of owner takes set-id bits away. The mode may be known to be there.
func (u *unpacker) put(d dress, fd int, has fs.FileMode) error {
	if err := setAttributes(fd, d.attributes); err != nil {
		return err
	}
	if !u.mine(d) {
		if err := persist(func() error { return unix.Fchown(fd, d.uid, d.gid) }); err != nil {
			return err
		}
	}
	if d.mode != has {
		if err := persist(func() error { return unix.Fchmod(fd, modeOf(d.mode)) }); err != nil {
			return err
		}
	}
	return unix.UtimesNanoAt(fd, "", changeTime(d.modified), unix.AT_EMPTY_PATH)
}

// mine is true when files belong to whom they are to anyway.
func (u *unpacker) mine(d dress) bool { return u.me == Owner{d.uid, d.gid} }

// modeOf is a mode as chmod(2) takes it.
func modeOf(mode fs.FileMode) uint32 {
	bits := uint32(mode.Perm())
	for _, b := range []struct {
		mode fs.FileMode
		bit  uint32
	}{{fs.ModeSetuid, unix.S_ISUID}, {fs.ModeSetgid, unix.S_ISGID}, {fs.ModeSticky, unix.S_ISVTX}} {
		if mode&b.mode != 0 {
			bits |= b.bit
		}
	}
	return bits
}

func (u *unpacker) symlink(h *tar.Header) error {
	return u.replace(h, func(temporary string) error {
		if err := u.at.Symlink(h.Linkname, temporary); err != nil {
			return err
		}
		d := u.dressOf(h)
		if !u.mine(d) {
			if err := u.at.Lchown(temporary, d.uid, d.gid); err != nil {
				return err
			}
		}
		at, err := u.descriptor()
		if err != nil {
			return err
		}
		return unix.UtimesNanoAt(at, temporary, changeTime(d.modified), unix.AT_SYMLINK_NOFOLLOW)
	})
}

// remove removes a file, or a directory that nothing is in any more.
func (u *unpacker) remove(name string) error {
	if !u.options.Removals || name == "." {
		return fmt.Errorf("%.200q is to be removed, which was not asked for", name)
	}
	err := u.root.Remove(name)
	switch {
	case err == nil:
		u.totals.Removed++
	case unlessGone(err) == nil, errors.Is(err, unix.ENOTEMPTY):
		// Others were quicker, or have put something in it that stays.
	default:
		return describe("remove", name, err)
	}
	return nil
}

func (u *unpacker) file(h *tar.Header) error {
	offset, err := parseOffset(h.PAXRecords)
	if err != nil {
		return err
	}
	if u.options.Resume {
		return u.goOn(h, offset)
	}
	if offset > 0 {
		return fmt.Errorf("it goes on at %d, and has no beginning", offset)
	}
	if h.Size <= int64(len(u.buffer)) {
		return u.smallFile(h)
	}
	return u.replace(h, func(temporary string) error {
		handle, err := u.at.OpenFile(temporary, os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o600)
		if err != nil {
			return err
		}
		defer handle.Close()
		if err := u.fill(handle, h.Size); err != nil {
			return err
		}
		if err := u.put(u.dressOf(h), int(handle.Fd()), unknownMode); err != nil {
			return err
		}
		return handle.Close()
	})
}

// goOn writes a file behind what is there of it, and keeps that if the stream
// breaks off.
func (u *unpacker) goOn(h *tar.Header, offset int64) error {
	if u.options.Parts != nil && offset > 0 && u.options.Parts[u.streamName(h.Name)].Offset != offset {
		return fmt.Errorf("it goes on at %d, which was not asked for", offset)
	}
	base := path.Base(h.Name)
	partial := PartialName(base)
	handle, err := openPartial(u.ctx, u.at, partial)
	if err != nil {
		return err
	}
	defer handle.Close()
	if err = u.finish(handle, h, offset); err == nil {
		err = u.at.Rename(partial, base)
	}
	if err == nil {
		return nil
	}
	// What comes of a copy that broke off is worth its place only if much of
	// it is there.
	written, seekErr := handle.Seek(0, io.SeekCurrent)
	if seekErr != nil || written < worthKeeping {
		return errors.Join(err, u.at.Remove(partial))
	}
	return errors.Join(err, handle.Truncate(written))
}

// finish writes what a file lacks behind offset.
func (u *unpacker) finish(handle *os.File, h *tar.Header, offset int64) error {
	if err := keepUntil(handle, offset); err != nil {
		return err
	}
	if err := u.pour(handle, h.Size); err != nil {
		return err
	}
	return u.put(u.dressOf(h), int(handle.Fd()), unknownMode)
}

// streamName is what a name below root is called in the stream.
func (u *unpacker) streamName(name string) string {
	if u.inside {
		return u.options.Name + "/" + name
	}
	return name
}

// changeTime sets when a file was changed last, and leaves when it was read.
func changeTime(modified time.Time) []unix.Timespec {
	return []unix.Timespec{{Nsec: unix.UTIME_OMIT}, unix.NsecToTimespec(modified.UnixNano())}
}

// fill writes a file's content, and leaves holes where it is nothing but
// zeros.
func (u *unpacker) fill(handle *os.File, size int64) error {
	// Fails at once for a size that no file can have, or that is not allowed.
	if err := handle.Truncate(size); err != nil {
		return err
	}
	return u.write(handle, size)
}

// pour writes the rest of a file, which has no more bytes than were written
// until it is whole.
func (u *unpacker) pour(handle *os.File, size int64) error {
	if err := u.write(handle, size); err != nil {
		return err
	}
	end, err := handle.Seek(0, io.SeekCurrent)
	if err != nil {
		return err
	}
	return handle.Truncate(end) // where it ends in a hole
}

// write writes bytes of the stream, and leaves holes where they are zeros.
func (u *unpacker) write(handle *os.File, size int64) error {
	left := size
	if u.options.Direct {
		var err error
		if left, err = u.direct.write(u.ctx, handle, u.tar, size); err != nil {
			return err
		}
	}
	for left > 0 {
		if err := u.ctx.Err(); err != nil {
			return err
		}
		n, err := io.ReadFull(u.tar, u.buffer[:min(left, int64(len(u.buffer)))])
		if err != nil {
			return fmt.Errorf("read the stream: %w", err)
		}
		left -= int64(n)
		if isZero(u.buffer[:n]) {
			_, err = handle.Seek(int64(n), io.SeekCurrent)
		} else {
			_, err = handle.Write(u.buffer[:n])
		}
		if err != nil {
			return err
		}
	}
	return nil
}

var zeros [copyBuffer]byte

// isZero is for up to copyBuffer bytes.
func isZero(data []byte) bool { return bytes.Equal(data, zeros[:len(data)]) }

func (u *unpacker) link(h *tar.Header) error {
	target, err := localName(h.Linkname)
	if err != nil {
		return err
	}
	target, ok := u.below(target)
	if !ok {
		return fmt.Errorf("it is a link to %.200q, which is not of %.200q", target, u.options.Name)
	}
	temporary := path.Join(u.path, temporaryName())
	if err := u.root.Link(target, temporary); err != nil {
		return err
	}
	// To rename a name to another of the same file does nothing.
	defer u.root.Remove(temporary)
	return u.root.Rename(temporary, h.Name)
}

// replace makes something under a name that nobody knows, and then gives it
// its own.
func (u *unpacker) replace(h *tar.Header, make func(temporary string) error) error {
	temporary := temporaryName()
	if err := make(temporary); err != nil {
		u.at.Remove(temporary)
		return err
	}
	if err := u.at.Rename(temporary, path.Base(h.Name)); err != nil {
		u.at.Remove(temporary)
		return err
	}
	return nil
}

// temporaryName is one that others do not guess. It takes no system call.
func temporaryName() string { return fmt.Sprintf(".vmsan-%016x", rand.Uint64()) }

// setAttributes sets extended attributes. A file system that has none goes
// without.
func setAttributes(fd int, attributes map[string]string) error {
	total := 0
	for name, value := range attributes {
		if total += len(name) + len(value); total > maxAttributes {
			return fmt.Errorf("attributes of more than %d bytes", maxAttributes)
		}
		if err := unix.Fsetxattr(fd, name, []byte(value), 0); err != nil && !unsupported(err) {
			return fmt.Errorf("set attribute %.100q: %w", name, err)
		}
	}
	return nil
}
