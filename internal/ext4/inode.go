package ext4

import (
	"encoding/binary"
	"time"
)

// Attr is what a file is, apart from its contents.
type Attr struct {
	Mode         uint16 // type and permissions
	UID, GID     uint32
	ModTime      time.Time
	Target       string // of a symbolic link
	Major, Minor uint32 // of a device
	Xattrs       map[string]string
}

// Inode is a file of a Writer.
type Inode struct {
	Attr
	children map[string]*Inode // of a directory
	links    int
	size     int64
	data     run
	xattrs   uint32 // the block of attributes that do not fit into the inode
	number   uint32
	parent   uint32 // of a directory; both are numbers that Close gives
}

// IsDir tells whether it is a directory.
func (n *Inode) IsDir() bool { return n.Mode&TypeMask == TypeDir }

// IsSymlink tells whether it is a symbolic link.
func (n *Inode) IsSymlink() bool { return n.Mode&TypeMask == TypeSymlink }

// Child returns the directory's entry with that name, or nil.
func (n *Inode) Child(name string) *Inode { return n.children[name] }

// Children returns the directory's entries, which are not to be changed but
// with Link and Unlink.
func (n *Inode) Children() map[string]*Inode { return n.children }

// encode writes the inode's record of inodeSize zero bytes.
func (n *Inode) encode(b []byte, links int, inline []xattr) {
	le := binary.LittleEndian
	le.PutUint16(b[0:], n.Mode)
	le.PutUint16(b[2:], uint16(n.UID))
	le.PutUint32(b[4:], uint32(n.size))
	seconds, extra := encodeTime(n.ModTime)
	for _, at := range []int{8, 12, 16, 144} { // access, change, modification, creation
		le.PutUint32(b[at:], seconds)
	}
	for _, at := range []int{132, 136, 140, 148} {
		le.PutUint32(b[at:], extra)
	}
	le.PutUint16(b[24:], uint16(n.GID))
	le.PutUint16(b[26:], uint16(links))
	blocks := n.data.length + n.data.index()
	if n.xattrs != 0 {
		blocks++
	}
	le.PutUint32(b[28:], blocks)
	flags := uint32(flagHugeFile) // blocks are counted in blocks, not sectors
	if n.hasExtents() {
		flags |= flagExtents
	}
	le.PutUint32(b[32:], flags)
	le.PutUint32(b[104:], n.xattrs)
	le.PutUint32(b[108:], uint32(n.size>>32))
	le.PutUint16(b[120:], uint16(n.UID>>16))
	le.PutUint16(b[122:], uint16(n.GID>>16))
	le.PutUint16(b[128:], extraSize)
	n.encodeBlock(b[40:100])
	if len(inline) > 0 {
		le.PutUint32(b[inlineAt:], xattrMagic)
		putXattrs(b[inlineAt+4:], inline, 0)
	}
}

// extraSize is how much of an inode beyond the first 128 bytes has fields.
const extraSize = 24

// inlineAt is where attributes begin in an inode.
const inlineAt = 128 + extraSize

func (n *Inode) hasExtents() bool {
	switch n.Mode & TypeMask {
	case TypeRegular, TypeDir:
		return true
	case TypeSymlink:
		return len(n.Target) > fastSymlink
	}
	return false
}

// encodeBlock fills the part of an inode that says where the contents are.
func (n *Inode) encodeBlock(b []byte) {
	switch n.Mode & TypeMask {
	case TypeChar, TypeBlock:
		// The form with 12 bits of major and 20 of minor number.
		binary.LittleEndian.PutUint32(b[4:], n.Minor&0xff|n.Major<<8|(n.Minor&^0xff)<<12)
	case TypeSymlink:
		if !n.hasExtents() {
			copy(b, n.Target)
			return
		}
	}
	if n.hasExtents() {
		n.data.encodeRoot(b)
	}
}

// encodeTime returns a time's low 32 bits of seconds, and its nanoseconds
// with two more bits of seconds, as far as those reach: 1901 to 2446.
func encodeTime(t time.Time) (seconds, extra uint32) {
	if t.IsZero() {
		return 0, 0
	}
	const lowest, highest = -0x80000000, 0x37fffffff
	s := min(max(t.Unix(), lowest), highest)
	epoch := uint32((s-int64(int32(s)))>>32) & 3
	return uint32(s), epoch | uint32(t.Nanosecond())<<2
}

func decodeTime(seconds, extra uint32) time.Time {
	if seconds == 0 && extra == 0 {
		return time.Time{}
	}
	return time.Unix(int64(int32(seconds))+int64(extra&3)<<32, int64(extra>>2))
}
