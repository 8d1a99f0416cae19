package image

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"slices"

	"github.com/google/go-containerregistry/pkg/v1/types"

	"github.com/vmsan/vmsan/api"
	"github.com/vmsan/vmsan/internal/ext4"
	"github.com/vmsan/vmsan/internal/image/unpack"
	"github.com/vmsan/vmsan/internal/oci"
)

// Layer is one layer of an image, lowest first.
type Layer struct {
	DiffID    string                                           // "sha256:<hex>" of the uncompressed tar; verified while it is read; "" if unknown
	MediaType string                                           // "" if unknown
	Open      func(ctx context.Context) (io.ReadCloser, error) // the blob as stored (compressed perhaps)
	Size      int64                                            // of the blob, in bytes; 0 if unknown
}

// ahead is how many layers are decompressed before it is their turn.
const ahead = 2

// layerTypes are the kinds of layers that can be read, wherever they are.
var layerTypes = slices.Concat(oci.LayerTypes, oci.ForeignLayerTypes)

// ImportLayers makes an image of layers. The same layers make the same image.
// Each is opened once, and read to its end or not. What cannot be an image is
// ErrImageInvalid. Nothing is left behind on error.
func (s Store) ImportLayers(ctx context.Context, layers []Layer, m Meta) (Image, error) {
	if err := checkLayers(layers); err != nil {
		return Image{}, fmt.Errorf("import image: %w", err)
	}
	return s.build(ctx, layers, true, m)
}

// ImportTar makes an image of a root file system in a tar archive, which may
// be compressed with gzip, zstd or xz. The same archive makes the same image.
// An archive that is cut short or malformed is ErrImageInvalid. Nothing is
// left behind on error.
//
// Of extended attributes, those of the user and security name spaces are
// kept. File times other than the last modification are not.
func (s Store) ImportTar(ctx context.Context, r io.Reader, m Meta) (Image, error) {
	only := Layer{Open: func(context.Context) (io.ReadCloser, error) { return io.NopCloser(r), nil }}
	return s.build(ctx, []Layer{only}, false, m)
}

// ImportExt4 makes an image of what is in an ext4. It is written anew, so
// that the guest's kernel gets none that was made to hurt it.
func (s Store) ImportExt4(ctx context.Context, f io.ReaderAt, m Meta) (Image, error) {
	disk, err := ext4.NewReader(f)
	if err != nil {
		return Image{}, fmt.Errorf("import image: %w", unpack.Invalid(err))
	}
	return s.importTree(ctx, func(visit func(string, *ext4.File) error) error {
		err := disk.Walk(visit)
		if errors.Is(err, ext4.ErrDamaged) {
			err = unpack.Invalid(err)
		}
		return err
	}, m)
}

// importTree makes an image of files that other file systems have.
func (s Store) importTree(ctx context.Context, walk walker, m Meta) (Image, error) {
	archive, out := io.Pipe()
	go func() { out.CloseWithError(writeTar(ctx, walk, out)) }()
	defer archive.Close()
	return s.ImportTar(ctx, archive, m)
}

func checkLayers(layers []Layer) error {
	if len(layers) == 0 {
		return api.Errorf(api.ErrImageInvalid, "it has no layers")
	}
	if len(layers) > oci.MaxLayers {
		return api.Errorf(api.ErrImageInvalid, "it has %d layers, at most %d", len(layers), oci.MaxLayers)
	}
	for i, l := range layers {
		if l.MediaType != "" && !slices.Contains(layerTypes, types.MediaType(l.MediaType)) {
			return api.Errorf(api.ErrImageInvalid, "layer %d has the unknown type %.100q; known are %q", i+1, l.MediaType, layerTypes)
		}
	}
	return nil
}

// flatten writes the file system that the layers make together into f.
func flatten(ctx context.Context, layers []Layer, whiteouts bool, c Config, f *os.File) error {
	id, err := c.id()
	if err != nil {
		return err
	}
	fs := ext4.NewWriter(f, maxDiskSize)
	fs.UUID = id
	u := unpack.New(fs, maxDiskSize)
	var streams []*stream
	defer func() {
		for _, s := range streams {
			s.close()
		}
	}()
	for i := range layers {
		for len(streams) < min(i+1+ahead, len(layers)) {
			streams = append(streams, startStream(ctx, layers[len(streams)]))
		}
		err := u.Layer(ctx, streams[i], whiteouts)
		if err == nil {
			err = streams[i].verify()
		}
		if err != nil && len(layers) > 1 {
			return fmt.Errorf("layer %d of %d: %w", i+1, len(layers), err)
		}
		if err != nil {
			return err
		}
	}
	if u.Entries() == 0 {
		return unpack.Invalid(errEmpty)
	}
	if err := u.Ensure(c.Workdir); err != nil {
		return err
	}
	return fs.Close()
}
