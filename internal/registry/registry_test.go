package registry_test

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"encoding/pem"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/google/go-containerregistry/pkg/authn"
	"github.com/google/go-containerregistry/pkg/name"
	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/empty"
	"github.com/google/go-containerregistry/pkg/v1/mutate"
	"github.com/google/go-containerregistry/pkg/v1/remote"
	"github.com/google/go-containerregistry/pkg/v1/types"

	"github.com/vmsan/vmsan/api"
	"github.com/vmsan/vmsan/internal/registry"
)

func TestPull(t *testing.T) {
	h, dir := newHub(t), t.TempDir()
	img := newImage(t, "amd64", 1000, 3<<20, 0, 70000)
	h.push(t, "team/app:1.2", img)
	for _, ref := range []string{"/team/app:1.2", "/team/app@" + digest(t, img)} {
		p, err := pull(t.Context(), client(dir), h.host()+ref)
		if err != nil {
			t.Fatal(err)
		}
		p.check(t, img)
		if !bytes.Contains(p.image.Config, []byte("ARCH=amd64")) {
			t.Errorf("the configuration is %s", p.image.Config)
		}
	}
	for i := range 4 {
		if n := h.asked(blobPath(t, "team/app", img, i)); n != 1 {
			t.Errorf("layer %d was asked for %d times in two pulls", i, n)
		}
	}
	if left := begun(t, dir); len(left) > 0 {
		t.Errorf("begun blobs are left: %v", left)
	}
}

func TestPullIndex(t *testing.T) {
	h := newHub(t)
	images := map[string]v1.Image{}
	index := v1.ImageIndex(empty.Index)
	for i, p := range []v1.Platform{
		{OS: "linux", Architecture: "arm64", Variant: "v8"}, {OS: "windows", Architecture: "amd64"},
		{OS: "linux", Architecture: "amd64", Variant: "v4"}, {OS: "linux", Architecture: "amd64"},
		{OS: "unknown", Architecture: "unknown"},
	} {
		images[p.String()] = newImage(t, p.Architecture, 100+i)
		index = mutate.AppendManifests(index, mutate.IndexAddendum{Add: images[p.String()], Descriptor: v1.Descriptor{Platform: &p}})
	}
	outer := mutate.AppendManifests(empty.Index, mutate.IndexAddendum{
		Add: index, Descriptor: v1.Descriptor{Platform: &v1.Platform{OS: "linux", Architecture: "amd64"}},
	})
	for tag, i := range map[string]v1.ImageIndex{"flat": index, "nested": outer} {
		ref, err := name.ParseReference(h.host() + "/app:" + tag)
		if err != nil {
			t.Fatal(err)
		}
		if err := remote.WriteIndex(ref, i); err != nil {
			t.Fatal(err)
		}
		p, err := pull(t.Context(), client(t.TempDir()), ref.Name())
		if err != nil {
			t.Fatal(err)
		}
		p.check(t, images["linux/amd64"])
	}
	other := client(t.TempDir())
	other.Arch = "arm64"
	p, err := pull(t.Context(), other, h.host()+"/app:flat")
	if err != nil {
		t.Fatal(err)
	}
	p.check(t, images["linux/arm64/v8"])
	other.Arch = "riscv64"
	_, err = pull(t.Context(), other, h.host()+"/app:flat")
	if !api.HasCode(err, api.ErrUnsupported) || !strings.Contains(err.Error(), `linux/riscv64, but for "linux/arm64/v8, windows/amd64`) {
		t.Errorf("riscv64: %v", err)
	}
	h.push(t, "arm", images["linux/arm64/v8"])
	if _, err := pull(t.Context(), client(t.TempDir()), h.host()+"/arm"); !api.HasCode(err, api.ErrUnsupported) {
		t.Errorf("an image for another architecture without an index: %v", err)
	}
}

// wants checks the credentials of all requests.
func (h *hub) wants(user, password string) {
	next := h.Config.Handler
	h.Config.Handler = http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		u, p, _ := r.BasicAuth()
		if u != user || p != password {
			w.Header().Set("WWW-Authenticate", `Basic realm="here"`)
			w.WriteHeader(http.StatusUnauthorized)
			io.WriteString(w, `{"errors":[{"code":"UNAUTHORIZED","message":"who\u001b[2J?"}]}`)
			return
		}
		next.ServeHTTP(w, r)
	})
}

// Credentials come from docker's configuration, by themselves or by a helper.
func TestCredentials(t *testing.T) {
	h := unstarted()
	h.wants("me", "secret")
	h.Start()
	t.Cleanup(h.Close)
	img := newImage(t, "amd64", 100)
	h.push(t, "app", img, remote.WithAuth(&authn.Basic{Username: "me", Password: "secret"}))
	home := t.TempDir()
	t.Setenv("HOME", home)
	t.Setenv("DOCKER_CONFIG", home)
	t.Setenv("PATH", home+":"+os.Getenv("PATH"))
	helper := "#!/bin/sh\nread host; [ \"$1\" = get ] && echo '{\"Username\":\"me\",\"Secret\":\"secret\"}'\n"
	if err := os.WriteFile(filepath.Join(home, "docker-credential-test"), []byte(helper), 0o755); err != nil {
		t.Fatal(err)
	}
	for _, test := range []struct {
		config string
		code   api.Code
	}{
		{`{}`, api.ErrRegistryAuth},
		{fmt.Sprintf(`{"auths": {%q: {"auth": "bWU6c2VjcmV0"}}}`, h.host()), ""},
		{fmt.Sprintf(`{"auths": {%q: {"auth": "bWU6d3Jvbmc="}}}`, h.host()), api.ErrRegistryAuth},
		{fmt.Sprintf(`{"credHelpers": {%q: "test"}}`, h.host()), ""},
		{`{`, api.ErrRegistryAuth},
	} {
		if err := os.WriteFile(filepath.Join(home, "config.json"), []byte(test.config), 0o600); err != nil {
			t.Fatal(err)
		}
		c := client(t.TempDir())
		c.Keychain = nil
		_, err := pull(t.Context(), c, h.host()+"/app")
		if test.code == "" && err != nil || test.code != "" && !api.HasCode(err, test.code) {
			t.Errorf("%s: %v", test.config, err)
		}
		if err != nil && (strings.Contains(err.Error(), "\x1b") || strings.Contains(err.Error(), "secret")) {
			t.Errorf("%s: the error shows too much: %q", test.config, err)
		}
	}
}

// A token server hands out tokens for credentials, and the registry takes
// nothing else.
func TestToken(t *testing.T) {
	h := newHub(t)
	img := newImage(t, "amd64", 100)
	h.push(t, "app", img)
	var asked atomic.Int32
	h.onGet(func(w http.ResponseWriter, r *http.Request) bool {
		if r.URL.Path == "/token" {
			asked.Add(1)
			if u, p, _ := r.BasicAuth(); u != "me" || p != "secret" || r.URL.Query().Get("scope") != "repository:app:pull" {
				w.WriteHeader(http.StatusForbidden)
				return true
			}
			io.WriteString(w, `{"token": "good"}`)
			return true
		}
		if r.Header.Get("Authorization") == "Bearer good" {
			return false
		}
		w.Header().Set("WWW-Authenticate", fmt.Sprintf(`Bearer realm=%q,service="hub"`, h.URL+"/token"))
		w.WriteHeader(http.StatusUnauthorized)
		return true
	})
	c := client(t.TempDir())
	c.Keychain = as{"me", "secret"}
	p, err := pull(t.Context(), c, h.host()+"/app")
	if err != nil {
		t.Fatal(err)
	}
	p.check(t, img)
	if n := asked.Load(); n != 1 {
		t.Errorf("%d tokens were asked for", n)
	}
	c.Keychain = as{"me", "wrong"}
	if _, err := pull(t.Context(), c, h.host()+"/app"); !api.HasCode(err, api.ErrRegistryAuth) {
		t.Errorf("wrong credentials: %v", err)
	}
}

type as struct{ user, password string }

func (a as) Resolve(authn.Resource) (authn.Authenticator, error) {
	return &authn.Basic{Username: a.user, Password: a.password}, nil
}

func TestTLS(t *testing.T) {
	h := unstarted()
	h.StartTLS()
	t.Cleanup(h.Close)
	img := newImage(t, "amd64", 100)
	h.push(t, "app", img, remote.WithTransport(h.Client().Transport))
	ca := filepath.Join(t.TempDir(), "ca.pem")
	block := pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: h.Certificate().Raw})
	if err := os.WriteFile(ca, block, 0o600); err != nil {
		t.Fatal(err)
	}
	for name, test := range map[string]struct {
		host registry.Host
		code api.Code
	}{
		"nothing said": {registry.Host{}, api.ErrRegistry},
		"its CA":       {registry.Host{CA: ca}, ""},
		"no such file": {registry.Host{CA: ca + "x"}, api.ErrRegistryConfig},
		"insecure":     {registry.Host{Insecure: true}, ""},
	} {
		c := client(t.TempDir())
		c.Config.Registries = map[string]registry.Host{h.host(): test.host}
		p, err := pull(t.Context(), c, h.host()+"/app")
		switch {
		case test.code != "":
			if !api.HasCode(err, test.code) {
				t.Errorf("%s: %v", name, err)
			}
		case err != nil:
			t.Errorf("%s: %v", name, err)
		default:
			p.check(t, img)
		}
	}
}

// Hosts that are not on loopback have to speak TLS, unless it was said that
// they need not. 198.51.100.1 is not there: nothing is sent to it.
func TestPlain(t *testing.T) {
	h := newHub(t)
	img := newImage(t, "amd64", 100)
	h.push(t, "app", img)
	// The registry as a proxy is found under any name.
	t.Setenv("HTTP_PROXY", h.URL)
	t.Setenv("HTTPS_PROXY", h.URL)
	if os.Getenv(plainHelper) == "" {
		// The proxy is read once per process.
		out, err := rerun(t, "TestPlain", plainHelper+"="+h.URL)
		if err != nil {
			t.Errorf("%v: %s", err, out)
		}
		return
	}
	t.Setenv("HTTP_PROXY", os.Getenv(plainHelper))
	c := client(t.TempDir())
	c.Config.Registries = map[string]registry.Host{"198.51.100.1:80": {Insecure: true}}
	if _, err := pull(t.Context(), c, "198.51.100.1:80/app"); err != nil {
		t.Error(err)
	}
	c.Config = registry.Config{}
	_, err := pull(t.Context(), c, "198.51.100.1:80/app")
	if !api.HasCode(err, api.ErrRegistry) {
		t.Errorf("plain HTTP: %v", err)
	}
}

const plainHelper = "VMSAN_TEST_PLAIN"

func TestMirrors(t *testing.T) {
	origin, mirror, broken := newHub(t), newHub(t), newHub(t)
	img := newImage(t, "amd64", 100, 2000)
	origin.push(t, "app", img)
	mirror.push(t, "copy/app", img)
	broken.onGet(func(w http.ResponseWriter, r *http.Request) bool {
		w.WriteHeader(http.StatusBadGateway)
		return true
	})
	c := client(t.TempDir())
	c.Config.Registries = map[string]registry.Host{origin.host(): {Mirrors: []string{broken.host(), mirror.host() + "/copy"}}}
	p, err := pull(t.Context(), c, origin.host()+"/app")
	if err != nil {
		t.Fatal(err)
	}
	p.check(t, img)
	if n := broken.asked("/v2/"); n != 2 {
		t.Errorf("the broken mirror was asked %d times", n)
	}
	if n := origin.bytes(); n != 0 {
		t.Errorf("%d bytes came from the registry that has a mirror", n)
	}
	// What mirrors lack comes from the registry, and what they are silent of.
	mirror.Close()
	c.Cache.Dir, c.Stall = t.TempDir(), 500*time.Millisecond
	broken.onGet(func(_ http.ResponseWriter, r *http.Request) bool {
		<-r.Context().Done()
		return true
	})
	if p, err = pull(t.Context(), c, origin.host()+"/app"); err != nil {
		t.Fatal(err)
	}
	p.check(t, img)
	origin.Close()
	c.Cache.Dir = t.TempDir()
	if _, err = pull(t.Context(), c, origin.host()+"/app"); !api.HasCode(err, api.ErrRegistry) || !strings.Contains(err.Error(), "mirrors failed too") {
		t.Errorf("without all of them: %v", err)
	}
}

// A registry that has no time is asked again, and not for ever.
func TestRetries(t *testing.T) {
	h := newHub(t)
	img := newImage(t, "amd64", 1000)
	h.push(t, "app", img)
	for _, code := range []int{408, 429, 500, 502, 503, 504} {
		var n atomic.Int32
		h.onGet(func(w http.ResponseWriter, _ *http.Request) bool {
			if n.Add(1)%3 == 0 {
				return false
			}
			w.Header().Set("Retry-After", "0")
			w.WriteHeader(code)
			return true
		})
		p, err := pull(t.Context(), client(t.TempDir()), h.host()+"/app")
		if err != nil {
			t.Errorf("%d, twice: %v", code, err)
			continue
		}
		p.check(t, img)
	}
	for code, want := range map[int]api.Code{
		429: api.ErrRegistryBusy, 503: api.ErrRegistry, 404: api.ErrImageNotFound, 403: api.ErrRegistryAuth, 418: api.ErrRegistry,
	} {
		var n atomic.Int32
		h.onGet(func(w http.ResponseWriter, r *http.Request) bool {
			if !strings.Contains(r.URL.Path, "/manifests/") {
				return false
			}
			n.Add(1)
			w.WriteHeader(code)
			return true
		})
		_, err := pull(t.Context(), client(t.TempDir()), h.host()+"/app")
		if !api.HasCode(err, want) {
			t.Errorf("%d: %v", code, err)
		}
		if tries := n.Load(); (code == 429 || code == 503) != (tries == 5) {
			t.Errorf("%d: asked %d times", code, tries)
		}
	}
}

// A wait that is longer than anybody would sit through is not waited for.
func TestRetryAfter(t *testing.T) {
	h := newHub(t)
	h.push(t, "app", newImage(t, "amd64", 1000))
	var n atomic.Int32
	h.onGet(func(w http.ResponseWriter, _ *http.Request) bool {
		if n.Add(1) == 1 {
			w.Header().Set("Retry-After", "1")
			w.WriteHeader(http.StatusTooManyRequests)
			return true
		}
		return false
	})
	began := time.Now()
	if _, err := pull(t.Context(), client(t.TempDir()), h.host()+"/app"); err != nil || time.Since(began) < time.Second {
		t.Errorf("asked to wait a second, pulled in %v, %v", time.Since(began), err)
	}
	h.onGet(func(w http.ResponseWriter, _ *http.Request) bool {
		n.Add(1)
		w.Header().Set("Retry-After", "3600")
		w.WriteHeader(http.StatusTooManyRequests)
		return true
	})
	n.Store(0)
	if _, err := pull(t.Context(), client(t.TempDir()), h.host()+"/app"); !api.HasCode(err, api.ErrRegistryBusy) || n.Load() != 1 {
		t.Errorf("asked to wait an hour: %v after %d tries", err, n.Load())
	}
}

// cut sends only so much of each answer, as if the connection broke.
func cut(h *hub, most int) func(w http.ResponseWriter, r *http.Request) bool {
	return func(w http.ResponseWriter, r *http.Request) bool {
		if !isBlob(r) {
			return false
		}
		rec := httptest.NewRecorder()
		h.handler.ServeHTTP(rec, r)
		for key, values := range rec.Header() {
			w.Header()[key] = values
		}
		w.Header().Set("Content-Length", strconv.Itoa(rec.Body.Len()))
		w.WriteHeader(rec.Code)
		(&counted{w, h, true}).Write(rec.Body.Next(most))
		if rec.Body.Len() > 0 {
			w.(http.Flusher).Flush()
			panic(http.ErrAbortHandler)
		}
		return true
	}
}

// A layer that breaks off goes on where it was.
func TestResume(t *testing.T) {
	h, dir := newHub(t), t.TempDir()
	img := newImage(t, "amd64", 3<<20)
	h.push(t, "app", img)
	h.onGet(cut(h, 500<<10))
	p, err := pull(t.Context(), client(dir), h.host()+"/app")
	if err != nil {
		t.Fatal(err)
	}
	p.check(t, img)
	size := p.image.Layers[0].Size
	// The rest is the configuration.
	if sent := h.bytes(); sent < size || sent > size+4096 {
		t.Errorf("%d bytes were sent of a layer of %d", sent, size)
	}
	if n := h.asked(blobPath(t, "app", img, 0)); n != 7 {
		t.Errorf("the layer was asked for %d times", n)
	}
}

// A registry that cannot send a part sends it all again.
func TestResumeWithoutRanges(t *testing.T) {
	h := newHub(t)
	img := newImage(t, "amd64", 1<<20)
	h.push(t, "app", img)
	var n atomic.Int32
	path := blobPath(t, "app", img, 0)
	h.onGet(func(w http.ResponseWriter, r *http.Request) bool {
		if r.URL.Path != path {
			return false
		}
		r.Header.Del("Range")
		if n.Add(1) < 3 {
			return cut(h, 300<<10*int(n.Load()))(w, r)
		}
		return false
	})
	p, err := pull(t.Context(), client(t.TempDir()), h.host()+"/app")
	if err != nil {
		t.Fatal(err)
	}
	p.check(t, img)
}

// What never comes to an end is given up, and stays for the next pull.
func TestTruncated(t *testing.T) {
	h, dir := newHub(t), t.TempDir()
	img := newImage(t, "amd64", 1<<20)
	h.push(t, "app", img)
	path := blobPath(t, "app", img, 0)
	h.onGet(func(w http.ResponseWriter, r *http.Request) bool {
		if r.URL.Path == path {
			if r.Header.Get("Range") != "" {
				panic(http.ErrAbortHandler)
			}
			return cut(h, 100<<10)(w, r)
		}
		return false
	})
	if _, err := pull(t.Context(), client(dir), h.host()+"/app"); !api.HasCode(err, api.ErrRegistry) {
		t.Errorf("a layer cut short: %v", err)
	}
	if left := begun(t, dir); len(left) != 1 {
		t.Errorf("begun blobs: %v", left)
	}
	before := h.bytes()
	h.onGet(nil)
	p, err := pull(t.Context(), client(dir), h.host()+"/app")
	if err != nil {
		t.Fatal(err)
	}
	p.check(t, img)
	if sent := h.bytes() - before; sent > p.image.Layers[0].Size-(100<<10)+4096 {
		t.Errorf("the second pull got %d bytes", sent)
	}
}

// Whatever a registry sends that is not what it should be is refused, leaves
// nothing, and does not keep the next pull from working.
func TestWrongBlobs(t *testing.T) {
	for name, spoil := range map[string]func(body []byte) []byte{
		"another byte": func(b []byte) []byte { b[len(b)/2] ^= 1; return b },
		"shorter":      func(b []byte) []byte { return b[:len(b)-1] },
		"longer":       func(b []byte) []byte { return append(b, 0) },
		"empty":        func([]byte) []byte { return nil },
	} {
		for _, sized := range []bool{true, false} {
			h, dir := newHub(t), t.TempDir()
			img := newImage(t, "amd64", 5000)
			h.push(t, "app", img)
			path := blobPath(t, "app", img, 0)
			h.onGet(func(w http.ResponseWriter, r *http.Request) bool {
				if r.URL.Path != path {
					return false
				}
				r.Header.Del("Range")
				rec := httptest.NewRecorder()
				h.handler.ServeHTTP(rec, r)
				body := spoil(rec.Body.Bytes())
				if sized {
					w.Header().Set("Content-Length", strconv.Itoa(len(body)))
				} else {
					w.(http.Flusher).Flush()
				}
				w.Write(body)
				return true
			})
			_, err := pull(t.Context(), client(dir), h.host()+"/app")
			short := !sized && (name == "shorter" || name == "empty")
			if want := map[bool]api.Code{true: api.ErrRegistry, false: api.ErrImageCorrupt}[short]; !api.HasCode(err, want) {
				t.Errorf("%s, size told %v: %v", name, sized, err)
			}
			if left := begun(t, dir); len(left) > 0 && !short {
				t.Errorf("%s: left %v", name, left)
			}
			h.onGet(nil)
			p, err := pull(t.Context(), client(dir), h.host()+"/app")
			if err != nil {
				t.Errorf("%s, and again: %v", name, err)
				continue
			}
			p.check(t, img)
		}
	}
}

// serve has the registry send data as a manifest.
func serve(h *hub, mediaType string, data []byte) {
	h.onGet(func(w http.ResponseWriter, r *http.Request) bool {
		if !strings.Contains(r.URL.Path, "/manifests/") {
			return false
		}
		w.Header().Set("Content-Type", mediaType)
		w.Write(data)
		return true
	})
}

func TestWrongManifests(t *testing.T) {
	h := newHub(t)
	img := newImage(t, "amd64", 100)
	h.push(t, "app", img)
	manifest := func(change func(m *v1.Manifest)) string {
		m, err := img.Manifest()
		if err != nil {
			t.Fatal(err)
		}
		m = m.DeepCopy()
		change(m)
		data, err := json.Marshal(m)
		if err != nil {
			t.Fatal(err)
		}
		return string(data)
	}
	const index = `{"mediaType": "application/vnd.oci.image.index.v1+json", "manifests": [%s]}`
	for name, test := range map[string]struct {
		data string
		code api.Code
		says string
	}{
		"not JSON":      {"<html>", api.ErrImageInvalid, "malformed"},
		"too large":     {strings.Repeat(" ", 4<<20+1), api.ErrImageInvalid, "4194304 bytes"},
		"schema 1":      {`{"mediaType": "application/vnd.docker.distribution.manifest.v1+json"}`, api.ErrImageInvalid, "media type"},
		"of two kinds":  {`{"mediaType": "application/vnd.oci.image.index.v1+json", "manifests": [], "layers": []}`, api.ErrImageInvalid, "same time"},
		"empty index":   {fmt.Sprintf(index, ""), api.ErrUnsupported, "but for nothing"},
		"no layers":     {manifest(func(m *v1.Manifest) { m.Layers = nil }), api.ErrImageInvalid, "0 layers"},
		"many layers":   {manifest(func(m *v1.Manifest) { m.Layers = slices.Repeat(m.Layers, 1025) }), api.ErrImageInvalid, "1025 layers"},
		"artifact":      {manifest(func(m *v1.Manifest) { m.Config.MediaType = "application/x-chart" }), api.ErrImageInvalid, "x-chart"},
		"foreign layer": {manifest(func(m *v1.Manifest) { m.Layers[0].MediaType = types.DockerForeignLayer }), api.ErrImageInvalid, "foreign"},
		"huge layer":    {manifest(func(m *v1.Manifest) { m.Layers[0].Size = 1 << 40 }), api.ErrImageInvalid, "bytes"},
		"negative":      {manifest(func(m *v1.Manifest) { m.Layers[0].Size = -1 }), api.ErrImageInvalid, "-1 bytes"},
		"huge config":   {manifest(func(m *v1.Manifest) { m.Config.Size = 1 << 30 }), api.ErrImageInvalid, "configuration"},
		"wrong config":  {manifest(func(m *v1.Manifest) { m.Config.Size-- }), api.ErrImageInvalid, "configuration"},
		"other layers":  {manifest(func(m *v1.Manifest) { m.Layers = append(m.Layers, m.Layers[0]) }), api.ErrImageInvalid, "manifest of 2"},
		"other digest":  {manifest(func(m *v1.Manifest) { m.Layers[0].Digest = v1.Hash{Algorithm: "sha256", Hex: "../../x"} }), api.ErrImageInvalid, ""},
	} {
		serve(h, string(types.OCIManifestSchema1), []byte(test.data))
		_, err := pull(t.Context(), client(t.TempDir()), h.host()+"/app")
		if !api.HasCode(err, test.code) || !strings.Contains(err.Error(), test.says) {
			t.Errorf("%s: %v", name, err)
		}
		if test.says == "media type" && !strings.Contains(api.AsError(err).Hint, string(types.DockerManifestSchema2)) {
			t.Errorf("%s: the hint is %q", name, api.AsError(err).Hint)
		}
	}
	// An index that has itself would have a digest that does not exist; one
	// that says so of something else is found out.
	serve(h, "", []byte(fmt.Sprintf(index, `{"digest": "sha256:`+strings.Repeat("0", 64)+`", "size": 2, "platform": {"os": "linux", "architecture": "amd64"}}`)))
	if _, err := pull(t.Context(), client(t.TempDir()), h.host()+"/app"); !api.HasCode(err, api.ErrImageCorrupt) {
		t.Errorf("an index without end: %v", err)
	}
	serve(h, string(types.OCIManifestSchema1), []byte(manifest(func(m *v1.Manifest) { m.Annotations = map[string]string{"a": "b"} })))
	if _, err := pull(t.Context(), client(t.TempDir()), h.host()+"/app@"+digest(t, img)); !api.HasCode(err, api.ErrImageCorrupt) {
		t.Errorf("another manifest than was asked for: %v", err)
	}
}

func TestRedirects(t *testing.T) {
	h, store := newHub(t), newHub(t)
	img := newImage(t, "amd64", 1000)
	h.push(t, "app", img)
	store.push(t, "app", img)
	var authorized atomic.Bool
	store.onGet(func(_ http.ResponseWriter, r *http.Request) bool {
		authorized.Store(authorized.Load() || r.Header.Get("Authorization") != "")
		return false
	})
	to := func(target string) {
		h.onGet(func(w http.ResponseWriter, r *http.Request) bool {
			if isBlob(r) {
				http.Redirect(w, r, target+r.URL.Path, http.StatusTemporaryRedirect)
			}
			return isBlob(r)
		})
	}
	c := client(t.TempDir())
	c.Keychain = as{"me", "secret"}
	to(store.URL)
	p, err := pull(t.Context(), c, h.host()+"/app")
	if err != nil {
		t.Fatal(err)
	}
	p.check(t, img)
	if authorized.Load() {
		t.Error("another host got the credentials")
	}
	for target, says := range map[string]string{
		h.URL: "redirects", "http://169.254.169.254": "not allowed", "https://169.254.169.254": "link-local", "file:///etc": "",
	} {
		to(target)
		if _, err := pull(t.Context(), client(t.TempDir()), h.host()+"/app"); !api.HasCode(err, api.ErrRegistry) || !strings.Contains(err.Error(), says) {
			t.Errorf("sent to %s: %v", target, err)
		}
	}
}

// A registry that goes silent is not waited for without end.
func TestStall(t *testing.T) {
	h := newHub(t)
	img := newImage(t, "amd64", 200<<10)
	h.push(t, "app", img)
	path, release := blobPath(t, "app", img, 0), make(chan struct{})
	defer close(release)
	var n atomic.Int32
	silent := func(w http.ResponseWriter, r *http.Request) bool {
		if r.URL.Path != path || n.Add(1) > 2 {
			return false
		}
		w.Header().Set("Content-Length", "1")
		if n.Load() == 1 {
			rec := httptest.NewRecorder()
			h.handler.ServeHTTP(rec, r)
			w.Header().Set("Content-Length", strconv.Itoa(rec.Body.Len()))
			w.Write(rec.Body.Next(100 << 10))
			w.(http.Flusher).Flush()
		}
		select {
		case <-release:
		case <-r.Context().Done():
		}
		return true
	}
	h.onGet(silent)
	c := client(t.TempDir())
	c.Stall = 200 * time.Millisecond
	p, err := pull(t.Context(), c, h.host()+"/app")
	if err != nil {
		t.Fatal(err)
	}
	p.check(t, img)
	if n.Load() != 3 {
		t.Errorf("asked %d times", n.Load())
	}
	h.onGet(func(w http.ResponseWriter, r *http.Request) bool {
		n.Store(1)
		return silent(w, r)
	})
	c.Cache.Dir, c.Stall = t.TempDir(), 50*time.Millisecond
	if _, err := pull(t.Context(), c, h.host()+"/app"); !api.HasCode(err, api.ErrTimeout) {
		t.Errorf("nothing ever comes: %v", err)
	}
	// Whatever it has begun to say, and to whichever question.
	for _, part := range []string{"/v2/", "/manifests/", path} {
		for _, code := range []int{200, 307, 404, 503} {
			h.onGet(func(w http.ResponseWriter, r *http.Request) bool {
				if !strings.HasSuffix(r.URL.Path, part) && !(part == "/manifests/" && strings.Contains(r.URL.Path, part)) {
					return false
				}
				w.Header().Set("Location", "/v2/")
				w.Header().Set("Content-Length", "1000")
				w.WriteHeader(code)
				w.(http.Flusher).Flush()
				select {
				case <-release:
				case <-r.Context().Done():
				}
				return true
			})
			c.Cache.Dir = t.TempDir()
			ctx, cancel := context.WithTimeout(t.Context(), 10*time.Second)
			if _, err := pull(ctx, c, h.host()+"/app"); ctx.Err() != nil || code == 404 && !api.HasCode(err, api.ErrTimeout) {
				t.Errorf("silent after %d for %s: %v", code, part, err)
			}
			cancel()
		}
	}
}

func TestCancel(t *testing.T) {
	h := newHub(t)
	img := newImage(t, "amd64", 1000)
	h.push(t, "app", img)
	ctx, cancel := context.WithCancel(t.Context())
	h.onGet(func(_ http.ResponseWriter, r *http.Request) bool {
		if isBlob(r) {
			cancel()
			<-r.Context().Done()
		}
		return false
	})
	if _, err := pull(ctx, client(t.TempDir()), h.host()+"/app"); err == nil || ctx.Err() == nil || api.AsError(err).Code != api.ErrInternal {
		t.Errorf("canceled: %v", err)
	}
}

// A blob that was damaged where it is kept is found out, and gone afterwards.
func TestDamagedCache(t *testing.T) {
	h, dir := newHub(t), t.TempDir()
	img := newImage(t, "amd64", 100000)
	h.push(t, "app", img)
	if _, err := pull(t.Context(), client(dir), h.host()+"/app"); err != nil {
		t.Fatal(err)
	}
	kept := filepath.Join(dir, "blobs", "sha256")
	path := filepath.Join(kept, names(t, kept)[0])
	data, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	for name, spoil := range map[string]func() []byte{
		"shorter":   func() []byte { return data[:1000] },
		"a flipped": func() []byte { b := bytes.Clone(data); b[500] ^= 1; return b },
	} {
		if err := os.Remove(path); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(path, spoil(), 0o400); err != nil {
			t.Fatal(err)
		}
		_, err := pull(t.Context(), client(dir), h.host()+"/app")
		if name != "shorter" && !api.HasCode(err, api.ErrImageCorrupt) {
			t.Errorf("%s: %v", name, err)
		}
		p, err := pull(t.Context(), client(dir), h.host()+"/app")
		if err != nil {
			t.Fatal(err)
		}
		p.check(t, img)
	}
	// What an earlier pull began may be damaged too.
	sum := sha256.Sum256(data)
	if err := os.Rename(path, filepath.Join(dir, "blobs", "partial", hex.EncodeToString(sum[:]))); err != nil {
		t.Fatal(err)
	}
	partial := filepath.Join(dir, "blobs", "partial", hex.EncodeToString(sum[:]))
	if err := os.Chmod(partial, 0o600); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(partial, make([]byte, 5000), 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := pull(t.Context(), client(dir), h.host()+"/app"); !api.HasCode(err, api.ErrImageCorrupt) {
		t.Errorf("damaged beginning: %v", err)
	}
	if _, err := pull(t.Context(), client(dir), h.host()+"/app"); err != nil {
		t.Errorf("damaged beginning, and again: %v", err)
	}
}

func TestPrune(t *testing.T) {
	h, dir := newHub(t), t.TempDir()
	img := newImage(t, "amd64", 50000, 60000)
	h.push(t, "app", img)
	c := client(dir)
	if n, bytes, err := c.Cache.Prune(0); n != 0 || bytes != 0 || err != nil {
		t.Errorf("pruning nothing: %d, %d, %v", n, bytes, err)
	}
	if _, err := pull(t.Context(), c, h.host()+"/app"); err != nil {
		t.Fatal(err)
	}
	if n, bytes, err := c.Cache.Usage(); n != 2 || bytes < 110000 || err != nil {
		t.Errorf("usage: %d blobs, %d bytes, %v", n, bytes, err)
	}
	if n, _, err := c.Cache.Prune(time.Hour); n != 0 || err != nil {
		t.Errorf("pruned %d blobs younger than an hour, %v", n, err)
	}
	if n, bytes, err := c.Cache.Prune(0); n != 2 || bytes < 110000 || err != nil {
		t.Errorf("pruned: %d blobs, %d bytes, %v", n, bytes, err)
	}
	if n, _, err := c.Cache.Usage(); n != 0 || err != nil {
		t.Errorf("left: %d blobs, %v", n, err)
	}
}

// What is pruned in the middle of a pull does not hurt it.
func TestPruneBeside(t *testing.T) {
	h := newHub(t)
	img := newImage(t, "amd64", 50000, 60000)
	h.push(t, "app", img)
	c := client(t.TempDir())
	ref, err := registry.ParseReference(h.host() + "/app")
	if err != nil {
		t.Fatal(err)
	}
	remote, err := c.Resolve(t.Context(), ref)
	if err != nil {
		t.Fatal(err)
	}
	defer remote.Close()
	d, err := remote.Download(t.Context(), nil)
	if err != nil {
		t.Fatal(err)
	}
	defer d.Close()
	if err := d.Wait(); err != nil {
		t.Fatal(err)
	}
	if n, _, err := c.Cache.Prune(0); n != 2 || err != nil {
		t.Errorf("pruned %d, %v", n, err)
	}
	p := &pulled{image: remote}
	for _, l := range remote.Layers {
		b, err := read(t.Context(), d, l)
		if err != nil {
			t.Fatal(err)
		}
		p.layers = append(p.layers, b)
	}
	p.check(t, img)
}
