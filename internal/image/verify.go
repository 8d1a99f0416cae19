package image

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"

	"github.com/vmsan/vmsan/api"
	"github.com/vmsan/vmsan/internal/ext4"
)

// Check tells in well under a millisecond whether an image is fit to be
// started from: its file is there, has the recorded size, and holds a file
// system of that size. What is not is ErrImageCorrupt.
func (s Store) Check(digest string) (Image, error) {
	if !digestForm.MatchString(digest) {
		return Image{}, notFound(digest)
	}
	img, err := s.load(digest)
	if errors.Is(err, fs.ErrNotExist) {
		return Image{}, notFound(digest)
	}
	if err != nil {
		return Image{}, err
	}
	if err := s.checkFile(img); err != nil {
		return Image{}, s.corrupt(digest, err)
	}
	return img, nil
}

// CheckSettled is Check, after whoever is removing an image now has done so.
func (s Store) CheckSettled(ctx context.Context, digest string) (Image, error) {
	unlock, err := s.lock(ctx)
	if err != nil {
		return Image{}, err
	}
	defer unlock()
	return s.Check(digest)
}

func (s Store) checkFile(img Image) error {
	f, err := os.Open(s.RootfsPath(img.Digest))
	if err != nil {
		return err
	}
	defer f.Close()
	info, err := f.Stat()
	if err != nil {
		return err
	}
	if info.Size() != img.Size {
		return fmt.Errorf("%d bytes instead of %d", info.Size(), img.Size)
	}
	made, err := ext4.NewReader(f)
	if err != nil {
		return err
	}
	if made.Size() != img.Size {
		return fmt.Errorf("file system of %d bytes in a file of %d", made.Size(), img.Size)
	}
	return nil
}

// Verify checks an image and hashes all of its file, some 0.5 s for 200 MB.
func (s Store) Verify(ctx context.Context, digest string) (Image, error) {
	img, err := s.Check(digest)
	if err != nil {
		return Image{}, err
	}
	f, err := os.Open(s.RootfsPath(digest))
	if err != nil {
		return Image{}, fmt.Errorf("verify image: %w", err)
	}
	defer f.Close()
	sum, _, err := digestOf(ctx, f)
	if err != nil {
		return Image{}, fmt.Errorf("verify image: %w", err)
	}
	if sum != digest {
		return Image{}, s.corrupt(digest, fmt.Errorf("its bytes have the digest %.12s", sum))
	}
	return img, nil
}

func (s Store) corrupt(digest string, err error) error {
	return api.Errorf(api.ErrImageCorrupt, "image %.12s is damaged: %w", digest, err).
		WithHint("make or import it again: vmsan setup rebuilds the default image")
}

func notFound(ref string) error {
	return api.Errorf(api.ErrImageNotFound, "no image %q", ref).
		WithHint("vmsan setup makes the default image")
}
