package e2e

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
	"os/exec"
	"path/filepath"
	"strings"
	"sync/atomic"
	"testing"

	"github.com/vmsan/vmsan/api"
	"github.com/vmsan/vmsan/internal/vmm/firecracker/contract"
)

// releasePage serves the contract's programs as releases, and counts downloads.
type releasePage struct {
	*httptest.Server
	archives  map[string][]byte // by version
	downloads atomic.Int64
}

func newReleasePage(t *testing.T, versions ...string) *releasePage {
	t.Helper()
	p := &releasePage{archives: map[string][]byte{}}
	for _, version := range versions {
		p.archives[version] = archiveOf(t, contract.Programs(t, version))
	}
	p.Server = httptest.NewServer(p)
	t.Cleanup(p.Close)
	return p
}

func archiveOf(t *testing.T, dir string) []byte {
	t.Helper()
	var b bytes.Buffer
	packed := gzip.NewWriter(&b)
	archive := tar.NewWriter(packed)
	for _, name := range []string{"firecracker", "jailer"} {
		text, err := os.ReadFile(filepath.Join(dir, name))
		if err == nil {
			err = archive.WriteHeader(&tar.Header{Typeflag: tar.TypeReg, Name: "release/" + name, Mode: 0o755, Size: int64(len(text))})
		}
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

func (p *releasePage) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	version, file, _ := strings.Cut(strings.TrimPrefix(r.URL.Path, "/v"), "/")
	archive := p.archives[version]
	switch {
	case archive == nil:
		http.NotFound(w, r)
	case strings.HasSuffix(file, ".sha256.txt"):
		fmt.Fprintf(w, "%x  %s\n", sha256.Sum256(archive), strings.TrimSuffix(file, ".sha256.txt"))
	default:
		p.downloads.Add(1)
		w.Write(archive)
	}
}

// TestFirecrackerReleases upgrades, downgrades, repairs and carries Firecracker,
// beside sandboxes that run and snapshots that were saved.
func TestFirecrackerReleases(t *testing.T) {
	page := newReleasePage(t, "1.15.0", "1.16.0")
	h := newHost(t)
	install := func(version string) {
		h.must("setup", "--no-image", "--firecracker-url", page.URL, "--firecracker-version", version)
	}
	install("1.16.0")
	install("1.16.0")
	if n := page.downloads.Load(); n != 1 {
		t.Errorf("there were %d downloads of what was there", n)
	}
	old := h.must("create", "--quiet", "--cold")
	h.runs(t, old, "1.16.0")
	install("1.15.0")
	h.runs(t, old, "1.16.0")
	h.runs(t, h.must("create", "--quiet", "--cold"), "1.15.0")
	h.must("snapshot", "create", "--name", "kept", old)
	h.runs(t, h.must("fork", "--quiet", old), "1.16.0")
	h.must("pause", "--reclaim", old)
	h.must("resume", old)
	h.runs(t, old, "1.16.0")
	h.must("restart", old)
	h.runs(t, old, "1.15.0")
	h.removeAll()
	install("1.15.0")
	h.runs(t, h.must("create", "--quiet", "--snapshot", "kept"), "1.16.0")
	h.removeAll()
	h.must("snapshot", "remove", "kept")

	bundle := filepath.Join(t.TempDir(), "bundle")
	h.must("setup", "--no-image", "--bundle-out", bundle)
	damaged := h.programs(t)
	if len(damaged) != 1 {
		t.Fatalf("there are %v", damaged)
	}
	if err := os.Truncate(damaged[0], 100); err != nil {
		t.Fatal(err)
	}
	if out, err := h.vmsan("setup", "--no-image", "--json"); err == nil || !strings.Contains(out, string(api.ErrSetupMissingBinary)) {
		t.Errorf("with a damaged program: %s, %v", out, err)
	}
	h.must("setup", "--no-image", "--bundle", bundle)
	h.runs(t, h.must("create", "--quiet", "--cold"), "1.15.0")
	h.removeAll()
	install("1.16.0")
	if left := h.programs(t); len(left) != 1 {
		t.Errorf("there are %v", left)
	}
	if out, err := h.vmsan("setup", "--no-image", "--json", "--firecracker-url", page.URL, "--firecracker-version", "1.99.0"); err == nil ||
		!strings.Contains(out, string(api.ErrSetupDownload)) {
		t.Errorf("a version that there is not: %s, %v", out, err)
	}
}

// programs are the Firecrackers in the state directory.
func (h *host) programs(t *testing.T) []string {
	t.Helper()
	found, err := filepath.Glob(filepath.Join(h.layout.Releases(), "*", "firecracker"))
	if err != nil {
		t.Fatal(err)
	}
	return found
}

// runs checks the version of the program in a sandbox's jail.
func (h *host) runs(t *testing.T, id, version string) {
	t.Helper()
	out, err := exec.Command(fmt.Sprintf("/proc/%d/root/firecracker", h.inspect(id).PIDs.VMM), "--version").CombinedOutput()
	if err != nil || !strings.HasPrefix(string(out), "Firecracker v"+version+"\n") {
		t.Errorf("%s runs %q, %v; want %s", id, out, err, version)
	}
}
