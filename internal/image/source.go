package image

import (
	"archive/tar"
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path"
	"regexp"
	"runtime"
	"slices"
	"strings"

	"github.com/vmsan/vmsan/api"
	"github.com/vmsan/vmsan/internal/image/unpack"
	"github.com/vmsan/vmsan/internal/scratch"
)

// Bounds on what describes images.
const (
	maxManifest   = 4 << 20
	maxMembers    = 100_000 // entries in an archive of images
	maxMemberName = 4095    // bytes; longer ones are not looked at
	maxNested     = 4       // indexes in indexes
)

// ImportOptions say what to import from where.
type ImportOptions struct {
	Meta
	// Ref picks one of several images, by the name it has there. Optional.
	Ref string
}

// ImportDir imports from a directory in the OCI's image layout.
func (s Store) ImportDir(ctx context.Context, dir string, o ImportOptions) (Image, error) {
	root, err := os.OpenRoot(dir)
	if err != nil {
		return Image{}, fmt.Errorf("import image: %w", err)
	}
	defer root.Close()
	return s.importFrom(ctx, dirBlobs{root}, o)
}

// Import imports from a tar archive: an OCI image layout, what "docker save"
// writes, or a root file system. It may be compressed with gzip, zstd or xz.
func (s Store) Import(ctx context.Context, r io.Reader, o ImportOptions) (Image, error) {
	d, err := newDecompressor(cancelable{ctx, r})
	if err != nil {
		return Image{}, fmt.Errorf("import image: %w", err)
	}
	defer d.close()
	first := make([]byte, tarBlock)
	n, err := fill(d, first)
	if err != nil && !errors.Is(err, io.EOF) {
		return Image{}, fmt.Errorf("import image: %w", err)
	}
	whole := io.MultiReader(bytes.NewReader(first[:n]), d)
	if !holdsImages(first[:n]) {
		return s.importPlain(ctx, whole, o.Meta)
	}
	// What describes the layers may come behind them.
	dir, err := scratch.New(s.Layout.Tmp(), "image-archive")
	if err != nil {
		return Image{}, scratch.Explain(err)
	}
	defer dir.Close()
	f, err := os.OpenFile(dir.Join("archive"), os.O_RDWR|os.O_CREATE|os.O_EXCL, 0o600)
	if err != nil {
		return Image{}, err
	}
	defer f.Close()
	if n, err := io.Copy(f, io.LimitReader(whole, maxDiskSize)); err != nil || n == maxDiskSize {
		if err == nil {
			err = unpack.Invalid(fmt.Errorf("it has more than %d bytes", int64(maxDiskSize)))
		}
		return Image{}, scratch.Explain(fmt.Errorf("import image: %w", err))
	}
	return s.importArchive(ctx, f, o)
}

// tarBlock is the size of an archive's first header.
const tarBlock = 512

// imageMember is a file that archives of images begin with.
var imageMember = regexp.MustCompile(`^(\./)*(blobs(/.*)?|oci-layout|index\.json|manifest\.json|repositories|[0-9a-f]{64}(\.json|/.*)?)$`)

func holdsImages(header []byte) bool {
	// One that goes on, with a long name say, is none of these.
	h, err := tar.NewReader(io.MultiReader(bytes.NewReader(header), bytes.NewReader(make([]byte, 2*tarBlock)))).Next()
	return err == nil && imageMember.MatchString(h.Name)
}

// blobs are the files that images consist of.
type blobs interface {
	open(name string) (io.ReadCloser, error)
	// size is in bytes, 0 for what is not there.
	size(name string) int64
}

type dirBlobs struct{ root *os.Root }

func (d dirBlobs) open(name string) (io.ReadCloser, error) {
	f, err := d.root.Open(name)
	if err != nil {
		return nil, err
	}
	if info, err := f.Stat(); err != nil || !info.Mode().IsRegular() {
		return nil, errors.Join(fmt.Errorf("%s is not a file", name), err, f.Close())
	}
	return f, nil
}

func (d dirBlobs) size(name string) int64 {
	info, err := d.root.Stat(name)
	if err != nil {
		return 0
	}
	return info.Size()
}

// tarBlobs are in an archive, which is not compressed.
type tarBlobs struct {
	f       io.ReaderAt
	members map[string]span
}

type span struct{ at, size int64 }

func (t tarBlobs) open(name string) (io.ReadCloser, error) {
	s, ok := t.members[name]
	if !ok {
		return nil, &fs.PathError{Op: "open", Path: name, Err: fs.ErrNotExist}
	}
	return io.NopCloser(io.NewSectionReader(t.f, s.at, s.size)), nil
}

func (t tarBlobs) size(name string) int64 { return t.members[name].size }

// readMembers finds the files in an archive.
func readMembers(ctx context.Context, f *os.File) (tarBlobs, error) {
	t := tarBlobs{f: f, members: make(map[string]span)}
	if _, err := f.Seek(0, io.SeekStart); err != nil {
		return t, err
	}
	in := tar.NewReader(f)
	for n := 1; ; n++ {
		if err := ctx.Err(); err != nil {
			return t, err
		}
		h, err := in.Next()
		if errors.Is(err, io.EOF) {
			return t, nil
		}
		if err != nil {
			return t, api.Errorf(api.ErrImageInvalid, "read archive of images: %w", err)
		}
		if n > maxMembers {
			return t, api.Errorf(api.ErrImageInvalid, "archive of images: more than %d files", maxMembers)
		}
		if len(h.Name) > maxMemberName || len(h.Linkname) > maxMemberName {
			continue // which nothing asks for
		}
		at, err := f.Seek(0, io.SeekCurrent)
		if err != nil {
			return t, err
		}
		name := strings.TrimPrefix(path.Clean("/"+h.Name), "/")
		switch h.Typeflag {
		case tar.TypeReg:
			t.members[name] = span{at, h.Size}
		case tar.TypeSymlink, tar.TypeLink: // layers that are the same, in old archives
			target := h.Linkname
			if h.Typeflag == tar.TypeSymlink {
				target = path.Join(path.Dir("/"+name), target)
			}
			if s, ok := t.members[strings.TrimPrefix(path.Clean("/"+target), "/")]; ok {
				t.members[name] = s
			}
		}
	}
}

func (s Store) importArchive(ctx context.Context, f *os.File, o ImportOptions) (Image, error) {
	t, err := readMembers(ctx, f)
	if err != nil {
		return Image{}, fmt.Errorf("import image: %w", err)
	}
	_, index := t.members["index.json"]
	_, manifest := t.members["manifest.json"]
	if !index && !manifest {
		// A root file system that only began like one.
		if _, err := f.Seek(0, io.SeekStart); err != nil {
			return Image{}, err
		}
		return s.importPlain(ctx, f, o.Meta)
	}
	return s.importFrom(ctx, t, o)
}

// importFrom imports the one image that is there for this machine.
func (s Store) importFrom(ctx context.Context, from blobs, o ImportOptions) (Image, error) {
	found, err := findImage(from, o.Ref)
	if err != nil {
		return Image{}, fmt.Errorf("import image: %w", err)
	}
	m := o.Meta
	m.Config = found.config.Config
	return s.ImportLayers(ctx, found.layers, m)
}

// foundImage is an image in a directory or archive.
type foundImage struct {
	config OCIConfig
	layers []Layer
}

func findImage(from blobs, ref string) (foundImage, error) {
	index, err := readBlob(from, "index.json", "")
	if errors.Is(err, fs.ErrNotExist) {
		return findDocker(from, ref)
	}
	if err != nil {
		return foundImage{}, err
	}
	manifest, err := pick(from, index, ref, 0)
	if err != nil {
		return foundImage{}, err
	}
	return readManifest(from, manifest)
}

// descriptor points to a blob.
type descriptor struct {
	MediaType   string            `json:"mediaType"`
	Digest      string            `json:"digest"`
	Platform    *platform         `json:"platform"`
	Annotations map[string]string `json:"annotations"`
}

type platform struct {
	OS           string `json:"os"`
	Architecture string `json:"architecture"`
}

func (d descriptor) fits() bool {
	return d.Platform == nil || d.Platform.OS == "linux" && d.Platform.Architecture == runtime.GOARCH
}

// named tells whether it is called ref, by one of the annotations that tools
// write.
func (d descriptor) named(ref string) bool {
	return d.Annotations["org.opencontainers.image.ref.name"] == ref || d.Annotations["io.containerd.image.name"] == ref
}

// pick returns the manifest of the image that an index has for this machine.
func pick(from blobs, index []byte, ref string, depth int) ([]byte, error) {
	var i struct {
		Manifests []descriptor `json:"manifests"`
	}
	if err := json.Unmarshal(index, &i); err != nil {
		return nil, api.Errorf(api.ErrImageInvalid, "read index of images: %w", err)
	}
	candidates := slices.DeleteFunc(i.Manifests, func(d descriptor) bool { return !d.fits() || ref != "" && !d.named(ref) })
	switch {
	case len(candidates) == 0:
		return nil, api.Errorf(api.ErrImageInvalid, "there is no such image for linux/%s in it", runtime.GOARCH)
	case len(candidates) > 1:
		return nil, api.Errorf(api.ErrImageInvalid, "there are %d images for linux/%s in it", len(candidates), runtime.GOARCH).
			WithHint("say which with --ref NAME")
	}
	only := candidates[0]
	data, err := readBlob(from, "", only.Digest)
	if err != nil {
		return nil, err
	}
	switch only.MediaType {
	case "application/vnd.oci.image.index.v1+json", "application/vnd.docker.distribution.manifest.list.v2+json":
		if depth >= maxNested {
			return nil, api.Errorf(api.ErrImageInvalid, "indexes of images are in each other more than %d times", maxNested)
		}
		return pick(from, data, "", depth+1)
	}
	return data, nil
}

func readManifest(from blobs, data []byte) (foundImage, error) {
	var m struct {
		Config descriptor   `json:"config"`
		Layers []descriptor `json:"layers"`
	}
	if err := json.Unmarshal(data, &m); err != nil {
		return foundImage{}, api.Errorf(api.ErrImageInvalid, "read image's manifest: %w", err)
	}
	data, err := readBlob(from, "", m.Config.Digest)
	if err != nil {
		return foundImage{}, err
	}
	names := make([]string, len(m.Layers))
	for i, l := range m.Layers {
		if names[i], err = blobName(l.Digest); err != nil {
			return foundImage{}, err
		}
	}
	found, err := describe(from, data, names)
	if err != nil {
		return foundImage{}, err
	}
	for i, l := range m.Layers {
		found.layers[i].MediaType = l.MediaType
	}
	return found, nil
}

// findDocker finds an image in what "docker save" wrote before it wrote OCI
// image layouts.
func findDocker(from blobs, ref string) (foundImage, error) {
	data, err := readBlob(from, "manifest.json", "")
	if err != nil {
		return foundImage{}, err
	}
	var all []struct {
		Config   string
		RepoTags []string
		Layers   []string
	}
	if err := json.Unmarshal(data, &all); err != nil {
		return foundImage{}, api.Errorf(api.ErrImageInvalid, "read image's manifest: %w", err)
	}
	for i := len(all) - 1; ref != "" && i >= 0; i-- {
		if !slices.Contains(all[i].RepoTags, ref) {
			all = slices.Delete(all, i, i+1)
		}
	}
	if len(all) != 1 {
		return foundImage{}, api.Errorf(api.ErrImageInvalid, "there are %d such images in it", len(all)).
			WithHint("say which with --ref NAME")
	}
	if data, err = readBlob(from, all[0].Config, ""); err != nil {
		return foundImage{}, err
	}
	return describe(from, data, all[0].Layers)
}

// describe is an image with that configuration and layers in those files.
func describe(from blobs, config []byte, files []string) (foundImage, error) {
	c, err := ParseConfig(config)
	if err != nil {
		return foundImage{}, err
	}
	if c.OS != "" && c.OS != "linux" || c.Architecture != "" && c.Architecture != runtime.GOARCH {
		return foundImage{}, api.Errorf(api.ErrImageInvalid, "the image is for %.40s/%.40s, this machine is linux/%s", c.OS, c.Architecture, runtime.GOARCH)
	}
	if len(c.DiffIDs) != len(files) {
		return foundImage{}, api.Errorf(api.ErrImageInvalid, "the image has %d layers and %d digests of layers", len(files), len(c.DiffIDs))
	}
	found := foundImage{config: c}
	for i, name := range files {
		found.layers = append(found.layers, Layer{
			DiffID: c.DiffIDs[i],
			Size:   from.size(name),
			Open:   func(context.Context) (io.ReadCloser, error) { return openBlob(from, name) },
		})
	}
	return found, nil
}

var blobDigest = regexp.MustCompile(`^sha256:[0-9a-f]{64}$`)

func blobName(digest string) (string, error) {
	if !blobDigest.MatchString(digest) {
		return "", api.Errorf(api.ErrImageInvalid, "digest %.100q is malformed", digest)
	}
	return "blobs/sha256/" + strings.TrimPrefix(digest, digestPrefix), nil
}

func openBlob(from blobs, name string) (io.ReadCloser, error) {
	r, err := from.open(name)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, api.Errorf(api.ErrImageInvalid, "%.200s is missing: %w", name, err)
	}
	return r, err
}

// readBlob reads what describes an image: a file, or what has a digest.
func readBlob(from blobs, name, digest string) ([]byte, error) {
	if digest != "" {
		var err error
		if name, err = blobName(digest); err != nil {
			return nil, err
		}
	}
	r, err := openBlob(from, name)
	if err != nil {
		return nil, err
	}
	defer r.Close()
	data, err := io.ReadAll(io.LimitReader(r, maxManifest+1))
	if err != nil {
		return nil, fmt.Errorf("read %.200s: %w", name, err)
	}
	if len(data) > maxManifest {
		return nil, api.Errorf(api.ErrImageInvalid, "%.200s has more than %d bytes", name, maxManifest)
	}
	if sum := sha256.Sum256(data); digest != "" && digestPrefix+hex.EncodeToString(sum[:]) != digest {
		return nil, api.Errorf(api.ErrImageInvalid, "%.200s has other bytes than its digest says", name)
	}
	return data, nil
}
