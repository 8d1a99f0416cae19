package image

import (
	"archive/tar"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"io"
	"os"
	"runtime"
	"time"

	"github.com/vmsan/vmsan/internal/ext4"
)

// Export writes an image as a tar archive of an OCI image layout, with one
// layer: what its layers made together. The image's file is read twice,
// because the layer's digest stands in front of it. The same image makes the
// same archive.
func (s Store) Export(ctx context.Context, ref string, w io.Writer) (Image, error) {
	img, err := s.Resolve(ref)
	if err != nil {
		return Image{}, err
	}
	if img, err = s.Check(img.Digest); err != nil {
		return Image{}, err
	}
	if err := s.export(ctx, img, ref, w); err != nil {
		return Image{}, fmt.Errorf("export image %s: %w", ref, err)
	}
	return img, nil
}

func (s Store) export(ctx context.Context, img Image, ref string, w io.Writer) error {
	f, err := os.Open(s.RootfsPath(img.Digest))
	if err != nil {
		return err
	}
	defer f.Close()
	disk, err := ext4.NewReader(f)
	if err != nil {
		return err
	}
	sum := &summer{sum: sha256.New()}
	if err := writeTar(ctx, disk, sum); err != nil {
		return err
	}
	layer := blob{digest: sum.digest(), size: sum.size}
	out := &layout{w: tar.NewWriter(w)}
	config := out.json("application/vnd.oci.image.config.v1+json", exportedConfig(img, layer.digest))
	manifest := out.json("application/vnd.oci.image.manifest.v1+json", map[string]any{
		"schemaVersion": 2, "mediaType": "application/vnd.oci.image.manifest.v1+json", "config": config,
		"layers": []map[string]any{layer.descriptor("application/vnd.oci.image.layer.v1.tar")},
	})
	manifest["annotations"] = map[string]string{"org.opencontainers.image.ref.name": ref}
	manifest["platform"] = map[string]string{"os": "linux", "architecture": runtime.GOARCH}
	index, err := json.Marshal(map[string]any{"schemaVersion": 2, "manifests": []any{manifest}})
	if err != nil {
		return err
	}
	out.file("oci-layout", []byte(`{"imageLayoutVersion":"1.0.0"}`))
	out.file("index.json", index)
	out.header(layer.name(), layer.size)
	if out.err != nil {
		return out.err
	}
	if err := writeTar(ctx, disk, out.w); err != nil {
		return err
	}
	return out.w.Close()
}

func exportedConfig(img Image, layer string) map[string]any {
	c := img.Config
	ports := map[string]struct{}{}
	for _, p := range c.Exposed {
		ports[p] = struct{}{}
	}
	return map[string]any{
		"os": "linux", "architecture": runtime.GOARCH,
		"config": map[string]any{
			"Env": c.Env, "WorkingDir": c.Workdir, "User": c.User, "Entrypoint": c.Entrypoint, "Cmd": c.Cmd,
			"StopSignal": c.StopSignal, "Labels": c.Labels, "ExposedPorts": ports,
		},
		"rootfs": map[string]any{"type": "layers", "diff_ids": []string{layer}},
	}
}

// blob is a file of an image layout.
type blob struct {
	digest string
	size   int64
}

func (b blob) name() string { return "blobs/sha256/" + b.digest[len(digestPrefix):] }

func (b blob) descriptor(mediaType string) map[string]any {
	return map[string]any{"mediaType": mediaType, "digest": b.digest, "size": b.size}
}

// layout writes an image layout. It keeps its first error.
type layout struct {
	w   *tar.Writer
	err error
}

func (l *layout) header(name string, size int64) {
	if l.err == nil {
		l.err = l.w.WriteHeader(&tar.Header{Typeflag: tar.TypeReg, Name: name, Size: size, Mode: 0o644, ModTime: time.Unix(0, 0)})
	}
}

func (l *layout) file(name string, data []byte) {
	if l.header(name, int64(len(data))); l.err == nil {
		_, l.err = l.w.Write(data)
	}
}

// json writes v as a blob and returns its descriptor.
func (l *layout) json(mediaType string, v any) map[string]any {
	data, err := json.Marshal(v)
	if err != nil && l.err == nil {
		l.err = err
	}
	sum := sha256.Sum256(data)
	b := blob{digestPrefix + hex.EncodeToString(sum[:]), int64(len(data))}
	l.file(b.name(), data)
	return b.descriptor(mediaType)
}

// summer hashes and counts what is written to it.
type summer struct {
	sum interface {
		io.Writer
		Sum([]byte) []byte
	}
	size int64
}

func (s *summer) Write(p []byte) (int, error) {
	s.size += int64(len(p))
	return s.sum.Write(p)
}

func (s *summer) digest() string { return digestPrefix + hex.EncodeToString(s.sum.Sum(nil)) }

// writeTar writes a file system as an archive, which without its end would
// not be one: w is not closed.
func writeTar(ctx context.Context, disk *ext4.Reader, w io.Writer) error {
	out := tar.NewWriter(w)
	first := make(map[uint32]string) // where files with several names were
	err := disk.Walk(func(name string, n *ext4.File) error {
		if err := ctx.Err(); err != nil {
			return err
		}
		h := tarHeader(name, n)
		if other, ok := first[n.Number]; ok {
			h.Typeflag, h.Linkname, h.Size = tar.TypeLink, other, 0
		} else if n.Links > 1 && !n.IsDir() {
			first[n.Number] = name
		}
		if err := out.WriteHeader(h); err != nil {
			return err
		}
		if h.Typeflag != tar.TypeReg {
			return nil
		}
		_, err := io.Copy(out, n.Open())
		return err
	})
	if err != nil {
		return err
	}
	return out.Close()
}

func tarHeader(name string, n *ext4.File) *tar.Header {
	h := &tar.Header{
		Name: name, Mode: int64(n.Mode & 0o7777), Uid: int(n.UID), Gid: int(n.GID), ModTime: n.ModTime, Format: tar.FormatPAX,
	}
	for key, value := range n.Xattrs {
		if h.PAXRecords == nil {
			h.PAXRecords = make(map[string]string)
		}
		h.PAXRecords["SCHILY.xattr."+key] = value
	}
	switch n.Mode & ext4.TypeMask {
	case ext4.TypeRegular:
		h.Typeflag, h.Size = tar.TypeReg, n.Size
	case ext4.TypeDir:
		h.Typeflag, h.Name = tar.TypeDir, name+"/"
		if name == "" {
			h.Name = "./"
		}
	case ext4.TypeSymlink:
		h.Typeflag, h.Linkname = tar.TypeSymlink, n.Target
	case ext4.TypeFifo:
		h.Typeflag = tar.TypeFifo
	case ext4.TypeChar:
		h.Typeflag, h.Devmajor, h.Devminor = tar.TypeChar, int64(n.Major), int64(n.Minor)
	case ext4.TypeBlock:
		h.Typeflag, h.Devmajor, h.Devminor = tar.TypeBlock, int64(n.Major), int64(n.Minor)
	}
	return h
}
