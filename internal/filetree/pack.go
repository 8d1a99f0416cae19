package filetree

import (
	"archive/tar"
	"bufio"
	"bytes"
	"context"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// PackOptions say what Pack leaves in a stream.
type PackOptions struct {
	// Name is what the top of the tree is called in the stream; "." leaves its
	// name to whoever unpacks.
	Name string
	// Wanted has the names of what is packed, with how much of it the other
	// side has. A directory's is that of itself alone. Nil: all.
	Wanted map[string]Part
	// Removed are names that whoever unpacks is to remove first, in this order.
	Removed []string
	// Direct reads large files past the page cache.
	Direct bool
	// Progress is optional.
	Progress Progress
}

// Pack writes the file or the tree at top to w, as a PAX tar stream: modes,
// owners, times, symbolic and hard links, and the user's extended attributes.
// If top is a symbolic link, that is what it leads to.
// Files that grow or shrink meanwhile are cut or filled up with zeros to the
// size that they had; those that vanish are left out.
func Pack(ctx context.Context, w io.Writer, top string, o PackOptions) (Totals, error) {
	buffered := bufio.NewWriterSize(w, 2*copyBuffer)
	p := &packer{ctx: ctx, options: o, tar: tar.NewWriter(buffered), linked: map[inode]string{}, buffer: make([]byte, copyBuffer)}
	defer p.direct.close()
	p.around = ancestors(o.Wanted)
	for _, name := range o.Removed {
		if err := p.tar.WriteHeader(&tar.Header{Typeflag: tar.TypeReg, Name: name, Format: tar.FormatPAX, PAXRecords: map[string]string{removeRecord: "yes"}}); err != nil {
			return p.totals, err
		}
	}
	if err := p.addTop(top); err != nil {
		return p.totals, err
	}
	if err := p.tar.Close(); err != nil {
		return p.totals, err
	}
	return p.totals, buffered.Flush()
}

type inode struct{ device, number uint64 }

type packer struct {
	ctx     context.Context
	options PackOptions
	tar     *tar.Writer
	totals  Totals
	// linked has the first names of files that have several.
	linked map[inode]string
	// around has the directories that have something wanted in them.
	around map[string]bool
	buffer []byte
	direct direct
}

// ancestors are the names of all directories around those of wanted.
func ancestors(wanted map[string]Part) map[string]bool {
	around := map[string]bool{}
	for name := range wanted {
		for name != "." {
			name = path.Dir(name)
			if around[name] {
				break
			}
			around[name] = true
		}
	}
	return around
}

// wants tells whether a file, or a directory itself, is to be packed.
func (p *packer) wants(name string) (Part, bool) {
	if p.options.Wanted == nil {
		return Part{}, true
	}
	part, ok := p.options.Wanted[name]
	return part, ok
}

// addTop opens what top leads to. Below it everything is opened from its
// directory: whoever may write there cannot have us read something elsewhere
// by a link that takes the place of what was looked at.
func (p *packer) addTop(top string) error {
	if err := p.ctx.Err(); err != nil {
		return err
	}
	info, err := os.Stat(top)
	switch {
	case err != nil:
		return err
	case info.IsDir():
		root, err := os.OpenRoot(top)
		if err != nil {
			return err
		}
		return p.addDirectory(root, p.options.Name)
	case info.Mode().IsRegular():
		if _, wanted := p.wants(p.options.Name); !wanted {
			return nil
		}
		return p.addFile(p.options.Name, info, func() (*os.File, error) { return os.OpenFile(top, openFlags, 0) })
	}
	p.totals.Skipped++
	return nil
}

// openFlags never wait for the other end of a pipe that has taken a file's
// place.
const openFlags = os.O_RDONLY | unix.O_NONBLOCK

// add packs what is called base in a directory.
func (p *packer) add(directory *os.Root, base, name string) error {
	info, err := directory.Lstat(base)
	switch {
	case err != nil:
		return unlessGone(err)
	case info.IsDir():
		root, err := directory.OpenRoot(base)
		if err != nil {
			return unlessGone(err)
		}
		return p.addDirectory(root, name)
	case info.Mode().IsRegular():
		return p.addFile(name, info, func() (*os.File, error) { return directory.OpenFile(base, openFlags, 0) })
	case info.Mode()&fs.ModeSymlink != 0:
		target, err := directory.Readlink(base)
		if err != nil {
			return unlessGone(err)
		}
		p.count(0)
		return p.header(info, name, target, nil)
	}
	p.totals.Skipped++
	return nil
}

// addDirectory packs root, and closes it.
func (p *packer) addDirectory(root *os.Root, name string) error {
	defer root.Close()
	handle, err := root.Open(".")
	if err != nil {
		return err
	}
	defer handle.Close()
	info, err := handle.Stat()
	if err != nil {
		return err
	}
	if _, wanted := p.wants(name); wanted {
		if err := p.header(info, name+"/", "", handle); err != nil {
			return err
		}
		p.totals.Directories++
	}
	entries, err := readNames(handle)
	if err != nil {
		return err
	}
	for _, e := range entries {
		if err := p.addEntry(root, handle, e, path.Join(name, e.name)); err != nil {
			return err
		}
	}
	return nil
}

// directoryEntry is what a directory says of something in it.
type directoryEntry struct {
	name    string
	regular bool // it was a regular file
}

// readNames lists a directory, sorted.
func readNames(directory *os.File) (entries []directoryEntry, err error) {
	// What was opened in a Root looks at each file beside listing it.
	fd, err := retry(func() (int, error) {
		return unix.Openat(int(directory.Fd()), ".", unix.O_RDONLY|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	})
	if err != nil {
		return nil, err
	}
	handle := os.NewFile(uintptr(fd), directory.Name())
	defer handle.Close()
	for {
		some, err := handle.ReadDir(namesAtOnce)
		for _, e := range some {
			entries = append(entries, directoryEntry{e.Name(), e.Type().IsRegular()})
		}
		if err == io.EOF {
			break
		}
		if err != nil {
			return nil, err
		}
	}
	slices.SortFunc(entries, func(a, b directoryEntry) int { return strings.Compare(a.name, b.name) })
	return entries, nil
}

// namesAtOnce is how many are read before their types are forgotten.
const namesAtOnce = 1024

// addEntry packs what is called so in a directory, which is open twice.
func (p *packer) addEntry(directory *os.Root, handle *os.File, e directoryEntry, name string) error {
	if leave, err := p.leaves(e.name, name); leave || err != nil {
		return err
	}
	if e.regular {
		if done, err := p.addSmall(int(handle.Fd()), e.name, name); done || err != nil {
			return err
		}
	}
	return p.add(directory, e.name, name)
}

// leaves tells whether something is left out.
func (p *packer) leaves(base, name string) (bool, error) {
	if err := p.ctx.Err(); err != nil {
		return true, err
	}
	if strings.Count(name, "/") >= maxDepth {
		return true, fmt.Errorf("%.200q is too deep", name)
	}
	_, wanted := p.wants(name)
	return !wanted && !p.around[name] || IsPartial(base), nil
}

func (p *packer) addFile(name string, info fs.FileInfo, open func() (*os.File, error)) error {
	if stat := info.Sys().(*syscall.Stat_t); stat.Nlink > 1 {
		key := inode{stat.Dev, stat.Ino}
		if first, ok := p.linked[key]; ok {
			p.count(0)
			return p.tar.WriteHeader(&tar.Header{Typeflag: tar.TypeLink, Name: name, Linkname: first, Format: tar.FormatPAX})
		}
		p.linked[key] = name
	}
	handle, err := open()
	if err != nil {
		return unlessGone(err)
	}
	defer handle.Close()
	if info, err = handle.Stat(); err != nil {
		return err
	}
	if !info.Mode().IsRegular() {
		p.totals.Skipped++
		return nil
	}
	if info.Size() == 0 {
		return p.addUnsized(handle, name, info)
	}
	offset, err := p.goOn(handle, name, info.Size())
	if err != nil {
		return fmt.Errorf("read %s: %w", name, err)
	}
	if err := p.fileHeader(info, name, handle, offset); err != nil {
		return err
	}
	if err := p.content(handle, info.Size()-offset); err != nil {
		return fmt.Errorf("read %s: %w", name, err)
	}
	p.count(info.Size() - offset)
	return nil
}

// goOn goes to where the other side lacks a file, and says where that is.
func (p *packer) goOn(handle *os.File, name string, size int64) (offset int64, err error) {
	part, _ := p.wants(name)
	if part.Offset <= 0 || part.Offset > size {
		return 0, nil
	}
	has, err := digest(p.ctx, handle, part.Offset, p.buffer)
	if err != nil {
		return 0, err
	}
	if bytes.Equal(has, part.Digest) {
		offset = part.Offset
	}
	return handle.Seek(offset, io.SeekStart)
}

// maxUnsized bounds what is read of files that do not say how large they are,
// in bytes.
const maxUnsized = 16 << 20

// addUnsized packs an empty file, which in /proc and /sys may hold something.
func (p *packer) addUnsized(handle *os.File, name string, info fs.FileInfo) error {
	content, err := io.ReadAll(io.LimitReader(handle, maxUnsized))
	if err != nil {
		return describe("read", handle.Name(), err)
	}
	if err := p.header(sized{info, int64(len(content))}, name, "", handle); err != nil {
		return err
	}
	p.count(int64(len(content)))
	_, err = p.tar.Write(content)
	return err
}

// sized is a file that holds more than it says.
type sized struct {
	fs.FileInfo
	size int64
}

func (s sized) Size() int64 { return s.size }

func (p *packer) content(handle *os.File, size int64) error {
	if p.options.Direct {
		var err error
		if size, err = p.direct.read(p.ctx, p.tar, handle, size); err != nil {
			return err
		}
	}
	n, err := io.CopyBuffer(onlyWriter{p.tar}, io.LimitReader(handle, size), p.buffer)
	for err == nil && n < size {
		clear(p.buffer)
		var filled int
		filled, err = p.tar.Write(p.buffer[:min(size-n, int64(len(p.buffer)))])
		n += int64(filled)
	}
	return err
}

// onlyWriter hides ReadFrom, which has a small buffer of its own.
type onlyWriter struct{ io.Writer }

func (p *packer) header(info fs.FileInfo, name, target string, handle *os.File) error {
	h, err := p.describe(info, name, target, handle)
	if err != nil {
		return err
	}
	return p.tar.WriteHeader(h)
}

// fileHeader is the header of a file of which only what is behind offset
// follows.
func (p *packer) fileHeader(info fs.FileInfo, name string, handle *os.File, offset int64) error {
	h, err := p.describe(info, name, "", handle)
	if err != nil {
		return err
	}
	if offset > 0 {
		if h.PAXRecords == nil {
			h.PAXRecords = map[string]string{}
		}
		h.PAXRecords[offsetRecord] = strconv.FormatInt(offset, 10)
		h.Size -= offset
	}
	return p.tar.WriteHeader(h)
}

func (p *packer) describe(info fs.FileInfo, name, target string, handle *os.File) (*tar.Header, error) {
	h, err := tar.FileInfoHeader(info, target)
	if err != nil {
		return nil, err
	}
	h.Name, h.Format = name, tar.FormatPAX
	h.Uname, h.Gname = "", ""
	h.AccessTime, h.ChangeTime = time.Time{}, time.Time{}
	if handle != nil {
		if h.PAXRecords, err = attributes(int(handle.Fd())); err != nil {
			return nil, fmt.Errorf("read attributes of %s: %w", name, err)
		}
	}
	return h, nil
}

func (p *packer) count(bytes int64) {
	p.totals.Files++
	p.totals.Bytes += bytes
	if p.options.Progress != nil {
		p.options.Progress(p.totals)
	}
}

// attributes are the extended attributes that users may set; see xattr(7).
func attributes(fd int) (map[string]string, error) {
	size, err := unix.Flistxattr(fd, nil)
	if err != nil || size == 0 {
		if err == nil || unsupported(err) {
			return nil, nil
		}
		return nil, err
	}
	list := make([]byte, min(size, maxAttributes))
	if size, err = unix.Flistxattr(fd, list); err != nil {
		return nil, err
	}
	records := map[string]string{}
	for _, name := range strings.Split(strings.TrimSuffix(string(list[:size]), "\x00"), "\x00") {
		// A PAX record's key ends at its first equals sign.
		if !strings.HasPrefix(name, "user.") || strings.Contains(name, "=") {
			continue
		}
		value := make([]byte, maxAttributes)
		n, err := unix.Fgetxattr(fd, name, value)
		if unsupported(err) {
			continue
		}
		if err != nil {
			return nil, err
		}
		records[attributePrefix+name] = string(value[:n])
	}
	return records, nil
}
