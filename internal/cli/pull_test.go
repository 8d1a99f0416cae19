package cli

import (
	"archive/tar"
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"io"
	"log"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	hubs "github.com/google/go-containerregistry/pkg/registry"
	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/random"
	"github.com/google/go-containerregistry/pkg/v1/remote"

	"github.com/vmsan/vmsan/api"
	"github.com/vmsan/vmsan/internal/registry"
	images "github.com/vmsan/vmsan/internal/testenv/hub"
)

// pushed is a reference to an image of two layers in a registry on loopback.
func pushed(t *testing.T) string {
	t.Helper()
	server := httptest.NewServer(hubs.New(hubs.Logger(log.New(io.Discard, "", 0))))
	t.Cleanup(server.Close)
	ref := server.Listener.Addr().String() + "/app"
	push(t, ref)
	return ref
}

// pusher is how push calls itself.
const pusher = "pusher"

// push puts an image of two layers into a registry.
func push(t *testing.T, ref string) {
	t.Helper()
	img, err := random.Image(1000, 2)
	if err != nil {
		t.Fatal(err)
	}
	images.Push(t, ref, images.Configure(t, img, runtime.GOARCH, v1.Config{}), remote.WithUserAgent(pusher))
}

func TestImagePull(t *testing.T) {
	dir, ref := stateDir(t), pushed(t)
	t.Setenv("HOME", dir)
	got := vmsan(t, dir, "image", "pull", ref)
	lines := strings.Split(got.stderr, "\n")
	if got.exit != 0 || !strings.HasPrefix(got.stdout, "sha256:") || len(lines) != 4 || !strings.HasPrefix(lines[0], ref+" has 2 layers") ||
		!strings.Contains(got.stderr, "layer 1 of 2:") || !strings.Contains(got.stderr, "downloaded") {
		t.Errorf("pull: %+v", got)
	}
	digest := strings.TrimSpace(strings.TrimPrefix(got.stdout, "sha256:"))
	got = vmsan(t, dir, "--json", "image", "pull", ref)
	var events []api.PullEvent
	for line := range strings.Lines(got.stdout) {
		var e api.PullEvent
		if err := json.Unmarshal([]byte(line), &e); err != nil {
			t.Fatalf("%s: %v", line, err)
		}
		events = append(events, e)
	}
	if len(events) != 2 || events[0].Event != "resolved" || events[0].Layers != 2 {
		t.Errorf("events of a pull that finds the image here: %+v", events)
	}
	if diff := cmp.Diff(api.PullEvent{Event: "pulled", Name: ref, Digest: digest}, events[len(events)-1]); diff != "" || got.stderr != "" {
		t.Errorf("the last event (-want +got):\n%s%s", diff, got.stderr)
	}
	if got := vmsan(t, dir, "-q", "image", "pull", ref); got != (result{0, "sha256:" + digest + "\n", ""}) {
		t.Errorf("pull -q: %+v", got)
	}
	for args, exit := range map[string]int{
		"image pull " + ref + ":none": 3, "image pull Bad": 2, "image pull": 2, "image pull https://x/y": 2,
	} {
		if got := vmsan(t, dir, strings.Fields(args)...); got.exit != exit {
			t.Errorf("%s: %+v, want exit code %d", args, got, exit)
		}
	}
	if err := os.WriteFile(filepath.Join(dir, "registries.json"), []byte("{"), 0o644); err != nil {
		t.Fatal(err)
	}
	if got := vmsan(t, dir, "image", "pull", ref); got.exit != 2 || !strings.Contains(got.stderr, "registries.json") {
		t.Errorf("registries.json is malformed: %+v", got)
	}
}

// An import tells what it has read, unless it is to be quiet.
func TestImageImportProgress(t *testing.T) {
	dir, archive := stateDir(t), filepath.Join(t.TempDir(), "rootfs.tar")
	var b bytes.Buffer
	w := tar.NewWriter(&b)
	if err := errors.Join(w.WriteHeader(&tar.Header{Typeflag: tar.TypeDir, Name: "d/", Mode: 0o755}), w.Close(), os.WriteFile(archive, b.Bytes(), 0o644)); err != nil {
		t.Fatal(err)
	}
	if got := vmsan(t, dir, "image", "import", archive, "x"); got.exit != 0 || got.stderr != "layer 1 of 1: read, 1.5 kB\n" {
		t.Errorf("import: %+v", got)
	}
	if got := vmsan(t, dir, "--quiet", "image", "import", archive, "x"); got.exit != 0 || got.stderr != "" {
		t.Errorf("import --quiet: %+v", got)
	}
	if got := vmsan(t, dir, "--json", "image", "import", archive, "x"); got.exit != 0 || got.stderr != "" || !json.Valid([]byte(got.stdout)) {
		t.Errorf("import --json: %+v", got)
	}
}

// A pull that is interrupted says so, in whatever it was.
func TestImagePullInterrupted(t *testing.T) {
	for _, at := range []string{"/v2/", "/manifests/", "/blobs/"} {
		next := hubs.New(hubs.Logger(log.New(io.Discard, "", 0)))
		ctx, interrupt := context.WithCancelCause(t.Context())
		server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			if ours := !strings.HasPrefix(r.Header.Get("User-Agent"), pusher); ours && strings.Contains(r.URL.Path, at) {
				interrupt(errors.New("a signal"))
				<-r.Context().Done()
				return
			}
			next.ServeHTTP(w, r)
		}))
		defer server.Close()
		ref := server.Listener.Addr().String() + "/app"
		push(t, ref)
		dir := stateDir(t)
		t.Setenv("VMSAN_DIR", dir)
		t.Setenv("HOME", dir)
		var stdout, stderr bytes.Buffer
		a := &app{stdin: strings.NewReader(""), stdout: &stdout, stderr: &stderr}
		if exit := a.run(ctx, []string{"image", "pull", ref}); exit != exitInterrupted {
			t.Errorf("interrupted at %s: exit code %d, %s", at, exit, &stderr)
		}
	}
}

func TestPullFlags(t *testing.T) {
	dir := stateDir(t)
	for args, says := range map[string]string{
		"create --image a --from-image b":      "--image and --from-image",
		"create --runtime base --image b":      "--image and --runtime",
		"create --rootfs x --from-image b":     "--from-image and --rootfs",
		"create --pull sometimes":              "always, missing, never",
		"create --from-image=":                 "it is empty",
		"create --runtime=":                    "it is empty",
		"create --snapshot s --runtime base":   "--snapshot and --runtime",
		"run --runtime base debian -- true":    "--runtime and the image",
		"run --from-image base debian -- true": "--image and the image",
	} {
		if got := vmsan(t, dir, strings.Fields(args)...); got.exit != 2 && got.exit != 125 || !strings.Contains(got.stderr, says) {
			t.Errorf("%s: %+v, want %q", args, got, says)
		}
	}
	if got := vmsan(t, dir, "__complete", "create", "--runtime", ""); !strings.HasPrefix(got.stdout, "base\nnode22\nnode24\npython3.13\n") {
		t.Errorf("completion: %q", got.stdout)
	}
}

// On a terminal there are bars, which are cleared before they are drawn anew
// and are no wider than it.
func TestPullBars(t *testing.T) {
	var out bytes.Buffer
	b := &pullBars{out: &out, terminal: true, width: 55, layers: make([]registry.Progress, 2)}
	first := registry.Progress{Layer: 0, Digest: "sha256:0123456789abcdef", State: registry.Begun, Have: 500, Size: 1000}
	b.layers[1] = registry.Progress{Layer: 1, Digest: "sha256:ff", State: registry.Waiting, Size: 3000}
	b.layer(first)
	first.State, first.Have = registry.Done, 1000
	b.layer(first)
	b.clear()
	b.clear()
	const want = "0123456789ab     [============            ] 500 B\n" +
		"0 of 2 layers    [===                     ] 500 B\n" +
		"\x1b[2A\x1b[J" +
		"1 of 2 layers    [======                  ] 1.0 kB\n" +
		"\x1b[1A\x1b[J"
	cut := func(s string) (lines []string) {
		for line := range strings.Lines(s) {
			line = strings.TrimSuffix(line, "\n")
			if visible := strings.ReplaceAll(strings.ReplaceAll(strings.ReplaceAll(line, "\x1b[2A", ""), "\x1b[1A", ""), "\x1b[J", ""); len(visible) > 54 {
				t.Errorf("%q is %d wide", line, len(visible))
			}
			line, _, _ = strings.Cut(line, "B")
			lines = append(lines, line)
		}
		return lines
	}
	if diff := cmp.Diff(cut(want), cut(out.String())); diff != "" {
		t.Errorf("draws (-want +got):\n%s", diff)
	}
}

func TestBytesText(t *testing.T) {
	for n, want := range map[int64]string{0: "0 B", 999: "999 B", 1000: "1.0 kB", 999949: "999.9 kB", 999999: "1.0 MB", 61e6: "61.0 MB", 5e12: "5.0 TB"} {
		if got := bytesText(n); got != want {
			t.Errorf("%d: %q, want %q", n, got, want)
		}
	}
}
