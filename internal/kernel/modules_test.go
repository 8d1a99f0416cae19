package kernel

import (
	"strings"
	"testing"
	"testing/fstest"

	"github.com/google/go-cmp/cmp"
)

// fullTree is a directory of modules without any table, as in Debian's
// packages.
func fullTree() fstest.MapFS {
	fsys := fstest.MapFS{}
	for path, depends := range map[string]string{
		"kernel/virtio.ko":         "",
		"kernel/virtio_ring.ko":    "virtio",
		"kernel/virtio_mmio.ko":    "virtio,virtio-ring",
		"kernel/virtio_console.ko": "virtio_ring,virtio",
		"kernel/virtio_blk.ko":     "virtio",
		"kernel/ext4.ko":           "jbd2",
		"kernel/jbd2.ko":           "",
		"kernel/overlay.ko":        "",
		"kernel/virtio-rng.ko":     "virtio",
	} {
		fsys[path] = &fstest.MapFile{Data: forgeModule(testVersion, depends)}
	}
	return fsys
}

func closureOf(fsys fstest.MapFS) ([]string, error) {
	tree, err := readTree(fsys, image{version: testVersion})
	if err != nil {
		return nil, err
	}
	modules, err := tree.closure()
	var names []string
	for _, m := range modules {
		names = append(names, m.Name)
	}
	return names, err
}

func TestClosure(t *testing.T) {
	got, err := closureOf(fullTree())
	if err != nil {
		t.Fatal(err)
	}
	want := []string{"virtio", "virtio_ring", "virtio_mmio", "virtio_console", "virtio_blk", "jbd2", "ext4", "overlay", "virtio_rng"}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("load order (-want +got):\n%s", diff)
	}
}

func TestClosurePrefersTheTable(t *testing.T) {
	fsys := fullTree()
	var dep strings.Builder
	for path := range fsys {
		dep.WriteString(path + ":\n")
	}
	dep.WriteString("kernel/overlay.ko: kernel/virtio-rng.ko\n")
	fsys["modules.dep"] = &fstest.MapFile{Data: []byte(dep.String())}
	got, err := closureOf(fsys)
	if err != nil {
		t.Fatal(err)
	}
	want := []string{"virtio_mmio", "virtio_console", "virtio_blk", "ext4", "virtio_rng", "overlay"}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("load order (-want +got):\n%s", diff)
	}
}

func TestClosureTakesBuiltin(t *testing.T) {
	fsys := fullTree()
	delete(fsys, "kernel/virtio.ko")
	delete(fsys, "kernel/ext4.ko")
	fsys["modules.builtin"] = &fstest.MapFile{Data: []byte("kernel/virtio.ko\nkernel/fs/ext4/ext4.ko\n")}
	got, err := closureOf(fsys)
	if err != nil {
		t.Fatal(err)
	}
	want := []string{"virtio_ring", "virtio_mmio", "virtio_console", "virtio_blk", "overlay", "virtio_rng"}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("load order (-want +got):\n%s", diff)
	}
}

func TestClosureRefuses(t *testing.T) {
	for _, c := range []struct {
		name   string
		change func(fstest.MapFS)
		want   string
	}{
		{"essential missing", func(f fstest.MapFS) { delete(f, "kernel/overlay.ko"); delete(f, "kernel/ext4.ko") }, "lacks ext4, overlay"},
		{"dependency missing", func(f fstest.MapFS) { delete(f, "kernel/jbd2.ko") }, "ext4 needs module jbd2: it is neither"},
		{"cycle", func(f fstest.MapFS) {
			f["kernel/jbd2.ko"] = &fstest.MapFile{Data: forgeModule(testVersion, "ext4")}
		}, "module ext4 depends on itself"},
		{"another kernel's module", func(f fstest.MapFS) {
			f["kernel/overlay.ko"] = &fstest.MapFile{Data: forgeModule("5.10.0", "")}
		}, `it is for kernel "5.10.0"`},
		{"not a module", func(f fstest.MapFS) {
			f["kernel/overlay.ko"] = &fstest.MapFile{Data: []byte("text")}
		}, "overlay: read ELF file"},
		{"broken compression", func(f fstest.MapFS) {
			delete(f, "kernel/overlay.ko")
			f["kernel/overlay.ko.xz"] = &fstest.MapFile{Data: []byte("\xfd7zXZ\x00 is not enough")}
		}, "decompress"},
		{"malformed table", func(f fstest.MapFS) {
			f["modules.dep"] = &fstest.MapFile{Data: []byte("kernel/overlay.ko\n")}
		}, "malformed line"},
	} {
		t.Run(c.name, func(t *testing.T) {
			fsys := fullTree()
			c.change(fsys)
			_, err := closureOf(fsys)
			if err == nil || !strings.Contains(err.Error(), c.want) {
				t.Errorf("got error %v, want one with %q", err, c.want)
			}
		})
	}
}

func FuzzParseDep(f *testing.F) {
	f.Add([]byte("kernel/a.ko: kernel/b-c.ko.xz kernel/d.ko\nkernel/d.ko:\n"))
	f.Add([]byte("# comment\n\n"))
	f.Add([]byte("kernel/a.ko kernel/b.ko\n"))
	f.Fuzz(func(t *testing.T, data []byte) {
		table, err := parseDep(data)
		if err != nil {
			return
		}
		for name, deps := range table {
			for _, n := range append(deps, name) {
				if n == "" || strings.ContainsAny(n, "-./ \n") {
					t.Errorf("accepted module name %q", n)
				}
			}
		}
	})
}

func FuzzModinfo(f *testing.F) {
	f.Add(forgeModule(testVersion, "a,b"))
	f.Fuzz(func(t *testing.T, data []byte) {
		info, err := modinfo(data)
		if err == nil && info == nil {
			t.Error("neither information nor an error")
		}
	})
}
