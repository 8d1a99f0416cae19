package firecracker

import (
	"bytes"
	"debug/elf"
	"encoding/binary"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"testing"
)

// fakeProgram makes a program that says something.
func fakeProgram(t *testing.T, dir, name, says string) {
	t.Helper()
	if err := os.WriteFile(filepath.Join(dir, name), []byte("#!/bin/sh\nprintf '%s' '"+says+"'\n"), 0o755); err != nil {
		t.Fatal(err)
	}
}

// TestVersions runs programs that say what they say.
func TestVersions(t *testing.T) {
	for _, c := range []struct{ firecracker, jailer, want, fails string }{
		{firecracker: "Firecracker v1.12.0\n\nSupported snapshot data format versions: v6.0.0", jailer: "Jailer v1.12.0", want: "1.12.0"},
		{firecracker: "Firecracker v1.17.0-dev", jailer: "Jailer v1.17.0-dev", want: "1.17.0-dev"},
		{firecracker: "Firecracker v2.0.1\n", jailer: "Jailer v2.0.1\n", want: "2.0.1"},
		{firecracker: "Firecracker v1.9.1", fails: "1.12 is the oldest"},
		{firecracker: "Firecracker v1.16.0", jailer: "Jailer v1.15.0", fails: "both have to be of one release"},
		{firecracker: "Firecracker v1.16.0", jailer: "Firecracker v1.16.0", fails: "it says"},
		{firecracker: "something else", fails: "it says"},
	} {
		dir := t.TempDir()
		fakeProgram(t, dir, program, c.firecracker)
		fakeProgram(t, dir, jailerProgram, c.jailer)
		got, err := Driver{Dir: dir}.Version(t.Context())
		if got != c.want || (err == nil) != (c.fails == "") || err != nil && !strings.Contains(err.Error(), c.fails) {
			t.Errorf("%q: got %q, %v", c.firecracker, got, err)
		}
		t.Setenv("PATH", dir+":/bin:/usr/bin")
		if found, err := (Driver{}).Version(t.Context()); found != c.want || (err == nil) != (c.fails == "") {
			t.Errorf("%q in the search path: got %q, %v", c.firecracker, found, err)
		}
	}
}

// TestWrongArchitecture is a program that this host cannot run.
func TestWrongArchitecture(t *testing.T) {
	machine := elf.EM_AARCH64
	if runtime.GOARCH == "arm64" {
		machine = elf.EM_X86_64
	}
	var b bytes.Buffer
	if err := binary.Write(&b, binary.LittleEndian, elf.Header64{
		Ident: [elf.EI_NIDENT]byte{0x7f, 'E', 'L', 'F', byte(elf.ELFCLASS64), byte(elf.ELFDATA2LSB), byte(elf.EV_CURRENT)},
		Type:  uint16(elf.ET_EXEC), Machine: uint16(machine), Version: uint32(elf.EV_CURRENT), Ehsize: 64, Phentsize: 56, Shentsize: 64,
	}); err != nil {
		t.Fatal(err)
	}
	dir := t.TempDir()
	if err := os.WriteFile(filepath.Join(dir, program), b.Bytes(), 0o755); err != nil {
		t.Fatal(err)
	}
	_, err := Driver{Dir: dir}.Version(t.Context())
	if err == nil || !strings.Contains(err.Error(), "exec format error: it is a program for "+machine.String()) {
		t.Errorf("got %v", err)
	}
}
