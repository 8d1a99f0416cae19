package registry

import (
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/vmsan/vmsan/api"
)

var zeros = strings.Repeat("0", 64)

// A6: what is left out of a reference, and what is none.
func TestParseReference(t *testing.T) {
	for typed, want := range map[string]string{
		"alpine": "alpine", "alpine:latest": "alpine", "alpine:3.20": "alpine:3.20", "docker.io/library/alpine": "alpine",
		"team/app": "team/app", "registry.example/app": "registry.example/app",
		"Registry.example/app:1":                 "registry.example/app:1",
		"localhost:5000/a/b_c/d:x":               "localhost:5000/a/b_c/d:x",
		"[::1]:5000/app":                         "[::1]:5000/app",
		"app@sha256:" + zeros:                    "app@sha256:" + zeros,
		"registry.example/app:1@sha256:" + zeros: "registry.example/app@sha256:" + zeros,
	} {
		ref, err := ParseReference(typed)
		if err != nil || ref.Name() != want {
			t.Errorf("%s: %q, %v, want %q", typed, ref, err, want)
			continue
		}
		again, err := ParseReference(ref.Name())
		if err != nil || again.Name() != want {
			t.Errorf("%s: its name %s is %q, %v", typed, ref.Name(), again, err)
		}
	}
	for typed, hint := range map[string]string{
		"": "empty", "https://registry.example/app": "scheme", "App": "lower case", "registry.example/Team/app": "lower case",
		"sha256:abcd": "does not say where", "app@sha256:abc": "64", "app@md5:" + zeros: "64", "app@": "64",
		"a b": "[HOST", "../app": "[HOST", "app:": "[HOST", "app:.x": "[HOST", ":x": "[HOST", strings.Repeat("a", 2000): "too long", "app\n": "[HOST",
		"/etc/passwd": "[HOST", "./app": "[HOST",
	} {
		_, err := ParseReference(typed)
		if err == nil {
			t.Errorf("%.100q passes", typed)
			continue
		}
		if !api.HasCode(err, api.ErrValidationImageRef) || !strings.Contains(api.AsError(err).Hint, hint) {
			t.Errorf("%.100q: %v, hint %q, want %q", typed, err, api.AsError(err).Hint, hint)
		}
	}
}

func TestParseConfig(t *testing.T) {
	c, err := parseConfig([]byte(`{"registries": {
		"docker.io": {"mirrors": ["mirror.example", "localhost:5000/cache"]},
		"registry.example:5000": {"insecure": true, "ca": "/etc/ca.pem"}}}`))
	if err != nil {
		t.Fatal(err)
	}
	alpine, err := ParseReference("alpine")
	if err != nil {
		t.Fatal(err)
	}
	sources, err := (&Client{Config: c}).sources(alpine)
	if err != nil {
		t.Fatal(err)
	}
	var got []string
	for _, s := range sources {
		got = append(got, s.repo.Name())
	}
	if want := "mirror.example/library/alpine localhost:5000/cache/library/alpine " + alpine.ref.Context().Name(); strings.Join(got, " ") != want {
		t.Errorf("got %v, want %s", got, want)
	}
	for _, bad := range []string{
		`{`, `{"registry": {}}`, `{"registries": {"a/b": {}}}`, `{"registries": {"": {}}}`, `{"registries": {"a": {"ca": "ca.pem"}}}`,
		`{"registries": {"a": {"mirrors": [""]}}}`, `{"registries": {"a": {"mirrors": ["https://b"]}}}`, `{"registries": {"a": {"mirrors": ["b/.."]}}}`,
	} {
		if c, err := parseConfig([]byte(bad)); err == nil {
			t.Errorf("%s: %+v", bad, c)
		}
	}
}

func TestRetryAfterHeader(t *testing.T) {
	now := time.Date(2026, 1, 2, 3, 4, 5, 0, time.UTC)
	for header, want := range map[string]time.Duration{
		"0": 0, "7": 7 * time.Second, "Fri, 02 Jan 2026 03:04:35 GMT": 30 * time.Second, "Fri, 02 Jan 2026 03:04:00 GMT": 0,
	} {
		if got, ok := retryAfter(header, now); !ok || got != want {
			t.Errorf("%q: %v, %v", header, got, ok)
		}
	}
	for _, header := range []string{"", "-1", "1.5", "99999999999", "soon"} {
		if got, ok := retryAfter(header, now); ok {
			t.Errorf("%q: %v", header, got)
		}
	}
}

func TestBackoff(t *testing.T) {
	for try := 1; try < 100; try++ {
		most := min(100*time.Millisecond<<min(try-1, 16), maxWait)
		if d := backoff(100*time.Millisecond, try); d < most/2 || d > most {
			t.Errorf("try %d waits %v, want %v to %v", try, d, most/2, most)
		}
	}
}

func TestCheckRange(t *testing.T) {
	for header, good := range map[string]bool{
		"bytes 5-9/10": true, "bytes 5-9/*": true, "bytes 4-9/10": false, "bytes 5-8/10": false, "bytes 5-9/11": false,
		"": false, "bytes */10": false, "bytes 5-9/": false, "bytes 5-9/x": false,
	} {
		if err := checkRange(header, 5, 10); (err == nil) != good {
			t.Errorf("%q: %v", header, err)
		}
	}
}

func TestPrintable(t *testing.T) {
	if got := printable("a\x1b[2J\nb\u202e"); got != "a?[2J?b?" {
		t.Errorf("got %q", got)
	}
	if got := printable(strings.Repeat("é", 1000)); len(got) > maxSaid+4 {
		t.Errorf("%d bytes", len(got))
	}
}

// Whatever a reference is, its name means the same.
func FuzzReference(f *testing.F) {
	for _, seed := range []string{"alpine", "a/b:c", "[::1]:5000/app", "localhost:1/a@sha256:" + zeros, "docker.io/library/x", "index.docker.io/a"} {
		f.Add(seed)
	}
	f.Fuzz(func(t *testing.T, typed string) {
		ref, err := ParseReference(typed)
		if err != nil {
			return
		}
		again, err := ParseReference(ref.Name())
		if err != nil {
			t.Fatalf("%q has the name %q: %v", typed, ref.Name(), err)
		}
		if again.Name() != ref.Name() || !strings.EqualFold(again.ref.Context().Name(), ref.ref.Context().Name()) {
			t.Errorf("%q is %s, and its name %s", typed, ref, again)
		}
	})
}

func FuzzRange(f *testing.F) {
	f.Add("bytes 5-9/10", int64(5), int64(10))
	f.Add("bytes 5-9/*", int64(5), int64(10))
	f.Fuzz(func(t *testing.T, header string, from, size int64) {
		if checkRange(header, from, size) == nil && !strings.HasPrefix(header, fmt.Sprintf("bytes %d-%d/", from, size-1)) && !strings.ContainsAny(header, "+0 ") {
			t.Errorf("%q passes for bytes %d of %d", header, from, size)
		}
	})
}
