package image

import (
	"context"
	"errors"
	"io"
	"slices"
	"sync"
)

// LayerProgress is how far the reading of a layer is.
type LayerProgress struct {
	Layer, Layers int   // the lowest is 0
	Read, Size    int64 // in bytes, as it is stored; Size is 0 if it is not known
	Done          bool
}

// progressStep is how much is read between two reports, in bytes.
const progressStep = 1 << 20

// watched returns layers that report what is read of them, until stop is
// called.
func watched(layers []Layer, report func(LayerProgress)) (all []Layer, stop func()) {
	if report == nil {
		return layers, func() {}
	}
	var mu sync.Mutex
	stopped := false
	tell := func(p LayerProgress) {
		mu.Lock()
		defer mu.Unlock()
		if !stopped {
			report(p)
		}
	}
	all = slices.Clone(layers)
	for i, l := range layers {
		all[i].Open = func(ctx context.Context) (io.ReadCloser, error) {
			blob, err := l.Open(ctx)
			if err != nil {
				return nil, err
			}
			return &watchedBlob{ReadCloser: blob, at: LayerProgress{Layer: i, Layers: len(layers), Size: l.Size}, tell: tell}, nil
		}
	}
	return all, func() {
		mu.Lock()
		defer mu.Unlock()
		stopped = true
	}
}

// watchedBlob reports what is read of a layer.
type watchedBlob struct {
	io.ReadCloser
	at   LayerProgress
	told int64 // of at.Read
	tell func(LayerProgress)
}

func (b *watchedBlob) Read(p []byte) (int, error) {
	n, err := b.ReadCloser.Read(p)
	b.at.Read += int64(n)
	if ended := errors.Is(err, io.EOF); !b.at.Done && (ended || b.at.Read-b.told >= progressStep) {
		b.told, b.at.Done = b.at.Read, ended
		b.tell(b.at)
	}
	return n, err
}
