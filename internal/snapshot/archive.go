package snapshot

import (
	"archive/tar"
	"context"
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"time"

	"github.com/klauspost/compress/zstd"
	"golang.org/x/sys/unix"

	"github.com/vmsan/vmsan/api"
	"github.com/vmsan/vmsan/internal/scratch"
)

// An archive is a tar compressed by zstd. It has the manifest and then the
// files, in the order of fileNames, each under its own name and nothing else.
// Of a file it has the chunks that are not all zero, in order, each behind
// its index as eight bytes, highest first.

// archived is how long a file is in an archive.
func (f File) archived() int64 {
	chunks := (f.Stored + Chunk - 1) / Chunk
	return f.Stored + chunks*indexSize
}

// Export writes the snapshot id to w as one archive. Holes do not travel. A
// snapshot that is damaged is noticed on the way, and what was written is of
// no use.
func (s Store) Export(ctx context.Context, id string, w io.Writer) error {
	open, err := s.Open(id)
	if err != nil {
		return err
	}
	defer open.Close()
	if err := open.export(ctx, w); err != nil {
		return fmt.Errorf("export snapshot %s: %w", id, err)
	}
	return nil
}

func (s *Snapshot) export(ctx context.Context, w io.Writer) error {
	compressed, err := zstd.NewWriter(w)
	if err != nil {
		return err
	}
	archive := tar.NewWriter(compressed)
	if err := s.write(ctx, archive); err != nil {
		compressed.Close()
		return err
	}
	return errors.Join(archive.Close(), compressed.Close())
}

func (s *Snapshot) write(ctx context.Context, archive *tar.Writer) error {
	raw, err := json.Marshal(s.Manifest)
	if err != nil {
		return err
	}
	if err := begin(archive, manifestFile, int64(len(raw)), s.Manifest.CreatedAt); err != nil {
		return err
	}
	if _, err := archive.Write(raw); err != nil {
		return err
	}
	for _, name := range fileNames {
		f := s.Manifest.Files[name]
		if err := begin(archive, name, f.archived(), s.Manifest.CreatedAt); err != nil {
			return err
		}
		got, err := writeChunks(ctx, archive, *s.files()[name])
		if err == nil && got != f || errors.Is(err, tar.ErrWriteTooLong) {
			err = corrupt(s.Manifest.ID, fmt.Errorf("%s has another digest", name))
		}
		if err != nil {
			return err
		}
	}
	return nil
}

func begin(archive *tar.Writer, name string, size int64, at time.Time) error {
	return archive.WriteHeader(&tar.Header{
		Typeflag: tar.TypeReg, Name: name, Size: size, Mode: 0o600, ModTime: at.Truncate(time.Second), Format: tar.FormatPAX,
	})
}

// writeChunks writes a file as it is in an archive, and digests it.
func writeChunks(ctx context.Context, w io.Writer, f *os.File) (File, error) {
	info, err := f.Stat()
	if err != nil {
		return File{}, err
	}
	indices, err := chunksWithData(f)
	if err != nil {
		return File{}, err
	}
	fold, buf := newFolder(), make([]byte, Chunk)
	for _, index := range indices {
		if ctx.Err() != nil {
			return File{}, context.Cause(ctx)
		}
		chunk, err := readChunk(f, index, buf)
		if err != nil {
			return File{}, err
		}
		s := sumOf(chunk)
		if s.length == 0 {
			continue
		}
		fold.add(index, s.sum, s.length)
		if _, err := w.Write(binary.BigEndian.AppendUint64(nil, uint64(index))); err != nil {
			return File{}, err
		}
		if _, err := w.Write(chunk); err != nil {
			return File{}, err
		}
	}
	return fold.file(info.Size()), nil
}

// Import makes a snapshot of an archive, which may come from anywhere, under
// a new id; name replaces the archive's if it is not empty. All digests are
// checked. What is not an intact snapshot is ErrSnapshotInvalid, and nothing
// of it is left.
func (s Store) Import(ctx context.Context, r io.Reader, name string) (Manifest, error) {
	m, err := s.importArchive(ctx, r, name)
	if err != nil {
		return Manifest{}, scratch.Explain(fmt.Errorf("import snapshot: %w", err))
	}
	return m, nil
}

func (s Store) importArchive(ctx context.Context, r io.Reader, name string) (m Manifest, err error) {
	d, err := s.New()
	if err != nil {
		return m, err
	}
	defer d.Close()
	m, err = d.unpack(ctx, r, func(m *Manifest) error {
		if name != "" {
			m.Name = name
		}
		if m.Name == "" {
			return nil
		}
		return s.CheckName(m.Name)
	})
	if err != nil {
		return m, err
	}
	got, err := d.wait()
	if err != nil {
		return m, err
	}
	for name, f := range m.Files {
		if got[name] != f {
			return m, invalid("%s has the digest %.12s instead of %.12s", name, got[name].Digest, f.Digest)
		}
	}
	return d.Publish(ctx, m)
}

func invalid(format string, args ...any) error {
	return api.Errorf(api.ErrSnapshotInvalid, "the archive is not an intact snapshot: "+format, args...)
}

// maxWindow bounds what zstd keeps in memory, in bytes: what its own program
// accepts without being told to.
const maxWindow = 128 << 20

// unpack writes the archive's files, of which nothing is believed yet but
// that they have the form and size that the manifest says. accept is asked
// about the manifest first.
func (d *Draft) unpack(ctx context.Context, r io.Reader, accept func(*Manifest) error) (m Manifest, err error) {
	plain, err := zstd.NewReader(r, zstd.WithDecoderMaxWindow(maxWindow), zstd.WithDecoderConcurrency(1))
	if err != nil {
		return m, invalid("%w", err)
	}
	defer plain.Close()
	archive := tar.NewReader(plain)
	if m, err = readArchivedManifest(archive); err != nil {
		return m, err
	}
	if err := accept(&m); err != nil {
		return m, err
	}
	if err := d.checkRoom(m); err != nil {
		return m, err
	}
	for _, name := range fileNames {
		f := m.Files[name]
		if err := next(archive, name, f.archived()); err != nil {
			return m, err
		}
		if err := readChunks(ctx, d.Path(name), archive, f); err != nil {
			return m, fmt.Errorf("%s: %w", name, err)
		}
		d.Done(ctx, name)
	}
	return m, atEnd(archive, plain)
}

// next goes to the archive's next entry, which has to be the one that is
// expected.
func next(archive *tar.Reader, name string, size int64) error {
	h, err := archive.Next()
	if err != nil {
		return invalid("read %s: %w", name, noEOF(err))
	}
	if h.Typeflag != tar.TypeReg || h.Name != name {
		return invalid("%.80q is where %s should be", h.Name, name)
	}
	if size >= 0 && h.Size != size {
		return invalid("%s has %d bytes in the archive instead of %d", name, h.Size, size)
	}
	return nil
}

// noEOF is for places where the end is not expected.
func noEOF(err error) error {
	if err == io.EOF {
		return io.ErrUnexpectedEOF
	}
	return err
}

func readArchivedManifest(archive *tar.Reader) (Manifest, error) {
	if err := next(archive, manifestFile, -1); err != nil {
		return Manifest{}, err
	}
	raw, err := io.ReadAll(io.LimitReader(archive, maxManifest+1))
	if err != nil {
		return Manifest{}, invalid("read its manifest: %w", err)
	}
	m, err := parseManifest(raw)
	if err != nil {
		return Manifest{}, invalid("read its manifest: %w", err)
	}
	return m, nil
}

// checkRoom refuses at once what cannot fit, however well it is compressed.
func (d *Draft) checkRoom(m Manifest) error {
	var fs unix.Statfs_t
	if err := unix.Statfs(d.dir.Path, &fs); err != nil {
		return fmt.Errorf("look for room in %s: %w", d.dir.Path, err)
	}
	free, needed := int64(fs.Bavail)*fs.Bsize, int64(0)
	for _, f := range m.Files {
		needed += f.Stored
	}
	if needed > free {
		return api.Errorf(api.ErrDiskFull, "it needs %d MiB, and %s has %d MiB", needed>>20, filepath.Dir(d.dir.Path), free>>20)
	}
	return nil
}

// atEnd makes sure that nothing follows.
func atEnd(archive *tar.Reader, plain io.Reader) error {
	switch h, err := archive.Next(); {
	case err == nil:
		return invalid("%.80q is one entry too many", h.Name)
	case err != io.EOF:
		return invalid("read its end: %w", err)
	}
	// The checksum of zstd is at its end; tar pads its own with zeros.
	rest, err := io.ReadAll(io.LimitReader(plain, Chunk))
	if err != nil {
		return invalid("read its end: %w", err)
	}
	if len(rest) == Chunk || !isZero(rest) {
		return invalid("something follows its end")
	}
	return nil
}

// readChunks writes a file from what is in an archive. Pages that are zero
// become holes.
func readChunks(ctx context.Context, path string, r io.Reader, f File) (err error) {
	file, err := os.OpenFile(path, os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o600)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, file.Close()) }()
	if err := file.Truncate(f.Size); err != nil {
		return err
	}
	var head [indexSize]byte
	buf := make([]byte, Chunk)
	for after, left := int64(-1), f.Stored; left > 0; {
		if ctx.Err() != nil {
			return context.Cause(ctx)
		}
		if _, err := io.ReadFull(r, head[:]); err != nil {
			return invalid("%w", noEOF(err))
		}
		index := binary.BigEndian.Uint64(head[:])
		if index <= uint64(after) && after >= 0 || index > uint64((f.Size-1)/Chunk) {
			return invalid("chunk %d is out of place", index)
		}
		after = int64(index)
		chunk := buf[:min(Chunk, f.Size-after*Chunk)]
		if left -= int64(len(chunk)); left < 0 {
			return invalid("it has more than it says")
		}
		if _, err := io.ReadFull(r, chunk); err != nil {
			return invalid("%w", noEOF(err))
		}
		if err := writePages(file, chunk, after*Chunk); err != nil {
			return err
		}
	}
	return nil
}

// page is the unit in which file systems have holes, in bytes.
const page = 4096

// writePages writes the pages of a chunk that are not zero, neighbours
// together.
func writePages(file *os.File, chunk []byte, at int64) error {
	for begin := 0; begin < len(chunk); {
		end := begin
		for end < len(chunk) && !isZero(pageAt(chunk, end)) {
			end += len(pageAt(chunk, end))
		}
		if end > begin {
			if _, err := file.WriteAt(chunk[begin:end], at+int64(begin)); err != nil {
				return err
			}
		}
		begin = end + page
	}
	return nil
}

func pageAt(chunk []byte, at int) []byte { return chunk[at:min(at+page, len(chunk))] }
