package agent

import (
	"os"
	"path/filepath"
	"testing"
)

// overwrite keeps the file that programs watch or have open, and leaves alone
// what it would change for others.
func TestOverwrite(t *testing.T) {
	dir := t.TempDir()
	path := filepath.Join(dir, "hostname")
	write := func(text string) os.FileInfo {
		if err := os.WriteFile(path, []byte(text), 0o644); err != nil {
			t.Fatal(err)
		}
		info, err := os.Stat(path)
		if err != nil {
			t.Fatal(err)
		}
		return info
	}
	for _, old := range []string{"a name that is longer\n", "x\n", ""} {
		before := write(old)
		if err := overwrite(path, "name\n", 0o644); err != nil {
			t.Fatalf("over %q: %v", old, err)
		}
		after, err := os.Stat(path)
		if err != nil || !os.SameFile(before, after) {
			t.Errorf("over %q: another file is there: %v", old, err)
		}
		if text, err := os.ReadFile(path); err != nil || string(text) != "name\n" {
			t.Errorf("over %q: got %q: %v", old, text, err)
		}
	}
	link, twin := filepath.Join(dir, "link"), filepath.Join(dir, "twin")
	if err := os.Symlink(path, link); err != nil {
		t.Fatal(err)
	}
	if overwrite(link, "other\n", 0o644) == nil {
		t.Error("followed a symbolic link")
	}
	if overwrite(path, "other\n", 0o444) == nil {
		t.Error("left another mode")
	}
	if err := os.Link(path, twin); err != nil {
		t.Fatal(err)
	}
	if overwrite(path, "other\n", 0o644) == nil {
		t.Error("wrote a file that has another name as well")
	}
	if overwrite(filepath.Join(dir, "none"), "other\n", 0o644) == nil {
		t.Error("made a file")
	}
}
