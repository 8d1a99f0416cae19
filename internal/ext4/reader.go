package ext4

import (
	"cmp"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"slices"
	"strings"
)

// ErrDamaged is that a file system is none, or not whole.
var ErrDamaged = errors.New("damaged file system")

func errDamaged(what string) error { return fmt.Errorf("%w: bad %s", ErrDamaged, what) }

// Bounds on what is read; a file system in order stays below them.
const (
	maxDirSize  = 64 << 20 // of one, in bytes
	maxDirBytes = 1 << 30  // of all
	maxNames    = 4_000_000
	maxDepth    = 4096
	maxExtDepth = 5
)

// Reader reads a file system. It believes nothing that is in it.
type Reader struct {
	r              io.ReaderAt
	blockSize      int64
	blocks         int64
	inodes         uint32
	inodesPerGroup uint32
	inodeSize      int64
	descAt         int64
	descSize       int64
	journal        uint32 // the inode of a journal that has something to say, or 0
}

// Is tells whether an ext2, 3 or 4 is in r.
func Is(r io.ReaderAt) bool {
	var magic [2]byte
	_, err := r.ReadAt(magic[:], superOffset+56)
	return err == nil && binary.LittleEndian.Uint16(magic[:]) == superMagic
}

// NewReader reads the superblock of the file system in r, which is not in use.
func NewReader(r io.ReaderAt) (*Reader, error) {
	f, err := readSuper(r)
	if err == nil && f.journal != 0 {
		return nil, errors.New("file system is mounted, or was not unmounted")
	}
	return f, err
}

func readSuper(r io.ReaderAt) (*Reader, error) {
	b := make([]byte, superSize)
	if _, err := r.ReadAt(b, superOffset); err != nil {
		return nil, readError(err)
	}
	le := binary.LittleEndian
	if le.Uint16(b[56:]) != superMagic {
		return nil, fmt.Errorf("%w: no ext4 in it", ErrDamaged)
	}
	incompat := le.Uint32(b[96:])
	if extra := incompat &^ (incompatKnown | incompatRecover); extra != 0 {
		return nil, fmt.Errorf("file system has features that cannot be read: %#x", extra)
	}
	log := le.Uint32(b[24:])
	if log > 6 {
		return nil, errDamaged("block size")
	}
	f := &Reader{
		r: r, blockSize: 1024 << log, blocks: int64(le.Uint32(b[4:])),
		inodes: le.Uint32(b[0:]), inodesPerGroup: le.Uint32(b[40:]), inodeSize: 128, descSize: descSize,
	}
	if le.Uint32(b[76:]) > 0 {
		f.inodeSize = int64(le.Uint16(b[88:]))
	}
	if incompat&incompat64Bit != 0 {
		f.blocks |= int64(le.Uint32(b[336:])) << 32
		f.descSize = int64(le.Uint16(b[254:]))
	}
	f.descAt = f.blockSize * int64(le.Uint32(b[20:])+1)
	if f.inodesPerGroup == 0 || f.inodeSize < 128 || f.inodeSize > f.blockSize || f.descSize < descSize || f.descSize > f.blockSize ||
		f.blocks < 1 || f.blocks > 1<<46/f.blockSize {
		return nil, errDamaged("superblock")
	}
	if incompat&incompatRecover != 0 {
		if f.journal = le.Uint32(b[224:]); f.journal == 0 {
			return nil, errDamaged("journal")
		}
	}
	return f, nil
}

// Size is the file system's size in bytes.
func (f *Reader) Size() int64 { return f.blocks * f.blockSize }

// File is one of the file system's.
type File struct {
	Attr
	Number uint32
	Links  int
	Size   int64

	f     *Reader
	block [60]byte
	flags uint32
}

// IsDir tells whether it is a directory.
func (n *File) IsDir() bool { return n.Mode&TypeMask == TypeDir }

// ID tells files apart, also those of several readers.
type ID struct {
	reader *Reader
	number uint32
}

// ID returns what names of the same file have in common.
func (n *File) ID() ID { return ID{n.f, n.Number} }

// Root returns the root directory.
func (f *Reader) Root() (*File, error) {
	root, err := f.file(rootInode)
	if err == nil && !root.IsDir() {
		err = errDamaged("root directory")
	}
	return root, err
}

// Walk calls visit for each name of each file, directories before what is in
// them, all in order. The root's path is empty.
func (f *Reader) Walk(visit func(path string, file *File) error) error {
	root, err := f.Root()
	if err != nil {
		return err
	}
	return walk("", root, new(Bounds), visit)
}

func walk(path string, n *File, b *Bounds, visit func(string, *File) error) error {
	if err := visit(path, n); err != nil || !n.IsDir() {
		return err
	}
	entries, err := b.Enter(n)
	if err != nil {
		return fmt.Errorf("directory /%s: %w", path, err)
	}
	defer b.Leave()
	if path != "" {
		path += "/"
	}
	for _, e := range entries {
		child, err := n.Child(e)
		if err != nil {
			return fmt.Errorf("/%s%s: %w", path, e.Name, err)
		}
		if err := walk(path+e.Name, child, b, visit); err != nil {
			return err
		}
	}
	return nil
}

// Bounds keep a walk through directories from having no end: each is entered
// once, and there are not too many names.
type Bounds struct {
	seen  map[ID]bool
	names int
	bytes int64
	depth int
}

// Enter returns what is in a directory.
func (b *Bounds) Enter(dir *File) ([]Entry, error) {
	if b.seen[dir.ID()] || b.depth > maxDepth {
		return nil, errDamaged("tree of directories")
	}
	if b.bytes += dir.Size; b.bytes > maxDirBytes {
		return nil, errDamaged("size of all directories")
	}
	entries, err := dir.Entries()
	if err != nil {
		return nil, err
	}
	if b.names += len(entries); b.names > maxNames {
		return nil, errDamaged("number of names")
	}
	if b.seen == nil {
		b.seen = make(map[ID]bool)
	}
	b.seen[dir.ID()] = true
	b.depth++
	return entries, nil
}

// Leave is called when what is in the directory has been seen.
func (b *Bounds) Leave() { b.depth-- }

func (f *Reader) file(number uint32) (*File, error) {
	b, err := f.inode(number)
	if err != nil {
		return nil, err
	}
	le := binary.LittleEndian
	n := &File{f: f, Number: number, Links: int(le.Uint16(b[26:])), flags: le.Uint32(b[32:])}
	n.Mode = le.Uint16(b[0:])
	n.UID = uint32(le.Uint16(b[2:])) | uint32(le.Uint16(b[120:]))<<16
	n.GID = uint32(le.Uint16(b[24:])) | uint32(le.Uint16(b[122:]))<<16
	n.Size = int64(le.Uint32(b[4:])) | int64(le.Uint32(b[108:]))<<32
	copy(n.block[:], b[40:100])
	// Extents number blocks in 32 bits.
	if n.Size < 0 || n.Size > f.blockSize<<32 || n.flags&flagInlineData != 0 {
		return nil, errDamaged("inode")
	}
	extra := 0
	if len(b) > 130 {
		extra = int(le.Uint16(b[128:]))
	}
	if 128+extra > len(b) {
		return nil, errDamaged("inode")
	}
	var times uint32
	if extra >= extraSize {
		times = le.Uint32(b[136:])
	}
	n.ModTime = decodeTime(le.Uint32(b[16:]), times)
	switch n.Mode & TypeMask {
	case TypeChar, TypeBlock:
		n.Major, n.Minor = decodeDevice(le.Uint32(b[40:]), le.Uint32(b[44:]))
	case TypeSymlink:
		if n.Target, err = n.target(); err != nil {
			return nil, err
		}
	}
	block := int64(le.Uint32(b[104:])) | int64(le.Uint16(b[118:]))<<32
	n.Xattrs, err = f.xattrs(b[128+extra:], block)
	return n, err
}

func decodeDevice(old, now uint32) (major, minor uint32) {
	if old != 0 {
		return old >> 8 & 0xff, old & 0xff
	}
	return now >> 8 & 0xfff, now&0xff | now>>12&0xfff00
}

// inode reads the record of an inode.
func (f *Reader) inode(number uint32) ([]byte, error) {
	if number == 0 || number > f.inodes {
		return nil, errDamaged("inode number")
	}
	group := int64((number - 1) / f.inodesPerGroup)
	desc := make([]byte, f.descSize)
	if err := f.readAt(desc, f.descAt+group*f.descSize); err != nil {
		return nil, err
	}
	table := int64(binary.LittleEndian.Uint32(desc[8:]))
	if len(desc) >= 64 {
		table |= int64(binary.LittleEndian.Uint32(desc[40:])) << 32
	}
	if table < 1 || table >= f.blocks {
		return nil, errDamaged("table of inodes")
	}
	b := make([]byte, f.inodeSize)
	return b, f.readAt(b, table*f.blockSize+int64((number-1)%f.inodesPerGroup)*f.inodeSize)
}

func (f *Reader) readAt(b []byte, at int64) error {
	if at < 0 || at > f.Size()-int64(len(b)) {
		return errDamaged("place of a block")
	}
	if _, err := f.r.ReadAt(b, at); err != nil {
		return readError(err)
	}
	return nil
}

// readError makes of an end what it means here: to who reads a file of the
// file system it is no end.
func readError(err error) error {
	if errors.Is(err, io.EOF) {
		return fmt.Errorf("%w: it is cut short", ErrDamaged)
	}
	return err
}

func (f *Reader) xattrs(inline []byte, block int64) (map[string]string, error) {
	all := make(map[string]string)
	if len(inline) > 4 && binary.LittleEndian.Uint32(inline) == xattrMagic {
		if err := getXattrs(inline[4:], 0, all); err != nil {
			return nil, err
		}
	}
	if block != 0 {
		b := make([]byte, f.blockSize)
		if block >= f.blocks {
			return nil, errDamaged("block of attributes")
		}
		if err := f.readAt(b, block*f.blockSize); err != nil {
			return nil, err
		}
		if binary.LittleEndian.Uint32(b) != xattrMagic {
			return nil, errDamaged("block of attributes")
		}
		if err := getXattrs(b[xattrHead:], xattrHead, all); err != nil {
			return nil, err
		}
	}
	if len(all) == 0 {
		return nil, nil
	}
	return all, nil
}

func (n *File) target() (string, error) {
	if n.Size > MaxSymlink {
		return "", errDamaged("symbolic link")
	}
	if n.flags&flagExtents == 0 && n.Size <= fastSymlink {
		return string(n.block[:n.Size]), nil
	}
	b, err := io.ReadAll(n.Open())
	return string(b), err
}

// Entry is a name in a directory.
type Entry struct {
	Name   string
	number uint32
}

// Child returns the file of an entry of the directory.
func (n *File) Child(e Entry) (*File, error) { return n.f.file(e.number) }

// Entries are a directory's, in order of their names. An index in it looks
// like empty entries.
func (n *File) Entries() ([]Entry, error) {
	if n.Size > maxDirSize || n.Size%n.f.blockSize != 0 {
		return nil, errDamaged("size of a directory")
	}
	var list []Entry
	b := make([]byte, n.f.blockSize)
	for r, left := n.Open(), n.Size; left > 0; left -= n.f.blockSize {
		if _, err := io.ReadFull(r, b); err != nil {
			return nil, err
		}
		for at := 0; at < len(b); {
			e := b[at:]
			if len(e) < 8 {
				return nil, errDamaged("entry")
			}
			length, name := int(binary.LittleEndian.Uint16(e[4:])), int(e[6])
			if length < 8+name || length > len(e) || length%4 != 0 {
				return nil, errDamaged("entry")
			}
			number := binary.LittleEndian.Uint32(e)
			text := string(e[8 : 8+name])
			if at += length; number == 0 || text == "." || text == ".." {
				continue
			}
			if text == "" || strings.ContainsAny(text, "/\x00") {
				return nil, errDamaged("name")
			}
			list = append(list, Entry{text, number})
		}
	}
	slices.SortFunc(list, func(a, b Entry) int { return cmp.Compare(a.Name, b.Name) })
	return list, nil
}

// Open returns a reader of a regular file's contents.
func (n *File) Open() io.Reader { return &contents{n: n} }

// contents reads a file from one extent after the other.
type contents struct {
	n          *File
	at         int64
	from, upto int64 // the part of the file that offset is the place of
	offset     int64 // negative: a hole
}

func (c *contents) Read(p []byte) (int, error) {
	left := c.n.Size - c.at
	if left <= 0 {
		return 0, io.EOF
	}
	if c.at >= c.upto {
		if err := c.find(); err != nil {
			return 0, err
		}
	}
	p = p[:min(int64(len(p)), left, c.upto-c.at)]
	if c.offset < 0 {
		clear(p)
	} else if err := c.n.f.readAt(p, c.offset+c.at-c.from); err != nil {
		return 0, err
	}
	c.at += int64(len(p))
	return len(p), nil
}

// find looks up the extent, or the hole, that at is in.
func (c *contents) find() error {
	if c.n.flags&flagExtents == 0 {
		return fmt.Errorf("%w: file without extents", ErrDamaged)
	}
	size := c.n.f.blockSize
	want := c.at / size
	end := (c.n.Size + size - 1) / size // where a hole ends that nothing follows
	node := c.n.block[:]
	for range maxExtDepth + 1 {
		leaf, entries, err := extentNode(node)
		if err != nil {
			return err
		}
		if leaf {
			return c.pick(entries, want, end, size)
		}
		var next int64
		for ; len(entries) > 0; entries = entries[12:] {
			first := int64(binary.LittleEndian.Uint32(entries))
			if first > want {
				end = min(end, first)
				break
			}
			next = int64(binary.LittleEndian.Uint32(entries[4:])) | int64(binary.LittleEndian.Uint16(entries[8:]))<<32
		}
		if next == 0 {
			c.hole(end, size)
			return nil
		}
		node = make([]byte, size)
		if next >= c.n.f.blocks {
			return errDamaged("extent")
		}
		if err := c.n.f.readAt(node, next*size); err != nil {
			return err
		}
	}
	return errDamaged("tree of extents")
}

func (c *contents) hole(end, size int64) {
	c.from, c.upto, c.offset = c.at, end*size, -1
}

func (c *contents) pick(extents []byte, want, end, size int64) error {
	le := binary.LittleEndian
	for ; len(extents) > 0; extents = extents[12:] {
		first, length := int64(le.Uint32(extents)), int64(le.Uint16(extents[4:]))
		written := length <= extentBlocks
		if !written {
			length -= extentBlocks
		}
		if want < first {
			end = min(end, first)
			break
		}
		if want < first+length {
			start := int64(le.Uint32(extents[8:])) | int64(le.Uint16(extents[6:]))<<32
			if start >= c.n.f.blocks {
				return errDamaged("extent")
			}
			c.from, c.upto, c.offset = first*size, (first+length)*size, start*size
			if !written {
				c.offset = -1
			}
			return nil
		}
	}
	c.hole(end, size)
	return nil
}

// extentNode returns the entries of a node, and whether they are extents.
func extentNode(b []byte) (leaf bool, entries []byte, err error) {
	le := binary.LittleEndian
	count := int(le.Uint16(b[2:]))
	if le.Uint16(b[0:]) != extentMagic || 12+12*count > len(b) {
		return false, nil, errDamaged("extent")
	}
	return le.Uint16(b[6:]) == 0, b[12 : 12+12*count], nil
}
