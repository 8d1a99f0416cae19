package image_test

import (
	"archive/tar"
	"bytes"
	"context"
	"io"
	"os"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/vmsan/vmsan/api"
	"github.com/vmsan/vmsan/internal/image"
	"github.com/vmsan/vmsan/internal/store"
	"github.com/vmsan/vmsan/internal/testenv"
)

// What fills the disk makes no image and is given back, and goes well once there
// is room.
func TestImportToFullDisk(t *testing.T) {
	testenv.RequireRoot(t)
	s := image.Store{Layout: store.Layout{Dir: t.TempDir()}}
	if err := unix.Mount("tmpfs", s.Layout.Dir, "tmpfs", 0, "size=1m"); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := unix.Unmount(s.Layout.Dir, unix.MNT_DETACH); err != nil {
			t.Error(err)
		}
	})
	base, err := s.ImportTar(t.Context(), bytes.NewReader(large(t, 600<<10)), image.Meta{})
	if err != nil {
		t.Fatal(err)
	}
	f, err := os.Open(s.RootfsPath(base.Digest)) // as good a disk as any
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	body := large(t, 4<<20)
	makers := map[string]func() error{
		"archive": func() error {
			_, err := s.ImportTar(t.Context(), bytes.NewReader(body), image.Meta{})
			return err
		},
		"layers": func() error {
			open := func(context.Context) (io.ReadCloser, error) { return io.NopCloser(bytes.NewReader(body)), nil }
			_, err := s.ImportLayers(t.Context(), []image.Layer{{Open: open}}, image.Meta{Config: image.Config{User: "1"}})
			return err
		},
		"commit": func() error {
			_, err := s.Commit(t.Context(), base.Digest, f, image.Meta{Config: image.Config{User: "2"}})
			return err
		},
	}
	for name, make := range makers {
		if err := make(); !api.HasCode(err, api.ErrDiskFull) {
			t.Errorf("%s: got error %v, want ErrDiskFull", name, err)
		}
		if left, err := os.ReadDir(s.Layout.Tmp()); err != nil || len(left) > 0 {
			t.Errorf("%s: %d leftovers, error %v", name, len(left), err)
		}
		if images, _, err := s.List(); err != nil || len(images) != 1 {
			t.Errorf("%s: %d images, error %v", name, len(images), err)
		}
	}
	if err := unix.Mount("tmpfs", s.Layout.Dir, "tmpfs", unix.MS_REMOUNT, "size=32m"); err != nil {
		t.Fatal(err)
	}
	for name, make := range makers {
		if err := make(); err != nil {
			t.Errorf("%s, with room: %v", name, err)
		}
	}
}

// large is an archive of a file with that many bytes.
func large(t *testing.T, size int) []byte {
	t.Helper()
	var b bytes.Buffer
	w := tar.NewWriter(&b)
	if err := w.WriteHeader(&tar.Header{Name: "big", Size: int64(size)}); err != nil {
		t.Fatal(err)
	}
	if _, err := w.Write(bytes.Repeat([]byte{1}, size)); err != nil {
		t.Fatal(err)
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	return b.Bytes()
}
