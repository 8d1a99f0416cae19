package snapshot

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/binary"
	"encoding/hex"
	"fmt"
	"hash"
	"io"
	"os"
	"runtime"
	"sync/atomic"

	"golang.org/x/sync/errgroup"

	"github.com/vmsan/vmsan/internal/sparse"
)

// Chunk is the unit of digests and archives, in bytes. A file's last chunk
// may be shorter.
const Chunk = 128 << 10

// indexSize is the length of a chunk's index, in bytes.
const indexSize = 8

var zeros [Chunk]byte

func isZero(b []byte) bool { return bytes.Equal(b, zeros[:len(b)]) }

// folder makes a file's digest out of those of its chunks, which come in
// order. Chunks that are all zero are left out, so that it is the same
// wherever the file's holes are.
type folder struct {
	hash   hash.Hash
	stored int64
}

func newFolder() *folder { return &folder{hash: sha256.New()} }

func (f *folder) add(index int64, sum [sha256.Size]byte, length int) {
	f.hash.Write(binary.BigEndian.AppendUint64(nil, uint64(index)))
	f.hash.Write(sum[:])
	f.stored += int64(length)
}

func (f *folder) file(size int64) File {
	f.hash.Write(binary.BigEndian.AppendUint64(nil, uint64(size)))
	return File{Size: size, Stored: f.stored, Digest: hex.EncodeToString(f.hash.Sum(nil))}
}

// digest describes a file. It reads no holes, and on all CPUs.
func digest(ctx context.Context, f *os.File) (File, error) {
	info, err := f.Stat()
	if err != nil {
		return File{}, err
	}
	indices, err := chunksWithData(f)
	if err != nil {
		return File{}, err
	}
	sums := make([]sum, len(indices))
	var next atomic.Int64
	var workers errgroup.Group
	for range runtime.GOMAXPROCS(0) {
		workers.Go(func() error {
			buf := make([]byte, Chunk)
			for i := next.Add(1) - 1; i < int64(len(indices)); i = next.Add(1) - 1 {
				if ctx.Err() != nil {
					return context.Cause(ctx)
				}
				chunk, err := readChunk(f, indices[i], buf)
				if err != nil {
					return err
				}
				sums[i] = sumOf(chunk)
			}
			return nil
		})
	}
	if err := workers.Wait(); err != nil {
		return File{}, fmt.Errorf("read %s: %w", f.Name(), err)
	}
	fold := newFolder()
	for i, s := range sums {
		if s.length > 0 {
			fold.add(indices[i], s.sum, s.length)
		}
	}
	return fold.file(info.Size()), nil
}

// sum is a chunk's; a chunk that is all zero has no length.
type sum struct {
	sum    [sha256.Size]byte
	length int
}

func sumOf(chunk []byte) sum {
	if isZero(chunk) {
		return sum{}
	}
	return sum{sha256.Sum256(chunk), len(chunk)}
}

// chunksWithData are the indices of chunks that are not in holes.
func chunksWithData(f *os.File) (indices []int64, err error) {
	next := int64(0)
	for e, err := range sparse.Extents(f) {
		if err != nil {
			return nil, err
		}
		for i := max(next, e.Start/Chunk); i*Chunk < e.End; i++ {
			indices = append(indices, i)
			next = i + 1
		}
	}
	return indices, nil
}

func readChunk(f *os.File, index int64, buf []byte) ([]byte, error) {
	n, err := f.ReadAt(buf[:Chunk], index*Chunk)
	if err == io.EOF && n > 0 {
		err = nil
	}
	return buf[:n], err
}
