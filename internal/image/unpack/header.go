package unpack

import (
	"archive/tar"
	"fmt"
	"io"
	"math"
	"path"
	"strings"

	"github.com/vmsan/vmsan/internal/ext4"
)

// attributes reads what counts of an entry's header.
func attributes(h *tar.Header) (ext4.Attr, error) {
	if uint64(h.Uid) > math.MaxUint32 || uint64(h.Gid) > math.MaxUint32 {
		return ext4.Attr{}, entryError(fmt.Sprintf("owner %d:%d is out of range", h.Uid, h.Gid))
	}
	a := ext4.Attr{
		Mode: uint16(h.Mode & 0o7777),
		UID:  uint32(h.Uid), GID: uint32(h.Gid), ModTime: h.ModTime,
	}
	var err error
	if a.Xattrs, err = keptXattrs(h.PAXRecords); err != nil {
		return a, err
	}
	switch h.Typeflag {
	case tar.TypeReg, tar.TypeGNUSparse, tar.TypeCont:
		a.Mode |= ext4.TypeRegular
	case tar.TypeDir:
		a.Mode |= ext4.TypeDir
	case tar.TypeFifo:
		a.Mode |= ext4.TypeFifo
	case tar.TypeChar, tar.TypeBlock:
		return device(a, h)
	case tar.TypeSymlink:
		if h.Linkname == "" || len(h.Linkname) > ext4.MaxSymlink || strings.ContainsRune(h.Linkname, 0) {
			return a, entryError("symbolic link without a proper target")
		}
		a.Mode, a.Target = ext4.TypeSymlink|0o777, h.Linkname
	case tar.TypeLink:
	default:
		return a, entryError(fmt.Sprintf("type %q is not known", h.Typeflag))
	}
	return a, nil
}

func device(a ext4.Attr, h *tar.Header) (ext4.Attr, error) {
	if h.Devmajor < 0 || h.Devmajor > 0xfff || h.Devminor < 0 || h.Devminor > 0xfffff {
		return a, entryError(fmt.Sprintf("device %d:%d is out of range", h.Devmajor, h.Devminor))
	}
	a.Major, a.Minor = uint32(h.Devmajor), uint32(h.Devminor)
	if a.Mode |= ext4.TypeChar; h.Typeflag == tar.TypeBlock {
		a.Mode = a.Mode&^ext4.TypeMask | ext4.TypeBlock
	}
	return a, nil
}

// cleanPath makes a path one below the root, whatever its dots say.
func cleanPath(name string) (string, error) {
	clean := path.Clean("/" + name)
	if len(clean) > maxPathBytes {
		return "", entryError("its path is too long")
	}
	for part := range strings.SplitSeq(clean, "/") {
		if len(part) > ext4.MaxName {
			return "", entryError("its name is too long")
		}
	}
	if strings.ContainsRune(clean, 0) {
		return "", entryError("a NUL in its name")
	}
	return clean, nil
}

const xattrRecord = "SCHILY.xattr."

// keptXattrs keeps attributes that mean in a guest what they meant where the
// archive was made. POSIX ACLs do not: ext4 stores them in another form than
// archives. Those of "trusted." would be orders to overlayfs.
func keptXattrs(records map[string]string) (map[string]string, error) {
	var kept map[string]string
	for key, value := range records {
		name, ok := strings.CutPrefix(key, xattrRecord)
		if !ok || !strings.HasPrefix(name, "user.") && !strings.HasPrefix(name, "security.") {
			continue
		}
		if len(name) > ext4.MaxName || len(kept) >= maxXattrs {
			return nil, entryError("its extended attributes are too many or too long")
		}
		if kept == nil {
			kept = make(map[string]string)
		}
		kept[name] = value
	}
	return kept, ext4.CheckXattrs(kept)
}

// tailReader remembers whether the last block read was zero, as the blocks
// that end an archive are. tar.Reader reads whole blocks.
type tailReader struct {
	r     io.Reader
	read  int64
	zeros int // how many of the last bytes read were zero
}

const tarBlock = 512

func (t *tailReader) Read(p []byte) (int, error) {
	n, err := t.r.Read(p)
	t.read += int64(n)
	seen := min(n, tarBlock)
	rest := seen
	for rest > 0 && p[n-seen+rest-1] == 0 {
		rest--
	}
	if t.zeros += seen; rest > 0 {
		t.zeros = seen - rest
	}
	return n, err
}

func (t *tailReader) ended() bool { return t.zeros >= tarBlock }
