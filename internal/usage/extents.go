package usage

import (
	"cmp"
	"os"
	"slices"
	"unsafe"

	"golang.org/x/sys/unix"
)

// extent is a part of a device, in bytes.
type extent struct{ start, end int64 }

// union is how much extents cover together. It puts them in order.
func union(extents []extent) (bytes int64) {
	slices.SortFunc(extents, func(a, b extent) int { return cmp.Compare(a.start, b.start) })
	covered := int64(0)
	for _, e := range extents {
		if start := max(e.start, covered); start < e.end {
			bytes += e.end - start
			covered = e.end
		}
	}
	return bytes
}

// The request and the answer of the kernel's FIEMAP, as in its
// include/uapi/linux/fiemap.h; Documentation/filesystems/fiemap.rst.
type (
	fiemap struct {
		start, length           uint64
		flags, mapped, count, _ uint32
		extents                 [extentsAtOnce]fiemapExtent
	}
	fiemapExtent struct {
		logical, physical, length uint64
		_                         [2]uint64
		flags                     uint32
		_                         [3]uint32
	}
)

const (
	ioctlFiemap   = 0xc020660b // _IOWR('f', 11, struct fiemap)
	extentLast    = 0x1
	extentUnknown = 0x2
	extentShared  = 0x2000

	extentsAtOnce = 512
	// maxExtents bounds how many extents of a file are looked at. What is
	// behind them counts as the file's own.
	maxExtents = 1 << 17
)

// sharedExtents are those that the file at path has in common with others,
// where its file system can share and tells. used is what is allocated for
// it. Of compressed extents the kernel does not tell what they take on the
// disk, so that there they count as more than they are.
func sharedExtents(path string, used int64) (shared []extent) {
	if used == 0 {
		return nil
	}
	f, err := os.OpenFile(path, os.O_RDONLY|unix.O_NOFOLLOW|unix.O_NONBLOCK, 0)
	if err != nil {
		return nil
	}
	defer f.Close()
	var m fiemap
	for looked := 0; looked < maxExtents; looked += int(m.mapped) {
		m.length, m.count = ^uint64(0)-m.start, extentsAtOnce
		_, _, errno := unix.Syscall(unix.SYS_IOCTL, f.Fd(), ioctlFiemap, uintptr(unsafe.Pointer(&m)))
		if errno != 0 || m.mapped == 0 {
			return shared
		}
		for _, e := range m.extents[:m.mapped] {
			if e.flags&extentShared != 0 && e.flags&extentUnknown == 0 {
				shared = append(shared, extent{int64(e.physical), int64(e.physical + e.length)})
			}
		}
		last := m.extents[m.mapped-1]
		if last.flags&extentLast != 0 {
			return shared
		}
		m.start = last.logical + last.length
	}
	return shared
}
