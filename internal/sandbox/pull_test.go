package sandbox

import (
	"archive/tar"
	"bytes"
	"io"
	"log"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"sync"
	"testing"

	hubs "github.com/google/go-containerregistry/pkg/registry"
	v1 "github.com/google/go-containerregistry/pkg/v1"
	"golang.org/x/sys/unix"

	"github.com/vmsan/vmsan/api"
	"github.com/vmsan/vmsan/internal/image"
	"github.com/vmsan/vmsan/internal/registry"
	"github.com/vmsan/vmsan/internal/store"
	"github.com/vmsan/vmsan/internal/testenv"
	images "github.com/vmsan/vmsan/internal/testenv/hub"
)

// hub is a registry on loopback, that notes what it is asked for.
type hub struct {
	host string
	// mu is held while a request is answered.
	mu   sync.Mutex
	gets []string
	// spoil may answer in the registry's stead, and then returns true.
	spoil func(http.ResponseWriter, *http.Request) bool
}

func newHub(t *testing.T) *hub {
	t.Helper()
	h := &hub{}
	next := hubs.New(hubs.Logger(log.New(io.Discard, "", 0)))
	server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		h.mu.Lock()
		defer h.mu.Unlock()
		if r.Method == http.MethodGet {
			h.gets = append(h.gets, r.URL.Path)
			if h.spoil != nil && h.spoil(w, r) {
				return
			}
		}
		next.ServeHTTP(w, r)
	}))
	t.Cleanup(server.Close)
	h.host = server.Listener.Addr().String()
	return h
}

// onGet sets what may answer in the registry's stead.
func (h *hub) onGet(spoil func(http.ResponseWriter, *http.Request) bool) {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.spoil = spoil
}

// asked is what was asked for since the last time.
func (h *hub) asked() []string {
	h.mu.Lock()
	defer h.mu.Unlock()
	gets := h.gets
	h.gets = nil
	return gets
}

// blobs counts how often a blob was asked for.
func (h *hub) blobs() (n int) {
	h.mu.Lock()
	defer h.mu.Unlock()
	for _, path := range h.gets {
		if strings.Contains(path, "/blobs/") {
			n++
		}
	}
	return n
}

// push puts an image into the registry, with a layer for each empty file.
func (h *hub) push(t *testing.T, ref string, files ...string) {
	t.Helper()
	var layers [][]images.File
	for _, file := range files {
		layers = append(layers, []images.File{{Path: file}})
	}
	images.Push(t, h.host+"/"+ref, images.Image(t, runtime.GOARCH, v1.Config{Cmd: []string{"/bin/true"}}, layers...))
}

func newService(t *testing.T) *Service {
	t.Helper()
	s, err := Open(store.Layout{Dir: t.TempDir(), Run: t.TempDir()}, slog.New(slog.DiscardHandler))
	if err != nil {
		t.Fatal(err)
	}
	t.Setenv("HOME", s.layout.Run)
	return s
}

func TestPullImage(t *testing.T) {
	h, s := newHub(t), newService(t)
	h.push(t, "team/app:1", "a", "b", "a")
	ref := h.host + "/team/app:1"
	var states []registry.State
	watch := PullWatch{Layer: func(p registry.Progress) { states = append(states, p.State) }}
	img, err := s.PullImage(t.Context(), ref, watch)
	if err != nil {
		t.Fatal(err)
	}
	if named, err := s.images().Resolve(ref); err != nil || named.Digest != img.Digest {
		t.Errorf("%s is %.12s, %v, and %.12s was pulled", ref, named.Digest, err, img.Digest)
	}
	if !slices.Equal(img.Config.Cmd, []string{"/bin/true"}) || !strings.HasPrefix(img.Source, ref+"@sha256:") {
		t.Errorf("pulled %+v", img)
	}
	// The first and the last layer are one blob.
	if n := slices.Compact(slices.Sorted(slices.Values(states))); !slices.Equal(n, []registry.State{registry.Done, registry.Begun, registry.Waiting}) || h.blobs() != 3 {
		t.Errorf("states %v, %d blobs with the configuration", n, h.blobs())
	}
	// What is here is not made again, and is found by another name too.
	h.push(t, "copy", "a", "b", "a")
	again, err := s.PullImage(t.Context(), h.host+"/copy", watch)
	if err != nil || again.Digest != img.Digest {
		t.Errorf("again %.12s, %v", again.Digest, err)
	}
	if names, err := s.images().NamesOf(img.Digest); err != nil || len(names) != 2 {
		t.Errorf("its names are %v, %v", names, err)
	}
	// Images share layers: one of two is new, and the configuration.
	before := h.blobs()
	h.push(t, "other", "a", "c")
	if _, err := s.PullImage(t.Context(), h.host+"/other", PullWatch{}); err != nil || h.blobs() != before+2 {
		t.Errorf("%d blobs more for an image with one new layer, %v", h.blobs()-before, err)
	}
}

// Two that pull the same image at a time download each layer once, and have
// the same image.
func TestPullTogether(t *testing.T) {
	h, s := newHub(t), newService(t)
	h.push(t, "app", "a", "b")
	h.asked()
	digests := make(chan string, 2)
	for range 2 {
		go func() {
			img, err := s.PullImage(t.Context(), h.host+"/app", PullWatch{})
			if err != nil {
				t.Error(err)
			}
			digests <- img.Digest
		}()
	}
	if one, two := <-digests, <-digests; one != two {
		t.Errorf("pulled %.12s and %.12s", one, two)
	}
	asked := map[string]int{}
	for _, path := range h.asked() {
		asked[path]++
	}
	twice := 0
	for path, n := range asked {
		if n > 1 && strings.Contains(path, "/blobs/") {
			twice++
		}
	}
	// The configuration is small, and asked for by each.
	if twice > 1 {
		t.Errorf("layers were downloaded twice: %v", asked)
	}
}

// Whatever goes wrong with a layer, that is what is said, nothing half-made is
// left, and pulling again works.
func TestPullFails(t *testing.T) {
	h, s := newHub(t), newService(t)
	h.push(t, "app", "a", "b")
	status := func(code int) func(http.ResponseWriter) {
		return func(w http.ResponseWriter) {
			w.Header().Set("Retry-After", "3600") // longer than anybody waits
			w.WriteHeader(code)
		}
	}
	for _, c := range []struct {
		code  api.Code
		spoil func(http.ResponseWriter)
	}{
		{api.ErrImageCorrupt, func(w http.ResponseWriter) { w.Write([]byte("nonsense")) }},
		{api.ErrRegistryAuth, status(http.StatusUnauthorized)},
		{api.ErrRegistryAuth, status(http.StatusForbidden)},
		{api.ErrImageNotFound, status(http.StatusNotFound)},
		{api.ErrRegistryBusy, status(http.StatusTooManyRequests)},
		{api.ErrRegistry, status(http.StatusInternalServerError)},
		{api.ErrRegistry, status(http.StatusServiceUnavailable)},
	} {
		config := true
		h.onGet(func(w http.ResponseWriter, r *http.Request) bool {
			if !strings.Contains(r.URL.Path, "/blobs/") {
				return false
			}
			if config {
				config = false
				return false
			}
			c.spoil(w)
			return true
		})
		if _, err := s.PullImage(t.Context(), h.host+"/app", PullWatch{}); !api.HasCode(err, c.code) {
			t.Errorf("got %v, want %s", err, c.code)
		}
		if images, _, err := s.images().List(); err != nil || len(images) > 0 {
			t.Errorf("%d images, %v", len(images), err)
		}
		if left, err := os.ReadDir(s.layout.Tmp()); err != nil || len(left) > 0 {
			t.Errorf("left %v, %v", left, err)
		}
	}
	h.onGet(nil)
	if _, err := s.PullImage(t.Context(), h.host+"/app", PullWatch{}); err != nil {
		t.Error(err)
	}
}

// A disk that has room for the layers and not for the image is full, and has
// all its room again.
func TestPullToFullDisk(t *testing.T) {
	testenv.RequireRoot(t)
	h, s := newHub(t), newService(t)
	if err := unix.Mount("tmpfs", s.layout.Dir, "tmpfs", 0, "size=64k"); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := unix.Unmount(s.layout.Dir, unix.MNT_DETACH); err != nil {
			t.Error(err)
		}
	})
	if err := s.layout.Init(); err != nil {
		t.Fatal(err)
	}
	h.push(t, "app", strings.Repeat("deep/", 20)+"a")
	if _, err := s.PullImage(t.Context(), h.host+"/app", PullWatch{}); !api.HasCode(err, api.ErrDiskFull) {
		t.Errorf("got %v, want ErrDiskFull", err)
	}
	if images, _, err := s.images().List(); err != nil || len(images) > 0 {
		t.Errorf("%d images, %v", len(images), err)
	}
	if left, err := os.ReadDir(s.layout.Tmp()); err != nil || len(left) > 0 {
		t.Errorf("left %v, %v", left, err)
	}
	if err := unix.Mount("tmpfs", s.layout.Dir, "tmpfs", unix.MS_REMOUNT, "size=1m"); err != nil {
		t.Fatal(err)
	}
	if _, err := s.PullImage(t.Context(), h.host+"/app", PullWatch{}); err != nil {
		t.Errorf("with room: %v", err)
	}
}

// A kept layer that was damaged is told of as such, whatever its bytes look
// like to who unpacks them.
func TestPullDamaged(t *testing.T) {
	h, s := newHub(t), newService(t)
	h.push(t, "app", "a", "b")
	img, err := s.PullImage(t.Context(), h.host+"/app", PullWatch{})
	if err != nil {
		t.Fatal(err)
	}
	blobs, err := filepath.Glob(filepath.Join(s.layout.Blobs(), "sha256", "*"))
	if err != nil || len(blobs) != 2 {
		t.Fatalf("%v, %v", blobs, err)
	}
	for _, path := range blobs {
		info, err := os.Stat(path)
		if err != nil {
			t.Fatal(err)
		}
		if err := os.Remove(path); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(path, make([]byte, info.Size()), 0o400); err != nil {
			t.Fatal(err)
		}
	}
	if _, err := s.images().Remove(t.Context(), "sha256:"+img.Digest, func(string) error { return nil }); err != nil {
		t.Fatal(err)
	}
	for range 2 {
		if _, err = s.PullImage(t.Context(), h.host+"/app", PullWatch{}); err == nil {
			break
		}
		if !api.HasCode(err, api.ErrImageCorrupt) {
			t.Errorf("damaged: %v", err)
		}
	}
	if again, err := s.PullImage(t.Context(), h.host+"/app", PullWatch{}); err != nil || again.Digest != img.Digest {
		t.Errorf("again: %.12s, %v", again.Digest, err)
	}
}

func TestPrunePulled(t *testing.T) {
	h, s := newHub(t), newService(t)
	if n, bytes, err := s.PrunePulled(); n != 0 || bytes != 0 || err != nil {
		t.Errorf("nothing: %d, %d, %v", n, bytes, err)
	}
	h.push(t, "app", "a", "b")
	img, err := s.PullImage(t.Context(), h.host+"/app", PullWatch{})
	if err != nil {
		t.Fatal(err)
	}
	if n, bytes, err := s.PrunePulled(); n != 2 || bytes == 0 || err != nil {
		t.Errorf("pruned %d layers, %d bytes, %v", n, bytes, err)
	}
	// The image does not need them, and is not made again.
	before := h.blobs()
	if _, err := s.PullImage(t.Context(), h.host+"/app", PullWatch{}); err != nil || h.blobs() != before+1 {
		t.Errorf("%d blobs were asked for, %v", h.blobs()-before, err)
	}
	if _, err := s.images().Remove(t.Context(), "sha256:"+img.Digest, func(string) error { return nil }); err != nil {
		t.Fatal(err)
	}
	if _, _, err := s.PrunePulled(); err != nil {
		t.Error(err)
	}
	if notes, err := os.ReadDir(s.layout.Pulled("")); err != nil || len(notes) > 0 {
		t.Errorf("notes %v, %v", notes, err)
	}
}

func TestBringImage(t *testing.T) {
	h, s := newHub(t), newService(t)
	h.push(t, "app", "a")
	h.asked()
	ref := h.host + "/app:latest"
	if _, err := s.BringImage(t.Context(), ref, PullNever, PullWatch{}); !api.HasCode(err, api.ErrImageNotFound) {
		t.Errorf("never: %v", err)
	}
	if asked := h.asked(); len(asked) > 0 {
		t.Errorf("never: asked for %v", asked)
	}
	name, err := s.BringImage(t.Context(), ref, PullMissing, PullWatch{})
	if err != nil || name != h.host+"/app" {
		t.Errorf("missing: %s, %v", name, err)
	}
	first, err := s.images().Resolve(name)
	if err != nil {
		t.Fatal(err)
	}
	h.asked()
	for _, policy := range []PullPolicy{PullMissing, PullNever} {
		if name, err := s.BringImage(t.Context(), ref, policy, PullWatch{}); err != nil || name != ref {
			t.Errorf("%s, and it is here: %s, %v", policy, name, err)
		}
	}
	if asked := h.asked(); len(asked) > 0 {
		t.Errorf("asked for %v, which is here", asked)
	}
	h.push(t, "app", "b")
	name, err = s.BringImage(t.Context(), ref, PullAlways, PullWatch{})
	if err != nil {
		t.Fatal(err)
	}
	if img, err := s.images().Resolve(name); err != nil || img.Digest == first.Digest {
		t.Errorf("always: %s still is %.12s, %v", name, img.Digest, err)
	}
	for ref, code := range map[string]api.Code{
		"sha256:" + strings.Repeat("0", 64): api.ErrImageNotFound, "../x": api.ErrValidationImageRef, h.host + "/none": api.ErrImageNotFound,
	} {
		if _, err := s.BringImage(t.Context(), ref, PullMissing, PullWatch{}); !api.HasCode(err, code) {
			t.Errorf("%s: %v", ref, err)
		}
	}
	if _, err := s.BringImage(t.Context(), ref, "sometimes", PullWatch{}); !api.HasCode(err, api.ErrValidationChoice) {
		t.Errorf("sometimes: %v", err)
	}
}

func TestRuntimes(t *testing.T) {
	s := newService(t)
	for name, want := range map[string]string{"base": "debian", "node22": "node:22-slim", "python3.13": "python:3.13-slim"} {
		if got, err := s.RuntimeImage(name); err != nil || got != want {
			t.Errorf("%s: %s, %v", name, got, err)
		}
	}
	_, err := s.RuntimeImage("cobol")
	if !api.HasCode(err, api.ErrValidationChoice) || !strings.Contains(err.Error(), "base, node22, node24, python3.13") {
		t.Errorf("cobol: %v", err)
	}
	config := `{"runtimes": {"cobol": "registry.example/cobol:1", "base": "busybox"}}`
	if err := os.WriteFile(s.layout.Runtimes(), []byte(config), 0o644); err != nil {
		t.Fatal(err)
	}
	for name, want := range map[string]string{"base": "busybox", "node24": "node:24-slim", "cobol": "registry.example/cobol:1"} {
		if got, err := s.RuntimeImage(name); err != nil || got != want {
			t.Errorf("%s: %s, %v", name, got, err)
		}
	}
	// Offline, what was imported under the runtime's name is what there is.
	var b bytes.Buffer
	w := tar.NewWriter(&b)
	if err := w.WriteHeader(&tar.Header{Name: "x", Mode: 0o644}); err != nil {
		t.Fatal(err)
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	if _, err := s.images().ImportTar(t.Context(), &b, image.Meta{Name: "cobol"}); err != nil {
		t.Fatal(err)
	}
	if got, err := s.RuntimeImage("cobol"); err != nil || got != "cobol" {
		t.Errorf("cobol, imported: %s, %v", got, err)
	}
	for _, bad := range []string{`{`, `{"x": 1}`, `{"runtimes": {"A": "b"}}`, `{"runtimes": {"a": "../b"}}`, `{"runtimes": {"a": 1}}`} {
		if all, err := parseRuntimes([]byte(bad)); err == nil {
			t.Errorf("%s: %v", bad, all)
		}
	}
}
