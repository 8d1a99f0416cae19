package image

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"io"

	"github.com/vmsan/vmsan/internal/image/unpack"
)

// A stream reads ahead of its reader by this much at most.
const (
	chunkSize = 256 << 10
	chunks    = 4
)

// stream is the archive of a layer. It is read, decompressed and hashed in a
// goroutine of its own, while the reader is busy with what came before.
type stream struct {
	layer  Layer
	ctx    context.Context
	cancel context.CancelFunc
	full   chan []byte // closed at the end
	empty  chan []byte
	// To be read once full is closed.
	err    error
	digest string

	current, rest []byte
}

func startStream(ctx context.Context, l Layer) *stream {
	ctx, cancel := context.WithCancel(ctx)
	s := &stream{layer: l, ctx: ctx, cancel: cancel, full: make(chan []byte, chunks), empty: make(chan []byte, chunks)}
	for range chunks {
		s.empty <- nil // made when it is needed
	}
	go func() {
		defer close(s.full)
		s.err = s.run()
	}()
	return s
}

func (s *stream) run() error {
	ctx := s.ctx
	blob, err := s.layer.Open(ctx)
	if err != nil {
		return err
	}
	defer blob.Close()
	var archive io.Reader = cancelable{ctx, blob}
	if !s.layer.plain {
		d, err := newDecompressor(archive)
		if err != nil {
			return err
		}
		defer d.close()
		archive = d
	}
	sum, hashed := sha256.New(), s.layer.DiffID != ""
	for {
		var b []byte
		select {
		case b = <-s.empty:
		case <-ctx.Done():
			return ctx.Err()
		}
		if b == nil {
			b = make([]byte, chunkSize)
		}
		n, err := fill(archive, b[:chunkSize])
		if hashed {
			sum.Write(b[:n])
		}
		s.full <- b[:n] // there is room for all chunks
		switch {
		case err == io.EOF:
			s.digest = digestPrefix + hex.EncodeToString(sum.Sum(nil))
			return nil
		case err != nil:
			return err
		}
	}
}

// fill is io.ReadFull, but tells the end from an end that came too early.
func fill(r io.Reader, b []byte) (n int, err error) {
	for n < len(b) && err == nil {
		var more int
		more, err = r.Read(b[n:])
		n += more
	}
	return n, err
}

func (s *stream) Read(p []byte) (int, error) {
	for len(s.rest) == 0 {
		if s.current != nil {
			s.empty <- s.current
			s.current = nil
		}
		var b []byte
		var ok bool
		select {
		case b, ok = <-s.full:
		case <-s.ctx.Done(): // even if what is read from says nothing
			return 0, s.ctx.Err()
		}
		if !ok {
			return 0, s.end()
		}
		s.current, s.rest = b, b
	}
	n := copy(p, s.rest)
	s.rest = s.rest[n:]
	return n, nil
}

func (s *stream) end() error {
	if s.err != nil {
		return s.err
	}
	return io.EOF
}

// verify tells whether the archive, which was read to its end, is the one it
// is said to be.
func (s *stream) verify() error {
	if s.layer.DiffID != "" && s.layer.DiffID != s.digest {
		return unpack.Invalid(fmt.Errorf("its digest is %s instead of %.100s", s.digest, s.layer.DiffID))
	}
	return nil
}

// close ends the goroutine, but does not wait for it: it may be reading from
// a terminal, and holds nothing but what it reads.
func (s *stream) close() { s.cancel() }
