package kernel

import (
	"bytes"
	"debug/elf"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"regexp"
)

// Bounds in bytes: compressed kernels have some 15 MB, an ELF file with
// everything built in 80 MB, one with debug information several hundred.
const (
	maxKernelFile = 1 << 30
	maxVmlinux    = 1 << 30
)

// image is a kernel that a VMM can start.
type image struct {
	data    []byte
	version string
	arch    string
	pvh     bool
}

var errNoKernel = errors.New("neither an ELF vmlinux, nor a bzImage, nor an arm64 Image, nor one of these compressed")

// Extract finds the kernel in data: an ELF vmlinux or arm64 Image, which is
// returned as it is, or a bzImage, an EFI zboot image, or a compressed kernel,
// out of which the former is taken.
func Extract(data []byte) ([]byte, error) {
	// A bzImage that holds a compressed kernel is two layers; three are none.
	for range 3 {
		if isELF(data) || isImage(data) {
			return data, nil
		}
		inner, err := unwrap(data)
		if err != nil {
			return nil, err
		}
		data = inner
	}
	return nil, errNoKernel
}

// unwrap takes one wrapping off a kernel.
func unwrap(data []byte) ([]byte, error) {
	switch {
	case isBzImage(data):
		return bzImagePayload(data)
	case isZboot(data):
		return zbootPayload(data)
	}
	inner, err := decompress(data, maxVmlinux)
	if errors.Is(err, errNotCompressed) || len(data) < magicLen {
		return nil, errNoKernel
	}
	return inner, err
}

func isELF(data []byte) bool { return bytes.HasPrefix(data, []byte(elf.ELFMAG)) }

// isImage knows an arm64 Image: Documentation/arch/arm64/booting.rst.
func isImage(data []byte) bool {
	return len(data) >= 64 && string(data[56:60]) == "ARM\x64"
}

// Offsets into the x86 boot protocol's header, all little-endian:
// Documentation/arch/x86/boot.rst.
const (
	setupSects    = 0x1f1 // one byte: sectors of setup code, 0 means 4
	headerMagic   = 0x202 // "HdrS"
	bootVersion   = 0x206 // two bytes; the payload fields came with 2.08
	payloadOffset = 0x248 // four bytes, from the end of the setup code
	payloadLength = 0x24c // four bytes
	headerEnd     = 0x250

	sectorSize = 512
)

func isBzImage(data []byte) bool {
	return len(data) >= headerEnd && string(data[headerMagic:headerMagic+4]) == "HdrS"
}

func bzImagePayload(data []byte) ([]byte, error) {
	if v := binary.LittleEndian.Uint16(data[bootVersion:]); v < 0x208 {
		return nil, fmt.Errorf("bzImage: boot protocol %d.%02d, at least 2.08 is needed", v>>8, v&0xff)
	}
	sects := int64(data[setupSects])
	if sects == 0 {
		sects = 4
	}
	start := (sects+1)*sectorSize + int64(binary.LittleEndian.Uint32(data[payloadOffset:]))
	return payload("bzImage", data, start, int64(binary.LittleEndian.Uint32(data[payloadLength:])))
}

// Offsets into the header of an EFI zboot image, which arm64 kernels may be:
// linux/drivers/firmware/efi/libstub/zboot-header.S.
const (
	zbootMagic  = 4 // "zimg"
	zbootOffset = 8
	zbootLength = 12
	zbootEnd    = 16
)

func isZboot(data []byte) bool {
	return len(data) >= zbootEnd && string(data[:2]) == "MZ" && string(data[zbootMagic:zbootMagic+4]) == "zimg"
}

func zbootPayload(data []byte) ([]byte, error) {
	start := int64(binary.LittleEndian.Uint32(data[zbootOffset:]))
	return payload("EFI zboot image", data, start, int64(binary.LittleEndian.Uint32(data[zbootLength:])))
}

// payload decompresses data[start:start+length]. Its last four bytes are the
// kernel's size: the build appends them, or for gzip they are part of the
// format.
func payload(what string, data []byte, start, length int64) ([]byte, error) {
	if length < magicLen+4 || start+length > int64(len(data)) {
		return nil, fmt.Errorf("%s: payload at %d with %d bytes is outside of the %d bytes there are", what, start, length, len(data))
	}
	body := data[start : start+length]
	size := int64(binary.LittleEndian.Uint32(body[length-4:]))
	if size > maxVmlinux {
		return nil, fmt.Errorf("%s: kernel of %d bytes, at most %d", what, size, maxVmlinux)
	}
	inner, err := decompressExactly(body, size)
	if err != nil {
		return nil, fmt.Errorf("%s: %w", what, err)
	}
	return inner, nil
}

// banner is linux_banner, which is in every kernel.
var banner = regexp.MustCompile(`Linux version ([0-9][0-9A-Za-z.+~_-]{0,63}) `)

// inspect takes the kernel out of data and learns what it is.
func inspect(data []byte) (image, error) {
	data, err := Extract(data)
	if err != nil {
		return image{}, err
	}
	img := image{data: data, arch: "arm64"}
	if isELF(data) {
		if img.arch, img.pvh, err = inspectELF(data); err != nil {
			return image{}, err
		}
	}
	m := banner.FindSubmatch(data)
	if m == nil {
		return image{}, errors.New("no Linux version in it")
	}
	img.version = string(m[1])
	return img, nil
}

var machines = map[elf.Machine]string{
	elf.EM_X86_64:  "amd64",
	elf.EM_AARCH64: "arm64",
}

func inspectELF(data []byte) (arch string, pvh bool, err error) {
	f, err := elf.NewFile(bytes.NewReader(data))
	if err != nil {
		return "", false, fmt.Errorf("read ELF file: %w", err)
	}
	arch, ok := machines[f.Machine]
	if !ok || f.Class != elf.ELFCLASS64 {
		return "", false, fmt.Errorf("ELF file is for %v, %v", f.Machine, f.Class)
	}
	if f.Type != elf.ET_EXEC && f.Type != elf.ET_DYN {
		return "", false, fmt.Errorf("ELF file is of type %v, not a kernel", f.Type)
	}
	return arch, hasPVH(f), checkSegments(f, int64(len(data)))
}

// checkSegments wants something to load, and all of it there: a VMM's own
// message about a file cut short is hard to understand.
func checkSegments(f *elf.File, size int64) error {
	loads := 0
	for _, p := range f.Progs {
		if p.Type != elf.PT_LOAD {
			continue
		}
		loads++
		if p.Off > uint64(size) || p.Filesz > uint64(size)-p.Off {
			return fmt.Errorf("ELF file is cut short: a segment ends at %d and the file at %d", p.Off+p.Filesz, size)
		}
	}
	if loads == 0 {
		return errors.New("ELF file has nothing to load")
	}
	return nil
}

// xenPhys32Entry is XEN_ELFNOTE_PHYS32_ENTRY, the note with a kernel's PVH
// entry point.
const xenPhys32Entry = 18

// maxNotes bounds a segment of notes in bytes; a kernel's has some 500.
const maxNotes = 1 << 20

func hasPVH(f *elf.File) bool {
	for _, p := range f.Progs {
		if p.Type != elf.PT_NOTE {
			continue
		}
		notes, err := io.ReadAll(io.LimitReader(p.Open(), maxNotes))
		if err == nil && hasXenEntry(f.ByteOrder, notes) {
			return true
		}
	}
	return false
}

func hasXenEntry(order binary.ByteOrder, notes []byte) bool {
	for len(notes) >= 12 {
		nameLen, descLen, typ := order.Uint32(notes), order.Uint32(notes[4:]), order.Uint32(notes[8:])
		notes = notes[12:]
		name, rest, ok := cutAligned(notes, nameLen)
		if !ok {
			return false
		}
		if typ == xenPhys32Entry && string(name) == "Xen\x00" {
			return true
		}
		if _, notes, ok = cutAligned(rest, descLen); !ok {
			return false
		}
	}
	return false
}

// cutAligned cuts n bytes, and the padding to the next multiple of 4, off b.
func cutAligned(b []byte, n uint32) (field, rest []byte, ok bool) {
	padded := (int64(n) + 3) &^ 3
	if padded > int64(len(b)) {
		return nil, nil, false
	}
	return b[:n], b[padded:], true
}
