// Package hub makes images for tests, and puts them into registries that tests
// start.
package hub

import (
	"archive/tar"
	"bytes"
	"io"
	"strings"
	"testing"

	"github.com/google/go-containerregistry/pkg/name"
	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/empty"
	"github.com/google/go-containerregistry/pkg/v1/mutate"
	"github.com/google/go-containerregistry/pkg/v1/remote"
	"github.com/google/go-containerregistry/pkg/v1/tarball"
)

// File is a file of a layer that anybody may execute. A Path that ends in a
// slash is a directory, a Content that begins with -> a symbolic link.
type File struct{ Path, Content string }

// Image is an image for linux and arch, with a layer for each list of files.
func Image(t testing.TB, arch string, config v1.Config, layers ...[]File) v1.Image {
	t.Helper()
	img := v1.Image(empty.Image)
	for _, files := range layers {
		data := archive(t, files)
		layer, err := tarball.LayerFromOpener(func() (io.ReadCloser, error) { return io.NopCloser(bytes.NewReader(data)), nil })
		if err != nil {
			t.Fatal(err)
		}
		if img, err = mutate.AppendLayers(img, layer); err != nil {
			t.Fatal(err)
		}
	}
	return Configure(t, img, arch, config)
}

// Configure is img for linux and arch, with another configuration.
func Configure(t testing.TB, img v1.Image, arch string, config v1.Config) v1.Image {
	t.Helper()
	whole, err := img.ConfigFile()
	if err != nil {
		t.Fatal(err)
	}
	whole = whole.DeepCopy()
	whole.OS, whole.Architecture, whole.Config = "linux", arch, config
	if img, err = mutate.ConfigFile(img, whole); err != nil {
		t.Fatal(err)
	}
	return img
}

func archive(t testing.TB, files []File) []byte {
	t.Helper()
	var b bytes.Buffer
	w := tar.NewWriter(&b)
	for _, f := range files {
		header := &tar.Header{Name: f.Path, Mode: 0o755, Size: int64(len(f.Content))}
		if target, ok := strings.CutPrefix(f.Content, "->"); ok {
			header = &tar.Header{Name: f.Path, Typeflag: tar.TypeSymlink, Linkname: target, Mode: 0o777}
			f.Content = ""
		}
		if err := w.WriteHeader(header); err != nil {
			t.Fatal(err)
		}
		if _, err := io.WriteString(w, f.Content); err != nil {
			t.Fatal(err)
		}
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	return b.Bytes()
}

// Push puts an image into the registry that ref, HOST/REPOSITORY[:TAG], is in.
func Push(t testing.TB, ref string, img v1.Image, o ...remote.Option) {
	t.Helper()
	parsed, err := name.ParseReference(ref)
	if err != nil {
		t.Fatal(err)
	}
	if err := remote.Write(parsed, img, o...); err != nil {
		t.Fatal(err)
	}
}
