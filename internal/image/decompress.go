package image

import (
	"bufio"
	"bytes"
	"errors"
	"fmt"
	"io"

	"github.com/klauspost/compress/gzip"
	"github.com/klauspost/compress/zstd"
	"github.com/xi2/xz"

	"github.com/vmsan/vmsan/internal/image/unpack"
)

// Bounds on compressed archives.
const (
	// maxWindow is how much memory a decompressor may need, in bytes.
	maxWindow = 64 << 20
	// maxRatio is a little more than gzip can reach.
	maxRatio = 1100
	// freeBytes come out of any archive, however small.
	freeBytes = 256 << 20
)

// compressions are told by the bytes that archives begin with.
var compressions = []struct {
	magic string
	open  func(io.Reader) (io.ReadCloser, error)
}{
	{"\x1f\x8b", func(r io.Reader) (io.ReadCloser, error) { return gzip.NewReader(r) }},
	{"\x28\xb5\x2f\xfd", func(r io.Reader) (io.ReadCloser, error) {
		d, err := zstd.NewReader(r, zstd.WithDecoderConcurrency(1), zstd.WithDecoderLowmem(true), zstd.WithDecoderMaxWindow(maxWindow))
		if err != nil {
			return nil, err
		}
		return d.IOReadCloser(), nil
	}},
	{"\xfd7zXZ\x00", func(r io.Reader) (io.ReadCloser, error) {
		d, err := xz.NewReader(r, maxWindow)
		return io.NopCloser(d), err
	}},
}

// decompressor reads an archive that may be compressed. Errors of what is
// compressed are api.ErrImageInvalid; those of reading it keep their meaning.
type decompressor struct {
	raw *countingReader
	in  io.ReadCloser // nil if the archive is not compressed
	r   io.Reader
	out int64
}

func newDecompressor(r io.Reader) (*decompressor, error) {
	raw := &countingReader{r: r}
	buffered := bufio.NewReaderSize(raw, 256<<10)
	start, err := buffered.Peek(6)
	if err != nil && !errors.Is(err, io.EOF) {
		return nil, err
	}
	d := &decompressor{raw: raw, r: buffered}
	for _, c := range compressions {
		if !bytes.HasPrefix(start, []byte(c.magic)) {
			continue
		}
		if d.in, err = c.open(buffered); err != nil {
			return nil, d.explain(err)
		}
		d.r = d.in
	}
	return d, nil
}

func (d *decompressor) Read(p []byte) (int, error) {
	n, err := d.r.Read(p)
	d.out += int64(n)
	if d.in != nil && d.out > freeBytes && d.out/maxRatio > d.raw.n {
		return 0, unpack.Invalid(fmt.Errorf("it is compressed more than %d times", maxRatio))
	}
	if err != nil && !errors.Is(err, io.EOF) {
		return n, d.explain(err)
	}
	return n, err
}

func (d *decompressor) explain(err error) error {
	if d.raw.err != nil {
		return d.raw.err
	}
	if errors.Is(err, io.ErrUnexpectedEOF) {
		return unpack.Invalid(errors.New("it is cut short"))
	}
	return unpack.Invalid(fmt.Errorf("decompress: %w", err))
}

func (d *decompressor) close() {
	if d.in != nil {
		d.in.Close()
	}
}

// countingReader remembers how much was read, and what failed.
type countingReader struct {
	r   io.Reader
	n   int64
	err error
}

func (c *countingReader) Read(p []byte) (int, error) {
	n, err := c.r.Read(p)
	c.n += int64(n)
	if err != nil && !errors.Is(err, io.EOF) {
		c.err = err
	}
	return n, err
}
