package main

import (
	"archive/tar"
	"bytes"
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"log"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"runtime"
	"time"

	"github.com/google/go-containerregistry/pkg/authn"
	"github.com/google/go-containerregistry/pkg/name"
	hubs "github.com/google/go-containerregistry/pkg/registry"
	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/empty"
	"github.com/google/go-containerregistry/pkg/v1/mutate"
	"github.com/google/go-containerregistry/pkg/v1/remote"
	"github.com/google/go-containerregistry/pkg/v1/tarball"
	"golang.org/x/sync/errgroup"
	pace "golang.org/x/time/rate"

	"github.com/vmsan/vmsan/internal/registry"
	"github.com/vmsan/vmsan/internal/timing"
)

const (
	pullLayers = 10
	// pullParallel is how many blobs the floor downloads at a time.
	pullParallel = 4
)

// pull measures how long an image of several layers takes from a registry on
// loopback to what boots. The floor downloads the same blobs into files and
// hashes them on the way, and makes nothing of them.
func (b *bench) pull(ctx context.Context) error {
	dir, err := os.MkdirTemp(b.state, "bench-pull-")
	if err != nil {
		return err
	}
	defer os.RemoveAll(dir)
	hub := hubs.New(hubs.Logger(log.New(io.Discard, "", 0)))
	fast, slow := httptest.NewServer(hub), httptest.NewServer(throttled(hub))
	defer fast.Close()
	defer slow.Close()
	size, err := b.pushDebian(ctx, dir, fast.Listener.Addr().String()+"/bench")
	if err != nil {
		return err
	}
	what := fmt.Sprintf("%d layers, %d MB, ", pullLayers, size/1e6)
	if err := b.pullFrom(ctx, dir, fast.Listener.Addr().String()+"/bench", what+"from loopback"); err != nil {
		return err
	}
	return b.pullFrom(ctx, dir, slow.Listener.Addr().String()+"/bench", fmt.Sprintf("%sat %d MB/s", what, slowRate/1_000_000))
}

// slowRate is what a registry sends in a second that is not on this host, on a
// network of 400 Mbit/s.
const slowRate = 50_000_000

// throttled is a registry with slowRate for all that it sends.
func throttled(hub http.Handler) http.Handler {
	limit := pace.NewLimiter(slowRate, 64<<10)
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		hub.ServeHTTP(&throttledWriter{w, r.Context(), limit}, r)
	})
}

type throttledWriter struct {
	http.ResponseWriter
	ctx   context.Context
	limit *pace.Limiter
}

func (w *throttledWriter) Write(p []byte) (n int, err error) {
	for len(p) > 0 && err == nil {
		part := p[:min(len(p), w.limit.Burst())]
		if err = w.limit.WaitN(w.ctx, len(part)); err == nil {
			_, err = w.ResponseWriter.Write(part)
			n, p = n+len(part), p[len(part):]
		}
	}
	return n, err
}

func (b *bench) pullFrom(ctx context.Context, dir, ref, what string) error {
	var whole, layers, floor []time.Duration
	for range b.rounds {
		one, err := b.command(ctx, filepath.Join(dir, "state"), nil, "image", "pull", ref)
		if err != nil {
			return err
		}
		two, err := timing.Timed(func() error { return fetchLayers(ctx, filepath.Join(dir, "blobs"), ref) })
		if err != nil {
			return err
		}
		bare, err := timing.Timed(func() error { return fetchBare(ctx, filepath.Join(dir, "bare"), ref) })
		if err != nil {
			return err
		}
		for _, made := range []string{"state", "blobs", "bare"} {
			if err := os.RemoveAll(filepath.Join(dir, made)); err != nil {
				return err
			}
		}
		whole, layers, floor = append(whole, one), append(layers, two), append(floor, bare)
	}
	w, l, f := timing.Median(whole), timing.Median(layers), timing.Median(floor)
	b.add("pull of "+what+"; floor: downloading and hashing them", ms(w), ms(f), ratio(w, f), "<= 1.3 x")
	b.add("the same, without making an image", ms(l), ms(f), ratio(l, f), "")
	return nil
}

// pushDebian puts the default image's files into a registry, in layers of
// about the same size. It returns the bytes of the blobs.
func (b *bench) pushDebian(ctx context.Context, dir, ref string) (size int64, err error) {
	archive := filepath.Join(dir, "rootfs.tar")
	if err := b.debianLayer(ctx, dir, archive); err != nil {
		return 0, err
	}
	defer os.Remove(archive)
	tars, err := split(archive, pullLayers)
	if err != nil {
		return 0, err
	}
	img := v1.Image(empty.Image)
	for _, data := range tars {
		layer, err := tarball.LayerFromOpener(func() (io.ReadCloser, error) { return io.NopCloser(bytes.NewReader(data)), nil })
		if err != nil {
			return 0, err
		}
		if img, err = mutate.AppendLayers(img, layer); err != nil {
			return 0, err
		}
		n, err := layer.Size()
		if err != nil {
			return 0, err
		}
		size += n
	}
	config, err := img.ConfigFile()
	if err != nil {
		return 0, err
	}
	config = config.DeepCopy()
	config.OS, config.Architecture = "linux", runtime.GOARCH
	if img, err = mutate.ConfigFile(img, config); err != nil {
		return 0, err
	}
	parsed, err := name.ParseReference(ref)
	if err != nil {
		return 0, err
	}
	return size, remote.Write(parsed, img, remote.WithContext(ctx))
}

// split makes n archives of one, in the order of its entries.
func split(archive string, n int) (tars [][]byte, err error) {
	f, err := os.Open(archive)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	info, err := f.Stat()
	if err != nil {
		return nil, err
	}
	in := tar.NewReader(f)
	for more := true; more; {
		var part bytes.Buffer
		if more, err = copyEntries(in, &part, info.Size()/int64(n)); err != nil {
			return nil, err
		}
		tars = append(tars, part.Bytes())
	}
	return tars, nil
}

// copyEntries copies entries until there are size bytes, and tells whether
// there are more.
func copyEntries(in *tar.Reader, part *bytes.Buffer, size int64) (more bool, err error) {
	out := tar.NewWriter(part)
	for int64(part.Len()) < size {
		header, err := in.Next()
		if errors.Is(err, io.EOF) {
			return false, out.Close()
		}
		if err != nil {
			return false, err
		}
		if err := out.WriteHeader(header); err != nil {
			return false, err
		}
		if _, err := io.Copy(out, in); err != nil {
			return false, err
		}
	}
	return true, out.Close()
}

// fetchLayers gets an image's layers as a pull does.
func fetchLayers(ctx context.Context, dir, ref string) error {
	parsed, err := registry.ParseReference(ref)
	if err != nil {
		return err
	}
	client := registry.Client{Cache: registry.Cache{Dir: dir}, Arch: runtime.GOARCH}
	img, err := client.Resolve(ctx, parsed)
	if err != nil {
		return err
	}
	defer img.Close()
	d, err := img.Download(ctx, nil)
	if err != nil {
		return err
	}
	defer d.Close()
	return d.Wait()
}

// fetchBare is the least that can be done.
func fetchBare(ctx context.Context, dir, ref string) error {
	parsed, err := name.ParseReference(ref)
	if err != nil {
		return err
	}
	img, err := remote.Image(parsed, remote.WithContext(ctx), remote.WithAuth(authn.Anonymous))
	if err != nil {
		return err
	}
	manifest, err := img.Manifest()
	if err != nil {
		return err
	}
	if err := os.Mkdir(dir, 0o755); err != nil {
		return err
	}
	group, ctx := errgroup.WithContext(ctx)
	group.SetLimit(pullParallel)
	for _, l := range manifest.Layers {
		url := fmt.Sprintf("http://%s/v2/%s/blobs/%s", parsed.Context().RegistryStr(), parsed.Context().RepositoryStr(), l.Digest)
		group.Go(func() error { return downloadBlob(ctx, url, filepath.Join(dir, l.Digest.Hex), l.Digest.Hex) })
	}
	return group.Wait()
}

func downloadBlob(ctx context.Context, url, path, digest string) error {
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, url, nil)
	if err != nil {
		return err
	}
	resp, err := http.DefaultClient.Do(req)
	if err != nil {
		return err
	}
	defer resp.Body.Close()
	f, err := os.Create(path)
	if err != nil {
		return err
	}
	defer f.Close()
	sum := sha256.New()
	// Not by a file's own way of reading from a connection, which cannot hash.
	if _, err := io.CopyBuffer(io.MultiWriter(f, sum), resp.Body, make([]byte, 256<<10)); err != nil {
		return err
	}
	if got := fmt.Sprintf("%x", sum.Sum(nil)); got != digest {
		return fmt.Errorf("%s has the digest %s", url, got)
	}
	return nil
}
