package image

import (
	"archive/tar"
	"bytes"
	"errors"
	"fmt"
	"io"
	"maps"
	"os"
	"slices"
	"strings"
	"testing"

	"github.com/Microsoft/hcsshim/ext4/tar2ext4"
	"github.com/google/go-cmp/cmp"

	"github.com/vmsan/vmsan/api"
)

func TestCheckTarKeepsWhatCounts(t *testing.T) {
	in := archive(t,
		tar.Header{Typeflag: tar.TypeReg, Name: "../../etc/passwd", Mode: 0o644, Size: 2},
		tar.Header{Typeflag: tar.TypeLink, Name: "/etc/other", Linkname: "/../etc/passwd"},
		tar.Header{Typeflag: tar.TypeSymlink, Name: "up", Linkname: "../../up"},
		tar.Header{Typeflag: tar.TypeReg, Name: "x", Mode: 0o6755, Uid: 4_000_000_000, PAXRecords: map[string]string{
			"SCHILY.xattr.user.a":                  "1",
			"SCHILY.xattr.security.capability":     "2",
			"SCHILY.xattr.trusted.overlay.opaque":  "y",
			"SCHILY.xattr.system.posix_acl_access": "3",
		}},
	)
	var out bytes.Buffer
	if err := checkTar(t.Context(), bytes.NewReader(in), &out, 1<<20); err != nil {
		t.Fatal(err)
	}
	const want = `0 ./etc/passwd -> "" mode 644 owner 0 size 2 []
1 ./etc/other -> "./etc/passwd" mode 0 owner 0 size 0 []
2 ./up -> "../../up" mode 0 owner 0 size 0 []
0 ./x -> "" mode 6755 owner 4000000000 size 0 [SCHILY.xattr.security.capability SCHILY.xattr.user.a]
`
	if diff := cmp.Diff(want, listTar(t, &out)); diff != "" {
		t.Errorf("entries (-want +got):\n%s", diff)
	}
}

func listTar(t *testing.T, r io.Reader) string {
	t.Helper()
	var b strings.Builder
	for in := tar.NewReader(r); ; {
		h, err := in.Next()
		if errors.Is(err, io.EOF) {
			return b.String()
		}
		if err != nil {
			t.Fatal(err)
		}
		xattrs := slices.DeleteFunc(slices.Sorted(maps.Keys(h.PAXRecords)), func(k string) bool {
			return !strings.HasPrefix(k, xattrRecord)
		})
		fmt.Fprintf(&b, "%c %s -> %q mode %o owner %d size %d %v\n", h.Typeflag, h.Name, h.Linkname, h.Mode, h.Uid, h.Size, xattrs)
	}
}

func TestCheckTarBoundsBytes(t *testing.T) {
	in := archive(t,
		tar.Header{Typeflag: tar.TypeReg, Name: "a", Size: 600},
		tar.Header{Typeflag: tar.TypeReg, Name: "b", Size: 600},
	)
	if err := checkTar(t.Context(), bytes.NewReader(in), io.Discard, 1200); err != nil {
		t.Error(err)
	}
	err := checkTar(t.Context(), bytes.NewReader(in), io.Discard, 1199)
	if !api.HasCode(err, api.ErrImageInvalid) {
		t.Errorf("got error %v, want ErrImageInvalid", err)
	}
}

func FuzzCheckTar(f *testing.F) {
	small := slices.Clone(rootfs)
	small[2].Size = 100
	f.Add(archive(f, small...))
	f.Add(archive(f, small[5]))
	f.Fuzz(func(t *testing.T, data []byte) {
		disk, err := os.CreateTemp(t.TempDir(), "")
		if err != nil {
			t.Fatal(err)
		}
		defer disk.Close()
		var checked bytes.Buffer
		if err := checkTar(t.Context(), bytes.NewReader(data), &checked, 64<<10); err != nil {
			if !api.HasCode(err, api.ErrImageInvalid) {
				t.Errorf("got error %v, want ErrImageInvalid", err)
			}
			return
		}
		// What passes may still not fit together, but must not upset the
		// converter.
		if err := tar2ext4.ConvertTarToExt4(&checked, disk, tar2ext4.MaximumDiskSize(1<<20)); err != nil && isHostError(err) {
			t.Error(err)
		}
	})
}
