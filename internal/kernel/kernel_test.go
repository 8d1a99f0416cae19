package kernel

import (
	"bytes"
	"debug/elf"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/vmsan/vmsan/api"
	"github.com/vmsan/vmsan/internal/initramfs"
	"github.com/vmsan/vmsan/internal/store"
)

var testAgent = []byte("an agent")

var testModules = []string{"virtio", "virtio_ring", "virtio_mmio", "virtio_console", "virtio_blk", "overlay", "virtio_rng"}

func TestInstallDeb(t *testing.T) {
	l := testLayout(t)
	deb := writeTemp(t, "kernel.deb", forgeDeb("Package: linux\n", kernelEntries()))
	k, err := InstallDeb(t.Context(), l, deb, testAgent)
	if err != nil {
		t.Fatal(err)
	}
	if k.Version != testVersion || k.Source.Kind != "deb" || k.Source.Name != deb {
		t.Errorf("got version %q from %+v", k.Version, k.Source)
	}
	if diff := cmp.Diff(testModules, k.Modules); diff != "" {
		t.Errorf("modules (-want +got):\n%s", diff)
	}
	loaded, err := Check(l, k.Digest)
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(k, loaded); diff != "" {
		t.Errorf("loaded kernel (-installed +loaded):\n%s", diff)
	}
	checkFiles(t, l, k)
}

// checkFiles checks what a VMM will be given.
func checkFiles(t *testing.T, l store.Layout, k Kernel) {
	t.Helper()
	vmlinux, err := os.ReadFile(VmlinuxPath(l, k.Digest))
	if err != nil {
		t.Fatal(err)
	}
	if !bytes.Equal(vmlinux, forgeVmlinux(hostMachine(), true)) {
		t.Error("vmlinux is not the one that was packed")
	}
	f, err := os.Open(InitramfsPath(l, k.Digest))
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	spec, err := initramfs.Read(f)
	if err != nil {
		t.Fatal(err)
	}
	if !bytes.Equal(spec.Agent, testAgent) || len(spec.Modules) != len(k.Modules) {
		t.Errorf("initramfs has agent %q and %d modules", spec.Agent, len(spec.Modules))
	}
	for _, path := range []string{VmlinuxPath(l, k.Digest), InitramfsPath(l, k.Digest)} {
		info, err := os.Stat(path)
		if err != nil {
			t.Fatal(err)
		}
		if got := info.Mode(); got != 0o444 {
			t.Errorf("%s has mode %v, want 0444", path, got)
		}
	}
	checkNoLeftovers(t, l)
}

func checkNoLeftovers(t *testing.T, l store.Layout) {
	t.Helper()
	left, err := os.ReadDir(l.Tmp())
	if err != nil {
		t.Fatal(err)
	}
	if len(left) > 0 {
		t.Errorf("%d leftovers in %s, the first is %s", len(left), l.Tmp(), left[0].Name())
	}
}

func TestInstallTwiceIsOne(t *testing.T) {
	l := testLayout(t)
	deb := writeTemp(t, "kernel.deb", forgeDeb("", kernelEntries()))
	first, err := InstallDeb(t.Context(), l, deb, testAgent)
	if err != nil {
		t.Fatal(err)
	}
	second, err := InstallDeb(t.Context(), l, deb, testAgent)
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(first, second); diff != "" {
		t.Errorf("second install (-first +second):\n%s", diff)
	}
	if got, err := List(l); err != nil || len(got) != 1 {
		t.Errorf("got kernels %v, error %v", got, err)
	}
}

func TestInstallRepairs(t *testing.T) {
	l := testLayout(t)
	deb := writeTemp(t, "kernel.deb", forgeDeb("", kernelEntries()))
	k, err := InstallDeb(t.Context(), l, deb, testAgent)
	if err != nil {
		t.Fatal(err)
	}
	path := VmlinuxPath(l, k.Digest)
	if err := os.Remove(path); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(path, []byte("rotten"), 0o444); err != nil {
		t.Fatal(err)
	}
	if _, err := Check(l, k.Digest); !api.HasCode(err, api.ErrKernelInvalid) {
		t.Errorf("check of a rotten kernel: got error %v, want ErrKernelInvalid", err)
	}
	if _, err := InstallDeb(t.Context(), l, deb, testAgent); err != nil {
		t.Fatal(err)
	}
	checkFiles(t, l, k)
}

func TestWithAgent(t *testing.T) {
	l := testLayout(t)
	deb := writeTemp(t, "kernel.deb", forgeDeb("", kernelEntries()))
	old, err := InstallDeb(t.Context(), l, deb, []byte("another agent"))
	if err != nil {
		t.Fatal(err)
	}
	got, err := WithAgent(t.Context(), l, old, testAgent)
	if err != nil {
		t.Fatal(err)
	}
	want, err := InstallDeb(t.Context(), l, deb, testAgent)
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("kernel with a new agent (-installed anew +got):\n%s", diff)
	}
	if got.Digest == old.Digest {
		t.Error("the digest does not cover the agent")
	}
}

func TestInstallFileFindsModulesBesideIt(t *testing.T) {
	l := testLayout(t)
	root := t.TempDir()
	for _, e := range kernelEntries() {
		path := filepath.Join(root, strings.TrimPrefix(e.name, "usr/"))
		if err := os.MkdirAll(filepath.Dir(path), 0o700); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(path, e.data, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	k, err := InstallFile(t.Context(), l, filepath.Join(root, "boot", "vmlinuz-"+testVersion), testAgent)
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(testModules, k.Modules); diff != "" {
		t.Errorf("modules (-want +got):\n%s", diff)
	}
}

func TestInstallFileWithoutModules(t *testing.T) {
	l := testLayout(t)
	path := writeTemp(t, "vmlinux", forgeVmlinux(hostMachine(), true))
	k, err := InstallFile(t.Context(), l, path, testAgent)
	if err != nil {
		t.Fatal(err)
	}
	if len(k.Modules) != 0 || !k.PVH || k.Source.Name != path {
		t.Errorf("got %+v", k)
	}
}

func TestInstallRefuses(t *testing.T) {
	whole := forgeDeb("", kernelEntries())
	other := elf.EM_AARCH64
	if hostMachine() == other {
		other = elf.EM_X86_64
	}
	for _, c := range []struct {
		name string
		deb  []byte
		file []byte
	}{
		{name: "text for a package", deb: []byte("hello")},
		{name: "package cut short", deb: whole[:len(whole)/2]},
		{name: "package without a kernel", deb: forgeDeb("", kernelEntries()[1:])},
		{name: "package with two kernels", deb: forgeDeb("", append(kernelEntries(), entry{"boot/vmlinuz-2", nil}))},
		{name: "package without modules", deb: forgeDeb("", kernelEntries()[:1])},
		{name: "package without data", deb: forgeAr([]entry{{"debian-binary", []byte("2.0\n")}})},
		{name: "file without a kernel", file: []byte("hello")},
		{name: "kernel of another machine", file: forgeVmlinux(other, true)},
	} {
		t.Run(c.name, func(t *testing.T) {
			l := testLayout(t)
			var err error
			if c.deb != nil {
				_, err = InstallDeb(t.Context(), l, writeTemp(t, "x.deb", c.deb), testAgent)
			} else {
				_, err = InstallFile(t.Context(), l, writeTemp(t, "x", c.file), testAgent)
			}
			if !api.HasCode(err, api.ErrKernelInvalid) {
				t.Errorf("got error %v, want ErrKernelInvalid", err)
			}
			if got, err := List(l); err != nil || len(got) > 0 {
				t.Errorf("kernels %v are there, error %v", got, err)
			}
			if c.deb != nil {
				checkNoLeftovers(t, l)
			}
		})
	}
}

func TestUnpackKeepsToItsDirectory(t *testing.T) {
	dir := t.TempDir()
	deb := writeTemp(t, "x.deb", forgeDeb("", []entry{
		{"boot/../../vmlinuz-escaped", []byte("x")},
		{"lib/modules/../../../escaped.ko", []byte("x")},
		{"boot/vmlinuz-1", []byte("x")},
	}))
	into := filepath.Join(dir, "into")
	if err := os.Mkdir(into, 0o700); err != nil {
		t.Fatal(err)
	}
	if err := unpackDeb(t.Context(), deb, into); err != nil {
		t.Fatal(err)
	}
	var files []string
	filepath.WalkDir(dir, func(p string, e fs.DirEntry, err error) error {
		if err == nil && !e.IsDir() {
			files = append(files, strings.TrimPrefix(p, dir))
		}
		return err
	})
	if diff := cmp.Diff([]string{"/into/boot/vmlinuz-1"}, files); diff != "" {
		t.Errorf("files (-want +got):\n%s", diff)
	}
}

func TestLoadRefusesMalformedDigests(t *testing.T) {
	for _, digest := range []string{"", "..", "../../etc", strings.Repeat("g", 64)} {
		if _, err := Load(testLayout(t), digest); err == nil {
			t.Errorf("loaded kernel %q", digest)
		}
		if err := Remove(testLayout(t), digest); err == nil {
			t.Errorf("removed kernel %q", digest)
		}
	}
}

func TestRemove(t *testing.T) {
	l := testLayout(t)
	k, err := InstallFile(t.Context(), l, writeTemp(t, "vmlinux", forgeVmlinux(hostMachine(), true)), testAgent)
	if err != nil {
		t.Fatal(err)
	}
	for range 2 {
		if err := Remove(l, k.Digest); err != nil {
			t.Fatal(err)
		}
	}
	if got, err := List(l); err != nil || len(got) != 0 {
		t.Errorf("got kernels %v, error %v", got, err)
	}
	checkNoLeftovers(t, l)
}

func TestKernelPackage(t *testing.T) {
	control := "Package: linux-image-cloud-amd64\nVersion: 6.1.192-2\n" +
		"Depends: foo (>= 1), linux-image-6.1.0-56-cloud-amd64 (= 6.1.192-2)\nSection: kernel\n"
	got, err := kernelPackage(control)
	if err != nil {
		t.Fatal(err)
	}
	if want := "linux-image-6.1.0-56-cloud-amd64=6.1.192-2"; got != want {
		t.Errorf("got %q, want %q", got, want)
	}
	for _, bad := range []string{
		"",
		"Depends: libc6",
		"Depends: linux-image-6.1 (>= 6.1)",
		"Depends: linux-image-6.1;reboot (= 6.1)",
		"Recommends: linux-image-6.1 (= 6.1)",
	} {
		if got, err := kernelPackage(bad); err == nil {
			t.Errorf("found %q in %q", got, bad)
		}
	}
}

func TestFirstErrors(t *testing.T) {
	out := "Reading package lists...\nErr:1 the mirror\n  Could not resolve\nE: Failed to fetch it\nW: a warning\n"
	if got, want := firstErrors([]byte(out)), "Err:1 the mirror; E: Failed to fetch it"; got != want {
		t.Errorf("got %q, want %q", got, want)
	}
	if got := firstErrors(nil); got == "" {
		t.Error("says nothing about silence")
	}
}

func FuzzReadAr(f *testing.F) {
	f.Add(forgeDeb("Depends: x\n", []entry{{"boot/vmlinuz-1", []byte("x")}}))
	f.Add(forgeAr([]entry{{"odd/", []byte("123")}}))
	f.Add([]byte(arMagic))
	f.Fuzz(func(t *testing.T, data []byte) {
		total := 0
		err := readAr(bytes.NewReader(data), func(_ string, body io.Reader) error {
			n, err := io.Copy(io.Discard, body)
			total += int(n)
			return err
		})
		if err == nil && total > len(data) {
			t.Errorf("read %d bytes out of an archive of %d", total, len(data))
		}
	})
}
