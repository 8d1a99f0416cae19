package image

import (
	"archive/tar"
	"bytes"
	"os"
	"path/filepath"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/vmsan/vmsan/api"
	"github.com/vmsan/vmsan/internal/ext4"
)

// written is a sandbox's disk with files below upper.
func written(t *testing.T, files map[string]ext4.Attr) []byte {
	t.Helper()
	path := filepath.Join(t.TempDir(), "disk")
	f, err := os.Create(path)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	w := ext4.NewWriter(f, 1<<30)
	upper := w.New(ext4.Attr{Mode: ext4.TypeDir | 0o755})
	if err := w.Link(w.Root(), "upper", upper); err != nil {
		t.Fatal(err)
	}
	for name, a := range files {
		if err := w.Link(upper, name, w.New(a)); err != nil {
			t.Fatal(err)
		}
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	data, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	return data
}

func TestCommit(t *testing.T) {
	s := testStore(t)
	base := mustImport(t, s, "base", rootfs...)
	disk := written(t, map[string]ext4.Attr{
		"bin":    {Mode: ext4.TypeChar}, // a whiteout
		"new":    {Mode: ext4.TypeRegular | 0o640, UID: 7, Xattrs: map[string]string{"user.100%=sure": "v", "trusted.overlay.origin": "x"}},
		"socket": {Mode: ext4.TypeSocket | 0o777},
	})
	var made []Image
	for _, name := range []string{"one", "two"} {
		img, err := s.Commit(t.Context(), base.Digest, bytes.NewReader(disk), Meta{Name: name, Source: "a test", Config: exported})
		if err != nil {
			t.Fatal(err)
		}
		made = append(made, img)
	}
	if made[0].Digest != made[1].Digest || made[0].Digest == base.Digest {
		t.Errorf("digests are %.12s and %.12s, the image's %.12s", made[0].Digest, made[1].Digest, base.Digest)
	}
	files := archive(t, append([]tar.Header{rootfs[0], rootfs[5], rootfs[6], rootfs[8]},
		tar.Header{Typeflag: tar.TypeReg, Name: "new", Mode: 0o640, Uid: 7, PAXRecords: map[string]string{"SCHILY.xattr.user.100%25%3Dsure": "v"}})...)
	want, err := testStore(t).ImportTar(t.Context(), bytes.NewReader(files), Meta{Config: exported})
	if err != nil {
		t.Fatal(err)
	}
	if want.Size != made[0].Size {
		t.Errorf("it has %d bytes, made of its files %d", made[0].Size, want.Size)
	}
	var out bytes.Buffer
	if _, err := s.Export(t.Context(), "one", &out); err != nil {
		t.Fatal(err)
	}
	again, err := testStore(t).Import(t.Context(), &out, ImportOptions{})
	if err != nil || again.Digest != made[0].Digest {
		t.Errorf("exported and imported it is %.12s, error %v, want %.12s", again.Digest, err, made[0].Digest)
	}
	if diff := cmp.Diff(exported, again.Config); diff != "" {
		t.Errorf("configuration (-want +got):\n%s", diff)
	}
}

// A disk that is damaged, or was made to be, makes no image.
func TestCommitOfBadDisk(t *testing.T) {
	s := testStore(t)
	base := mustImport(t, s, "base", rootfs...)
	for name, disk := range map[string][]byte{
		"empty":      nil,
		"cut short":  written(t, nil)[:8192],
		"redirected": written(t, map[string]ext4.Attr{"d": {Mode: ext4.TypeDir, Xattrs: map[string]string{"trusted.overlay.redirect": "/bin"}}}),
	} {
		if _, err := s.Commit(t.Context(), base.Digest, bytes.NewReader(disk), Meta{Name: "bad"}); !api.HasCode(err, api.ErrGuest) {
			t.Errorf("%s: got error %v, want ErrGuest", name, err)
		}
		if left, err := os.ReadDir(s.Layout.Tmp()); err != nil || len(left) > 0 {
			t.Errorf("%s: %d leftovers, error %v", name, len(left), err)
		}
	}
	if _, err := s.Resolve("bad"); !api.HasCode(err, api.ErrImageNotFound) {
		t.Errorf("got error %v, want ErrImageNotFound", err)
	}
}
