package ext4

import "math/bits"

// bitmap has a bit for each block or inode that is used.
type bitmap []byte

func newBitmap(n int) bitmap { return make(bitmap, (n+7)/8) }

func (m bitmap) set(from, to uint32) {
	for ; from < to && from%8 != 0; from++ {
		m[from/8] |= 1 << (from % 8)
	}
	for ; from+8 <= to; from += 8 {
		m[from/8] = 0xff
	}
	for ; from < to; from++ {
		m[from/8] |= 1 << (from % 8)
	}
}

func (m bitmap) clear(from, to uint32) {
	for ; from < to; from++ {
		m[from/8] &^= 1 << (from % 8)
	}
}

// part is the bits of a group of that many.
func (m bitmap) part(group, size uint32) []byte { return m[group*size/8:][:size/8] }

func zeroBits(b []byte) int {
	n := 0
	for _, c := range b {
		n += 8 - bits.OnesCount8(c)
	}
	return n
}

// padBitmap fills the rest of a block with ones: those inodes do not exist.
func padBitmap(b []byte) []byte {
	block := make([]byte, BlockSize)
	for i := copy(block, b); i < BlockSize; i++ {
		block[i] = 0xff
	}
	return block
}
