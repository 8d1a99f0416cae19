package image

import (
	"context"
	"errors"
	"io"
	"os"

	"github.com/vmsan/vmsan/api"
	"github.com/vmsan/vmsan/internal/ext4"
	"github.com/vmsan/vmsan/internal/image/overlay"
)

// Commit makes an image of what a sandbox has made of the image with that
// digest: its files, with those on the sandbox's own disk over them. The disk
// is a guest's, and nothing in it is believed; one that cannot be read is
// ErrGuest. The same image and disk make the same image. Nothing is left
// behind on error.
func (s Store) Commit(ctx context.Context, digest string, disk io.ReaderAt, m Meta) (Image, error) {
	if _, err := s.Check(digest); err != nil {
		return Image{}, err
	}
	f, err := os.Open(s.RootfsPath(digest))
	if err != nil {
		return Image{}, err
	}
	defer f.Close()
	lower, err := ext4.NewReader(f)
	if err != nil {
		return Image{}, err
	}
	upper, err := ext4.Recover(disk)
	if err != nil {
		return Image{}, unreadableDisk(err)
	}
	return s.importTree(ctx, func(visit func(string, *ext4.File) error) error {
		return unreadableDisk(overlay.Walk(lower, upper, visit))
	}, m)
}

// unreadableDisk gives err the code for what guests do, if that is what it
// says.
func unreadableDisk(err error) error {
	if !errors.Is(err, ext4.ErrDamaged) {
		return err
	}
	return api.Errorf(api.ErrGuest, "read the sandbox's disk: %w", err)
}
