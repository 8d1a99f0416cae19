package image

import (
	"archive/tar"
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"math"
	"path"
	"strings"
)

// Bounds on an archive. Each entry costs some 500 bytes of memory until the
// import is done.
const (
	maxEntries   = 2_000_000
	maxNameBytes = 255  // NAME_MAX
	maxPathBytes = 4095 // PATH_MAX without its NUL
	maxXattrs    = 64
	maxTrailer   = 64 << 20 // what may follow an archive's end: padding
)

// checkTar copies a tar archive from r to w, entry by entry, without what a
// root file system cannot have, and with at most maxBytes in all its files: a
// short archive of a sparse file can be very long. Errors of the archive are
// ErrImageInvalid.
func checkTar(ctx context.Context, r io.Reader, w io.Writer, maxBytes int64) error {
	tail := &tailReader{r: bufio.NewReaderSize(cancelable{ctx, r}, 1<<20)}
	in := tar.NewReader(tail)
	out := tar.NewWriter(w)
	entries, left := 0, maxBytes
	for {
		h, err := in.Next()
		if errors.Is(err, io.EOF) {
			break
		}
		if err != nil {
			return archiveError(ctx, err)
		}
		if entries++; entries > maxEntries {
			return invalid(fmt.Errorf("more than %d entries", maxEntries))
		}
		if h.Size > left {
			return invalid(fmt.Errorf("more than %d bytes in its files", maxBytes))
		}
		left -= h.Size
		if err := copyEntry(out, h, in); err != nil {
			return archiveError(ctx, fmt.Errorf("entry %.200q: %w", h.Name, err))
		}
	}
	if entries == 0 {
		return invalid(errors.New("it is empty"))
	}
	// archive/tar takes a missing end for an end.
	if !tail.ended() {
		return archiveError(ctx, io.ErrUnexpectedEOF)
	}
	if err := drain(tail); err != nil {
		return err
	}
	return out.Close()
}

// archiveError tells errors of the archive from those of reading and writing
// it, which keep their own meaning.
func archiveError(ctx context.Context, err error) error {
	switch {
	case ctx.Err() != nil:
		return ctx.Err()
	case errors.Is(err, errConverted):
		return err
	case errors.Is(err, io.ErrUnexpectedEOF):
		return invalid(errors.New("it is cut short"))
	case errors.Is(err, tar.ErrHeader), errors.Is(err, tar.ErrFieldTooLong), errors.As(err, new(entryError)):
		return invalid(err)
	}
	return fmt.Errorf("read archive: %w", err)
}

// drain reads to the end of r: a pipe's writer should not be cut off, and a
// reader may have an error to say at its end.
func drain(r io.Reader) error {
	n, err := io.Copy(io.Discard, io.LimitReader(r, maxTrailer+1))
	if err != nil {
		return fmt.Errorf("read archive: %w", err)
	}
	if n > maxTrailer {
		return invalid(fmt.Errorf("more than %d bytes follow its end", maxTrailer))
	}
	return nil
}

// tailReader remembers whether the last block read was zero, as the blocks
// that end an archive are. tar.Reader reads whole blocks.
type tailReader struct {
	r     io.Reader
	zeros int // how many of the last bytes read were zero
}

const tarBlock = 512

func (t *tailReader) Read(p []byte) (int, error) {
	n, err := t.r.Read(p)
	rest := strings.TrimRight(string(p[max(0, n-tarBlock):n]), "\x00")
	if seen := min(n, tarBlock); rest == "" {
		t.zeros += seen
	} else {
		t.zeros = seen - len(rest)
	}
	return n, err
}

func (t *tailReader) ended() bool { return t.zeros >= tarBlock }

// entryError is an entry that a root file system cannot have.
type entryError string

func (e entryError) Error() string { return string(e) }

// copyEntry writes an entry with what of its header counts, and in the oldest
// format that can hold it.
func copyEntry(out *tar.Writer, h *tar.Header, body io.Reader) error {
	if h.Typeflag == tar.TypeXGlobalHeader {
		return nil
	}
	clean, err := cleanHeader(h)
	if err != nil {
		return err
	}
	if err := out.WriteHeader(clean); errors.Is(err, errConverted) {
		return err
	} else if err != nil {
		return entryError(err.Error()) // what no archive can say
	}
	if clean.Typeflag != tar.TypeReg {
		return nil
	}
	_, err = io.Copy(out, body)
	return err
}

func cleanHeader(h *tar.Header) (*tar.Header, error) {
	name, err := cleanPath(h.Name)
	if err != nil {
		return nil, err
	}
	if name == "./" && h.Typeflag != tar.TypeDir {
		return nil, entryError("the root is not a directory")
	}
	if uint64(h.Uid) > math.MaxUint32 || uint64(h.Gid) > math.MaxUint32 {
		return nil, entryError(fmt.Sprintf("owner %d:%d is out of range", h.Uid, h.Gid))
	}
	clean := &tar.Header{
		Typeflag: h.Typeflag,
		Name:     name,
		Mode:     h.Mode & 0o7777,
		Uid:      h.Uid,
		Gid:      h.Gid,
		ModTime:  h.ModTime,
	}
	if clean.PAXRecords, err = keptXattrs(h.PAXRecords); err != nil {
		return nil, err
	}
	return clean, fillType(clean, h)
}

// fillType sets what only some types of entry have.
func fillType(clean, h *tar.Header) error {
	switch h.Typeflag {
	case tar.TypeReg, tar.TypeGNUSparse:
		clean.Typeflag = tar.TypeReg
		clean.Size = h.Size
	case tar.TypeDir:
		clean.Name = strings.TrimSuffix(clean.Name, "/") + "/"
	case tar.TypeFifo:
	case tar.TypeChar, tar.TypeBlock:
		if h.Devmajor < 0 || h.Devmajor > 0xfff || h.Devminor < 0 || h.Devminor > 0xfffff {
			return entryError(fmt.Sprintf("device %d:%d is out of range", h.Devmajor, h.Devminor))
		}
		clean.Devmajor, clean.Devminor = h.Devmajor, h.Devminor
	case tar.TypeSymlink:
		if h.Linkname == "" || len(h.Linkname) > maxPathBytes {
			return entryError("symbolic link without a proper target")
		}
		clean.Linkname = h.Linkname
	case tar.TypeLink:
		target, err := cleanPath(h.Linkname)
		if err != nil {
			return err
		}
		clean.Linkname = target
	default:
		return entryError(fmt.Sprintf("type %q is not known", h.Typeflag))
	}
	return nil
}

// cleanPath makes a path one below the root, whatever its dots say.
func cleanPath(name string) (string, error) {
	clean := path.Clean("/" + name)
	if len(clean) > maxPathBytes {
		return "", entryError("its path is too long")
	}
	for part := range strings.SplitSeq(clean, "/") {
		if len(part) > maxNameBytes {
			return "", entryError("its name is too long")
		}
	}
	return "." + clean, nil
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
		if len(name) > maxNameBytes || len(kept) >= maxXattrs {
			return nil, entryError("its extended attributes are too many or too long")
		}
		if kept == nil {
			kept = make(map[string]string)
		}
		kept[key] = value
	}
	return kept, nil
}
