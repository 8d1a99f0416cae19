// Package ext4 writes file systems that are made once and only read from then
// on, and reads ext4 file systems without the kernel. Writing needs neither
// root nor a mount, and the same calls make the same bytes.
package ext4

import "errors"

// BlockSize is that of the file systems written, in bytes.
const BlockSize = 4096

// Bounds of the format, or of what is written of it.
const (
	MaxName    = 255
	MaxSymlink = BlockSize - 1
	MaxLinks   = 65000

	blocksPerGroup = 8 * BlockSize // as many as one block has bits
	maxInodesGroup = 8 * BlockSize
	inodeSize      = 256
	inodesPerBlock = BlockSize / inodeSize
	descSize       = 32

	firstInode = 11
	rootInode  = 2

	fastSymlink  = 59 // the longest target that fits into an inode
	extentBlocks = 32768
	leafExtents  = (BlockSize - 12) / 12
)

const (
	superOffset = 1024
	superSize   = 1024
	superMagic  = 0xef53
	extentMagic = 0xf30a
	xattrMagic  = 0xea020000

	compatExtAttr      = 0x8
	compatSparseSuper2 = 0x200

	incompatFiletype = 0x2
	incompatRecover  = 0x4
	incompatExtents  = 0x40
	incompat64Bit    = 0x80
	incompatFlexBG   = 0x200
	incompatCsumSeed = 0x2000 // what checksums begin with, which the reader does not look at
	// What the reader understands, beside flags that do not concern it.
	incompatKnown = incompatFiletype | incompatExtents | incompat64Bit | incompatFlexBG | incompatCsumSeed

	roLargeFile  = 0x2
	roHugeFile   = 0x8
	roDirNlink   = 0x20
	roExtraIsize = 0x40
	roReadonly   = 0x1000

	flagExtents    = 0x80000
	flagHugeFile   = 0x40000
	flagInlineData = 0x10000000
)

// Types of files in a mode, as in stat(2).
const (
	TypeMask    = 0xf000
	TypeFifo    = 0x1000
	TypeChar    = 0x2000
	TypeDir     = 0x4000
	TypeBlock   = 0x6000
	TypeRegular = 0x8000
	TypeSymlink = 0xa000
	TypeSocket  = 0xc000
)

// direntType is the type of a file in a directory's entry.
func direntType(mode uint16) byte {
	switch mode & TypeMask {
	case TypeRegular:
		return 1
	case TypeDir:
		return 2
	case TypeChar:
		return 3
	case TypeBlock:
		return 4
	case TypeFifo:
		return 5
	case TypeSocket:
		return 6
	case TypeSymlink:
		return 7
	}
	return 0
}

// What the caller asks for and the format cannot hold.
var (
	ErrTooLarge = errors.New("the file system is full")
	ErrXattrs   = errors.New("its extended attributes do not fit")
	ErrLinks    = errors.New("it has too many links")
)
