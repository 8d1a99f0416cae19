package kernel

import (
	"bytes"
	"debug/elf"
	"encoding/binary"
	"testing"
)

// sign appends what the kernel's scripts/sign-file does.
func sign(module []byte) []byte {
	signature := bytes.Repeat([]byte{7}, 300)
	info := make([]byte, signatureInfo)
	binary.BigEndian.PutUint32(info[8:], uint32(len(signature)))
	return append(append(append(bytes.Clone(module), signature...), info...), signatureMark...)
}

// rename gives the first section of a forged module, .modinfo, a name of the
// same length.
func rename(module []byte, name string) []byte {
	at := bytes.LastIndex(module, []byte(".modinfo"))
	return append(append(bytes.Clone(module[:at]), name...), module[at+len(name):]...)
}

func TestTrimTakesSignatureOff(t *testing.T) {
	module := forgeModule(testVersion, "virtio")
	got, err := trim(sign(module))
	if err != nil || !bytes.Equal(got, module) {
		t.Errorf("what was signed did not come back (error %v)", err)
	}
}

func TestTrimHidesSections(t *testing.T) {
	got, err := trim(rename(forgeModule(testVersion, ""), ".BTF\x00\x00\x00\x00"))
	if err != nil {
		t.Fatal(err)
	}
	file, err := elf.NewFile(bytes.NewReader(got))
	if err != nil {
		t.Fatal(err)
	}
	if file.Section(".BTF") != nil {
		t.Error("the kernel would find the section")
	}
	if section := file.Sections[1]; section.Name != "" || section.Flags != 0 {
		t.Errorf("the section is %q with flags %v", section.Name, section.Flags)
	}
}

func TestTrimKeepsWhatItDoesNotKnow(t *testing.T) {
	module := forgeModule(testVersion, "a,b")
	// A mark with nothing, or with less than it says, in front of it.
	for _, tail := range []string{signatureMark, "\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff" + signatureMark} {
		if got := withoutSignature([]byte(tail)); string(got) != tail {
			t.Errorf("%q became %q", tail, got)
		}
	}
	got, err := trim(module)
	if err != nil || !bytes.Equal(got, module) {
		t.Errorf("a module without either was changed (error %v)", err)
	}
}

func FuzzTrim(f *testing.F) {
	f.Add(sign(forgeModule(testVersion, "virtio")))
	f.Add(rename(forgeModule(testVersion, ""), ".BTF\x00\x00\x00\x00"))
	f.Add([]byte(signatureMark))
	f.Fuzz(func(t *testing.T, module []byte) {
		before := bytes.Clone(module)
		got, err := trim(module)
		if err == nil && len(got) > len(module) {
			t.Errorf("%d bytes became %d", len(module), len(got))
		}
		if !bytes.Equal(before, module) {
			t.Error("the module itself was changed")
		}
	})
}
