package kernel

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
)

// partsOfFile takes a kernel from a file, and its modules from beside it.
func partsOfFile(path string) (parts, error) {
	path, err := filepath.Abs(path)
	if err != nil {
		return parts{}, err
	}
	data, err := readBounded(path, maxKernelFile)
	if err != nil {
		return parts{}, invalid(err)
	}
	img, err := inspect(data)
	if err != nil {
		return parts{}, invalid(err)
	}
	p := parts{image: img, source: Source{Kind: "file", Name: path, SHA256: hexSum(data)}}
	modules := filepath.Join(filepath.Dir(filepath.Dir(path)), "lib", "modules", img.version)
	p.modules, err = modulesIn(modules, img)
	if errors.Is(err, fs.ErrNotExist) {
		return p, nil
	}
	return p, err
}

// partsOfTree takes a kernel from boot/ and its modules from lib/modules/ in
// an unpacked package.
func partsOfTree(dir string) (parts, error) {
	path, err := theKernel(filepath.Join(dir, "boot"))
	if err != nil {
		return parts{}, err
	}
	data, err := readBounded(path, maxKernelFile)
	if err != nil {
		return parts{}, err
	}
	img, err := inspect(data)
	if err != nil {
		return parts{}, invalid(fmt.Errorf("%s: %w", filepath.Base(path), err))
	}
	modules, err := modulesIn(filepath.Join(dir, "lib", "modules", img.version), img)
	if errors.Is(err, fs.ErrNotExist) {
		return parts{}, invalid(fmt.Errorf("the package has no modules for its kernel %s", img.version))
	}
	return parts{image: img, modules: modules}, err
}

// theKernel returns the path of the one kernel in dir.
func theKernel(dir string) (string, error) {
	entries, err := os.ReadDir(dir)
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return "", err
	}
	if len(entries) != 1 {
		return "", invalid(fmt.Errorf("the package has %d kernels in /boot, not one", len(entries)))
	}
	return filepath.Join(dir, entries[0].Name()), nil
}

// wanted are the modules a guest needs, each with what it depends on. Those
// that are built in are left out; one that is in neither place is an error
// only if the guest could not come up without it.
var wanted = []struct {
	name      string
	essential bool
}{
	{"virtio_mmio", true},
	{"virtio_pci", false}, // Firecracker may put devices on PCI
	{"virtio_console", true},
	{"virtio_blk", true},
	// ext4 asks for a checksum by name, which no dependency table shows.
	{"crc32c_generic", false},
	{"ext4", true},
	{"overlay", true},
	{"virtio_net", false},
	{"vmw_vsock_virtio_transport", false},
	{"virtio_rng", false},
	{"virtio_balloon", false},
	// To end connections that a copied guest no longer has.
	{"tcp_diag", false},
}

// essentialNames are for messages.
func missingEssentials(t *moduleTree) []string {
	var missing []string
	for _, w := range wanted {
		if w.essential && !t.has(w.name) {
			missing = append(missing, w.name)
		}
	}
	return slices.Clip(missing)
}
