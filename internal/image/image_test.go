package image

import (
	"archive/tar"
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/vmsan/vmsan/api"
	"github.com/vmsan/vmsan/internal/store"
)

// rootfs are the headers of a small root file system; a regular file's body
// is its size in letters.
var rootfs = []tar.Header{
	{Typeflag: tar.TypeDir, Name: "./", Mode: 0o755},
	{Typeflag: tar.TypeDir, Name: "./bin/", Mode: 0o755},
	{Typeflag: tar.TypeReg, Name: "./bin/sh", Mode: 0o4755, Size: 100_000},
	{Typeflag: tar.TypeLink, Name: "./bin/dash", Linkname: "./bin/sh"},
	{Typeflag: tar.TypeSymlink, Name: "./bin/long", Linkname: strings.Repeat("long/", 40)},
	{Typeflag: tar.TypeChar, Name: "./dev/null", Mode: 0o666, Devmajor: 1, Devminor: 3},
	{Typeflag: tar.TypeFifo, Name: "./run/fifo", Mode: 0o600},
	{Typeflag: tar.TypeReg, Name: "./bin/ping", Mode: 0o755, Size: 3, PAXRecords: map[string]string{
		"SCHILY.xattr.security.capability":     "\x01\x00\x00\x02\x00\x20\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00",
		"SCHILY.xattr.trusted.overlay.opaque":  "y",
		"SCHILY.xattr.system.posix_acl_access": "\x02\x00\x00\x00",
	}},
	{Typeflag: tar.TypeReg, Name: "./home/" + strings.Repeat("n", 255), Mode: 0o600, Uid: 100_000, Gid: 1000, Size: 10},
}

func archive(t testing.TB, headers ...tar.Header) []byte {
	t.Helper()
	var b bytes.Buffer
	w := tar.NewWriter(&b)
	for _, h := range headers {
		h.ModTime = time.Unix(1_600_000_000, 0)
		h.Format = tar.FormatPAX
		if err := w.WriteHeader(&h); err != nil {
			t.Fatal(err)
		}
		if _, err := io.WriteString(w, strings.Repeat("x", int(h.Size))); err != nil {
			t.Fatal(err)
		}
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	return b.Bytes()
}

func testStore(t testing.TB) Store {
	return Store{Layout: store.Layout{Dir: filepath.Join(t.TempDir(), "state")}}
}

func mustImport(t testing.TB, s Store, name string, headers ...tar.Header) Image {
	t.Helper()
	img, err := s.ImportTar(t.Context(), bytes.NewReader(archive(t, headers...)), Meta{Name: name, Source: "a test"})
	if err != nil {
		t.Fatal(err)
	}
	return img
}

// checkNothingLeft checks that a failed import left nothing behind.
func checkNothingLeft(t *testing.T, s Store) {
	t.Helper()
	left, err := os.ReadDir(s.Layout.Tmp())
	if err != nil && !errors.Is(err, os.ErrNotExist) {
		t.Fatal(err)
	}
	if len(left) > 0 {
		t.Errorf("%d leftovers, the first is %s", len(left), left[0].Name())
	}
	if images, _, err := s.List(); err != nil || len(images) > 0 {
		t.Errorf("images %v, error %v", images, err)
	}
}

func TestImport(t *testing.T) {
	s := testStore(t)
	config := Config{Env: []string{"A=b"}, Workdir: "/srv", User: "1000", Entrypoint: []string{"/bin/sh"}, Cmd: []string{"-c", "id"}}
	want, err := s.ImportTar(t.Context(), bytes.NewReader(archive(t, rootfs...)), Meta{Name: "team/app:1.0", Source: "a test", Config: config})
	if err != nil {
		t.Fatal(err)
	}
	if want.Source != "a test" || want.Size == 0 {
		t.Errorf("got %+v", want)
	}
	for _, ref := range []string{"team/app:1.0", "sha256:" + want.Digest, "sha256:" + want.Digest[:8]} {
		got, err := s.Resolve(ref)
		if err != nil {
			t.Fatal(err)
		}
		if diff := cmp.Diff(want, got); diff != "" {
			t.Errorf("%s (-imported +resolved):\n%s", ref, diff)
		}
	}
	if _, err := s.Verify(t.Context(), want.Digest); err != nil {
		t.Error(err)
	}
	info, err := os.Stat(s.RootfsPath(want.Digest))
	if err != nil || info.Mode() != 0o444 || info.Size() != want.Size {
		t.Errorf("got %v, error %v", info, err)
	}
}

func TestImportIsReproducible(t *testing.T) {
	a := mustImport(t, testStore(t), "", rootfs...)
	b := mustImport(t, testStore(t), "", rootfs...)
	if a.Digest != b.Digest {
		t.Errorf("one archive made %s and %s", a.Digest, b.Digest)
	}
}

func TestImportTwiceIsOne(t *testing.T) {
	s := testStore(t)
	mustImport(t, s, "one", rootfs...)
	img := mustImport(t, s, "two", rootfs...)
	images, _, err := s.List()
	if err != nil || len(images) != 1 {
		t.Errorf("got %d images, error %v", len(images), err)
	}
	names, err := s.NamesOf(img.Digest)
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff([]string{"one", "two"}, names); diff != "" {
		t.Errorf("names (-want +got):\n%s", diff)
	}
}

func TestImportRefuses(t *testing.T) {
	whole := archive(t, rootfs...)
	file := func(name string) tar.Header { return tar.Header{Typeflag: tar.TypeReg, Name: name, Size: 1} }
	for _, c := range []struct {
		name string
		in   []byte
		want string
	}{
		{"nothing", nil, "empty"},
		{"an archive of nothing", archive(t), "empty"},
		{"text", []byte(strings.Repeat("hello ", 1000)), "invalid tar header"},
		{"a cut gzip", compressed(t, "gzip", whole)[:500], "cut short"},
		{"a cut zstd", compressed(t, "zstd", whole)[:200], "cut short"},
		{"a cut xz", compressed(t, "xz", whole)[:200], "truncated"},
		{"a broken gzip", []byte("\x1f\x8bxxxxxxxxxxxxxxxxxxx"), "decompress"},
		{"a broken zstd", []byte("\x28\xb5\x2f\xfdxxxxxxxxxxxxxxxxxxxx"), "decompress"},
		{"a broken xz", []byte("\xfd7zXZ\x00xxxxxxxxxxxxxxxxx"), "decompress"},
		{"cut inside a file", whole[:20_000], "cut short"},
		{"cut between entries", whole[:bytes.Index(whole, []byte("./bin/dash"))/512*512], "cut short"},
		{"cut in its end", whole[:len(whole)-1024], "cut short"},
		{"file below a file", archive(t, file("a"), file("a/b")), "a/b"},
		{"file as the root", archive(t, symlink(".", "x")), "the root"},
		{"link to a directory", archive(t, tar.Header{Typeflag: tar.TypeDir, Name: "d/"}, tar.Header{Typeflag: tar.TypeLink, Name: "a", Linkname: "d"}), "no such file"},
		{"link in place of its target", archive(t, file("d/f"), tar.Header{Typeflag: tar.TypeLink, Name: "d", Linkname: "d/f"}), "which it replaces"},
		{"links in a circle", archive(t, symlink("a", "b"), symlink("b", "a"), file("a/f")), "too many symbolic links"},
		{"deep tree", deep(t), "directories in each other"},
		{"large attributes", archive(t, tar.Header{Typeflag: tar.TypeReg, Name: "a", PAXRecords: map[string]string{"SCHILY.xattr.user.a": strings.Repeat("x", 4096)}}), "attributes do not fit"},
		{"symlink to nothing", archive(t, tar.Header{Typeflag: tar.TypeSymlink, Name: "a"}), "without a proper target"},
		{"device out of range", archive(t, tar.Header{Typeflag: tar.TypeChar, Name: "a", Devmajor: 4096}), "out of range"},
		{"file too large", unfinished(t, tar.Header{Typeflag: tar.TypeReg, Name: "a", Size: 1 << 50}), "more bytes than"},
		{"link to nothing", archive(t, tar.Header{Typeflag: tar.TypeLink, Name: "a", Linkname: "b"}), "no such file"},
		{"long name", archive(t, file(strings.Repeat("n", 256))), "name is too long"},
		{"long path", archive(t, file(strings.Repeat("n/", 3000)+"n")), "path is too long"},
		{"unknown type", archive(t, tar.Header{Typeflag: 'Z', Name: "a"}), "type"},
	} {
		t.Run(c.name, func(t *testing.T) {
			s := testStore(t)
			_, err := s.ImportTar(t.Context(), bytes.NewReader(c.in), Meta{Name: "bad"})
			if !api.HasCode(err, api.ErrImageInvalid) || !strings.Contains(err.Error(), c.want) {
				t.Errorf("got error %v, want ErrImageInvalid with %q", err, c.want)
			}
			checkNothingLeft(t, s)
		})
	}
}

func symlink(name, target string) tar.Header {
	return tar.Header{Typeflag: tar.TypeSymlink, Name: name, Linkname: target}
}

// deep goes deeper than a path can by going on where a link leads.
func deep(t *testing.T) []byte {
	headers := []tar.Header{symlink("l", strings.Repeat("d/", 900))}
	return archive(t, append(headers,
		tar.Header{Typeflag: tar.TypeDir, Name: strings.Repeat("d/", 900)},
		tar.Header{Typeflag: tar.TypeDir, Name: "l/" + strings.Repeat("d/", 900)})...)
}

// unfinished is an archive of nothing but a header.
func unfinished(t *testing.T, h tar.Header) []byte {
	var b bytes.Buffer
	if err := tar.NewWriter(&b).WriteHeader(&h); err != nil {
		t.Fatal(err)
	}
	return append(b.Bytes(), make([]byte, 2048)...)
}

// compressed has a program compress data.
func compressed(t testing.TB, program string, data []byte) []byte {
	t.Helper()
	cmd := exec.Command(program, "-c")
	cmd.Stdin = bytes.NewReader(data)
	out, err := cmd.Output()
	if err != nil {
		t.Fatal(err)
	}
	return out
}

func TestImportCompressed(t *testing.T) {
	whole := archive(t, rootfs...)
	want := mustImport(t, testStore(t), "", rootfs...)
	for _, program := range []string{"gzip", "zstd", "xz"} {
		got, err := testStore(t).ImportTar(t.Context(), bytes.NewReader(compressed(t, program, whole)), Meta{Source: "a test"})
		if err != nil || got.Digest != want.Digest {
			t.Errorf("%s: got %.12s, error %v, want %.12s", program, got.Digest, err, want.Digest)
		}
	}
}

// TestImportRefusesBomb gives up long before the disk is full.
func TestImportRefusesBomb(t *testing.T) {
	cmd := exec.Command("sh", "-c", "{ tar -c --format=gnu -C / --files-from=/dev/null; head -c 2G /dev/zero; } | zstd -c")
	bomb, err := cmd.Output()
	if err != nil {
		t.Fatal(err)
	}
	_, err = testStore(t).ImportTar(t.Context(), bytes.NewReader(bomb), Meta{})
	if !api.HasCode(err, api.ErrImageInvalid) {
		t.Errorf("got error %v, want ErrImageInvalid", err)
	}
}

// The bound on the ratio is on all there is, and not on each of what is
// compressed in each other.
func TestImportRefusesCompressedTwice(t *testing.T) {
	cmd := exec.Command("sh", "-c", "tar -c --format=gnu -C / --files-from=/dev/null | gzip -c | gzip -c")
	twice, err := cmd.Output()
	if err != nil {
		t.Fatal(err)
	}
	if _, err := testStore(t).Import(t.Context(), bytes.NewReader(twice), ImportOptions{}); !api.HasCode(err, api.ErrImageInvalid) {
		t.Errorf("got error %v, want ErrImageInvalid", err)
	}
}

// One image that is damaged keeps nobody from the others, and can be removed.
func TestListBesideDamaged(t *testing.T) {
	s := testStore(t)
	good, bad := mustImport(t, s, "good", rootfs...), mustImport(t, s, "bad", rootfs[:1]...)
	record := filepath.Join(s.Layout.Image(bad.Digest), recordName)
	if err := errors.Join(os.Remove(record), os.WriteFile(record, []byte("{"), 0o444)); err != nil {
		t.Fatal(err)
	}
	images, broken, err := s.List()
	if err != nil || len(images) != 1 || images[0].Digest != good.Digest || !api.HasCode(broken[bad.Digest], api.ErrImageCorrupt) {
		t.Errorf("got %v and %v, error %v", images, broken, err)
	}
	if removed, err := s.Remove(t.Context(), "sha256:"+bad.Digest[:12], func(string) error { return nil }); err != nil || removed.Digest != bad.Digest {
		t.Errorf("removed %+v, error %v", removed, err)
	}
}

// An image that has a name by the time that it would be removed stays.
func TestRemoveUnnamed(t *testing.T) {
	s := testStore(t)
	img := mustImport(t, s, "", rootfs...)
	if _, err := s.Tag(t.Context(), "sha256:"+img.Digest, "kept"); err != nil {
		t.Fatal(err)
	}
	nobody := func(string) error { return nil }
	if removed, err := s.RemoveUnnamed(t.Context(), img.Digest, nobody); err != nil || removed.Digest != "" {
		t.Errorf("removed %+v, error %v", removed, err)
	}
	if _, err := s.Verify(t.Context(), img.Digest); err != nil {
		t.Error(err)
	}
	other := mustImport(t, s, "", rootfs[:1]...)
	if removed, err := s.RemoveUnnamed(t.Context(), other.Digest, nobody); err != nil || removed.Digest != other.Digest {
		t.Errorf("removed %+v, error %v", removed, err)
	}
}

func TestConfigMakesAnotherImage(t *testing.T) {
	s := testStore(t)
	for _, cmd := range []string{"one", "two"} {
		if _, err := s.ImportTar(t.Context(), bytes.NewReader(archive(t, rootfs...)), Meta{Name: cmd, Config: Config{Cmd: []string{cmd}}}); err != nil {
			t.Fatal(err)
		}
	}
	for _, cmd := range []string{"one", "two"} {
		if got, err := s.Resolve(cmd); err != nil || got.Config.Cmd[0] != cmd {
			t.Errorf("image %s has the command %q, error %v", cmd, got.Config.Cmd, err)
		}
	}
}

func TestImportCanceled(t *testing.T) {
	s := testStore(t)
	ctx, cancel := context.WithCancel(t.Context())
	// The archive ends only with the context.
	r := io.MultiReader(bytes.NewReader(archive(t, rootfs...)[:50_000]), canceling{cancel})
	if _, err := s.ImportTar(ctx, r, Meta{}); !errors.Is(err, context.Canceled) {
		t.Errorf("got error %v", err)
	}
	checkNothingLeft(t, s)
}

type canceling struct{ cancel context.CancelFunc }

func (c canceling) Read(p []byte) (int, error) {
	c.cancel()
	return len(p), nil
}

// TestImportPassesOnReadErrors is what keeps a failed build from becoming an
// image: its reader says so only at the end.
func TestImportPassesOnReadErrors(t *testing.T) {
	s := testStore(t)
	broken := errors.New("the builder failed")
	r := io.MultiReader(bytes.NewReader(archive(t, rootfs...)), failing{broken})
	if _, err := s.ImportTar(t.Context(), r, Meta{}); !errors.Is(err, broken) {
		t.Errorf("got error %v, want the reader's", err)
	}
	checkNothingLeft(t, s)
}

type failing struct{ err error }

func (f failing) Read([]byte) (int, error) { return 0, f.err }

func TestDamageIsFound(t *testing.T) {
	for _, c := range []struct {
		name   string
		damage func(path string) error
		quick  bool // Check sees it too
	}{
		{"cut short", func(p string) error { return os.Truncate(p, 8192) }, true},
		{"removed", os.Remove, true},
		{"no file system", func(p string) error { return overwrite(p, 1024, 2048) }, true},
		{"a byte", func(p string) error { return overwrite(p, 40_000, 1) }, false},
	} {
		t.Run(c.name, func(t *testing.T) {
			s := testStore(t)
			img := mustImport(t, s, "x", rootfs...)
			path := s.RootfsPath(img.Digest)
			if err := os.Chmod(path, 0o600); err != nil {
				t.Fatal(err)
			}
			if err := c.damage(path); err != nil {
				t.Fatal(err)
			}
			if _, err := s.Check(img.Digest); api.HasCode(err, api.ErrImageCorrupt) != c.quick {
				t.Errorf("check: got error %v", err)
			}
			if _, err := s.Verify(t.Context(), img.Digest); !api.HasCode(err, api.ErrImageCorrupt) {
				t.Errorf("verify: got error %v, want ErrImageCorrupt", err)
			}
			mustImport(t, s, "x", rootfs...)
			if _, err := s.Verify(t.Context(), img.Digest); err != nil {
				t.Errorf("after another import: %v", err)
			}
		})
	}
}

func overwrite(path string, at int64, n int) error {
	f, err := os.OpenFile(path, os.O_WRONLY, 0)
	if err != nil {
		return err
	}
	defer f.Close()
	_, err = f.WriteAt(bytes.Repeat([]byte{0xa5}, n), at)
	return err
}

func TestParseName(t *testing.T) {
	for in, want := range map[string]string{
		"debian":          "debian",
		"debian:latest":   "debian",
		"debian:12.1-x_Y": "debian:12.1-x_Y",
		"a/b-c/d_e.f":     "a/b-c/d_e.f",
		"7zip":            "7zip",
	} {
		if got, err := ParseName(in); err != nil || got != want {
			t.Errorf("%q: got %q, error %v, want %q", in, got, err, want)
		}
	}
	for _, bad := range []string{
		"", "Debian", "-a", "a/", "/a", "a//b", "a/../b", "..", ".a", "a:", "a:b:c", "a:.b", "a b", "a\n",
		"sha256:abcd", strings.Repeat("a", 201), "a:" + strings.Repeat("t", 129),
	} {
		if got, err := ParseName(bad); !api.HasCode(err, api.ErrValidationImageRef) {
			t.Errorf("%q: got %q, error %v, want ErrValidationImageRef", bad, got, err)
		}
	}
}

func TestResolveOfNothing(t *testing.T) {
	s := testStore(t)
	for ref, code := range map[string]api.Code{
		"missing":                            api.ErrImageNotFound,
		"sha256:abcd":                        api.ErrImageNotFound,
		"sha256:" + strings.Repeat("0", 64):  api.ErrImageNotFound,
		"sha256:abc":                         api.ErrValidationImageRef,
		"sha256:../../x":                     api.ErrValidationImageRef,
		"sha256:" + strings.Repeat("00", 33): api.ErrValidationImageRef,
	} {
		_, err := s.Resolve(ref)
		if !api.HasCode(err, code) {
			t.Errorf("%s: got error %v, want %s", ref, err, code)
		}
	}
	_, err := s.Resolve("missing")
	if e := api.AsError(err); e.Hint == "" {
		t.Error("no hint for a missing image")
	}
}

func TestResolveOfTwoWithOnePrefix(t *testing.T) {
	s := testStore(t)
	for _, digest := range []string{"abcd" + strings.Repeat("0", 60), "abcd" + strings.Repeat("1", 60)} {
		dir := s.Layout.Image(digest)
		if err := os.MkdirAll(dir, 0o755); err != nil {
			t.Fatal(err)
		}
		record := fmt.Sprintf(`{"format":1,"digest":%q}`, digest)
		if err := os.WriteFile(filepath.Join(dir, recordName), []byte(record), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	if _, err := s.Resolve("sha256:abcd"); !api.HasCode(err, api.ErrValidationImageRef) {
		t.Errorf("got error %v", err)
	}
	if _, err := s.Resolve("sha256:abcd1"); err != nil {
		t.Error(err)
	}
}

func TestNameMoves(t *testing.T) {
	s := testStore(t)
	mustImport(t, s, "x", rootfs...)
	second := mustImport(t, s, "x:latest", rootfs[:4]...)
	got, err := s.Resolve("x")
	if err != nil || got.Digest != second.Digest {
		t.Errorf("got %.12s, error %v, want %.12s", got.Digest, err, second.Digest)
	}
}

func unused(string) error { return nil }

func TestRemove(t *testing.T) {
	s := testStore(t)
	img := mustImport(t, s, "one", rootfs...)
	if _, err := s.Tag(t.Context(), "one", "two"); err != nil {
		t.Fatal(err)
	}
	got, err := s.Remove(t.Context(), "one", unused)
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(Removed{Names: []string{"one"}}, got); diff != "" {
		t.Errorf("first name (-want +got):\n%s", diff)
	}
	inUse := func(digest string) error { return api.Errorf(api.ErrImageInUse, "web-1 uses it") }
	if _, err := s.Remove(t.Context(), "two", inUse); !api.HasCode(err, api.ErrImageInUse) {
		t.Errorf("used image: got error %v, want ErrImageInUse", err)
	}
	got, err = s.Remove(t.Context(), "two", unused)
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(Removed{Names: []string{"two"}, Digest: img.Digest}, got); diff != "" {
		t.Errorf("last name (-want +got):\n%s", diff)
	}
	if _, err := s.Remove(t.Context(), "two", unused); !api.HasCode(err, api.ErrImageNotFound) {
		t.Errorf("removed image: got error %v, want ErrImageNotFound", err)
	}
	checkNothingLeft(t, s)
}

func TestRemoveByDigestTakesAllNames(t *testing.T) {
	s := testStore(t)
	img := mustImport(t, s, "one", rootfs...)
	mustImport(t, s, "two", rootfs...)
	got, err := s.Remove(t.Context(), "sha256:"+img.Digest[:12], unused)
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(Removed{Names: []string{"one", "two"}, Digest: img.Digest}, got); diff != "" {
		t.Errorf("removed (-want +got):\n%s", diff)
	}
	if names, err := s.Names(); err != nil || len(names) > 0 {
		t.Errorf("names %v, error %v", names, err)
	}
}

func TestSuiteOf(t *testing.T) {
	for in, want := range map[string]string{
		"ID=debian\nVERSION_CODENAME=trixie\n":     "trixie",
		"ID=\"debian\"\nVERSION_CODENAME='sid'\n":  "sid",
		"ID=ubuntu\nVERSION_CODENAME=noble\n":      fallbackSuite,
		"ID=debian\n":                              fallbackSuite,
		"ID=debian\nVERSION_CODENAME=--evil=yes\n": fallbackSuite,
	} {
		if got := suiteOf(in); got != want {
			t.Errorf("%q: got %q, want %q", in, got, want)
		}
	}
}

func TestDebianRefusesFlags(t *testing.T) {
	for _, o := range []DebianOptions{
		{Suite: "--help"},
		{Include: []string{"curl", "--x"}},
		{Include: []string{"a,b"}},
		{Mirror: "--x"},
	} {
		if _, err := testStore(t).BuildDebian(t.Context(), o); !api.HasCode(err, api.ErrValidationChoice) {
			t.Errorf("%+v: got error %v, want ErrValidationChoice", o, err)
		}
	}
}

func TestDebianWithoutMmdebstrap(t *testing.T) {
	t.Setenv("PATH", t.TempDir())
	_, err := testStore(t).BuildDebian(t.Context(), DebianOptions{})
	if !api.HasCode(err, api.ErrSetupMissingBinary) || api.AsError(err).Hint == "" {
		t.Errorf("got error %v, want ErrSetupMissingBinary with a hint", err)
	}
}
