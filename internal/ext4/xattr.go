package ext4

import (
	"cmp"
	"encoding/binary"
	"slices"
	"strings"
)

// xattr is an extended attribute as ext4 has it: with a number for the
// beginning of its name.
type xattr struct {
	space byte
	name  string
	value string
}

var xattrSpaces = []struct {
	number byte
	prefix string
}{
	{1, "user."},
	{4, "trusted."},
	{6, "security."},
	// These stand for a whole name, and their values are in a form of ext4's.
	{2, "system.posix_acl_access"},
	{3, "system.posix_acl_default"},
	{7, "system."},
}

const (
	xattrEntry     = 16
	inlineRoom     = inodeSize - inlineAt - 4 // behind the magic number
	xattrHead      = 32
	xattrBlockRoom = BlockSize - xattrHead
	xattrEnd       = 4 // zeros that end the entries
)

func (x xattr) entrySize() int { return (xattrEntry + len(x.name) + 3) &^ 3 }
func (x xattr) valueSize() int { return (len(x.value) + 3) &^ 3 }
func (x xattr) size() int      { return x.entrySize() + x.valueSize() }

// CheckXattrs tells whether a file can have these attributes: ErrXattrs if
// not.
func CheckXattrs(all map[string]string) error {
	_, _, err := splitXattrs(all)
	return err
}

// splitXattrs divides attributes between the inode and a block of their own.
func splitXattrs(all map[string]string) (inline, block []xattr, err error) {
	inlineLeft, blockLeft := inlineRoom-xattrEnd, xattrBlockRoom-xattrEnd
	for _, x := range sortedXattrs(all) {
		switch {
		case x.space == 0 || x.name == "" || len(x.name) > MaxName:
			return nil, nil, ErrXattrs
		case x.size() <= inlineLeft:
			inline = append(inline, x)
			inlineLeft -= x.size()
		case x.size() <= blockLeft:
			block = append(block, x)
			blockLeft -= x.size()
		default:
			return nil, nil, ErrXattrs
		}
	}
	return inline, block, nil
}

// sortedXattrs has attributes in the order that the kernel looks for them.
func sortedXattrs(all map[string]string) []xattr {
	var list []xattr
	for name, value := range all {
		x := xattr{name: name, value: value}
		for _, s := range xattrSpaces {
			if rest, ok := strings.CutPrefix(name, s.prefix); ok {
				x.space, x.name = s.number, rest
				break
			}
		}
		list = append(list, x)
	}
	slices.SortFunc(list, func(a, b xattr) int {
		return cmp.Or(cmp.Compare(a.space, b.space), cmp.Compare(len(a.name), len(b.name)), strings.Compare(a.name, b.name))
	})
	return list
}

// putXattrs writes entries from the beginning of b and values from its end.
// Offsets of values count from shift bytes before b.
func putXattrs(b []byte, list []xattr, shift int) {
	at, end := 0, len(b)
	for _, x := range list {
		end -= x.valueSize()
		e := b[at:]
		e[0], e[1] = byte(len(x.name)), x.space
		if len(x.value) > 0 {
			binary.LittleEndian.PutUint16(e[2:], uint16(end+shift))
		}
		binary.LittleEndian.PutUint32(e[8:], uint32(len(x.value)))
		binary.LittleEndian.PutUint32(e[12:], x.hash(b[end:end+x.valueSize()]))
		copy(e[xattrEntry:], x.name)
		at += x.entrySize()
	}
}

// hash writes the value, which is padded with zeros, and returns the hash
// that e2fsck checks.
func (x xattr) hash(value []byte) uint32 {
	copy(value, x.value)
	var h uint32
	for i := range len(x.name) {
		h = h<<5 ^ h>>27 ^ uint32(x.name[i])
	}
	for ; len(value) > 0; value = value[4:] {
		h = h<<16 ^ h>>16 ^ binary.LittleEndian.Uint32(value)
	}
	return h
}

// getXattrs reads the entries in b into all.
func getXattrs(b []byte, shift int, all map[string]string) error {
	room := len(b) // for values, of which no two share bytes
	for at := 0; at+4 <= len(b) && binary.LittleEndian.Uint32(b[at:]) != 0; {
		if at+xattrEntry > len(b) {
			return errDamaged("attribute")
		}
		e := b[at:]
		name, size := int(e[0]), int(binary.LittleEndian.Uint32(e[8:]))
		value := int(binary.LittleEndian.Uint16(e[2:])) - shift
		if xattrEntry+name > len(e) || binary.LittleEndian.Uint32(e[4:]) != 0 {
			return errDamaged("attribute")
		}
		if size == 0 {
			value = 0
		}
		if value < 0 || size < 0 || size > len(b)-value {
			return errDamaged("attribute")
		}
		if room -= size; room < 0 {
			return errDamaged("attribute")
		}
		for _, s := range xattrSpaces {
			if s.number == e[1] {
				all[s.prefix+string(e[xattrEntry:xattrEntry+name])] = string(b[value : value+size])
				break
			}
		}
		at += (xattrEntry + name + 3) &^ 3
	}
	return nil
}
