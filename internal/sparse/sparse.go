// Package sparse is for files with holes: most of a disk or of a guest's
// memory has never been written, and need not be read, copied or stored.
package sparse

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"iter"
	"os"

	"golang.org/x/sys/unix"
)

// Extent is a part of a file, in bytes.
type Extent struct{ Start, End int64 }

// Extents are the parts of a file that are not holes, in order. What comes
// between is zero. They may have zeros too. The file's place, but not its
// content, changes; nobody else may use it meanwhile.
func Extents(f *os.File) iter.Seq2[Extent, error] {
	return func(yield func(Extent, error) bool) {
		for end := int64(0); ; {
			e, err := next(f, end)
			if err == io.EOF {
				return
			}
			if !yield(e, err) || err != nil {
				return
			}
			end = e.End
		}
	}
}

// next finds the first extent that ends behind at.
func next(f *os.File, at int64) (e Extent, err error) {
	e.Start, err = f.Seek(at, unix.SEEK_DATA)
	if errors.Is(err, unix.ENXIO) {
		return e, io.EOF
	}
	if err != nil {
		return e, fmt.Errorf("find data: %w", err)
	}
	e.End, err = f.Seek(e.Start, unix.SEEK_HOLE)
	if err != nil {
		return e, fmt.Errorf("find hole: %w", err)
	}
	return e, nil
}

// page is the unit in which file systems have holes.
const page = 4096

var zeros [page]byte

// Punch makes holes of all pages that are zero. A file that was written
// through a mapping can have many: the host's kernel allocates whole huge
// pages where one byte was touched.
func Punch(f *os.File) error {
	for e, err := range Extents(f) {
		if err == nil {
			err = punchExtent(f, e)
		}
		if err != nil {
			return fmt.Errorf("make holes in %s: %w", f.Name(), err)
		}
	}
	return nil
}

func punchExtent(f *os.File, e Extent) error {
	buf := make([]byte, 1<<20)
	hole := Extent{e.Start, e.Start}
	for at := e.Start; at < e.End; {
		n, err := f.ReadAt(buf[:min(int64(len(buf)), e.End-at)], at)
		if n == 0 {
			return err
		}
		for p := range pages(buf[:n]) {
			if bytes.Equal(p, zeros[:len(p)]) {
				hole.End += int64(len(p))
				continue
			}
			if err := hole.punch(f); err != nil {
				return err
			}
			hole = Extent{hole.End + int64(len(p)), hole.End + int64(len(p))}
		}
		at += int64(n)
	}
	return hole.punch(f)
}

func pages(b []byte) iter.Seq[[]byte] {
	return func(yield func([]byte) bool) {
		for len(b) > 0 {
			n := min(page, len(b))
			if !yield(b[:n]) {
				return
			}
			b = b[n:]
		}
	}
}

func (e Extent) punch(f *os.File) error {
	if e.Start == e.End {
		return nil
	}
	length := e.End - e.Start
	if info, err := f.Stat(); err == nil && info.Size() == e.End {
		length += page // the last block is not whole, and would stay
	}
	return unix.Fallocate(int(f.Fd()), unix.FALLOC_FL_PUNCH_HOLE|unix.FALLOC_FL_KEEP_SIZE, e.Start, length)
}
