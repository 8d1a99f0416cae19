package sandbox

import "testing"

func TestBaseName(t *testing.T) {
	for p, want := range map[string]string{
		"a": "a", "/a/b": "b", "a/b/": "b", "a/.": ".", ".": ".", "./": ".", "/": ".", "..": ".", "a/../..": ".", "~": ".", "~/a": "a", "a/..b": "..b",
	} {
		if got := baseName(p); got != want {
			t.Errorf("%s is called %q, want %q", p, got, want)
		}
	}
}
