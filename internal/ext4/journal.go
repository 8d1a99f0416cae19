package ext4

import (
	"encoding/binary"
	"fmt"
	"hash/crc32"
	"io"
)

// The journal's format is big endian: Documentation/filesystems/ext4/journal.rst
// and fs/jbd2/recovery.c of Linux.
const (
	journalMagic = 0xc03b3998

	journalDescriptor = 1
	journalCommit     = 2
	journalSuper      = 4
	journalRevoke     = 5

	journalIncompatRevoke = 0x1
	journalIncompat64Bit  = 0x2
	journalIncompatCsum2  = 0x8
	journalIncompatCsum3  = 0x10
	journalKnown          = journalIncompatRevoke | journalIncompat64Bit | journalIncompatCsum2 | journalIncompatCsum3

	journalHead = 12 // of each block: magic, type and sequence number
	journalTail = 4  // of a checked block: its checksum

	tagEscaped  = 1
	tagSameUUID = 2
	tagLast     = 8
)

// Bounds on a journal; those of sandboxes have 4,096 blocks.
const (
	maxJournal = 1 << 16 // blocks
	maxRevoked = 1 << 22 // in one transaction
)

// Recover is NewReader for a file system that was in use when its machine
// ended, or when its disk was copied: what its journal has is read from there,
// as a kernel would that mounts it. Nothing is written.
func Recover(r io.ReaderAt) (*Reader, error) {
	f, err := readSuper(r)
	if err != nil || f.journal == 0 {
		return f, err
	}
	file, err := f.file(f.journal)
	if err != nil {
		return nil, fmt.Errorf("journal: %w", err)
	}
	j := &journal{file: file, blocks: make(map[int64]logged)}
	if err := j.replay(); err != nil {
		return nil, fmt.Errorf("journal: %w", err)
	}
	// The superblock may be in it too.
	return readSuper(&replayed{r: r, size: f.blockSize, blocks: j.blocks})
}

// logged is where the journal has a block.
type logged struct {
	at      int64 // in the file system, in bytes
	escaped bool  // it begins with journalMagic, which the journal replaced by zeros
}

// journal is read from its superblock on.
type journal struct {
	file        *File
	first, end  int64 // the blocks that are used in turn
	left        int64 // how many of them were not read yet
	incompat    uint32
	seed        uint32 // of checksums
	sequence    uint32 // of the transaction that is read
	blocks      map[int64]logged
	transaction map[int64]logged
	revoked     []int64
	torn        bool // a block of the transaction has another checksum
}

func (j *journal) replay() error {
	b, _, err := j.read(0)
	if err != nil {
		return err
	}
	be := binary.BigEndian
	if be.Uint32(b) != journalMagic || be.Uint32(b[4:]) != journalSuper || int64(be.Uint32(b[12:])) != j.file.f.blockSize {
		return errDamaged("superblock")
	}
	if j.incompat = be.Uint32(b[40:]); j.incompat&^journalKnown != 0 {
		return fmt.Errorf("it has features that cannot be read: %#x", j.incompat)
	}
	j.end, j.first, j.sequence = int64(be.Uint32(b[16:])), int64(be.Uint32(b[20:])), be.Uint32(b[24:])
	at := int64(be.Uint32(b[28:]))
	if j.first < 1 || j.end <= j.first || j.end > maxJournal || j.end > j.file.Size/j.file.f.blockSize || at >= j.end {
		return errDamaged("superblock")
	}
	if at == 0 {
		return nil // it is empty
	}
	j.left = j.end - j.first
	j.seed = checksum(^uint32(0), b[48:64])
	return j.scan(at)
}

// scan reads one transaction after the other, each of which counts once it is
// committed.
func (j *journal) scan(at int64) error {
	j.begin()
	for j.left > 0 {
		b, _, err := j.read(at)
		if err != nil {
			return err
		}
		at = j.next(at)
		if binary.BigEndian.Uint32(b) != journalMagic || binary.BigEndian.Uint32(b[8:]) != j.sequence {
			return nil
		}
		switch binary.BigEndian.Uint32(b[4:]) {
		case journalDescriptor:
			if !j.checks(b) {
				return nil
			}
			if at, err = j.describe(b, at); err != nil {
				return err
			}
		case journalRevoke:
			if !j.checks(b) {
				return nil
			}
			if err := j.revoke(b); err != nil {
				return err
			}
		case journalCommit:
			if !j.commits(b) {
				return nil
			}
			if j.torn {
				return errDamaged("block")
			}
			j.commit()
		default:
			return nil
		}
	}
	return nil
}

func (j *journal) begin() { j.transaction, j.revoked, j.torn = make(map[int64]logged), nil, false }

// commit has what a transaction wrote replace what those before wrote. What it
// revokes is not to be replaced at all.
func (j *journal) commit() {
	for block, l := range j.transaction {
		j.blocks[block] = l
	}
	for _, block := range j.revoked {
		delete(j.blocks, block)
	}
	j.sequence++
	j.begin()
}

// describe notes the blocks that follow a descriptor, and returns what comes
// behind them. They need not be there yet if no commit follows.
func (j *journal) describe(b []byte, at int64) (next int64, err error) {
	size := j.tagSize()
	room := len(b)
	if j.checked() {
		room -= journalTail
	}
	for tag := journalHead; tag+size <= room && j.left > 0; tag += size {
		block, flags, sum := j.tag(b[tag:])
		data, place, err := j.read(at)
		if err != nil {
			return 0, err
		}
		j.torn = j.torn || j.checked() && j.dataSum(data, sum) != sum
		j.transaction[block] = logged{at: place, escaped: flags&tagEscaped != 0}
		at = j.next(at)
		if flags&tagSameUUID == 0 {
			tag += 16
		}
		if flags&tagLast != 0 {
			break
		}
	}
	return at, nil
}

// tagSize is that of what describes a block, but for the UUID behind some.
func (j *journal) tagSize() int {
	switch wide := j.incompat&journalIncompat64Bit != 0; {
	case j.incompat&journalIncompatCsum3 != 0:
		return 16
	case j.incompat&journalIncompatCsum2 != 0 && wide:
		return 14
	case j.incompat&journalIncompatCsum2 != 0:
		return 10
	case wide:
		return 12
	}
	return 8
}

func (j *journal) tag(b []byte) (block int64, flags, sum uint32) {
	be := binary.BigEndian
	block = int64(be.Uint32(b))
	if j.incompat&journalIncompatCsum3 != 0 {
		flags, sum = be.Uint32(b[4:]), be.Uint32(b[12:])
	} else {
		flags, sum = uint32(be.Uint16(b[6:])), uint32(be.Uint16(b[4:]))
	}
	if j.incompat&journalIncompat64Bit != 0 {
		block |= int64(be.Uint32(b[8:])) << 32
	}
	return block, flags, sum
}

func (j *journal) revoke(b []byte) error {
	be := binary.BigEndian
	end, size := int(be.Uint32(b[journalHead:])), 4
	if j.incompat&journalIncompat64Bit != 0 {
		size = 8
	}
	if end < 0 || end > len(b) || len(j.revoked) > maxRevoked {
		return errDamaged("revocation")
	}
	for at := journalHead + 4; at+size <= end; at += size {
		block := int64(be.Uint32(b[at:]))
		if size == 8 {
			block = int64(be.Uint64(b[at:]))
		}
		j.revoked = append(j.revoked, block)
	}
	return nil
}

func (j *journal) checked() bool { return j.incompat&(journalIncompatCsum2|journalIncompatCsum3) != 0 }

// checks tells whether a block with a tail is one that was written to its end.
func (j *journal) checks(b []byte) bool { return j.hasSum(b, len(b)-journalTail) }

// commits tells the same of a commit, whose checksum stands elsewhere.
func (j *journal) commits(b []byte) bool { return j.hasSum(b, 16) }

func (j *journal) hasSum(b []byte, at int) bool {
	if !j.checked() {
		return true
	}
	sum := checksum(j.seed, b[:at])
	sum = checksum(sum, zeros[:4])
	return checksum(sum, b[at+4:]) == binary.BigEndian.Uint32(b[at:])
}

// dataSum is the checksum of a block, as much of it as want can have.
func (j *journal) dataSum(b []byte, want uint32) uint32 {
	sum := checksum(checksum(j.seed, binary.BigEndian.AppendUint32(nil, j.sequence)), b)
	if j.incompat&journalIncompatCsum3 == 0 {
		return sum & 0xffff
	}
	return sum
}

func (j *journal) next(at int64) int64 {
	j.left--
	if at++; at >= j.end {
		return j.first
	}
	return at
}

// read returns a block of the journal, and its place in the file system.
func (j *journal) read(block int64) (b []byte, place int64, err error) {
	size := j.file.f.blockSize
	c := contents{n: j.file, at: block * size}
	b = make([]byte, size)
	if _, err := io.ReadFull(&c, b); err != nil {
		return nil, 0, err
	}
	if c.offset < 0 {
		return nil, 0, errDamaged("block")
	}
	return b, c.offset + block*size - c.from, nil
}

var castagnoli = crc32.MakeTable(crc32.Castagnoli)

// checksum is the kernel's crc32c, which does not invert what goes in and out.
func checksum(sum uint32, b []byte) uint32 { return ^crc32.Update(^sum, castagnoli, b) }

// replayed reads blocks that the journal has from there.
type replayed struct {
	r      io.ReaderAt
	size   int64
	blocks map[int64]logged
}

func (r *replayed) ReadAt(p []byte, at int64) (n int, err error) {
	if n, err = r.r.ReadAt(p, at); n < len(p) {
		return n, err
	}
	end := at + int64(n)
	for block := at / r.size; block*r.size < end; block++ {
		l, ok := r.blocks[block]
		if !ok {
			continue
		}
		start := block * r.size
		from, to := max(at, start), min(end, start+r.size)
		part := p[from-at : to-at]
		if _, err := r.r.ReadAt(part, l.at+from-start); err != nil {
			return 0, err
		}
		if l.escaped {
			r.unescape(part, from-start)
		}
	}
	return n, nil
}

// unescape puts back the magic number that a block, of which part begins at
// that byte, began with.
func (r *replayed) unescape(part []byte, at int64) {
	magic := binary.BigEndian.AppendUint32(nil, journalMagic)
	if at < int64(len(magic)) {
		copy(part, magic[at:])
	}
}
