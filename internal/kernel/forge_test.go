package kernel

import (
	"archive/tar"
	"bytes"
	"debug/elf"
	"encoding/binary"
	"fmt"
	"os"
	"path/filepath"
	"runtime"
	"testing"

	"github.com/klauspost/compress/gzip"
	"github.com/klauspost/compress/zstd"
	"github.com/pierrec/lz4/v4"
	"github.com/vmsan/vmsan/internal/store"
)

const testVersion = "6.1.0-99-cloud"

var le = binary.LittleEndian

// hostMachine is the ELF machine of kernels this host can run.
func hostMachine() elf.Machine {
	if runtime.GOARCH == "arm64" {
		return elf.EM_AARCH64
	}
	return elf.EM_X86_64
}

// forgeVmlinux makes an ELF file that is as much of a kernel as is looked at:
// a segment with a banner, and perhaps the note with the PVH entry.
func forgeVmlinux(machine elf.Machine, pvh bool) []byte {
	body := []byte("\x00Linux version " + testVersion + " (builder) #1 SMP\x00")
	note := append(le.AppendUint32(le.AppendUint32(le.AppendUint32(nil, 4), 4), xenPhys32Entry), "Xen\x00\x00\x00\x00\x01"...)
	const headers = 64 + 2*56
	var b bytes.Buffer
	binary.Write(&b, le, elf.Header64{
		Ident: [elf.EI_NIDENT]byte{0x7f, 'E', 'L', 'F', byte(elf.ELFCLASS64), byte(elf.ELFDATA2LSB), byte(elf.EV_CURRENT)},
		Type:  uint16(elf.ET_EXEC), Machine: uint16(machine), Version: 1,
		Phoff: 64, Ehsize: 64, Phentsize: 56, Phnum: 2, Shentsize: 64,
	})
	binary.Write(&b, le, elf.Prog64{Type: uint32(elf.PT_LOAD), Off: headers, Filesz: uint64(len(body)), Memsz: uint64(len(body))})
	notes := elf.Prog64{Type: uint32(elf.PT_NOTE), Off: headers + uint64(len(body)), Filesz: uint64(len(note))}
	if !pvh {
		notes.Filesz = 0
	}
	binary.Write(&b, le, notes)
	b.Write(body)
	b.Write(note)
	return b.Bytes()
}

// forgeImage makes what is looked at of an arm64 Image.
func forgeImage() []byte {
	data := make([]byte, 64)
	copy(data[56:], "ARM\x64")
	return append(data, "Linux version "+testVersion+" (builder)"...)
}

// forgeBzImage wraps a compressed payload that ends in its size.
func forgeBzImage(payload []byte) []byte {
	const sects = 3
	data := make([]byte, (sects+1)*sectorSize+16)
	data[setupSects] = sects
	copy(data[headerMagic:], "HdrS")
	le.PutUint16(data[bootVersion:], 0x20f)
	le.PutUint32(data[payloadOffset:], 16)
	le.PutUint32(data[payloadLength:], uint32(len(payload)))
	return append(append(data, payload...), "behind the payload"...)
}

func forgeZboot(payload []byte) []byte {
	data := make([]byte, 64)
	copy(data, "MZ\x00\x00zimg")
	le.PutUint32(data[zbootOffset:], 64)
	le.PutUint32(data[zbootLength:], uint32(len(payload)))
	return append(data, payload...)
}

func packGzip(data []byte) []byte {
	var b bytes.Buffer
	w := gzip.NewWriter(&b)
	w.Write(data)
	w.Close()
	return b.Bytes()
}

func packModuleZstd(data []byte) []byte {
	w, _ := zstd.NewWriter(nil)
	return w.EncodeAll(data, nil)
}

// packZstd appends the size, as the kernel's build does.
func packZstd(data []byte) []byte {
	return le.AppendUint32(packModuleZstd(data), uint32(len(data)))
}

// packLZ4 appends the size, as the kernel's build does.
func packLZ4(data []byte) []byte {
	var b bytes.Buffer
	w := lz4.NewWriter(&b)
	w.Apply(lz4.LegacyOption(true))
	w.Write(data)
	w.Close()
	return le.AppendUint32(b.Bytes(), uint32(len(data)))
}

// forgeModule makes an ELF file with a .modinfo section.
func forgeModule(version, depends string) []byte {
	modinfo := "license=GPL\x00depends=" + depends + "\x00vermagic=" + version + " SMP mod_unload\x00"
	names := "\x00.modinfo\x00.shstrtab\x00"
	var b bytes.Buffer
	binary.Write(&b, le, elf.Header64{
		Ident: [elf.EI_NIDENT]byte{0x7f, 'E', 'L', 'F', byte(elf.ELFCLASS64), byte(elf.ELFDATA2LSB), byte(elf.EV_CURRENT)},
		Type:  uint16(elf.ET_REL), Machine: uint16(hostMachine()), Version: 1,
		Shoff: 64, Ehsize: 64, Shentsize: 64, Shnum: 3, Shstrndx: 2,
	})
	const data = 64 + 3*64
	binary.Write(&b, le, elf.Section64{})
	binary.Write(&b, le, elf.Section64{Name: 1, Type: uint32(elf.SHT_PROGBITS), Off: data, Size: uint64(len(modinfo))})
	binary.Write(&b, le, elf.Section64{Name: 10, Type: uint32(elf.SHT_STRTAB), Off: data + uint64(len(modinfo)), Size: uint64(len(names))})
	b.WriteString(modinfo + names)
	return b.Bytes()
}

// entry is a file in a forged archive.
type entry struct {
	name string
	data []byte
}

func forgeTar(entries []entry) []byte {
	var b bytes.Buffer
	w := tar.NewWriter(&b)
	for _, e := range entries {
		w.WriteHeader(&tar.Header{Name: "./" + e.name, Mode: 0o644, Size: int64(len(e.data))})
		w.Write(e.data)
	}
	w.Close()
	return b.Bytes()
}

func forgeAr(members []entry) []byte {
	b := []byte(arMagic)
	for _, m := range members {
		b = fmt.Appendf(b, "%-16s%-12d%-6d%-6d%-8s%-10d`\n", m.name, 0, 0, 0, "100644", len(m.data))
		b = append(b, m.data...)
		if len(m.data)%2 == 1 {
			b = append(b, '\n')
		}
	}
	return b
}

func forgeDeb(control string, data []entry) []byte {
	return forgeAr([]entry{
		{"debian-binary", []byte("2.0\n")},
		{"control.tar.gz", packGzip(forgeTar([]entry{{"control", []byte(control)}}))},
		{"data.tar.gz", packGzip(forgeTar(data))},
	})
}

// kernelEntries are a small but complete kernel package: Debian 13's layout,
// with one module for each compression, and names with dashes.
func kernelEntries() []entry {
	lib := "usr/lib/modules/" + testVersion + "/"
	return []entry{
		{"boot/vmlinuz-" + testVersion, forgeBzImage(packLZ4(forgeVmlinux(hostMachine(), true)))},
		{"boot/config-" + testVersion, []byte("CONFIG_X=y")},
		{lib + "modules.builtin", []byte("kernel/fs/ext4/ext4.ko\nkernel/lib/crc16.ko\n")},
		{lib + "kernel/drivers/virtio/virtio_mmio.ko", forgeModule(testVersion, "virtio,virtio_ring")},
		{lib + "kernel/drivers/virtio/virtio.ko", forgeModule(testVersion, "")},
		{lib + "kernel/drivers/virtio/virtio_ring.ko.zst", packModuleZstd(forgeModule(testVersion, "virtio"))},
		{lib + "kernel/drivers/char/virtio_console.ko.gz", packGzip(forgeModule(testVersion, "virtio,virtio-ring"))},
		{lib + "kernel/drivers/block/virtio_blk.ko", forgeModule(testVersion, "virtio")},
		{lib + "kernel/drivers/char/hw_random/virtio-rng.ko", forgeModule(testVersion, "virtio")},
		{lib + "kernel/fs/overlayfs/overlay.ko", forgeModule(testVersion, "crc16")},
		{lib + "kernel/net/unwanted.ko", []byte("not even a module")},
	}
}

func testLayout(t *testing.T) store.Layout {
	t.Helper()
	return store.Layout{Dir: filepath.Join(t.TempDir(), "state")}
}

func writeTemp(t *testing.T, name string, data []byte) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), name)
	if err := os.WriteFile(path, data, 0o600); err != nil {
		t.Fatal(err)
	}
	return path
}
