package kernel

import (
	"bufio"
	"bytes"
	"compress/bzip2"
	"errors"
	"fmt"
	"io"

	"github.com/klauspost/compress/gzip"
	"github.com/klauspost/compress/zstd"
	"github.com/pierrec/lz4/v4"
	"github.com/xi2/xz"
)

// maxWindow bounds the memory, in bytes, that a stream can make its
// decompressor take: what zstd -22 --ultra and xz -9e of Linux's own build
// ask for.
const maxWindow = 128 << 20

// magicLen is how many bytes tell a compression: the longest magic.
const magicLen = 6

// compressions are what the kernel's build can compress with, but for the
// two that nobody uses: raw LZMA has no magic worth the name, and LZO.
var compressions = []struct {
	name  string
	magic string
	open  func(io.Reader) (io.Reader, error)
}{
	{"gzip", "\x1f\x8b", openGzip},
	{"xz", "\xfd7zXZ\x00", openXZ},
	{"zstd", "\x28\xb5\x2f\xfd", openZstd},
	{"lz4", "\x02\x21\x4c\x18", openLZ4}, // the legacy frame format
	{"lz4", "\x04\x22\x4d\x18", openLZ4},
	{"bzip2", "BZh", func(r io.Reader) (io.Reader, error) { return bzip2.NewReader(r), nil }},
}

func openGzip(r io.Reader) (io.Reader, error) {
	z, err := gzip.NewReader(r)
	if err != nil {
		return nil, err
	}
	// The kernel's build appends nothing to gzip, and other makers pad.
	z.Multistream(false)
	return z, nil
}

// openXZ uses a port of the kernel's own decoder: kernels are compressed
// with the x86 branch filter, which other Go decoders do not know.
func openXZ(r io.Reader) (io.Reader, error) {
	z, err := xz.NewReader(r, maxWindow)
	if err != nil {
		return nil, err
	}
	// Behind the one stream of a kernel stands its size, not another stream.
	z.Multistream(false)
	return z, nil
}

func openZstd(r io.Reader) (io.Reader, error) {
	z, err := zstd.NewReader(r, zstd.WithDecoderConcurrency(1), zstd.WithDecoderMaxWindow(maxWindow))
	if err != nil {
		return nil, err
	}
	return z.IOReadCloser(), nil
}

func openLZ4(r io.Reader) (io.Reader, error) { return lz4.NewReader(r), nil }

var errNotCompressed = errors.New("not in a compression format that is known")

// decompressor finds out by its first bytes how r is compressed.
func decompressor(r *bufio.Reader) (io.Reader, error) {
	head, err := r.Peek(magicLen)
	if err != nil {
		return nil, fmt.Errorf("read compressed data: %w", err)
	}
	for _, c := range compressions {
		if !bytes.HasPrefix(head, []byte(c.magic)) {
			continue
		}
		z, err := c.open(r)
		if err != nil {
			return nil, fmt.Errorf("decompress %s: %w", c.name, err)
		}
		return z, nil
	}
	return nil, errNotCompressed
}

// decompress decompresses data to at most limit bytes.
func decompress(data []byte, limit int64) ([]byte, error) {
	z, err := decompressor(bufio.NewReader(bytes.NewReader(data)))
	if err != nil {
		return nil, err
	}
	out, err := readAtMost(z, limit)
	if err != nil {
		return nil, fmt.Errorf("decompress: %w", err)
	}
	return out, nil
}

// decompressExactly decompresses the first size bytes that are in data, and
// does not look at what follows them.
func decompressExactly(data []byte, size int64) ([]byte, error) {
	z, err := decompressor(bufio.NewReader(bytes.NewReader(data)))
	if err != nil {
		return nil, err
	}
	var out bytes.Buffer
	if _, err := io.CopyN(&out, z, size); err != nil {
		return nil, fmt.Errorf("decompress: %d of %d bytes: %w", out.Len(), size, err)
	}
	return out.Bytes(), nil
}
