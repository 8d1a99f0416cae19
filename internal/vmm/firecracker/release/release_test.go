package release

import (
	"archive/tar"
	"bytes"
	"compress/gzip"
	"crypto/sha256"
	"errors"
	"fmt"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/vmsan/vmsan/api"
)

// says makes a script that says a version.
func says(title, version string) []byte {
	return fmt.Appendf(nil, "#!/bin/sh\necho '%s v%s'\n", title, version)
}

// programsOf are a release's, by the names that they have in it.
func programsOf(version string) map[string][]byte {
	suffix := "-v" + version + "-" + arch()
	return map[string][]byte{
		"firecracker" + suffix: says("Firecracker", version), "jailer" + suffix: says("Jailer", version),
		"firecracker" + suffix + ".debug": []byte("for debuggers"), "SHA256SUMS": []byte("x"),
	}
}

// archiveOf packs files as a release's archive has them.
func archiveOf(t *testing.T, files map[string][]byte) []byte {
	t.Helper()
	var b bytes.Buffer
	packed := gzip.NewWriter(&b)
	archive := tar.NewWriter(packed)
	for name, text := range files {
		err := archive.WriteHeader(&tar.Header{Typeflag: tar.TypeReg, Name: "release/" + name, Mode: 0o755, Size: int64(len(text))})
		if err == nil {
			_, err = archive.Write(text)
		}
		if err != nil {
			t.Fatal(err)
		}
	}
	if err := errors.Join(archive.Close(), packed.Close()); err != nil {
		t.Fatal(err)
	}
	return b.Bytes()
}

// page serves files at paths, and nothing else.
func page(t *testing.T, files map[string][]byte) string {
	t.Helper()
	server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		text, ok := files[r.URL.Path]
		if !ok {
			http.NotFound(w, r)
			return
		}
		w.Write(text)
	}))
	t.Cleanup(server.Close)
	return server.URL
}

func paths(version string) (archive, sum string) {
	archive = fmt.Sprintf("/v%[1]s/firecracker-v%[1]s-%[2]s.tgz", version, arch())
	return archive, archive + ".sha256.txt"
}

// publish adds a release to a page.
func publish(t *testing.T, files map[string][]byte, version string) {
	t.Helper()
	archive, sum := paths(version)
	files[archive] = archiveOf(t, programsOf(version))
	files[sum] = fmt.Appendf(nil, "%x  firecracker.tgz\n", sha256.Sum256(files[archive]))
}

// know has what a page publishes as Version be the release that is known.
func know(t *testing.T, files map[string][]byte) {
	t.Helper()
	archive, _ := paths(Version)
	known := digests[arch()]
	digests[arch()] = fmt.Sprintf("%x", sha256.Sum256(files[archive]))
	t.Cleanup(func() { digests[arch()] = known })
}

func newStore(t *testing.T) Store {
	t.Helper()
	dir := t.TempDir()
	return Store{Dir: filepath.Join(dir, "firecracker"), Tmp: filepath.Join(dir, "tmp")}
}

// TestReleases downloads one, repairs it, replaces it by another, and carries
// that to another host.
func TestReleases(t *testing.T) {
	files := map[string][]byte{}
	publish(t, files, Version)
	publish(t, files, "1.15.1")
	know(t, files)
	url, s := page(t, files), newStore(t)
	name, m, err := s.Install(t.Context(), Source{Download: true, URL: url + "/"})
	if err != nil || m.Version != Version || !strings.HasPrefix(name, Version+"-") || len(m.Programs) != 2 {
		t.Fatalf("got %s, %+v, %v", name, m, err)
	}
	if err := os.WriteFile(filepath.Join(s.Path(name), "jailer"), []byte("x"), 0o755); err != nil {
		t.Fatal(err)
	}
	if _, err := s.Check(name); err == nil || !strings.Contains(err.Error(), "jailer is damaged") {
		t.Errorf("got %v", err)
	}
	if again, _, err := s.Install(t.Context(), Source{Download: true, URL: url}); err != nil || again != name {
		t.Errorf("repaired as %s, %v", again, err)
	}
	if got, err := s.Check(name); err != nil || got.Version != Version {
		t.Errorf("got %+v, %v", got, err)
	}
	older, _, err := s.Install(t.Context(), Source{Download: true, URL: url, Version: "1.15.1"})
	if err != nil {
		t.Fatal(err)
	}
	bundle := filepath.Join(t.TempDir(), "bundle")
	if err := s.Export(older, bundle); err != nil {
		t.Fatal(err)
	}
	for _, from := range []Source{{Archive: bundle}, {Dir: s.Path(older)}} {
		if got, _, err := newStore(t).Install(t.Context(), from); err != nil || got != older {
			t.Errorf("%s: got %s, %v", from, got, err)
		}
	}
	if err := s.Prune(func(n string) bool { return n == older }); err != nil {
		t.Fatal(err)
	}
	if left, _ := os.ReadDir(s.Dir); len(left) != 1 || left[0].Name() != older {
		t.Errorf("there are %v", left)
	}
	if left, _ := os.ReadDir(s.Tmp); len(left) != 0 {
		t.Errorf("left behind: %v", left)
	}
}

// TestBadReleases are downloads, directories and archives that cannot be used.
func TestBadReleases(t *testing.T) {
	const version = "1.15.1"
	archive, sum := paths(version)
	whole := map[string][]byte{}
	publish(t, whole, version)
	with := func(name string, text []byte) map[string][]byte {
		programs := programsOf(version)
		programs[name+"-v"+version+"-"+arch()] = text
		packed := archiveOf(t, programs)
		return map[string][]byte{archive: packed, sum: fmt.Appendf(nil, "%x\n", sha256.Sum256(packed))}
	}
	for _, c := range []struct {
		name  string
		files map[string][]byte
		code  api.Code
		says  string
	}{
		{"nothing", nil, api.ErrSetupDownload, "404"},
		{"no checksum", map[string][]byte{archive: whole[archive]}, api.ErrSetupDownload, "404"},
		{"no archive", map[string][]byte{sum: whole[sum]}, api.ErrSetupDownload, "404"},
		{"malformed checksum", map[string][]byte{archive: whole[archive], sum: []byte("abc")}, api.ErrSetupDownload, "malformed"},
		{"bad checksum", map[string][]byte{archive: append([]byte("x"), whole[archive]...), sum: whole[sum]}, api.ErrSetupDownload, "its checksum is"},
		{"cut off", map[string][]byte{archive: whole[archive][:100], sum: whole[sum]}, api.ErrSetupDownload, "its checksum is"},
		{"no archive at all", map[string][]byte{archive: []byte("x"), sum: fmt.Appendf(nil, "%x", sha256.Sum256([]byte("x")))}, api.ErrSetupMissingBinary, "unpack it"},
		{"another version", with("firecracker", says("Firecracker", "1.14.0")), api.ErrSetupMissingBinary, "both have to be of one release"},
		{"no program", with("firecracker", []byte("\x7fELF")), api.ErrSetupMissingBinary, "exec format error"},
	} {
		t.Run(c.name, func(t *testing.T) {
			s := newStore(t)
			_, _, err := s.Install(t.Context(), Source{Download: true, URL: page(t, c.files), Version: version})
			if !api.HasCode(err, c.code) || !strings.Contains(err.Error(), c.says) {
				t.Errorf("got %v", err)
			}
			left, _ := filepath.Glob(filepath.Dir(s.Dir) + "/*/*")
			if len(left) > 0 {
				t.Errorf("left behind: %v", left)
			}
		})
	}
	for _, c := range []struct {
		from Source
		says string
	}{
		{Source{Download: true, URL: "http://mirror.example/"}, "https://"},
		{Source{Download: true, URL: "ftp://127.0.0.1/"}, "https://"},
		{Source{Download: true, Version: "../1.16.1"}, "--firecracker-version"},
		{Source{Dir: t.TempDir()}, "there is no firecracker"},
		{Source{Dir: "/nonexistent"}, "--firecracker-dir"},
		{Source{Archive: "/nonexistent"}, "--bundle"},
		{Source{Archive: "/dev/null"}, "EOF"},
	} {
		if _, _, err := newStore(t).Install(t.Context(), c.from); err == nil || !strings.Contains(err.Error(), c.says) {
			t.Errorf("%+v: got %v", c.from, err)
		}
	}
}

// TestOtherRelease is a page that has something else under the name of the
// release that is known, with a checksum that fits.
func TestOtherRelease(t *testing.T) {
	files := map[string][]byte{}
	publish(t, files, Version)
	url := page(t, files)
	for _, of := range []Source{{Download: true, URL: url}, {Download: true, URL: url, Version: Version}} {
		_, _, err := newStore(t).Install(t.Context(), of)
		if !api.HasCode(err, api.ErrSetupDownload) || !strings.Contains(err.Error(), "not "+digests[arch()]) {
			t.Errorf("got %v", err)
		}
	}
	_, sum := paths(Version)
	delete(files, sum)
	know(t, files)
	if _, _, err := newStore(t).Install(t.Context(), Source{Download: true, URL: url}); err != nil {
		t.Errorf("without a checksum beside it: %v", err)
	}
}

// TestCutOffDownload is a server that closes the connection in the middle.
func TestCutOffDownload(t *testing.T) {
	const version = "1.15.1"
	archive, sum := paths(version)
	server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.URL.Path == sum {
			fmt.Fprintf(w, "%x", sha256.Sum256(nil))
		} else if r.URL.Path == archive {
			w.Header().Set("Content-Length", "1000")
			w.Write([]byte("half"))
		}
	}))
	defer server.Close()
	_, _, err := newStore(t).Install(t.Context(), Source{Download: true, URL: server.URL, Version: version})
	if !api.HasCode(err, api.ErrSetupDownload) || !strings.Contains(err.Error(), "unexpected EOF") {
		t.Errorf("got %v", err)
	}
}

// FuzzUnpack reads archives from anywhere.
func FuzzUnpack(f *testing.F) {
	f.Add([]byte("firecracker"), []byte("x"))
	f.Add([]byte("../../jailer-v1.16.1-x86_64"), []byte("x"))
	f.Fuzz(func(t *testing.T, name, text []byte) {
		dir := t.TempDir()
		var b bytes.Buffer
		packed := gzip.NewWriter(&b)
		archive := tar.NewWriter(packed)
		if archive.WriteHeader(&tar.Header{Name: string(name), Size: int64(len(text)), Mode: 0o777}) == nil {
			archive.Write(text)
		}
		archive.Close()
		packed.Close()
		unpack(&b, dir)
		unpack(bytes.NewReader(text), dir)
		for _, e := range entries(t, dir) {
			if e != "firecracker" && e != "jailer" && e != "seccompiler-bin" {
				t.Errorf("%q made %q", name, e)
			}
		}
	})
}

func entries(t *testing.T, dir string) (names []string) {
	t.Helper()
	list, err := os.ReadDir(dir)
	if err != nil {
		t.Fatal(err)
	}
	for _, e := range list {
		names = append(names, e.Name())
	}
	return names
}
