package qemu

import (
	"fmt"
	"os"
	"runtime"
	"strings"

	"github.com/vmsan/vmsan/internal/link"
	"github.com/vmsan/vmsan/internal/vmm"
)

// firstFD is the descriptor that the first of a command's files gets.
const firstFD = 3

// command is a QEMU command line in the making, with the files it names by
// number.
type command struct {
	args  []string
	files []*os.File
}

func (c *command) add(args ...string) { c.args = append(c.args, args...) }

// fd hands f to QEMU and returns its number there.
func (c *command) fd(f *os.File) int {
	c.files = append(c.files, f)
	return firstFD + len(c.files) - 1
}

// device is one part of the machine.
type device interface{ addTo(*command) }

// machine is the board, with the CPUs and memory.
type machine struct {
	accelerator vmm.Accelerator
	vcpus       int
	memoryMiB   int
}

// tcgCacheMiB is the emulator's cache of translated code. Its default is a
// quarter of the host's memory. A boot and a first command fill more than 32
// MiB, and when it is full everything is translated again.
const tcgCacheMiB = 64

// tcgCPU is everything that the emulator can do, but for what makes guests
// slow: kernels copy memory with one string instruction where they are told
// that it is fast, which under emulation goes byte by byte, and page tables
// of five levels are walked in software.
const tcgCPU = "max,erms=off,fsrm=off,la57=off"

func (m machine) addTo(c *command) {
	c.add("-M", boardName()+",suppress-vmdesc=on,memory-backend="+ramID)
	switch m.accelerator {
	case vmm.KVM:
		c.add("-accel", "kvm", "-cpu", "host")
	default:
		c.add("-accel", fmt.Sprintf("tcg,tb-size=%d", tcgCacheMiB), "-cpu", tcgCPU)
	}
	c.add("-smp", fmt.Sprint(m.vcpus), "-m", fmt.Sprintf("%dM", m.memoryMiB))
	c.add("-nodefaults", "-no-user-config", "-display", "none", "-no-reboot")
}

// boardName is the smallest machine QEMU has for the architecture. On x86 the
// two timer chips that nothing needs are left out: with the PIT a busy host
// makes one boot in five hang.
func boardName() string {
	if runtime.GOARCH == "arm64" {
		return "virt"
	}
	return "microvm,pit=off,pic=off,rtc=on"
}

// ramID is the name of the guest's memory, by which a saved machine finds it
// again.
const ramID = "ram"

// ram is the memory of a guest that boots: nobody else's.
type ram struct{ mib int }

func (r ram) addTo(c *command) {
	c.add("-object", fmt.Sprintf("memory-backend-ram,id=%s,size=%dM", ramID, r.mib))
}

// memoryPath is what QEMU opens to get at fileRAM. Nothing need be there: the
// jail has the file.
const memoryPath = "/memory"

// fileRAM is memory in a file. If it is shared, what is written to it is
// written to the file; if not, it is a copy that is made page by page.
type fileRAM struct {
	mib    int
	shared bool
}

func (r fileRAM) addTo(c *command) {
	c.add("-object", fmt.Sprintf("memory-backend-file,id=%s,size=%dM,mem-path=%s,share=%s", ramID, r.mib, memoryPath, onOff(r.shared)))
}

// incoming has the machine wait for the state that it is to go on from, and
// then for its CPUs to be let go.
type incoming struct{}

func (incoming) addTo(c *command) { c.add("-S", "-incoming", "defer") }

// kernel is what the machine starts.
type kernel struct {
	vmlinux, initramfs string
	cmdline            []string
}

func (k kernel) addTo(c *command) {
	c.add("-kernel", k.vmlinux, "-initrd", k.initramfs, "-append", strings.Join(k.cmdline, " "))
}

// socket is a chardev over a connected socket.
type socket struct {
	id   string
	file *os.File
}

func (s socket) addTo(c *command) {
	c.add("-chardev", fmt.Sprintf("socket,id=%s,fd=%d", s.id, c.fd(s.file)))
}

// qmp is the machine's monitor.
type qmp struct{ file *os.File }

func (q qmp) addTo(c *command) {
	socket{"qmp", q.file}.addTo(c)
	c.add("-mon", "chardev=qmp,mode=control")
}

// console is the serial port.
type console struct{ file *os.File }

func (s console) addTo(c *command) {
	socket{"console", s.file}.addTo(c)
	c.add("-serial", "chardev:console")
}

// ports are the two virtio-serial ports of the guest link. Port 0 of the bus
// is kept for a console.
type ports struct{ control, data *os.File }

const controlID = "control"

func (p ports) addTo(c *command) {
	socket{controlID, p.control}.addTo(c)
	socket{"data", p.data}.addTo(c)
	c.add("-device", "virtio-serial-device,id=link,max_ports=3")
	c.add("-device", "virtserialport,bus=link.0,nr=1,chardev="+controlID+",name="+link.ControlPort)
	c.add("-device", "virtserialport,bus=link.0,nr=2,chardev=data,name="+link.DataPort)
}

// disk is a raw image. The guest's flushes reach the host's disk; what it
// discards is given back to the host's file system.
type disk struct {
	vmm.Disk
	bus int
}

func (d disk) addTo(c *command) {
	n := c.fd(d.File)
	c.add("-add-fd", fmt.Sprintf("fd=%d,set=%d", n, n))
	image := d.Name
	if d.Limit != (vmm.DiskLimit{}) {
		image += unlimited
	}
	c.add("-blockdev", fmt.Sprintf(
		"driver=raw,node-name=%s,read-only=%s,discard=unmap,file.driver=file,file.filename=/dev/fdset/%d,file.locking=off",
		image, onOff(d.ReadOnly), n))
	if image != d.Name {
		c.addLimit(d, image)
	}
	c.addDisk(d)
}

// unlimited is behind the name of an image that is used through a filter, which
// has the disk's.
const unlimited = "-unlimited"

// addLimit puts a filter before an image (QEMU's docs/throttle.txt). It would
// count what the guest discards like what it writes, and hold it up for minutes
// after it has deleted a large file: that is not given back.
func (c *command) addLimit(d disk, image string) {
	// Its other form, with commas, does not know all that there is in limits.
	c.add("-object", fmt.Sprintf(`{"qom-type":"throttle-group","id":"%s-limit","limits":{"bps-total":%d,"iops-total":%d}}`,
		d.Name, d.Limit.BytesPerSecond, d.Limit.OpsPerSecond))
	c.add("-blockdev", fmt.Sprintf("driver=throttle,node-name=%s,read-only=%s,discard=ignore,throttle-group=%s-limit,file=%s",
		d.Name, onOff(d.ReadOnly), d.Name, image))
}

func (c *command) addDisk(d disk) {
	c.add("-device", fmt.Sprintf("virtio-blk-device,drive=%s,bus=virtio-mmio-bus.%d", d.Name, d.bus))
}

// blankDisk has the place of a disk in a machine that never runs: it has no
// file that could be read or written.
type blankDisk struct{ disk }

func (d blankDisk) addTo(c *command) {
	c.add("-blockdev", fmt.Sprintf("driver=null-co,node-name=%s,read-only=%s,discard=unmap", d.Name, onOff(d.ReadOnly)))
	c.addDisk(d.disk)
}

// nic is a network device on a tap. A machine that goes on does not announce
// itself: nobody but the host has seen it before.
type nic struct{ vmm.NIC }

func (n nic) addTo(c *command) {
	c.add("-netdev", fmt.Sprintf("tap,id=net0,fd=%d", c.fd(n.Tap)))
	c.add("-device", fmt.Sprintf("virtio-net-device,netdev=net0,mac=%s,guest_announce=off,bus=virtio-mmio-bus.%d", n.MAC, nicBus))
}

// entropy feeds the guest's random number generator from the host's.
type entropy struct{}

func (entropy) addTo(c *command) {
	c.add("-object", "rng-builtin,id=entropy", "-device", "virtio-rng-device,rng=entropy")
}

// seccomp is QEMU's own system call filter, with everything it can forbid.
type seccomp struct{}

func (seccomp) addTo(c *command) {
	c.add("-sandbox", "on,obsolete=deny,elevateprivileges=deny,spawn=deny,resourcecontrol=deny")
}

func onOff(on bool) string {
	if on {
		return "on"
	}
	return "off"
}
