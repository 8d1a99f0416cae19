package registry_test

import (
	"bytes"
	"context"
	"fmt"
	"io"
	"log"
	"math/rand/v2"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/google/go-containerregistry/pkg/authn"
	hubs "github.com/google/go-containerregistry/pkg/registry"
	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/remote"

	"github.com/vmsan/vmsan/internal/registry"
	images "github.com/vmsan/vmsan/internal/testenv/hub"
)

// hub is a registry on loopback that counts what it is asked for.
type hub struct {
	*httptest.Server
	handler http.Handler

	mu sync.Mutex
	// gets has the number of times that each path was asked for, and of the
	// bytes of blobs that were sent.
	gets map[string]int
	sent int64
	// fault may answer in the registry's stead, and then returns true.
	fault func(w http.ResponseWriter, r *http.Request) bool
}

func newHub(t testing.TB) *hub {
	h := unstarted()
	h.Start()
	t.Cleanup(h.Close)
	return h
}

func unstarted() *hub {
	h := &hub{handler: hubs.New(hubs.Logger(log.New(io.Discard, "", 0))), gets: map[string]int{}}
	h.Server = httptest.NewUnstartedServer(h)
	h.Config.ErrorLog = log.New(io.Discard, "", 0)
	return h
}

func (h *hub) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	if r.Method != http.MethodGet {
		h.handler.ServeHTTP(w, r)
		return
	}
	h.mu.Lock()
	h.gets[r.URL.Path]++
	fault := h.fault
	h.mu.Unlock()
	if fault != nil && fault(w, r) {
		return
	}
	h.handler.ServeHTTP(&counted{w, h, isBlob(r)}, r)
}

func isBlob(r *http.Request) bool { return strings.Contains(r.URL.Path, "/blobs/") }

// counted counts the bytes of blobs.
type counted struct {
	http.ResponseWriter
	hub  *hub
	blob bool
}

func (c *counted) Write(p []byte) (int, error) {
	n, err := c.ResponseWriter.Write(p)
	if c.blob {
		c.hub.mu.Lock()
		c.hub.sent += int64(n)
		c.hub.mu.Unlock()
	}
	return n, err
}

func (h *hub) onGet(fault func(w http.ResponseWriter, r *http.Request) bool) {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.fault = fault
}

func (h *hub) asked(path string) int {
	h.mu.Lock()
	defer h.mu.Unlock()
	return h.gets[path]
}

func (h *hub) bytes() int64 {
	h.mu.Lock()
	defer h.mu.Unlock()
	return h.sent
}

func (h *hub) host() string { return h.Listener.Addr().String() }

// push puts an image into the registry.
func (h *hub) push(t testing.TB, ref string, img v1.Image, o ...remote.Option) {
	t.Helper()
	images.Push(t, h.host()+"/"+ref, img, o...)
}

// newImage is an image with layers of that many random bytes each, in a file.
func newImage(t testing.TB, arch string, sizes ...int) v1.Image {
	t.Helper()
	var layers [][]images.File
	for i, size := range sizes {
		content := make([]byte, size)
		source := rand.NewChaCha8([32]byte{byte(i), byte(size), byte(size >> 8)})
		source.Read(content)
		layers = append(layers, []images.File{{Path: fmt.Sprintf("file%d", i), Content: string(content)}})
	}
	return images.Image(t, arch, v1.Config{Env: []string{"ARCH=" + arch}}, layers...)
}

func digest(t testing.TB, img v1.Image) string {
	t.Helper()
	h, err := img.Digest()
	if err != nil {
		t.Fatal(err)
	}
	return h.String()
}

// blobPath is where the registry has the layer with that number.
func blobPath(t testing.TB, repo string, img v1.Image, layer int) string {
	t.Helper()
	layers, err := img.Layers()
	if err != nil {
		t.Fatal(err)
	}
	h, err := layers[layer].Digest()
	if err != nil {
		t.Fatal(err)
	}
	return "/v2/" + repo + "/blobs/" + h.String()
}

// client pulls for amd64, as nobody, and does not wait long.
func client(dir string) *registry.Client {
	return &registry.Client{
		Cache: registry.Cache{Dir: filepath.Join(dir, "blobs")}, Keychain: nobody{}, Arch: "amd64",
		FirstWait: time.Millisecond, Stall: 5 * time.Second,
	}
}

type nobody struct{}

func (nobody) Resolve(authn.Resource) (authn.Authenticator, error) { return authn.Anonymous, nil }

// pulled is what a pull brought.
type pulled struct {
	image  *registry.Image
	layers [][]byte // the blobs
	states map[registry.State]int
}

// pull gets an image with all its layers, which are read as they come.
func pull(ctx context.Context, c *registry.Client, ref string) (*pulled, error) {
	parsed, err := registry.ParseReference(ref)
	if err != nil {
		return nil, err
	}
	img, err := c.Resolve(ctx, parsed)
	if err != nil {
		return nil, err
	}
	defer img.Close()
	p := &pulled{image: img, states: map[registry.State]int{}}
	d, err := img.Download(ctx, func(e registry.Progress) { p.states[e.State]++ })
	if err != nil {
		return nil, err
	}
	defer d.Close()
	for _, l := range img.Layers {
		b, err := read(ctx, d, l)
		if err != nil {
			return nil, err
		}
		p.layers = append(p.layers, b)
	}
	return p, d.Wait()
}

func read(ctx context.Context, d *registry.Download, l registry.Layer) ([]byte, error) {
	r, err := d.Open(ctx, l)
	if err != nil {
		return nil, err
	}
	defer r.Close()
	return io.ReadAll(r)
}

// check checks that p is img.
func (p *pulled) check(t *testing.T, img v1.Image) {
	t.Helper()
	if p.image.Digest != digest(t, img) {
		t.Errorf("the manifest is %s, want %s", p.image.Digest, digest(t, img))
	}
	layers, err := img.Layers()
	if err != nil {
		t.Fatal(err)
	}
	if len(layers) != len(p.layers) {
		t.Fatalf("there are %d layers, want %d", len(p.layers), len(layers))
	}
	for i, l := range layers {
		r, err := l.Compressed()
		if err != nil {
			t.Fatal(err)
		}
		want, err := io.ReadAll(r)
		if err != nil {
			t.Fatal(err)
		}
		if !bytes.Equal(p.layers[i], want) {
			t.Errorf("layer %d has %d bytes that differ from the %d pushed", i, len(p.layers[i]), len(want))
		}
		id, err := l.DiffID()
		if err != nil || p.image.Layers[i].DiffID != id.String() {
			t.Errorf("layer %d has the DiffID %s, want %s, %v", i, p.image.Layers[i].DiffID, id, err)
		}
	}
}

// begun are the names of blobs that were begun and not finished.
func begun(t *testing.T, dir string) []string {
	return names(t, filepath.Join(dir, "blobs", "partial"))
}

func names(t *testing.T, dir string) (list []string) {
	t.Helper()
	entries, err := os.ReadDir(dir)
	if err != nil {
		t.Fatal(err)
	}
	for _, e := range entries {
		list = append(list, e.Name())
	}
	return list
}
