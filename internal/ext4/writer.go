package ext4

import (
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"maps"
	"os"
	"slices"
)

// Writer makes a file system. What files hold goes to the disk at once, all
// else is kept in memory until Close. It is not safe for concurrent use.
type Writer struct {
	// UUID is the file system's. It may be set until Close.
	UUID [16]byte

	out   *output
	space space
	descs uint32 // blocks of group descriptors
	root  *Inode
}

// NewWriter makes a file system of at most max bytes in f, which is empty and
// remains the caller's. How large max is decides where things are.
func NewWriter(f *os.File, max int64) *Writer {
	blocks := uint32(max / BlockSize)
	groups := (blocks + blocksPerGroup - 1) / blocksPerGroup
	w := &Writer{out: newOutput(f), descs: (groups*descSize + BlockSize - 1) / BlockSize}
	w.space = space{end: 1 + w.descs, most: blocks}
	w.root = w.New(Attr{Mode: TypeDir | 0o755})
	return w
}

// Root is the root directory.
func (w *Writer) Root() *Inode { return w.root }

// New makes a file without contents and names.
func (w *Writer) New(a Attr) *Inode {
	n := &Inode{Attr: a}
	if n.IsDir() {
		n.children = make(map[string]*Inode)
	}
	return n
}

// ErrShort is that a reader ended before the contents of a file did.
var ErrShort = errors.New("contents are shorter than announced")

// Fill gives a regular file its contents, once: size bytes from r.
func (w *Writer) Fill(n *Inode, r io.Reader, size int64) error {
	if size > int64(w.space.most)*BlockSize {
		return ErrTooLarge
	}
	data := run{length: uint32((size + BlockSize - 1) / BlockSize)}
	start, err := w.space.take(data.length + data.index())
	if err != nil {
		return err
	}
	data.start = start
	n.data, n.size = data, size
	if err := w.copy(r, int64(start)*BlockSize, size); err != nil {
		return err
	}
	return w.writeIndex(data)
}

// copy reads into the output's buffer itself.
func (w *Writer) copy(r io.Reader, at, size int64) error {
	if err := w.out.write(at, nil); err != nil {
		return err
	}
	for left := size; left > 0; {
		room := w.out.room()
		n, err := r.Read(room[:min(int64(len(room)), left)])
		if err := w.out.write(at, room[:n]); err != nil {
			return err
		}
		at, left = at+int64(n), left-int64(n)
		if errors.Is(err, io.EOF) && left > 0 {
			return ErrShort
		}
		if err != nil && !errors.Is(err, io.EOF) {
			return err
		}
	}
	return w.out.write(at, zeros[:-size&(BlockSize-1)])
}

func (w *Writer) writeIndex(data run) error {
	for i := range data.index() {
		var b [BlockSize]byte
		data.encodeLeaf(b[:], i)
		if err := w.writeBlock(data.start+data.length+i, b[:]); err != nil {
			return err
		}
	}
	return nil
}

func (w *Writer) writeBlock(block uint32, b []byte) error {
	return w.out.write(int64(block)*BlockSize, b)
}

// Link gives a file a name in dir, where that name must be free. A directory
// has one name.
func (w *Writer) Link(dir *Inode, name string, n *Inode) error {
	if n.links >= MaxLinks {
		return ErrLinks
	}
	n.links++
	dir.children[name] = n
	return nil
}

// Unlink takes a name away, with all that is below it. What has no name left
// gives back its blocks.
func (w *Writer) Unlink(dir *Inode, name string) {
	n := dir.children[name]
	delete(dir.children, name)
	w.drop(n)
}

func (w *Writer) drop(n *Inode) {
	if n.links--; n.links > 0 {
		return
	}
	for _, name := range slices.Sorted(maps.Keys(n.children)) {
		w.drop(n.children[name])
	}
	w.space.give(run{n.data.start, n.data.length + n.data.index()})
	n.data, n.children = run{}, nil
}

// Close writes all that is missing.
func (w *Writer) Close() error {
	inodes := w.number()
	for _, n := range inodes {
		if err := w.writeMeta(n); err != nil {
			return err
		}
	}
	l := w.layOut(uint32(firstInode - 1 + len(inodes) - 1))
	for _, step := range []func() error{
		func() error { return w.writeInodes(l, inodes) },
		func() error { return w.writeBitmaps(l, inodes) },
		func() error { return w.writeSuper(l) },
		w.out.flush,
		func() error { return w.punchUnused(l) },
	} {
		if err := step(); err != nil {
			return err
		}
	}
	return w.out.f.Truncate(int64(l.blocks) * BlockSize)
}

// number gives the inodes their numbers and returns them in that order.
func (w *Writer) number() []*Inode {
	w.root.number, w.root.parent = rootInode, rootInode
	inodes := []*Inode{w.root}
	for i := 0; i < len(inodes); i++ {
		for _, name := range slices.Sorted(maps.Keys(inodes[i].children)) {
			child := inodes[i].children[name]
			if child.number == 0 {
				child.number = uint32(firstInode + len(inodes) - 1)
				inodes = append(inodes, child)
			}
			if child.IsDir() {
				child.parent = inodes[i].number
			}
		}
	}
	return inodes
}

// writeMeta writes those blocks of an inode that are not a file's contents.
func (w *Writer) writeMeta(n *Inode) error {
	if n.IsDir() {
		if err := w.writeData(n, encodeDir(n)); err != nil {
			return err
		}
	}
	if n.IsSymlink() {
		n.size = int64(len(n.Target))
		if n.hasExtents() {
			if err := w.writeData(n, append([]byte(n.Target), zeros[:-n.size&(BlockSize-1)]...)); err != nil {
				return err
			}
			n.size = int64(len(n.Target))
		}
	}
	_, block, err := splitXattrs(n.Xattrs)
	if err != nil || len(block) == 0 {
		return err
	}
	if n.xattrs, err = w.space.take(1); err != nil {
		return err
	}
	var b [BlockSize]byte
	binary.LittleEndian.PutUint32(b[0:], xattrMagic)
	binary.LittleEndian.PutUint32(b[4:], 1) // inodes that use it
	binary.LittleEndian.PutUint32(b[8:], 1) // blocks
	putXattrs(b[xattrHead:], block, xattrHead)
	return w.writeBlock(n.xattrs, b[:])
}

// writeData writes whole blocks as the contents of n.
func (w *Writer) writeData(n *Inode, b []byte) (err error) {
	data := run{length: uint32(len(b) / BlockSize)}
	if data.start, err = w.space.take(data.length + data.index()); err != nil {
		return err
	}
	n.data, n.size = data, int64(len(b))
	if err := w.writeBlock(data.start, b); err != nil {
		return err
	}
	return w.writeIndex(data)
}

// encodeDir returns a directory's blocks.
func encodeDir(dir *Inode) []byte {
	var b []byte
	last := 0 // where the last entry begins, which fills its block
	add := func(number uint32, name string, kind byte) {
		need := (8 + len(name) + 3) &^ 3
		if used := len(b) % BlockSize; len(b) == 0 || used+need > BlockSize || used == 0 {
			b = closeBlock(b, last)
		}
		last = len(b)
		b = append(b, make([]byte, need)...)
		e := b[last:]
		binary.LittleEndian.PutUint32(e, number)
		binary.LittleEndian.PutUint16(e[4:], uint16(need))
		e[6], e[7] = byte(len(name)), kind
		copy(e[8:], name)
	}
	add(dir.number, ".", 2)
	add(dir.parent, "..", 2)
	for _, name := range slices.Sorted(maps.Keys(dir.children)) {
		child := dir.children[name]
		add(child.number, name, direntType(child.Mode))
	}
	return closeBlock(b, last)
}

// closeBlock lets the entry at last reach to the end of its block.
func closeBlock(b []byte, last int) []byte {
	rest := -len(b) & (BlockSize - 1)
	if rest == 0 {
		return b
	}
	b = append(b, make([]byte, rest)...)
	binary.LittleEndian.PutUint16(b[last+4:], uint16(len(b)-last))
	return b
}

// layout is where the tables of a file system are. They stand together behind
// the data: with flex_bg they may be anywhere.
type layout struct {
	groups, inodesPerGroup uint32
	inodes                 uint32 // first block of the inodes
	bitmaps                uint32 // first block of the bitmaps, for blocks and inodes in turn
	blocks                 uint32 // in all
	usedInodes             uint32
}

// layOut finds the smallest number of groups that has room for all.
func (w *Writer) layOut(inodes uint32) layout {
	l := layout{inodes: w.space.end, usedInodes: inodes}
	for l.groups = 1; ; l.groups++ {
		per := (inodes + l.groups - 1) / l.groups
		l.inodesPerGroup = (per + inodesPerBlock - 1) &^ (inodesPerBlock - 1)
		l.bitmaps = l.inodes + l.groups*l.inodesPerGroup/inodesPerBlock
		l.blocks = max(l.bitmaps+2*l.groups, (l.groups-1)*blocksPerGroup+1)
		if l.inodesPerGroup <= maxInodesGroup && l.blocks <= l.groups*blocksPerGroup {
			return l
		}
	}
}

func (w *Writer) writeInodes(l layout, inodes []*Inode) error {
	if l.blocks > w.space.most {
		return ErrTooLarge
	}
	b := make([]byte, inodeSize)
	at := int64(l.inodes) * BlockSize
	end := at + int64(l.groups)*int64(l.inodesPerGroup)*inodeSize
	for _, n := range inodes {
		links := n.links
		if n.IsDir() {
			links = dirLinks(n)
		}
		inline, _, err := splitXattrs(n.Xattrs)
		if err != nil {
			return err
		}
		clear(b)
		n.encode(b, links, inline)
		if err := w.writeZeros(&at, int64(l.inodes)*BlockSize+int64(n.number-1)*inodeSize); err != nil {
			return err
		}
		if err := w.out.write(at, b); err != nil {
			return err
		}
		at += inodeSize
	}
	return w.writeZeros(&at, end)
}

// writeZeros writes from at up to end, and moves at there.
func (w *Writer) writeZeros(at *int64, end int64) error {
	for *at < end {
		n := min(end-*at, BlockSize)
		if err := w.out.write(*at, zeros[:n]); err != nil {
			return err
		}
		*at += n
	}
	return nil
}

// dirLinks is a directory's number of links: its name, its own "." and each
// subdirectory's "..". One stands for too many to count.
func dirLinks(dir *Inode) int {
	n := 2
	for _, c := range dir.children {
		if c.IsDir() {
			n++
		}
	}
	if n > MaxLinks {
		return 1
	}
	return n
}

func (w *Writer) writeBitmaps(l layout, inodes []*Inode) error {
	blocks := newBitmap(int(l.groups) * blocksPerGroup) // some of the last group's do not exist
	blocks.set(0, l.groups*blocksPerGroup)
	for _, f := range w.unused(l) {
		blocks.clear(f.start, f.start+f.length)
	}
	used := newBitmap(int(l.groups) * int(l.inodesPerGroup))
	used.set(0, l.usedInodes)
	dirs := make([]uint16, l.groups)
	for _, n := range inodes {
		if n.IsDir() {
			dirs[(n.number-1)/l.inodesPerGroup]++
		}
	}
	descs := make([]byte, w.descs*BlockSize)
	for g := range l.groups {
		block, inode := blocks.part(g, blocksPerGroup), used.part(g, l.inodesPerGroup)
		if err := w.writeBlock(l.bitmaps+2*g, block); err != nil {
			return err
		}
		if err := w.writeBlock(l.bitmaps+2*g+1, padBitmap(inode)); err != nil {
			return err
		}
		d := descs[g*descSize:]
		binary.LittleEndian.PutUint32(d[0:], l.bitmaps+2*g)
		binary.LittleEndian.PutUint32(d[4:], l.bitmaps+2*g+1)
		binary.LittleEndian.PutUint32(d[8:], l.inodes+g*l.inodesPerGroup/inodesPerBlock)
		binary.LittleEndian.PutUint16(d[12:], uint16(zeroBits(block)))
		binary.LittleEndian.PutUint16(d[14:], uint16(zeroBits(inode)))
		binary.LittleEndian.PutUint16(d[16:], dirs[g])
	}
	return w.writeBlock(1, descs)
}

// unused are the blocks that nothing is in: those given back, those kept for
// descriptors of groups that there are none of, and what fills the end.
func (w *Writer) unused(l layout) []run {
	needed := (l.groups*descSize + BlockSize - 1) / BlockSize
	tables := l.bitmaps + 2*l.groups
	return append(slices.Concat(w.space.free, w.space.lost), run{1 + needed, w.descs - needed}, run{tables, l.blocks - tables})
}

func (w *Writer) writeSuper(l layout) error {
	var free uint32
	for _, f := range w.unused(l) {
		free += f.length
	}
	block := make([]byte, BlockSize)
	b, le := block[superOffset:], binary.LittleEndian
	for _, f := range []struct {
		at    int
		value uint32
	}{
		{0, l.groups * l.inodesPerGroup},
		{4, l.blocks},
		{12, free},
		{16, l.groups*l.inodesPerGroup - l.usedInodes},
		{24, 2}, // block size: 2 to the power of 10 + 2
		{28, 2},
		{32, blocksPerGroup},
		{36, blocksPerGroup},
		{40, l.inodesPerGroup},
		{76, 1}, // revision: inodes have a size
		{84, firstInode},
		{92, compatSparseSuper2 | compatExtAttr},
		{96, incompatFiletype | incompatExtents | incompatFlexBG},
		{100, roLargeFile | roHugeFile | roDirNlink | roExtraIsize | roReadonly},
	} {
		le.PutUint32(b[f.at:], f.value)
	}
	for _, f := range []struct {
		at    int
		value uint16
	}{
		{54, 0xffff}, // mounts until a check: never
		{56, superMagic},
		{58, 1}, // clean
		{60, 1}, // go on after errors
		{88, inodeSize},
		{348, extraSize},
		{350, extraSize},
	} {
		le.PutUint16(b[f.at:], f.value)
	}
	copy(b[104:], w.UUID[:])
	b[372] = 31 // groups together, as a power of two: all
	return w.writeBlock(0, block)
}

// punchUnused removes what deleted files held.
func (w *Writer) punchUnused(l layout) error {
	for _, f := range w.unused(l) {
		if err := w.out.punch(int64(f.start)*BlockSize, int64(f.length)*BlockSize); err != nil {
			return fmt.Errorf("give back blocks of deleted files: %w", err)
		}
	}
	return nil
}
