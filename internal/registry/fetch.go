package registry

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"hash"
	"io"
	"net/http"
	"os"

	"golang.org/x/sys/unix"

	"github.com/vmsan/vmsan/api"
	"github.com/vmsan/vmsan/internal/scratch"
)

const (
	// maxBroken bounds how often a download that brings something each time
	// goes on.
	maxBroken = 100
	chunk     = 256 << 10
)

// download is a blob's way to the cache.
type download struct {
	*blob
	client *Client
	begun  *os.File
	sum    hash.Hash
	// resumed is true if not all of it came in this download.
	resumed bool
	report  func(State)
}

// run gets the blob, from wherever it is first found.
func (d *download) run(ctx context.Context, sources []*source) error {
	hex := d.desc.Digest.Hex
	d.report(Waiting)
	kept, begun, err := d.cache.claim(ctx, hex, d.desc.Size)
	if err != nil {
		return err
	}
	if kept != nil {
		d.update(func() { d.file, d.have, d.cached, d.done = kept, d.desc.Size, true, true })
		d.report(Kept)
		return nil
	}
	d.begun = begun
	d.update(func() { d.file = begun })
	if err := d.fill(ctx, sources); err != nil {
		return errors.Join(err, d.giveUp(err))
	}
	if err := d.cache.finish(hex, begun); err != nil {
		return err
	}
	d.update(func() { d.done = true })
	d.report(Done)
	return nil
}

// giveUp closes the begun blob. It stays, for the next pull to go on with,
// unless it is wrong or what it takes is wanted by others.
func (d *download) giveUp(why error) error {
	if api.HasCode(why, api.ErrImageCorrupt) || errors.Is(why, unix.ENOSPC) || d.have == 0 {
		if err := os.Remove(d.cache.partial(d.desc.Digest.Hex)); err != nil {
			return err
		}
	}
	return unix.Flock(int(d.begun.Fd()), unix.LOCK_UN)
}

func (d *download) fill(ctx context.Context, sources []*source) error {
	if err := d.resume(ctx); err != nil {
		return err
	}
	if d.have < d.desc.Size || d.desc.Size == 0 {
		what := fmt.Sprintf("layer %.12s", d.desc.Digest.Hex)
		err := each(sources, what, func(s *source) error { return d.from(ctx, s) })
		if err != nil {
			return err
		}
	}
	return d.verify()
}

// resume takes over what an earlier download has left.
func (d *download) resume(ctx context.Context) error {
	d.sum = sha256.New()
	have, err := io.Copy(d.sum, reader{ctx, io.LimitReader(d.begun, d.desc.Size)})
	if err != nil {
		return err
	}
	info, err := d.begun.Stat()
	if err != nil {
		return err
	}
	if info.Size() > have {
		if err := d.begun.Truncate(0); err != nil {
			return err
		}
		d.sum.Reset()
		have = 0
	}
	d.resumed = have > 0
	d.update(func() { d.have = have })
	d.report(Begun)
	return nil
}

func (d *download) verify() error {
	got := hex.EncodeToString(d.sum.Sum(nil))
	if got == d.desc.Digest.Hex {
		return nil
	}
	err := api.Errorf(api.ErrImageCorrupt, "layer %.12s is not what its digest says: what came has %.12s", d.desc.Digest.Hex, got)
	if d.resumed {
		// What an earlier download left may have been the part that is wrong.
		return err.WithHint("try again; it then begins anew")
	}
	return err.WithHint("the registry, or something on the way to it, is broken or hostile")
}

// from downloads what is missing from one source. It goes on after breaks for
// as long as each try brings something.
func (d *download) from(ctx context.Context, s *source) error {
	idle := 0
	for broken := 0; ; broken++ {
		before := d.have
		err := d.part(ctx, s)
		if err == nil || ctx.Err() != nil || !passingError(err) || broken == maxBroken {
			return err
		}
		if d.have > before {
			idle = 0
		}
		if idle++; idle == s.tries {
			return err
		}
		if err := sleep(ctx, backoff(s.first, idle)); err != nil {
			return err
		}
	}
}

// part makes one request.
func (d *download) part(ctx context.Context, s *source) error {
	header, accepted := http.Header{}, []int{http.StatusOK}
	if d.have > 0 {
		header.Set("Range", fmt.Sprintf("bytes=%d-%d", d.have, d.desc.Size-1))
		accepted = append(accepted, http.StatusPartialContent)
	}
	resp, err := s.get(ctx, "blobs", d.desc.Digest.String(), header, accepted...)
	if err != nil {
		return err
	}
	defer resp.Body.Close()
	skip, err := d.begins(resp)
	if err != nil {
		return err
	}
	return d.copy(resp.Body, skip)
}

// begins tells how much of an answer is here already. Not every registry
// knows how to send a part.
func (d *download) begins(resp *http.Response) (skip int64, err error) {
	want := d.desc.Size
	if resp.StatusCode == http.StatusPartialContent {
		if err := checkRange(resp.Header.Get("Content-Range"), d.have, d.desc.Size); err != nil {
			return 0, err
		}
		want -= d.have
	} else {
		skip = d.have
	}
	if resp.ContentLength >= 0 && resp.ContentLength != want {
		return 0, d.wrongSize(fmt.Sprint(resp.ContentLength), want)
	}
	return skip, nil
}

func (d *download) wrongSize(got string, want int64) error {
	return api.Errorf(api.ErrImageCorrupt, "layer %.12s has %s bytes, and not the %d that the manifest tells of", d.desc.Digest.Hex, got, want)
}

// checkRange checks the header Content-Range of an answer: it has to begin
// where we asked it to.
func checkRange(header string, from, size int64) error {
	var first, last, total int64
	n, err := fmt.Sscanf(header, "bytes %d-%d/%d", &first, &last, &total)
	if n == 2 && header == fmt.Sprintf("bytes %d-%d/*", first, last) {
		err, total = nil, size
	}
	if err != nil || first != from || last != size-1 || total != size {
		return fmt.Errorf("asked for bytes %d-%d of %d, and got the range %.100q", from, size-1, size, header)
	}
	return nil
}

// copy adds to the blob, hashing as it writes.
func (d *download) copy(body io.Reader, skip int64) error {
	if _, err := io.CopyN(io.Discard, body, skip); err != nil {
		return cutShort(err)
	}
	buf := make([]byte, chunk)
	for d.have < d.desc.Size {
		n, err := body.Read(buf[:min(chunk, d.desc.Size-d.have)])
		if _, err := d.begun.WriteAt(buf[:n], d.have); err != nil {
			return scratch.Explain(err)
		}
		d.sum.Write(buf[:n])
		d.update(func() { d.have += int64(n) })
		d.report(Begun)
		if err != nil && d.have < d.desc.Size {
			return cutShort(err)
		}
	}
	if n, _ := io.ReadFull(body, buf[:1]); n > 0 {
		return d.wrongSize("more", d.desc.Size)
	}
	return nil
}

func cutShort(err error) error {
	if err == io.EOF {
		return io.ErrUnexpectedEOF
	}
	return err
}

// reader is a reader that ends with ctx.
type reader struct {
	ctx context.Context
	r   io.Reader
}

func (r reader) Read(p []byte) (int, error) {
	if err := r.ctx.Err(); err != nil {
		return 0, err
	}
	return r.r.Read(p)
}
