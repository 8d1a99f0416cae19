package image

import (
	"archive/tar"
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/vmsan/vmsan/api"
)

var exported = Config{
	Env: []string{"PATH=/bin", "A=b"}, Workdir: "/srv", User: "1000:1000", Entrypoint: []string{"/bin/sh"}, Cmd: []string{"-c", "id"},
	StopSignal: "SIGINT", Labels: map[string]string{"k": "v"}, Exposed: []string{"80/tcp"},
}

// TestExportAndImport gets the same image back, by each way in: the archive
// that it was made of is in the order that exports are.
func TestExportAndImport(t *testing.T) {
	s := testStore(t)
	want, err := s.ImportTar(t.Context(), bytes.NewReader(archive(t, rootfs...)), Meta{Name: "x", Source: "a test", Config: exported})
	if err != nil {
		t.Fatal(err)
	}
	var out, again bytes.Buffer
	for _, w := range []io.Writer{&out, &again} {
		if _, err := s.Export(t.Context(), "x", w); err != nil {
			t.Fatal(err)
		}
	}
	if !bytes.Equal(out.Bytes(), again.Bytes()) {
		t.Error("two exports differ")
	}
	dir := t.TempDir()
	untar(t, out.Bytes(), dir)
	for name, bring := range map[string]func(Store, ImportOptions) (Image, error){
		"archive": func(s Store, o ImportOptions) (Image, error) {
			return s.Import(t.Context(), bytes.NewReader(out.Bytes()), o)
		},
		"compressed": func(s Store, o ImportOptions) (Image, error) {
			return s.Import(t.Context(), bytes.NewReader(compressed(t, "zstd", out.Bytes())), o)
		},
		"directory": func(s Store, o ImportOptions) (Image, error) { return s.ImportDir(t.Context(), dir, o) },
	} {
		got, err := bring(testStore(t), ImportOptions{})
		if err != nil {
			t.Errorf("%s: %v", name, err)
			continue
		}
		if got.Digest != want.Digest {
			t.Errorf("%s: got %.12s, want %.12s", name, got.Digest, want.Digest)
		}
		if diff := cmp.Diff(want.Config, got.Config); diff != "" {
			t.Errorf("%s: configuration (-want +got):\n%s", name, diff)
		}
	}
	if _, err := testStore(t).ImportDir(t.Context(), dir, ImportOptions{Ref: "y"}); !api.HasCode(err, api.ErrImageInvalid) {
		t.Errorf("another name: got error %v, want ErrImageInvalid", err)
	}
}

func untar(t *testing.T, data []byte, dir string) {
	t.Helper()
	for in := tar.NewReader(bytes.NewReader(data)); ; {
		h, err := in.Next()
		if err == io.EOF {
			return
		}
		if err != nil {
			t.Fatal(err)
		}
		path := filepath.Join(dir, h.Name)
		if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
			t.Fatal(err)
		}
		body, err := io.ReadAll(in)
		if err == nil {
			err = os.WriteFile(path, body, 0o644)
		}
		if err != nil {
			t.Fatal(err)
		}
	}
}

// saved is what "docker save" wrote before it wrote OCI image layouts.
func saved(t *testing.T, config string, layers ...[]byte) []byte {
	t.Helper()
	files := map[string]string{}
	var names []string
	for i, l := range layers {
		name := fmt.Sprintf("%064x/layer.tar", i)
		names = append(names, name)
		files[name] = string(l)
	}
	files[strings.Repeat("a", 64)+".json"] = config
	manifest, err := json.Marshal([]any{map[string]any{"Config": strings.Repeat("a", 64) + ".json", "RepoTags": []string{"app:1"}, "Layers": names}})
	if err != nil {
		t.Fatal(err)
	}
	var b bytes.Buffer
	w := tar.NewWriter(&b)
	put := func(name, body string) {
		if err := w.WriteHeader(&tar.Header{Typeflag: tar.TypeReg, Name: name, Size: int64(len(body)), Mode: 0o644}); err != nil {
			t.Fatal(err)
		}
		if _, err := io.WriteString(w, body); err != nil {
			t.Fatal(err)
		}
	}
	for _, name := range names {
		put(name, files[name])
	}
	put(strings.Repeat("a", 64)+".json", config)
	put("manifest.json", string(manifest))
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	return b.Bytes()
}

func digestText(b []byte) string {
	sum := sha256.Sum256(b)
	return digestPrefix + hex.EncodeToString(sum[:])
}

func dockerConfig(diffIDs ...string) string {
	return fmt.Sprintf(`{"os":"linux","architecture":%q,"config":{"Cmd":["/bin/x"]},"rootfs":{"diff_ids":["%s"]}}`,
		runtime.GOARCH, strings.Join(diffIDs, `","`))
}

func TestImportDockerSave(t *testing.T) {
	lower := archive(t, tar.Header{Typeflag: tar.TypeReg, Name: "a", Size: 1}, tar.Header{Typeflag: tar.TypeReg, Name: "b", Size: 1})
	upper := archive(t, tar.Header{Typeflag: tar.TypeReg, Name: ".wh.a"})
	s := testStore(t)
	data := saved(t, dockerConfig(digestText(lower), digestText(upper)), lower, compressed(t, "gzip", upper))
	var last [2]LayerProgress
	got, err := s.Import(t.Context(), bytes.NewReader(data), ImportOptions{Ref: "app:1", Meta: Meta{
		Name: "app", Progress: func(p LayerProgress) { last[p.Layer] = p },
	}})
	for i, p := range last {
		if size := []int{len(lower), len(compressed(t, "gzip", upper))}[i]; p != (LayerProgress{Layer: i, Layers: 2, Read: int64(size), Size: int64(size), Done: true}) {
			t.Errorf("layer %d of %d bytes was read as %+v", i, size, p)
		}
	}
	if err != nil {
		t.Fatal(err)
	}
	only := archive(t, tar.Header{Typeflag: tar.TypeReg, Name: "b", Size: 1})
	want, err := testStore(t).ImportTar(t.Context(), bytes.NewReader(only), Meta{Config: Config{Cmd: []string{"/bin/x"}}})
	if err != nil {
		t.Fatal(err)
	}
	if got.Config.Cmd[0] != "/bin/x" || got.Size > want.Size+8192 {
		t.Errorf("got %+v, want %+v", got, want)
	}
	checkContents(t, s, got, "b")
}

// checkContents exports the image's files as a list of names.
func checkContents(t *testing.T, s Store, img Image, want ...string) {
	t.Helper()
	var b bytes.Buffer
	if _, err := s.Export(t.Context(), digestPrefix+img.Digest, &b); err != nil {
		t.Fatal(err)
	}
	var got []string
	for in := tar.NewReader(&b); ; {
		h, err := in.Next()
		if err != nil {
			break
		}
		if !strings.HasPrefix(h.Name, "blobs/") {
			continue
		}
		for layer := tar.NewReader(in); ; {
			h, err := layer.Next()
			if err != nil {
				break
			}
			if h.Name != "./" {
				got = append(got, h.Name)
			}
		}
	}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("files (-want +got):\n%s", diff)
	}
}

func TestImportRefusesImages(t *testing.T) {
	layer := archive(t, rootfs...)
	for name, c := range map[string]struct {
		in   []byte
		want string
	}{
		"another layer":        {saved(t, dockerConfig(digestText([]byte("x"))), layer), "its digest is"},
		"too few digests":      {saved(t, dockerConfig(), layer, layer), "1 layers, its manifest of 2"},
		"no configuration":     {saved(t, `x`), "configuration"},
		"malformed user":       {saved(t, `{"config":{"User":"a b"}}`), "user"},
		"malformed variable":   {saved(t, `{"config":{"Env":["x"]}}`), "environment"},
		"malformed signal":     {saved(t, `{"config":{"StopSignal":"; rm"}}`), "signal"},
		"no layers":            {saved(t, `{"rootfs":{"diff_ids":[]}}`), "no layers"},
		"an archive cut short": {saved(t, dockerConfig(digestText(layer)), layer)[:60_000], "unexpected EOF"},
	} {
		t.Run(name, func(t *testing.T) {
			s := testStore(t)
			_, err := s.Import(t.Context(), bytes.NewReader(c.in), ImportOptions{})
			if !api.HasCode(err, api.ErrImageInvalid) || !strings.Contains(err.Error(), c.want) {
				t.Errorf("got error %v, want ErrImageInvalid with %q", err, c.want)
			}
			checkNothingLeft(t, s)
		})
	}
}

func TestImportRefusesOtherMachines(t *testing.T) {
	for platform, config := range map[string]string{
		"linux/vax":                       `{"os":"linux","architecture":"vax"}`,
		"plan9/" + runtime.GOARCH:         fmt.Sprintf(`{"os":"plan9","architecture":%q}`, runtime.GOARCH),
		"linux/" + runtime.GOARCH + "/v9": fmt.Sprintf(`{"os":"linux","architecture":%q,"variant":"v9"}`, runtime.GOARCH),
	} {
		s := testStore(t)
		_, err := s.Import(t.Context(), bytes.NewReader(saved(t, config)), ImportOptions{})
		if !api.HasCode(err, api.ErrUnsupported) || !strings.Contains(err.Error(), fmt.Sprintf("but for %q", platform)) {
			t.Errorf("%s: got error %v", platform, err)
		}
		checkNothingLeft(t, s)
	}
}

func TestImportLayersRefusesTypes(t *testing.T) {
	l := Layer{MediaType: "application/vnd.example", Open: func(context.Context) (io.ReadCloser, error) { panic("opened") }}
	_, err := testStore(t).ImportLayers(t.Context(), []Layer{l}, Meta{})
	if !api.HasCode(err, api.ErrImageInvalid) || !strings.Contains(err.Error(), "vnd.oci.image.layer.v1.tar+zstd") {
		t.Errorf("got error %v, want ErrImageInvalid with what is known", err)
	}
}

func TestImportDirStaysInside(t *testing.T) {
	dir := t.TempDir()
	outside := filepath.Join(t.TempDir(), "index.json")
	if err := os.WriteFile(outside, []byte(`{}`), 0o644); err != nil {
		t.Fatal(err)
	}
	if err := os.Symlink(outside, filepath.Join(dir, "index.json")); err != nil {
		t.Fatal(err)
	}
	if _, err := testStore(t).ImportDir(t.Context(), dir, ImportOptions{}); err == nil || !strings.Contains(err.Error(), "escapes") {
		t.Errorf("got error %v", err)
	}
}

func FuzzImport(f *testing.F) {
	f.Add([]byte(`{"manifests":[{"mediaType":"application/vnd.oci.image.index.v1+json","digest":"sha256:x"}]}`))
	f.Add([]byte(`{"manifests":[{"digest":"sha256:` + strings.Repeat("0", 64) + `"}]}`))
	f.Fuzz(func(t *testing.T, index []byte) {
		from := tarBlobs{f: bytes.NewReader(index), members: map[string]span{
			"index.json": {0, int64(len(index))},
			"blobs/sha256/" + strings.Repeat("0", 64): {0, int64(len(index))},
		}}
		if _, err := findImage(from, ""); err != nil && !api.HasCode(err, api.ErrImageInvalid) && !api.HasCode(err, api.ErrUnsupported) {
			t.Errorf("got error %v, want ErrImageInvalid or ErrUnsupported", err)
		}
		ParseConfig(index)
	})
}
