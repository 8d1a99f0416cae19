package main

import (
	"os"
	"os/exec"
	"path/filepath"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/vmsan/vmsan/internal/testenv"
)

// debian is the root of a Debian system that may be changed: the file system
// in the file image, under an overlay in memory.
func debian(t *testing.T, image string) (root string) {
	t.Helper()
	dir := t.TempDir()
	mount(t, "-t", "tmpfs", "none", dir)
	makeDirs(t, dir, "image", "upper", "work", "root")
	mount(t, "-o", "loop,ro", image, dir+"/image")
	overlay(t, dir+"/image", dir, dir+"/root")
	return dir + "/root"
}

// overlay mounts layers, as lowerdir takes them, on target. What is changed
// goes to upper in dir.
func overlay(t *testing.T, layers, dir, target string) {
	t.Helper()
	mount(t, "-t", "overlay", "-o", "lowerdir="+layers+",upperdir="+dir+"/upper,workdir="+dir+"/work", "none", target)
}

// mount mounts on the last of args, until the test ends.
func mount(t *testing.T, args ...string) {
	t.Helper()
	if out, err := exec.Command("mount", args...).CombinedOutput(); err != nil {
		t.Fatalf("mount %q: %v: %s", args, err, out)
	}
	t.Cleanup(func() {
		target := args[len(args)-1]
		if err := unix.Unmount(target, 0); err != nil {
			t.Errorf("unmount %s: %v", target, err)
			// What is left mounted would be removed with the directory.
			unix.Unmount(target, unix.MNT_DETACH)
		}
	})
}

func makeDirs(t *testing.T, parent string, names ...string) {
	t.Helper()
	for _, name := range names {
		if err := os.MkdirAll(filepath.Join(parent, name), 0o755); err != nil {
			t.Fatal(err)
		}
	}
}

// makePackage makes the package of this machine's kind, of the binary under
// test, and returns its path.
func makePackage(t *testing.T) string {
	t.Helper()
	binary, err := testenv.Binary()
	if err != nil {
		t.Fatal(err)
	}
	dir := t.TempDir()
	r := testRelease(binary, dir)
	r.compression = "none" // which takes no time
	names, err := r.make()
	if err != nil {
		t.Fatal(err)
	}
	return filepath.Join(dir, names[0])
}

func copyInto(t *testing.T, to, from string) {
	t.Helper()
	text, err := os.ReadFile(from)
	if err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(to, text, 0o644); err != nil {
		t.Fatal(err)
	}
}
