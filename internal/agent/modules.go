package agent

import (
	"bytes"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"
)

// modulesDir is where the initramfs keeps the kernel's modules, as NAME.ko.
// What a kernel has built in is not there.
const modulesDir = "/modules"

// buses find the virtio devices, each where the kernel lists its own devices.
var buses = []struct{ module, devices string }{
	{"virtio_mmio", "/sys/bus/platform/devices"},
	{"virtio_pci", "/sys/bus/pci/devices"},
}

// drivers are for virtio devices, by the type in their modalias (virtio
// specification, "Device Types"). Loading one costs 5 to 50 ms under
// emulation, so that is done for devices that are there.
var drivers = []struct {
	module, alias string
	late          bool // not needed by the first command
}{
	{"virtio_console", consoleAlias, false},
	{"virtio_blk", "virtio:d00000002v", false},
	{"virtio_net", "virtio:d00000001v", false},
	{"vmw_vsock_virtio_transport", vsockAlias, false},
	{"virtio_rng", "virtio:d00000004v", true},
	{"virtio_balloon", "virtio:d00000005v", true},
}

// The devices that lead to the host.
const (
	consoleAlias = "virtio:d00000003v"
	vsockAlias   = "virtio:d00000013v"
)

// modules loads kernel modules, each once, after those it depends on.
type modules struct {
	fd     int // of modulesDir, which is out of sight in the new root; -1 if there is none
	loaded map[string]bool
	// vsock is true if that is the way to the host.
	vsock bool
}

func openModules() (*modules, error) {
	fd, err := unix.Open(modulesDir, unix.O_RDONLY|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	if err != nil && !errors.Is(err, unix.ENOENT) {
		return nil, fmt.Errorf("open %s: %w", modulesDir, err)
	}
	return &modules{fd: fd, loaded: map[string]bool{}}, nil
}

// loadEarly loads what the boot needs, and returns the names of those that
// devices here need too, but later.
func (m *modules) loadEarly() (late []string, err error) {
	for _, bus := range buses {
		if present(bus.devices) {
			err = errors.Join(err, m.load(bus.module))
		}
	}
	aliases := modaliases()
	m.vsock = strings.Contains(aliases, vsockAlias) && !strings.Contains(aliases, consoleAlias)
	for _, driver := range drivers {
		switch {
		case !strings.Contains(aliases, driver.alias):
		case driver.late:
			late = append(late, driver.module)
		default:
			err = errors.Join(err, m.load(driver.module))
		}
	}
	// A copy of this guest ends its connections with it.
	late = append(late, "tcp_diag")
	return late, errors.Join(err, m.load("overlay"))
}

func present(devices string) bool {
	dir, err := os.Open(devices)
	if err != nil {
		return false
	}
	defer dir.Close()
	names, _ := dir.Readdirnames(1)
	return len(names) > 0
}

// modaliases are those of all virtio devices together, which the kernel
// numbers as it finds them.
func modaliases() string {
	var all strings.Builder
	for i := 0; ; i++ {
		text, err := os.ReadFile("/sys/bus/virtio/devices/virtio" + strconv.Itoa(i) + "/modalias")
		if err != nil {
			return all.String()
		}
		all.Write(text)
	}
}

// load does nothing for a module that the initramfs does not have.
func (m *modules) load(name string) error {
	if m.loaded[name] {
		return nil
	}
	m.loaded[name] = true
	image, err := os.ReadFile(filepath.Join(descriptorPath(m.fd), name+".ko"))
	if errors.Is(err, os.ErrNotExist) {
		return nil
	}
	if err != nil {
		return err
	}
	for _, dependency := range dependencies(image) {
		if err := m.load(dependency); err != nil {
			return err
		}
	}
	if err := unix.InitModule(image, ""); err != nil && !errors.Is(err, unix.EEXIST) {
		return fmt.Errorf("load module %s: %w", name, err)
	}
	return nil
}

// dependencies reads "depends=a,b" in a module's strings about itself
// (modinfo(8)), which are separated by NULs.
func dependencies(image []byte) []string {
	_, rest, _ := bytes.Cut(image, []byte("\x00depends="))
	list, _, _ := bytes.Cut(rest, []byte{0})
	return strings.FieldsFunc(strings.ReplaceAll(string(list), "-", "_"), func(r rune) bool { return r == ',' })
}

// close gives back the memory of the modules' files: the initramfs stays
// mounted below the root.
func (m *modules) close() error {
	if m.fd < 0 {
		return nil
	}
	dir := descriptorPath(m.fd)
	files, err := os.ReadDir(dir)
	for _, file := range files {
		err = errors.Join(err, os.Remove(filepath.Join(dir, file.Name())))
	}
	return errors.Join(err, unix.Close(m.fd))
}
