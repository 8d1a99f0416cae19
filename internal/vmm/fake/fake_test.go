package fake_test

import (
	"net"
	"os"
	"path/filepath"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/vmsan/vmsan/internal/jail"
	"github.com/vmsan/vmsan/internal/testenv"
	"github.com/vmsan/vmsan/internal/vmm"
	"github.com/vmsan/vmsan/internal/vmm/fake"
	"github.com/vmsan/vmsan/internal/vmm/vmmtest"
)

func TestMain(m *testing.M) { os.Exit(testenv.Main(m)) }

func TestConformance(t *testing.T) {
	vmmtest.Run(t, &fake.Driver{}, spec)
}

func spec(t *testing.T) vmm.Spec {
	dir := t.TempDir()
	for _, name := range []string{"vmlinux", "initramfs"} {
		if err := os.WriteFile(filepath.Join(dir, name), nil, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	return vmm.Spec{
		ID: "vmtest", VCPUs: 1, MemoryMiB: 128, Accelerator: vmm.TCG,
		Kernel: filepath.Join(dir, "vmlinux"), Initramfs: filepath.Join(dir, "initramfs"),
		Disks: []vmm.Disk{{Name: "overlay", File: emptyFile(t)}},
	}
}

func emptyFile(t *testing.T) *os.File {
	t.Helper()
	file, err := os.Create(filepath.Join(t.TempDir(), "overlay"))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { file.Close() })
	return file
}

func TestDescribe(t *testing.T) {
	s := spec(t)
	s.Cmdline = []string{"vmsan.init=/sbin/init"}
	s.Disks = []vmm.Disk{{Name: "image", ReadOnly: true}, {Name: "overlay"}}
	s.NIC = &vmm.NIC{MAC: net.HardwareAddr{2, 0, 0, 0, 0, 1}}
	s.Jail = vmm.Jail{User: &jail.User{UID: 7, GID: 8}, NoSeccomp: true}
	want := `machine vmtest: 1 CPUs, 128 MiB, tcg
kernel: vmsan.init=/sbin/init
disk image: read-only
disk overlay: writable
network device: 02:00:00:00:00:01
jail: user 7, group 8
jail: no seccomp
`
	if diff := cmp.Diff(fake.Describe(s), want); diff != "" {
		t.Errorf("got the first, want the second:\n%s", diff)
	}
}
