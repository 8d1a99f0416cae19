package firecracker

import (
	"errors"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"testing"
)

// TestFilters reads files that are filters, and others.
func TestFilters(t *testing.T) {
	tools := t.TempDir()
	t.Setenv("PATH", tools+":/bin:/usr/bin")
	for _, c := range []struct {
		name, text string
		mode       os.FileMode
		compiler   string // a script
		want, err  string
	}{
		{name: "compiled", text: "\x03vmm", want: "\x03vmm"},
		{name: "empty", err: "it is empty"},
		{name: "large", text: strings.Repeat("x", maxFilter+1), err: "larger than"},
		{name: "others can write it", text: "x", mode: 0o666, err: "others can write it"},
		{name: "JSON", text: " {}", compiler: `echo "$4 $2" | cut -c1-3 > "$6"`, want: map[string]string{"amd64": "x86\n", "arm64": "aar\n"}[runtime.GOARCH]},
		{name: "JSON that makes no sense", text: "{}", compiler: `echo "no such syscall"; exit 1`, err: "exit status 1: no such syscall"},
		{name: "JSON of which nothing comes", text: "{}", compiler: "exit 0", err: "no such file"},
	} {
		t.Run(c.name, func(t *testing.T) {
			path := filepath.Join(t.TempDir(), "filter")
			if err := os.WriteFile(path, []byte(c.text), 0o600); err != nil {
				t.Fatal(err)
			}
			if c.mode != 0 {
				if err := os.Chmod(path, c.mode); err != nil {
					t.Fatal(err)
				}
			}
			if c.compiler != "" {
				if err := os.WriteFile(filepath.Join(tools, compiler), []byte("#!/bin/sh\n"+c.compiler+"\n"), 0o755); err != nil {
					t.Fatal(err)
				}
			}
			got, err := (Driver{}).ReadFilter(t.Context(), path)
			if string(got) != c.want || (err == nil) != (c.err == "") || err != nil && !strings.Contains(err.Error(), c.err) {
				t.Errorf("got %q, %v", got, err)
			}
		})
	}
}

func TestFiltersWithoutCompiler(t *testing.T) {
	t.Setenv("PATH", t.TempDir())
	path := filepath.Join(t.TempDir(), "filter")
	if err := os.WriteFile(path, []byte("{}"), 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := (Driver{}).ReadFilter(t.Context(), path); !errors.Is(err, ErrNoCompiler) {
		t.Errorf("got %v", err)
	}
	for _, path := range []string{"/dev/null", t.TempDir()} {
		if _, err := (Driver{}).ReadFilter(t.Context(), path); err == nil || !strings.Contains(err.Error(), "not a file") {
			t.Errorf("%s: got %v", path, err)
		}
	}
}
