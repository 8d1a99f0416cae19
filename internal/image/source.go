package image

import (
	"archive/tar"
	"bytes"
	"context"
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

	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/types"

	"github.com/vmsan/vmsan/api"
	"github.com/vmsan/vmsan/internal/image/unpack"
	"github.com/vmsan/vmsan/internal/oci"
	"github.com/vmsan/vmsan/internal/scratch"
)

// maxMembers bounds the files in an archive of images.
const maxMembers = 100_000

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
		return s.ImportTar(ctx, whole, o.Meta)
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
func readMembers(f *os.File) (tarBlobs, error) {
	t := tarBlobs{f: f, members: make(map[string]span)}
	if _, err := f.Seek(0, io.SeekStart); err != nil {
		return t, err
	}
	for in := tar.NewReader(f); ; {
		h, err := in.Next()
		if errors.Is(err, io.EOF) {
			return t, nil
		}
		if err != nil {
			return t, api.Errorf(api.ErrImageInvalid, "read archive of images: %w", err)
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
		if len(t.members) > maxMembers {
			return t, api.Errorf(api.ErrImageInvalid, "archive of images: more than %d files", maxMembers)
		}
	}
}

func (s Store) importArchive(ctx context.Context, f *os.File, o ImportOptions) (Image, error) {
	t, err := readMembers(f)
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
		return s.ImportTar(ctx, f, o.Meta)
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
	m.Config = found.config
	return s.ImportLayers(ctx, found.layers, m)
}

// foundImage is an image in a directory or archive.
type foundImage struct {
	config Config
	layers []Layer
}

func findImage(from blobs, ref string) (foundImage, error) {
	data, err := readBlob(from, "index.json", "", oci.MaxManifest)
	if errors.Is(err, fs.ErrNotExist) {
		return findDocker(from, ref)
	}
	if err != nil {
		return foundImage{}, err
	}
	index, err := oci.Parse(data, string(types.OCIImageIndex))
	if err != nil {
		return foundImage{}, err
	}
	picked, err := pick(index.Manifests, ref)
	if err != nil {
		return foundImage{}, err
	}
	read := func(d v1.Descriptor) (oci.Document, error) {
		data, err := readBlob(from, "", d.Digest.String(), oci.MaxManifest)
		if err != nil {
			return oci.Document{}, err
		}
		return oci.Parse(data, string(d.MediaType))
	}
	doc, err := read(picked)
	if err != nil {
		return foundImage{}, err
	}
	if doc, err = doc.Manifest(runtime.GOARCH, read); err != nil {
		return foundImage{}, err
	}
	return readManifest(from, doc)
}

// pick finds an image for this machine among those of a layout: the one that
// is called ref, or else the only one.
func pick(images []v1.Descriptor, ref string) (v1.Descriptor, error) {
	named := slices.DeleteFunc(slices.Clone(images), func(d v1.Descriptor) bool {
		return ref != "" && !slices.Contains(called(d), ref)
	})
	if len(named) == 0 {
		return v1.Descriptor{}, api.Errorf(api.ErrImageInvalid, "there is no such image in it")
	}
	fitting, err := oci.Fitting(named, runtime.GOARCH)
	if err != nil {
		return v1.Descriptor{}, err
	}
	for _, other := range fitting[1:] {
		if !areVariants(fitting[0], other) {
			return v1.Descriptor{}, api.Errorf(api.ErrImageInvalid, "there are %d images for linux/%s in it", len(fitting), runtime.GOARCH).
				WithHint("say which with --ref NAME")
		}
	}
	return fitting[0], nil
}

// called are the names of an image in the annotations that tools write.
func called(d v1.Descriptor) []string {
	return []string{d.Annotations["org.opencontainers.image.ref.name"], d.Annotations["io.containerd.image.name"]}
}

// areVariants tells whether two are one image, made for different machines.
func areVariants(a, b v1.Descriptor) bool {
	return a.Platform != nil && b.Platform != nil && !a.Platform.Equals(*b.Platform) && slices.Equal(called(a), called(b))
}

func readManifest(from blobs, doc oci.Document) (foundImage, error) {
	if err := doc.Check(layerTypes...); err != nil {
		return foundImage{}, err
	}
	data, err := readBlob(from, "", doc.Config.Digest.String(), oci.MaxConfig)
	if err != nil {
		return foundImage{}, err
	}
	names := make([]string, len(doc.Layers))
	for i, l := range doc.Layers {
		if names[i], err = blobName(l.Digest.String()); err != nil {
			return foundImage{}, err
		}
	}
	found, err := describe(from, data, names)
	if err != nil {
		return foundImage{}, err
	}
	for i, l := range doc.Layers {
		found.layers[i].MediaType = string(l.MediaType)
	}
	return found, nil
}

// findDocker finds an image in what "docker save" wrote before it wrote OCI
// image layouts.
func findDocker(from blobs, ref string) (foundImage, error) {
	data, err := readBlob(from, "manifest.json", "", oci.MaxManifest)
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
	if data, err = readBlob(from, all[0].Config, "", oci.MaxConfig); err != nil {
		return foundImage{}, err
	}
	return describe(from, data, all[0].Layers)
}

// describe is an image with that configuration and layers in those files.
func describe(from blobs, config []byte, files []string) (foundImage, error) {
	diffIDs, err := oci.ParseConfig(config, len(files), runtime.GOARCH)
	if err != nil {
		return foundImage{}, err
	}
	c, err := ParseConfig(config)
	if err != nil {
		return foundImage{}, err
	}
	found := foundImage{config: c}
	for i, name := range files {
		found.layers = append(found.layers, Layer{
			DiffID: diffIDs[i],
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
func readBlob(from blobs, name, digest string, most int64) ([]byte, error) {
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
	data, err := io.ReadAll(io.LimitReader(r, most+1))
	if err != nil {
		return nil, fmt.Errorf("read %.200s: %w", name, err)
	}
	if int64(len(data)) > most {
		return nil, api.Errorf(api.ErrImageInvalid, "%.200s has more than %d bytes", name, most)
	}
	if digest != "" && oci.Digest(data) != digest {
		return nil, api.Errorf(api.ErrImageInvalid, "%.200s has other bytes than its digest says", name)
	}
	return data, nil
}
