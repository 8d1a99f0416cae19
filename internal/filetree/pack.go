package filetree

import (
	"archive/tar"
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path"
	"path/filepath"
	"slices"
	"strings"
	"syscall"

	"golang.org/x/sys/unix"
)

// PackOptions say what Pack leaves in a stream.
type PackOptions struct {
	// Name is what the top of the tree is called in the stream; "." leaves its
	// name to whoever unpacks.
	Name string
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
	info, err := os.Stat(top)
	if err != nil {
		return p.totals, err
	}
	if err := p.add(top, o.Name, info); err != nil {
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
	buffer []byte
}

func (p *packer) add(file, name string, info fs.FileInfo) error {
	if err := p.ctx.Err(); err != nil {
		return err
	}
	switch {
	case info.IsDir():
		return p.addDirectory(file, name, info)
	case info.Mode().IsRegular():
		return p.addFile(file, name, info)
	case info.Mode()&fs.ModeSymlink != 0:
		target, err := os.Readlink(file)
		if err != nil {
			return p.unlessGone(err)
		}
		p.count(0)
		return p.header(info, name, target, nil)
	}
	p.totals.Skipped++
	return nil
}

// unlessGone makes light of what others have removed meanwhile.
func (p *packer) unlessGone(err error) error {
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	return err
}

func (p *packer) addDirectory(directory, name string, info fs.FileInfo) error {
	handle, err := os.Open(directory)
	if err != nil {
		return p.unlessGone(err)
	}
	defer handle.Close()
	if err := p.header(info, name+"/", "", handle); err != nil {
		return err
	}
	p.totals.Directories++
	entries, err := handle.ReadDir(-1)
	if err != nil {
		return err
	}
	slices.SortFunc(entries, func(a, b os.DirEntry) int { return strings.Compare(a.Name(), b.Name()) })
	for _, entry := range entries {
		info, err := entry.Info()
		if err == nil {
			err = p.add(filepath.Join(directory, entry.Name()), path.Join(name, entry.Name()), info)
		}
		if err := p.unlessGone(err); err != nil {
			return err
		}
	}
	return nil
}

func (p *packer) addFile(file, name string, info fs.FileInfo) error {
	if stat := info.Sys().(*syscall.Stat_t); stat.Nlink > 1 {
		key := inode{stat.Dev, stat.Ino}
		if first, ok := p.linked[key]; ok {
			p.count(0)
			return p.tar.WriteHeader(&tar.Header{Typeflag: tar.TypeLink, Name: name, Linkname: first, Format: tar.FormatPAX})
		}
		p.linked[key] = name
	}
	// Never waits for the other end of a pipe that has taken its place.
	handle, err := os.OpenFile(file, os.O_RDONLY|unix.O_NONBLOCK, 0)
	if err != nil {
		return p.unlessGone(err)
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
	if err := p.header(info, name, "", handle); err != nil {
		return err
	}
	if err := p.content(handle, info.Size()); err != nil {
		return fmt.Errorf("read %s: %w", file, err)
	}
	p.count(info.Size())
	return nil
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

func (p *packer) content(r io.Reader, size int64) error {
	n, err := io.CopyBuffer(onlyWriter{p.tar}, io.LimitReader(r, size), p.buffer)
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
	h, err := tar.FileInfoHeader(info, target)
	if err != nil {
		return err
	}
	h.Name, h.Format = name, tar.FormatPAX
	h.Uname, h.Gname = "", ""
	if handle != nil {
		if h.PAXRecords, err = attributes(handle); err != nil {
			return fmt.Errorf("read attributes of %s: %w", name, err)
		}
	}
	return p.tar.WriteHeader(h)
}

func (p *packer) count(bytes int64) {
	p.totals.Files++
	p.totals.Bytes += bytes
	if p.options.Progress != nil {
		p.options.Progress(p.totals)
	}
}

// attributes are the extended attributes that users may set; see xattr(7).
func attributes(file *os.File) (map[string]string, error) {
	fd := int(file.Fd())
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
