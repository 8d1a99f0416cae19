package image_test

import (
	"archive/tar"
	"bytes"
	"os"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/vmsan/vmsan/api"
	"github.com/vmsan/vmsan/internal/image"
	"github.com/vmsan/vmsan/internal/store"
	"github.com/vmsan/vmsan/internal/testenv"
)

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
	var b bytes.Buffer
	w := tar.NewWriter(&b)
	if err := w.WriteHeader(&tar.Header{Name: "big", Size: 4 << 20}); err != nil {
		t.Fatal(err)
	}
	if _, err := w.Write(bytes.Repeat([]byte{1}, 4<<20)); err != nil {
		t.Fatal(err)
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	if _, err := s.ImportTar(t.Context(), &b, image.Meta{}); !api.HasCode(err, api.ErrDiskFull) {
		t.Errorf("got error %v, want ErrDiskFull", err)
	}
	if left, err := os.ReadDir(s.Layout.Tmp()); err != nil || len(left) > 0 {
		t.Errorf("%d leftovers, error %v", len(left), err)
	}
}
