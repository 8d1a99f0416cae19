// Package registry gets images from registries: what they consist of, and the
// blobs of their layers. All that comes from a registry is hostile: it is
// bounded, and nothing is believed that no digest vouches for.
package registry

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/google/go-containerregistry/pkg/authn"
	"github.com/google/go-containerregistry/pkg/name"
	v1 "github.com/google/go-containerregistry/pkg/v1"
	"golang.org/x/sync/errgroup"

	"github.com/vmsan/vmsan/api"
	"github.com/vmsan/vmsan/internal/oci"
	"github.com/vmsan/vmsan/internal/scratch"
)

// parallel is how many layers of an image are downloaded at a time.
const parallel = 4

// Client pulls images. Its methods may be called from any goroutine.
type Client struct {
	Cache  Cache
	Config Config
	// Keychain has the credentials. Default: those of docker's configuration.
	Keychain authn.Keychain
	// Arch is the architecture that images have to be for, as Go calls it.
	Arch string
	// FirstWait is how long to wait before trying again for the first time,
	// default half a second, and Stall how long a download may bring next to
	// nothing, default a minute.
	FirstWait, Stall time.Duration
}

func (c *Client) stall() time.Duration {
	if c.Stall > 0 {
		return c.Stall
	}
	return defaultStall
}

// Image is an image in a registry: what it consists of, and no more yet.
type Image struct {
	Reference Reference
	// Digest is that of the manifest for this architecture, "sha256:<hex>".
	Digest string
	// Config is the image's configuration, as it was made.
	Config []byte
	Layers []Layer

	client  *Client
	sources []*source
}

// Layer is one layer of an image.
type Layer struct {
	// Digest is that of the blob, DiffID that of the tar in it.
	Digest, DiffID string
	MediaType      string
	Size           int64
	desc           v1.Descriptor
}

// Resolve asks the registry what ref stands for on this architecture. The
// caller closes the image.
func (c *Client) Resolve(ctx context.Context, ref Reference) (*Image, error) {
	sources, err := c.sources(ref)
	if err != nil {
		return nil, err
	}
	img := &Image{Reference: ref, client: c, sources: sources}
	if err := img.resolve(ctx); err != nil {
		img.Close()
		return nil, fmt.Errorf("pull %s: %w", ref.Name(), err)
	}
	return img, nil
}

// Close ends the connections that are kept for the download.
func (img *Image) Close() {
	for _, s := range img.sources {
		s.close()
	}
}

// sources are the mirrors of the registry, and the registry itself.
func (c *Client) sources(ref Reference) ([]*source, error) {
	origin := ref.ref.Context()
	var repos []name.Repository
	for _, mirror := range c.Config.Registries[origin.RegistryStr()].Mirrors {
		repo, err := mirrored(mirror, origin.RepositoryStr())
		if err != nil {
			return nil, api.Errorf(api.ErrRegistryConfig, "mirror %.200q: %w", mirror, err)
		}
		repos = append(repos, repo)
	}
	var sources []*source
	for i, repo := range append(repos, origin) {
		tries := mirrorTries
		if i == len(repos) {
			tries = maxTries
		}
		s, err := c.source(repo, tries)
		if err != nil {
			return nil, err
		}
		sources = append(sources, s)
	}
	return sources, nil
}

func (c *Client) source(repo name.Repository, tries int) (*source, error) {
	s := &source{
		repo: repo, host: c.Config.Registries[repo.RegistryStr()], keychain: c.Keychain,
		first: c.FirstWait, answer: min(answerTimeout, c.stall()), stall: c.stall(), tries: tries,
	}
	if s.keychain == nil {
		s.keychain = authn.DefaultKeychain
	}
	if s.first == 0 {
		s.first = 500 * time.Millisecond
	}
	if s.host.Insecure {
		var err error
		if s.repo.Registry, err = name.NewRegistry(repo.RegistryStr(), name.Insecure); err != nil {
			return nil, err
		}
	}
	return s, nil
}

// each does something with the first source it can be done with. Errors are
// explained; what names the thing that is asked for.
func each(sources []*source, what string, do func(*source) error) error {
	var failures []string
	for i, s := range sources {
		err := s.explain(what, do(s))
		if err == nil || i == len(sources)-1 && len(failures) == 0 || !fallsThrough(err) {
			return err
		}
		if i == len(sources)-1 {
			last := api.AsError(err)
			return api.Errorf(last.Code, "%w; its mirrors failed too: %s", err, strings.Join(failures, "; ")).WithHint("%s", last.Hint)
		}
		failures = append(failures, err.Error())
	}
	return nil
}

// fallsThrough tells whether another source may do better.
func fallsThrough(err error) bool {
	switch api.AsError(err).Code {
	case api.ErrRegistry, api.ErrRegistryAuth, api.ErrRegistryBusy, api.ErrImageNotFound, api.ErrTimeout:
		return true
	}
	return false
}

func (img *Image) resolve(ctx context.Context) error {
	doc, err := img.manifest(ctx, img.Reference.ref.Identifier(), digestOf(img.Reference))
	if err != nil {
		return err
	}
	doc, err = doc.Manifest(img.client.Arch, func(d v1.Descriptor) (oci.Document, error) {
		return img.manifest(ctx, d.Digest.String(), d.Digest.String())
	})
	if err != nil {
		return err
	}
	if err := doc.Check(oci.LayerTypes...); err != nil {
		return err
	}
	if img.Config, err = img.config(ctx, *doc.Config); err != nil {
		return err
	}
	diffIDs, err := oci.ParseConfig(img.Config, len(doc.Layers), img.client.Arch)
	if err != nil {
		return err
	}
	for i, d := range doc.Layers {
		img.Layers = append(img.Layers, Layer{
			Digest: d.Digest.String(), DiffID: diffIDs[i], MediaType: string(d.MediaType), Size: d.Size, desc: d,
		})
	}
	return nil
}

// digestOf is the digest that ref asks for, or empty.
func digestOf(ref Reference) string {
	if d, ok := ref.ref.(name.Digest); ok {
		return d.DigestStr()
	}
	return ""
}

// manifest gets a manifest or index by tag or digest, whose digest becomes the
// image's. wanted is the digest it has to have, or empty.
func (img *Image) manifest(ctx context.Context, id, wanted string) (oci.Document, error) {
	data, contentType, err := img.small(ctx, "manifest", "manifests", id, wanted, http.Header{"Accept": {oci.Accept}}, oci.MaxManifest)
	if err != nil {
		return oci.Document{}, err
	}
	img.Digest = oci.Digest(data)
	return oci.Parse(data, contentType)
}

func (img *Image) config(ctx context.Context, d v1.Descriptor) ([]byte, error) {
	data, _, err := img.small(ctx, "configuration", "blobs", d.Digest.String(), d.Digest.String(), nil, d.Size)
	return data, err
}

// small gets something that fits into memory and has the digest wanted, if
// that is not empty.
func (img *Image) small(ctx context.Context, what, kind, id, wanted string, header http.Header, most int64) (data []byte, contentType string, err error) {
	var best *source
	err = each(img.sources, what, func(s *source) error {
		ctx, cancel := context.WithTimeout(ctx, 2*s.stall)
		defer cancel()
		resp, err := s.get(ctx, kind, id, header, http.StatusOK)
		if err != nil {
			return err
		}
		defer resp.Body.Close()
		contentType = resp.Header.Get("Content-Type")
		data, err = readAtMost(resp.Body, what, most)
		if err != nil {
			return err
		}
		if err := checkDigest(what, data, wanted); err != nil {
			return err
		}
		best = s
		return nil
	})
	// Who had this is asked first for the rest: a mirror that is down costs
	// time once.
	if i := slices.Index(img.sources, best); i > 0 {
		img.sources = slices.Insert(slices.Delete(img.sources, i, i+1), 0, best)
	}
	return data, contentType, err
}

func readAtMost(r io.Reader, what string, most int64) ([]byte, error) {
	data, err := io.ReadAll(io.LimitReader(r, most+1))
	if err == nil && int64(len(data)) > most {
		err = api.Errorf(api.ErrImageInvalid, "the image cannot be used: its %s has more than %d bytes", what, most)
	}
	return data, err
}

func checkDigest(what string, data []byte, wanted string) error {
	if got := oci.Digest(data); wanted != "" && got != wanted {
		return api.Errorf(api.ErrImageCorrupt, "the %s is not what its digest %.19s says: what came has %.19s", what, wanted, got).
			WithHint("the registry, or something on the way to it, is broken or hostile")
	}
	return nil
}

// State is where a layer is on its way.
type State string

// The states of a layer.
const (
	Waiting State = "waiting"     // for its turn, or for another process that downloads it
	Begun   State = "downloading" //
	Kept    State = "kept"        // it is here from an earlier pull
	Done    State = "downloaded"
)

// Progress tells of a layer, which counts from 0.
type Progress struct {
	Layer      int
	Digest     string
	State      State
	Have, Size int64
}

// Download is the layers of an image on their way.
type Download struct {
	blobs   map[string]*blob
	ordered []*blob
	cancel  context.CancelCauseFunc
	group   *errgroup.Group
}

// Download begins to get the layers. Of what happens to each layer progress
// is told, one call at a time. The caller closes the download.
func (img *Image) Download(ctx context.Context, progress func(Progress)) (*Download, error) {
	if err := img.client.Cache.init(); err != nil {
		return nil, scratch.Explain(fmt.Errorf("keep layers: %w", err))
	}
	ctx, cancel := context.WithCancelCause(ctx)
	group, ctx := errgroup.WithContext(ctx)
	group.SetLimit(parallel + 1)
	d := &Download{blobs: map[string]*blob{}, cancel: cancel, group: group}
	var unique []*download
	var telling sync.Mutex
	places := map[string][]int{}
	for i, l := range img.Layers {
		places[l.Digest] = append(places[l.Digest], i)
	}
	for _, l := range img.Layers {
		if d.blobs[l.Digest] != nil {
			continue // the same layer twice is one blob
		}
		b := newBlob(l.desc, img.client.Cache)
		d.blobs[l.Digest] = b
		d.ordered = append(d.ordered, b)
		unique = append(unique, &download{blob: b, client: img.client, report: func(s State) {
			if progress != nil {
				telling.Lock()
				defer telling.Unlock()
				for _, same := range places[l.Digest] {
					progress(Progress{Layer: same, Digest: l.Digest, State: s, Have: b.have, Size: l.Size})
				}
			}
		}})
	}
	group.Go(func() error {
		for _, one := range unique {
			group.Go(func() error { return one.await(ctx, img.sources) })
		}
		return nil
	})
	return d, nil
}

// await runs the download and tells its readers how it ended.
func (d *download) await(ctx context.Context, sources []*source) error {
	err := d.run(ctx, sources)
	if err == nil {
		return nil
	}
	err = scratch.Explain(fmt.Errorf("layer %.12s: %w", d.desc.Digest.Hex, err))
	d.update(func() { d.done, d.err = true, err })
	return err
}

// Open returns a reader of a layer's blob as it comes in. It ends well only if
// the blob is what its digest says. It is good until Close.
func (d *Download) Open(ctx context.Context, l Layer) (io.ReadCloser, error) {
	return d.blobs[l.Digest].open(ctx)
}

// Wait returns when all layers are here, or one cannot be had.
func (d *Download) Wait() error { return d.group.Wait() }

// Err is what is wrong with the first layer that cannot be had, or nil. Who
// reads a layer may not know what its reader's errors mean.
func (d *Download) Err() error {
	for _, b := range d.ordered {
		if err := b.failure(); err != nil && !errors.Is(err, context.Canceled) {
			return err
		}
	}
	return nil
}

// Close ends the download and what reads from it.
func (d *Download) Close() {
	d.cancel(context.Canceled)
	d.group.Wait()
	for _, b := range d.ordered {
		b.close()
	}
}
