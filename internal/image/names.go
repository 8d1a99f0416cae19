package image

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"os"
	"regexp"
	"slices"
	"strings"

	"github.com/google/renameio/v2"

	"github.com/vmsan/vmsan/api"
	"github.com/vmsan/vmsan/internal/scratch"
)

// namesVersion is the version of images.json.
const namesVersion = 1

// maxNames bounds images.json in bytes.
const maxNames = 16 << 20

const (
	maxNameLen   = 200
	digestPrefix = "sha256:"
	latest       = ":latest"
)

var (
	// nameForm is parts separated by single slashes, and perhaps a tag. Names
	// of what was pulled may begin with a host and its port, and end in the
	// digest of a manifest.
	nameForm = regexp.MustCompile(`^(([a-z0-9]([a-z0-9.-]*[a-z0-9])?|\[[0-9a-f:]+\])(:[0-9]{1,5})?/)?` +
		`[a-z0-9]([a-z0-9._-]*[a-z0-9])?(/[a-z0-9]([a-z0-9._-]*[a-z0-9])?)*(:[A-Za-z0-9_][A-Za-z0-9._-]{0,127}|@sha256:[0-9a-f]{64})?$`)
	// prefixForm is the beginning of a digest, long enough to mean something.
	prefixForm = regexp.MustCompile(`^[0-9a-f]{4,64}$`)
)

// ParseName checks an image's name and returns its one form: the tag
// "latest" is what a name without a tag has, and is left out.
func ParseName(name string) (string, error) {
	if len(name) > maxNameLen || !nameForm.MatchString(name) || strings.HasPrefix(name, digestPrefix) {
		return "", api.Errorf(api.ErrValidationImageRef, "image name %.100q is malformed", name).
			WithHint("names are lower-case letters, digits and . _ - /, with an optional :tag, such as team/python:3.12")
	}
	return strings.TrimSuffix(name, latest), nil
}

func parseOptionalName(name string) (string, error) {
	if name == "" {
		return "", nil
	}
	return ParseName(name)
}

// namesFile is what images.json holds.
type namesFile struct {
	Format int `json:"format"`
	// Names has a digest for each name.
	Names map[string]string `json:"names"`
}

// Names returns the digest of every name.
func (s Store) Names() (map[string]string, error) {
	data, err := readBounded(s.Layout.ImageNames())
	if errors.Is(err, fs.ErrNotExist) {
		return map[string]string{}, nil
	}
	if err != nil {
		return nil, fmt.Errorf("read image names: %w", err)
	}
	var f namesFile
	if err := json.Unmarshal(data, &f); err != nil {
		return nil, fmt.Errorf("read image names: %s: %w", s.Layout.ImageNames(), err)
	}
	if f.Format != namesVersion || f.Names == nil {
		return nil, fmt.Errorf("read image names: %s has format %d, this vmsan reads %d", s.Layout.ImageNames(), f.Format, namesVersion)
	}
	return f.Names, nil
}

func readBounded(path string) ([]byte, error) {
	info, err := os.Stat(path)
	if err != nil {
		return nil, err
	}
	if info.Size() > maxNames {
		return nil, fmt.Errorf("%s has %d bytes, at most %d", path, info.Size(), maxNames)
	}
	return os.ReadFile(path)
}

// NamesOf returns the names of the image with that digest, sorted.
func (s Store) NamesOf(digest string) ([]string, error) {
	all, err := s.Names()
	if err != nil {
		return nil, err
	}
	return namesOf(all, digest), nil
}

func namesOf(all map[string]string, digest string) []string {
	var names []string
	for _, name := range slices.Sorted(maps.Keys(all)) {
		if all[name] == digest {
			names = append(names, name)
		}
	}
	return names
}

// setName is called with the lock held.
func (s Store) setName(name, digest string) error {
	all, err := s.Names()
	if err != nil {
		return err
	}
	all[name] = digest
	return s.writeNames(all)
}

func (s Store) writeNames(all map[string]string) error {
	data, err := json.MarshalIndent(namesFile{Format: namesVersion, Names: all}, "", "  ")
	if err != nil {
		return err
	}
	if err := renameio.WriteFile(s.Layout.ImageNames(), append(data, '\n'), 0o644); err != nil {
		return scratch.Explain(fmt.Errorf("write image names: %w", err))
	}
	return nil
}

// Tag gives the image that ref names another name, taking it from the image
// that has it.
func (s Store) Tag(ctx context.Context, ref, name string) (Image, error) {
	name, err := ParseName(name)
	if err != nil {
		return Image{}, err
	}
	unlock, err := s.lock(ctx)
	if err != nil {
		return Image{}, err
	}
	defer unlock()
	img, err := s.Resolve(ref)
	if err != nil {
		return Image{}, err
	}
	return img, s.setName(name, img.Digest)
}

// Resolve returns the image with a name, or with a digest that begins with
// what stands behind "sha256:".
func (s Store) Resolve(ref string) (Image, error) {
	digest, err := s.resolve(ref)
	if err != nil {
		return Image{}, err
	}
	img, err := s.load(digest)
	if errors.Is(err, fs.ErrNotExist) {
		return Image{}, notFound(ref)
	}
	return img, err
}

func (s Store) resolve(ref string) (string, error) {
	if prefix, ok := strings.CutPrefix(ref, digestPrefix); ok {
		return s.resolvePrefix(ref, prefix)
	}
	name, err := ParseName(ref)
	if err != nil {
		return "", err
	}
	all, err := s.Names()
	if err != nil {
		return "", err
	}
	digest, ok := all[name]
	if !ok || !digestForm.MatchString(digest) {
		return "", notFound(ref)
	}
	return digest, nil
}

func (s Store) resolvePrefix(ref, prefix string) (string, error) {
	if !prefixForm.MatchString(prefix) {
		return "", api.Errorf(api.ErrValidationImageRef, "image digest %.100q is malformed", ref).
			WithHint("sha256: and 4 to 64 hexadecimal digits")
	}
	digests, err := s.digests()
	if err != nil {
		return "", err
	}
	digests = slices.DeleteFunc(digests, func(d string) bool { return !strings.HasPrefix(d, prefix) })
	switch len(digests) {
	case 0:
		return "", notFound(ref)
	case 1:
		return digests[0], nil
	}
	return "", api.Errorf(api.ErrValidationImageRef, "%d images' digests begin with %s", len(digests), prefix).
		WithHint("give more digits of the digest")
}

// Removed tells what a Remove did.
type Removed struct {
	// Names are those that were taken off the image.
	Names []string
	// Digest is the removed image's, empty if it has other names and stays.
	Digest string
}

// Remove takes a name off its image, and removes an image whose last name
// that was, or which ref names by its digest. inUse fails if something uses the
// image with a digest; it is called with the images locked.
func (s Store) Remove(ctx context.Context, ref string, inUse func(digest string) error) (Removed, error) {
	unlock, err := s.lock(ctx)
	if err != nil {
		return Removed{}, err
	}
	defer unlock()
	digest, err := s.resolve(ref)
	if err != nil {
		return Removed{}, err
	}
	all, err := s.Names()
	if err != nil {
		return Removed{}, err
	}
	names := namesOf(all, digest)
	if name, err := ParseName(ref); err == nil && len(names) > 1 {
		delete(all, name)
		return Removed{Names: []string{name}}, s.writeNames(all)
	}
	if err := inUse(digest); err != nil {
		return Removed{}, fmt.Errorf("remove image %s: %w", ref, err)
	}
	maps.DeleteFunc(all, func(_, d string) bool { return d == digest })
	return Removed{Names: names, Digest: digest}, s.remove(digest, all)
}

// RemoveUnnamed removes the image with a digest, unless it has a name by now:
// Removed has no digest then. inUse is as for Remove.
func (s Store) RemoveUnnamed(ctx context.Context, digest string, inUse func(digest string) error) (Removed, error) {
	unlock, err := s.lock(ctx)
	if err != nil {
		return Removed{}, err
	}
	defer unlock()
	all, err := s.Names()
	if err != nil || len(namesOf(all, digest)) > 0 {
		return Removed{}, err
	}
	if err := inUse(digest); err != nil {
		return Removed{}, fmt.Errorf("remove image %.12s: %w", digest, err)
	}
	return Removed{Digest: digest}, s.remove(digest, all)
}

// remove takes the names first: a name without an image would be worse to
// leave behind than an image without a name.
func (s Store) remove(digest string, names map[string]string) error {
	if err := s.writeNames(names); err != nil {
		return err
	}
	dir, err := scratch.New(s.Layout.Tmp(), "image-rm")
	if err != nil {
		return err
	}
	// In one step, so that no half of an image is ever there.
	err = os.Rename(s.Layout.Image(digest), dir.Join("gone"))
	if errors.Is(err, fs.ErrNotExist) {
		err = nil
	}
	return errors.Join(err, dir.Close())
}

// lock serializes changes to names and to which images there are. It is a
// flock on the directory of the images.
func (s Store) lock(ctx context.Context) (unlock func(), err error) {
	if err := os.MkdirAll(s.Layout.Images(), 0o755); err != nil {
		return nil, fmt.Errorf("lock images: %w", err)
	}
	return scratch.Lock(ctx, s.Layout.Images())
}
