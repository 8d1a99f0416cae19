package kernel

import (
	"bytes"
	"debug/elf"
	"encoding/binary"
	"fmt"

	"github.com/vmsan/vmsan/internal/initramfs"
)

// Of each module that a guest loads, the kernel checks the signature, sorts
// the tables for walking its stack and reads the types for tracing it, which
// together take longer under emulation than the rest of the loading. A guest
// whose kernel and modules come from the host needs none of it.
var unneeded = map[string]bool{".BTF": true, ".orc_unwind": true, ".orc_unwind_ip": true}

func trimAll(modules []initramfs.Module) ([]initramfs.Module, error) {
	var trimmed []initramfs.Module
	for _, m := range modules {
		data, err := trim(m.Data)
		if err != nil {
			return nil, fmt.Errorf("trim module %s: %w", m.Name, err)
		}
		trimmed = append(trimmed, initramfs.Module{Name: m.Name, Data: data})
	}
	return trimmed, nil
}

// trim returns a copy of a module without its signature, in which the kernel
// does not find what is unneeded.
func trim(module []byte) ([]byte, error) {
	module = bytes.Clone(withoutSignature(module))
	file, err := elf.NewFile(bytes.NewReader(module))
	if err != nil {
		return nil, fmt.Errorf("read ELF file: %w", err)
	}
	if file.Class != elf.ELFCLASS64 {
		return nil, fmt.Errorf("ELF file is of class %v", file.Class)
	}
	table := file.ByteOrder.Uint64(module[sectionHeadersAt:])
	size := uint64(file.ByteOrder.Uint16(module[sectionHeaderSizeAt:]))
	for i, section := range file.Sections {
		if !unneeded[section.Name] {
			continue
		}
		header := module[table+uint64(i)*size:]
		file.ByteOrder.PutUint32(header[0:], 0) // sh_name: the empty one
		file.ByteOrder.PutUint64(header[8:], 0) // sh_flags: not loaded, and so not relocated
	}
	return module, nil
}

// Where an Elf64_Ehdr has e_shoff and e_shentsize.
const (
	sectionHeadersAt    = 40
	sectionHeaderSizeAt = 58
)

// signatureMark is the end of a module with a signature, and what stands
// before it a struct module_signature of 12 bytes behind the signature itself
// (include/linux/module_signature.h).
const (
	signatureMark = "~Module signature appended~\n"
	signatureInfo = 12
)

// withoutSignature returns what was signed.
func withoutSignature(module []byte) []byte {
	rest, signed := bytes.CutSuffix(module, []byte(signatureMark))
	if !signed || len(rest) < signatureInfo {
		return module
	}
	info := rest[len(rest)-signatureInfo:]
	rest = rest[:len(rest)-signatureInfo]
	length := uint64(info[3]) + uint64(info[4]) + uint64(binary.BigEndian.Uint32(info[8:]))
	if length > uint64(len(rest)) {
		return module
	}
	return rest[:uint64(len(rest))-length]
}
