package e2e

import (
	"encoding/json"
	"fmt"
	"io"
	"log"
	"net/http"
	"net/http/httptest"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	hubs "github.com/google/go-containerregistry/pkg/registry"
	v1 "github.com/google/go-containerregistry/pkg/v1"

	"github.com/vmsan/vmsan/api"
	images "github.com/vmsan/vmsan/internal/testenv/hub"
)

// busybox is the host's, which needs no libraries.
func busybox(t *testing.T) string {
	t.Helper()
	content, err := os.ReadFile("/bin/busybox")
	if err != nil {
		t.Fatalf("the package busybox-static is needed: %v", err)
	}
	return string(content)
}

// A sandbox starts from an image that only a registry has, is killed in the
// middle of getting it, and runs what the image says.
func TestPullAndRun(t *testing.T) {
	t.Parallel()
	h := newHost(t)
	slow, halted := atomic.Bool{}, make(chan struct{})
	next := hubs.New(hubs.Logger(log.New(io.Discard, "", 0)))
	var ranges atomic.Int32
	server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.Header.Get("Range") != "" {
			ranges.Add(1)
		}
		if r.Method == http.MethodGet && strings.Contains(r.URL.Path, "/blobs/") && slow.Load() {
			rec := httptest.NewRecorder()
			next.ServeHTTP(rec, r)
			if rec.Body.Len() > 1<<19 { // the layer with busybox
				w.Header().Set("Content-Length", fmt.Sprint(rec.Body.Len()))
				w.Write(rec.Body.Next(1 << 18))
				w.(http.Flusher).Flush()
				close(halted)
				<-r.Context().Done()
				return
			}
			w.Write(rec.Body.Bytes())
			return
		}
		next.ServeHTTP(w, r)
	}))
	defer server.Close()
	ref := server.Listener.Addr().String() + "/team/box:1"
	images.Push(t, ref, images.Image(t, runtime.GOARCH, v1.Config{Env: []string{"PATH=/bin", "COLOUR=red"}, Entrypoint: []string{"/bin/echo"}, Cmd: []string{"from", "the", "image"}},
		[]images.File{{Path: "bin/busybox", Content: busybox(t)}, {Path: "bin/sh", Content: "->busybox"}, {Path: "etc/old", Content: "old"}, {Path: "etc/both", Content: "lower"}},
		[]images.File{{Path: "bin/echo", Content: "->busybox"}, {Path: "bin/cat", Content: "->busybox"}, {Path: "bin/env", Content: "->busybox"}, {Path: "etc/.wh.old", Content: ""}, {Path: "etc/both", Content: "upper"}}))

	slow.Store(true)
	killed := exec.Command(h.binary, "--dir", h.layout.Dir, "image", "pull", ref)
	if err := killed.Start(); err != nil {
		t.Fatal(err)
	}
	<-halted
	partial := filepath.Join(h.layout.Blobs(), "partial")
	for deadline := time.Now().Add(patience); !hasFileOf(partial, 1<<18) && time.Now().Before(deadline); {
		time.Sleep(5 * time.Millisecond)
	}
	if err := killed.Process.Kill(); err != nil {
		t.Fatal(err)
	}
	killed.Wait()
	slow.Store(false)
	if _, err := h.vmsan("image", "inspect", ref); err == nil {
		t.Error("half an image is one")
	}
	if got := h.must("run", "--network", "none", ref); got != "from the image" {
		t.Errorf("the image's command prints %q", got)
	}
	if ranges.Load() != 1 {
		t.Errorf("%d layers went on where they were", ranges.Load())
	}
	for args, want := range map[string]string{
		"cat /etc/both":                         "upper",
		"sh -c [ -e /etc/old ] || echo $COLOUR": "red",
	} {
		command := append([]string{"run", "--network", "none", "--pull", "never", ref, "--"}, splitThree(args)...)
		if got := h.must(command...); got != want {
			t.Errorf("%s prints %q, want %q", args, got, want)
		}
	}
	var last api.PullEvent
	for line := range strings.Lines(h.must("--json", "image", "pull", ref)) {
		if err := json.Unmarshal([]byte(line), &last); err != nil {
			t.Errorf("%s: %v", line, err)
		}
	}
	if last.Event != "pulled" || last.Name != ref || len(last.Digest) != 64 {
		t.Errorf("the last event is %+v", last)
	}
	if err := os.WriteFile(h.layout.Runtimes(), []byte(fmt.Sprintf(`{"runtimes": {"box": %q}}`, ref)), 0o644); err != nil {
		t.Fatal(err)
	}
	server.Close()
	if got := h.must("run", "--network", "none", "--runtime", "box", "--", "cat", "/etc/both"); got != "upper" {
		t.Errorf("the runtime's image prints %q", got)
	}
	id := h.must("create", "--network", "none", "--from-image", ref)
	if got := h.must("exec", id, "cat", "/etc/both"); got != "upper" {
		t.Errorf("a sandbox that stays prints %q", got)
	}
	_, err := h.vmsan("run", "--network", "none", "--pull", "always", ref, "--", "cat", "/etc/both")
	if err == nil || !strings.Contains(err.Error(), "127.0.0.1") {
		t.Errorf("without the registry: %v", err)
	}
}

// hasFileOf tells whether a file in dir has size bytes.
func hasFileOf(dir string, size int64) bool {
	entries, err := os.ReadDir(dir)
	if err != nil {
		return false
	}
	for _, e := range entries {
		if info, err := e.Info(); err == nil && info.Size() >= size {
			return true
		}
	}
	return false
}

// splitThree splits a command of at most three words, the last of which has
// spaces perhaps.
func splitThree(s string) []string { return strings.SplitN(s, " ", 3) }
