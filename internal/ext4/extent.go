package ext4

import (
	"encoding/binary"
	"slices"
)

// run is blocks that follow each other. A file's contents are one run, behind
// which are the blocks that list its extents if there are more than an inode
// has room for: an extent reaches over 128 MiB.
type run struct{ start, length uint32 }

// rootExtents is how many extents an inode has room for.
const rootExtents = 4

func (r run) extents() uint32 { return (r.length + extentBlocks - 1) / extentBlocks }

// index is how many blocks are needed to list the extents.
func (r run) index() uint32 {
	if r.extents() <= rootExtents {
		return 0
	}
	return (r.extents() + leafExtents - 1) / leafExtents
}

// extent encodes the run's extent i.
func (r run) extent(b []byte, i uint32) {
	at := i * extentBlocks
	binary.LittleEndian.PutUint32(b[0:], at)
	binary.LittleEndian.PutUint16(b[4:], uint16(min(extentBlocks, r.length-at)))
	binary.LittleEndian.PutUint32(b[8:], r.start+at)
}

func extentHeader(b []byte, entries, most, depth int) {
	binary.LittleEndian.PutUint16(b[0:], extentMagic)
	binary.LittleEndian.PutUint16(b[2:], uint16(entries))
	binary.LittleEndian.PutUint16(b[4:], uint16(most))
	binary.LittleEndian.PutUint16(b[6:], uint16(depth))
}

// encodeRoot writes the root of the tree of extents, which is in the inode.
func (r run) encodeRoot(b []byte) {
	if r.index() == 0 {
		extentHeader(b, int(r.extents()), rootExtents, 0)
		for i := range r.extents() {
			r.extent(b[12+12*i:], i)
		}
		return
	}
	extentHeader(b, int(r.index()), rootExtents, 1)
	for i := range r.index() {
		binary.LittleEndian.PutUint32(b[12+12*i:], i*leafExtents*extentBlocks)
		binary.LittleEndian.PutUint32(b[12+12*i+4:], r.start+r.length+i)
	}
}

// encodeLeaf writes the index block i.
func (r run) encodeLeaf(b []byte, i uint32) {
	first := i * leafExtents
	count := min(leafExtents, r.extents()-first)
	extentHeader(b, int(count), leafExtents, 0)
	for j := range count {
		r.extent(b[12+12*j:], first+j)
	}
}

// space hands out blocks: from those given back, or else new ones.
type space struct {
	end  uint32 // the first block that was never handed out
	most uint32
	free []run // in order, none touching another
	// lost are given back too, but not handed out again: looking through very
	// many would take long.
	lost []run
}

// maxFree bounds the runs that are handed out again.
const maxFree = 4096

func (s *space) take(n uint32) (uint32, error) {
	if n == 0 {
		return 0, nil
	}
	for i, f := range s.free {
		if f.length < n {
			continue
		}
		if s.free[i] = (run{f.start + n, f.length - n}); f.length == n {
			s.free = slices.Delete(s.free, i, i+1)
		}
		return f.start, nil
	}
	if n > s.most-s.end {
		return 0, ErrTooLarge
	}
	start := s.end
	s.end += n
	return start, nil
}

func (s *space) give(r run) {
	if r.length == 0 {
		return
	}
	if len(s.free) >= maxFree {
		s.lost = append(s.lost, r)
		return
	}
	i, _ := slices.BinarySearchFunc(s.free, r, func(a, b run) int { return int(int64(a.start) - int64(b.start)) })
	s.free = slices.Insert(s.free, i, r)
	if i+1 < len(s.free) && s.free[i].start+s.free[i].length == s.free[i+1].start {
		s.free[i].length += s.free[i+1].length
		s.free = slices.Delete(s.free, i+1, i+2)
	}
	if i > 0 && s.free[i-1].start+s.free[i-1].length == s.free[i].start {
		s.free[i-1].length += s.free[i].length
		s.free = slices.Delete(s.free, i, i+1)
		i--
	}
	if last := s.free[i]; last.start+last.length == s.end {
		s.end = last.start
		s.free = s.free[:i]
	}
}
