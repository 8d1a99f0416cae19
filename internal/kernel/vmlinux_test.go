package kernel

import (
	"bytes"
	"debug/elf"
	"encoding/base64"
	"strings"
	"testing"
)

func TestExtract(t *testing.T) {
	vmlinux := forgeVmlinux(elf.EM_X86_64, true)
	img := forgeImage()
	for _, c := range []struct {
		name string
		in   []byte
		want []byte
	}{
		{"ELF", vmlinux, vmlinux},
		{"ELF in gzip", packGzip(vmlinux), vmlinux},
		{"bzImage with gzip", forgeBzImage(packGzip(vmlinux)), vmlinux},
		{"bzImage with zstd", forgeBzImage(packZstd(vmlinux)), vmlinux},
		{"bzImage with LZ4", forgeBzImage(packLZ4(vmlinux)), vmlinux},
		{"bzImage in gzip", packGzip(forgeBzImage(packGzip(vmlinux))), vmlinux},
		{"arm64 Image", img, img},
		{"arm64 Image in gzip", packGzip(img), img},
		{"arm64 zboot with gzip", forgeZboot(packGzip(img)), img},
	} {
		t.Run(c.name, func(t *testing.T) {
			got, err := Extract(c.in)
			if err != nil {
				t.Fatal(err)
			}
			if !bytes.Equal(got, c.want) {
				t.Errorf("got %d bytes, want the %d that were packed", len(got), len(c.want))
			}
		})
	}
}

func TestExtractRefuses(t *testing.T) {
	vmlinux := forgeVmlinux(elf.EM_X86_64, true)
	long := forgeBzImage(packGzip(vmlinux))
	le.PutUint32(long[payloadLength:], 1<<31)
	old := forgeBzImage(packGzip(vmlinux))
	le.PutUint16(old[bootVersion:], 0x207)
	lying := packZstd(vmlinux)
	le.PutUint32(lying[len(lying)-4:], uint32(len(vmlinux))+1)
	huge := packZstd(vmlinux)
	le.PutUint32(huge[len(huge)-4:], maxVmlinux+1)
	for _, c := range []struct {
		name string
		in   []byte
		want string
	}{
		{"nothing", nil, "neither an ELF"},
		{"text", []byte("#!/bin/sh\necho hello\n"), "neither an ELF"},
		{"gzip of text", packGzip([]byte("hello")), "neither an ELF"},
		{"payload outside", long, "outside"},
		{"old boot protocol", old, "2.07"},
		{"size beyond the data", forgeBzImage(lying), "decompress"},
		{"size too large", forgeBzImage(huge), "at most"},
		{"cut short", forgeBzImage(packGzip(vmlinux))[:0x830], "outside"},
		{"gzip cut short", packGzip(vmlinux)[:40], "decompress"},
		{"layers without end", packGzip(packGzip(packGzip(packGzip(vmlinux)))), "neither an ELF"},
	} {
		t.Run(c.name, func(t *testing.T) {
			_, err := Extract(c.in)
			if err == nil || !strings.Contains(err.Error(), c.want) {
				t.Errorf("got error %v, want one with %q", err, c.want)
			}
		})
	}
}

func TestInspect(t *testing.T) {
	got, err := inspect(forgeBzImage(packLZ4(forgeVmlinux(elf.EM_X86_64, true))))
	if err != nil {
		t.Fatal(err)
	}
	if got.version != testVersion || got.arch != "amd64" || !got.pvh {
		t.Errorf("got version %q, arch %q, pvh %v", got.version, got.arch, got.pvh)
	}
	got, err = inspect(forgeVmlinux(elf.EM_AARCH64, false))
	if err != nil {
		t.Fatal(err)
	}
	if got.arch != "arm64" || got.pvh {
		t.Errorf("got arch %q, pvh %v", got.arch, got.pvh)
	}
}

func TestInspectRefuses(t *testing.T) {
	vmlinux := forgeVmlinux(elf.EM_X86_64, true)
	for _, c := range []struct {
		name string
		in   []byte
		want string
	}{
		{"another machine", forgeVmlinux(elf.EM_RISCV, true), "EM_RISCV"},
		{"module", forgeModule(testVersion, ""), "not a kernel"},
		{"cut short", vmlinux[:200], "cut short"},
		{"no banner", bytes.ReplaceAll(vmlinux, []byte("Linux"), []byte("Minix")), "no Linux version"},
	} {
		t.Run(c.name, func(t *testing.T) {
			_, err := inspect(c.in)
			if err == nil || !strings.Contains(err.Error(), c.want) {
				t.Errorf("got error %v, want one with %q", err, c.want)
			}
		})
	}
}

// branchFiltered is x86 code compressed as the kernel's build does with
// CONFIG_KERNEL_XZ: xz --check=crc32 --x86 --lzma2.
const branchFiltered = "/Td6WFoAAAFpIt42AgEEACEBCADSuXTL4AG8AGBdAHQFPBk1J7AjBSkFdUww5UcV6kyQcP6XGqAtq2kKtJy478W7TSagndgllBdLC+v9D1XkbBX79ngT0AVSynBSdqX9FasD7MCmMoFp9YH/TUUvwM5T4cG4Zzq8a2ejt2KIAAAZ5+LDAAF4vQMAAAA6OMbePjANiwIAAAAAAVla"

func TestDecompressBranchFilter(t *testing.T) {
	data, err := base64.StdEncoding.DecodeString(branchFiltered)
	if err != nil {
		t.Fatal(err)
	}
	want := "\xe8\x10\x00\x00\x00" + strings.Repeat("\x55\x48\x89\xe5\xe8\x10\x20\x00\x00\x90\xc3", 40)
	// With its size behind it, as in a bzImage.
	got, err := decompressExactly(le.AppendUint32(data, uint32(len(want))), int64(len(want)))
	if err != nil {
		t.Fatal(err)
	}
	if string(got) != want {
		t.Errorf("got %x, want %x", got, want)
	}
}

func TestDecompressIsBounded(t *testing.T) {
	bomb := packGzip(make([]byte, 1<<20))
	if _, err := decompress(bomb, 1<<20-1); err == nil {
		t.Error("decompressed more than the limit")
	}
	if got, err := decompress(bomb, 1<<20); err != nil || len(got) != 1<<20 {
		t.Errorf("got %d bytes and error %v", len(got), err)
	}
}

func FuzzInspect(f *testing.F) {
	vmlinux := forgeVmlinux(elf.EM_X86_64, true)
	f.Add(vmlinux)
	f.Add(forgeImage())
	f.Add(forgeBzImage(packGzip(vmlinux)))
	f.Add(forgeBzImage(packLZ4(vmlinux)))
	f.Add(forgeZboot(packZstd(vmlinux)))
	f.Fuzz(func(t *testing.T, data []byte) {
		img, err := inspect(data)
		if err == nil && (img.version == "" || img.arch == "" || len(img.data) == 0) {
			t.Errorf("accepted a kernel with version %q, arch %q and %d bytes", img.version, img.arch, len(img.data))
		}
	})
}
