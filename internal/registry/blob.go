package registry

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"hash"
	"io"
	"os"
	"sync"

	v1 "github.com/google/go-containerregistry/pkg/v1"

	"github.com/vmsan/vmsan/api"
)

// blob is one blob on its way: a downloader adds to it, readers follow.
type blob struct {
	desc  v1.Descriptor
	cache Cache

	mu sync.Mutex
	// changed is closed, and replaced, when what is below changes.
	changed chan struct{}
	file    *os.File // nil until it is claimed
	have    int64    // bytes that can be read
	cached  bool     // it was complete from the beginning, and nobody checked it
	done    bool
	err     error // why it will never be complete; only with done
}

func newBlob(desc v1.Descriptor, cache Cache) *blob {
	return &blob{desc: desc, cache: cache, changed: make(chan struct{})}
}

// update changes the blob and wakes its readers.
func (b *blob) update(change func()) {
	b.mu.Lock()
	defer b.mu.Unlock()
	change()
	close(b.changed)
	b.changed = make(chan struct{})
}

// wait returns when there are more than at bytes, or there is nothing more to
// come.
func (b *blob) wait(ctx context.Context, at int64) (file *os.File, have int64, err error) {
	for {
		b.mu.Lock()
		file, have, done, changed := b.file, b.have, b.done, b.changed
		err := b.err
		b.mu.Unlock()
		// What is wrong at its end is wrong from the beginning on.
		if err != nil || done || have > at {
			return file, have, err
		}
		select {
		case <-ctx.Done():
			return nil, 0, context.Cause(ctx)
		case <-changed:
		}
	}
}

// open returns a reader that follows the download. It ends well only if the
// blob is what its digest says.
func (b *blob) open(ctx context.Context) (io.ReadCloser, error) {
	if _, _, err := b.wait(ctx, 0); err != nil {
		return nil, err
	}
	r := &follower{ctx: ctx, blob: b}
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.cached {
		r.sum = sha256.New()
	}
	return r, nil
}

func (b *blob) failure() error {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.err
}

func (b *blob) close() {
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.file != nil {
		b.file.Close()
	}
}

type follower struct {
	ctx  context.Context
	blob *blob
	at   int64
	sum  hash.Hash // of what was in the cache; nil for what was just downloaded
}

func (r *follower) Read(p []byte) (int, error) {
	file, have, err := r.blob.wait(r.ctx, r.at)
	if err != nil {
		return 0, err
	}
	if r.at == have {
		return 0, r.end()
	}
	n, err := file.ReadAt(p[:min(int64(len(p)), have-r.at)], r.at)
	if r.sum != nil {
		r.sum.Write(p[:n])
	}
	r.at += int64(n)
	if err == io.EOF {
		// It was cut by somebody else.
		err = nil
		if n == 0 {
			err = r.blob.damaged()
		}
	}
	return n, err
}

// end is io.EOF if what was read was the blob.
func (r *follower) end() error {
	if r.sum != nil && hex.EncodeToString(r.sum.Sum(nil)) != r.blob.desc.Digest.Hex {
		return r.blob.damaged()
	}
	return io.EOF
}

func (r *follower) Close() error { return nil }

// damaged removes a kept blob that is not what it was.
func (b *blob) damaged() error {
	err := api.Errorf(api.ErrImageCorrupt, "layer %.12s, kept from an earlier pull, was damaged; it is removed", b.desc.Digest.Hex).
		WithHint("try again")
	if dropped := b.cache.drop(b.desc.Digest.Hex); dropped != nil {
		err = api.Errorf(api.ErrImageCorrupt, "layer %.12s, kept from an earlier pull, is damaged: %w", b.desc.Digest.Hex, dropped)
	}
	b.update(func() { b.err = err })
	return err
}
