// Package image keeps root file systems: read-only ext4 files, each named by
// the digest of its bytes and shared by all sandboxes that start from it.
package image

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"time"

	"github.com/vmsan/vmsan/api"
	"github.com/vmsan/vmsan/internal/fault"
	"github.com/vmsan/vmsan/internal/image/unpack"
	"github.com/vmsan/vmsan/internal/scratch"
	"github.com/vmsan/vmsan/internal/store"
)

// recordVersion is the version of image.json.
const recordVersion = 1

// maxRecord bounds image.json in bytes.
const maxRecord = 1 << 20

// The files in an image's directory.
const (
	rootfsName = "rootfs.ext4"
	recordName = "image.json"
)

var digestForm = regexp.MustCompile(`^[0-9a-f]{64}$`)

// Image describes an image. It is what image.json holds.
type Image struct {
	// Format is the version of this record.
	Format int `json:"format"`
	// Digest is the hexadecimal SHA-256 of the file.
	Digest string `json:"digest"`
	// Size is the file's size in bytes.
	Size    int64     `json:"size"`
	Created time.Time `json:"created"`
	// Source tells in words where the image came from.
	Source string `json:"source"`
	Config Config `json:"config"`
}

// Meta is what an importer says about an image.
type Meta struct {
	// Name is the name the image gets, taken from another image if that has
	// it. Optional.
	Name string
	// Source tells in words where the image comes from.
	Source string
	Config Config
	// Progress is told of layers that are being read, one call at a time, from
	// other goroutines than the caller's. Optional.
	Progress func(LayerProgress)
}

// Store is the images in a state directory. Its methods may be called from
// several processes and goroutines at a time.
type Store struct {
	Layout store.Layout
}

// RootfsPath is where the image with that digest is.
func (s Store) RootfsPath(digest string) string {
	return filepath.Join(s.Layout.Image(digest), rootfsName)
}

func (s Store) build(ctx context.Context, layers []Layer, whiteouts bool, m Meta) (Image, error) {
	name, err := parseOptionalName(m.Name)
	if err != nil {
		return Image{}, err
	}
	dir, err := scratch.New(s.Layout.Tmp(), "image")
	if err != nil {
		return Image{}, scratch.Explain(err)
	}
	defer dir.Close()
	img := Image{Format: recordVersion, Created: time.Now().UTC().Truncate(time.Second), Source: m.Source, Config: m.Config}
	layers, stop := watched(layers, m.Progress)
	defer stop()
	if err := write(ctx, dir.Join("made"), layers, whiteouts, &img); err != nil {
		return Image{}, scratch.Explain(fmt.Errorf("import image: %w", err))
	}
	if err := s.publish(ctx, dir, img, name); err != nil {
		return Image{}, scratch.Explain(fmt.Errorf("import image: %w", err))
	}
	return img, nil
}

func write(ctx context.Context, dir string, layers []Layer, whiteouts bool, img *Image) error {
	if err := os.Mkdir(dir, 0o755); err != nil {
		return err
	}
	if err := writeRootfs(ctx, filepath.Join(dir, rootfsName), layers, whiteouts, img); err != nil {
		return err
	}
	data, err := json.MarshalIndent(img, "", "  ")
	if err != nil {
		return err
	}
	if len(data) >= maxRecord {
		return unpack.Invalid(fmt.Errorf("its configuration takes %d bytes to write down, and no more than %d are read", len(data), maxRecord))
	}
	return writeReadOnly(filepath.Join(dir, recordName), func(f *os.File) error {
		_, err := f.Write(append(data, '\n'))
		return err
	})
}

// maxDiskSize is the largest file system an import can make, in bytes. It
// decides how much room the file system's own tables get, so that another
// value would make other images of the same archives.
const maxDiskSize = 64 << 30

func writeRootfs(ctx context.Context, path string, layers []Layer, whiteouts bool, img *Image) error {
	return writeReadOnly(path, func(f *os.File) error {
		if err := flatten(ctx, layers, whiteouts, img.Config, f); err != nil {
			return err
		}
		// The disk is busy with one while a CPU is with the other.
		synced := make(chan error, 1)
		go func() { synced <- f.Sync() }()
		var err error
		img.Digest, img.Size, err = digestOf(ctx, f)
		return errors.Join(err, <-synced)
	})
}

var errEmpty = errors.New("it is empty")

func digestOf(ctx context.Context, f *os.File) (string, int64, error) {
	if _, err := f.Seek(0, io.SeekStart); err != nil {
		return "", 0, err
	}
	sum := sha256.New()
	n, err := io.Copy(sum, cancelable{ctx, f})
	if err != nil {
		return "", 0, err
	}
	return hex.EncodeToString(sum.Sum(nil)), n, nil
}

// cancelable is a reader that ends with ctx.
type cancelable struct {
	ctx context.Context
	r   io.Reader
}

func (c cancelable) Read(p []byte) (int, error) {
	if err := c.ctx.Err(); err != nil {
		return 0, err
	}
	return c.r.Read(p)
}

// writeReadOnly makes a file that nobody writes to again, and has it on disk.
func writeReadOnly(path string, fill func(*os.File) error) error {
	f, err := os.OpenFile(path, os.O_RDWR|os.O_CREATE|os.O_EXCL, 0o600)
	if err != nil {
		return err
	}
	defer f.Close()
	if err := fill(f); err != nil {
		return err
	}
	if err := f.Chmod(0o444); err != nil {
		return err
	}
	return f.Sync()
}

// publish puts the image in its place, unless it is there and undamaged, and
// gives it its name.
func (s Store) publish(ctx context.Context, dir *scratch.Dir, img Image, name string) error {
	// Reading all of one takes long, and others wait for the lock.
	_, whole := s.Verify(ctx, img.Digest)
	if whole != nil && !absent(whole) {
		return whole
	}
	unlock, err := s.lock(ctx)
	if err != nil {
		return err
	}
	defer unlock()
	if whole == nil {
		_, whole = s.Check(img.Digest) // it may have gone meanwhile
	}
	if whole != nil {
		if err := fault.After("image: published", dir.Publish("made", s.Layout.Image(img.Digest))); err != nil {
			return err
		}
	}
	if name == "" {
		return nil
	}
	return s.setName(name, img.Digest)
}

// absent tells errors that another copy of the image mends.
func absent(err error) bool {
	return api.HasCode(err, api.ErrImageNotFound) || api.HasCode(err, api.ErrImageCorrupt)
}

// digests are those of the images that are there.
func (s Store) digests() (list []string, err error) {
	entries, err := os.ReadDir(s.Layout.Images())
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return nil, fmt.Errorf("list images: %w", err)
	}
	for _, e := range entries {
		if digestForm.MatchString(e.Name()) {
			list = append(list, e.Name())
		}
	}
	return list, nil
}

// List returns all images, the newest first, and by their digests the errors
// of those that are damaged.
func (s Store) List() (images []Image, broken map[string]error, err error) {
	digests, err := s.digests()
	if err != nil {
		return nil, nil, err
	}
	broken = map[string]error{}
	for _, digest := range digests {
		img, err := s.load(digest)
		switch {
		case errors.Is(err, fs.ErrNotExist): // removed since the directory was read
		case err != nil:
			broken[digest] = err
		default:
			images = append(images, img)
		}
	}
	slices.SortFunc(images, func(a, b Image) int {
		if c := b.Created.Compare(a.Created); c != 0 {
			return c
		}
		return strings.Compare(a.Digest, b.Digest)
	})
	return images, broken, nil
}

func (s Store) load(digest string) (Image, error) {
	f, err := os.Open(filepath.Join(s.Layout.Image(digest), recordName))
	if err != nil {
		return Image{}, err
	}
	defer f.Close()
	var img Image
	if err := json.NewDecoder(io.LimitReader(f, maxRecord)).Decode(&img); err != nil {
		return Image{}, s.corrupt(digest, fmt.Errorf("read its record: %w", err))
	}
	if img.Format != recordVersion {
		return Image{}, fmt.Errorf("image %.12s: record has format %d, this vmsan reads %d", digest, img.Format, recordVersion)
	}
	if img.Digest != digest {
		return Image{}, s.corrupt(digest, errors.New("its record is another image's"))
	}
	return img, nil
}
