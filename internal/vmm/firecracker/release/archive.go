package release

import (
	"archive/tar"
	"errors"
	"fmt"
	"io"
	"os"
	"path"
	"path/filepath"
	"slices"

	"github.com/klauspost/compress/gzip"
	"golang.org/x/sys/unix"

	"github.com/vmsan/vmsan/api"
	"github.com/vmsan/vmsan/internal/outfile"
)

// Bounds on an archive. A release's has 15 files and 300 million bytes, most of
// them for debuggers.
const (
	maxArchive = 512 << 20 // bytes, packed
	maxBytes   = 4 << 30   // bytes
	maxEntries = 10_000
)

func unpackFile(path, dir string) error {
	file, err := os.Open(path)
	if err != nil {
		return api.Errorf(api.ErrValidationPath, "Invalid --bundle: %w", err).WithFlag("--bundle")
	}
	defer file.Close()
	if err := unpack(file, dir); err != nil {
		return unusable("read %s: %w", path, err)
	}
	return nil
}

// unpack takes the programs out of an archive, which may come from anywhere:
// no path in it is used.
func unpack(from io.Reader, dir string) error {
	packed, err := gzip.NewReader(io.LimitReader(from, maxArchive))
	if err != nil {
		return err
	}
	archive := tar.NewReader(io.LimitReader(packed, maxBytes))
	for range maxEntries {
		header, err := archive.Next()
		if errors.Is(err, io.EOF) {
			return nil
		}
		if err != nil {
			return err
		}
		found := program.FindStringSubmatch(path.Base(header.Name))
		if header.Typeflag != tar.TypeReg || found == nil {
			continue
		}
		if err := writeProgram(filepath.Join(dir, found[1]), archive); err != nil {
			return fmt.Errorf("%s: %w", found[1], err)
		}
	}
	return fmt.Errorf("it has more than %d files", maxEntries)
}

// writeProgram writes a program that is not there yet.
func writeProgram(path string, from io.Reader) error {
	file, err := os.OpenFile(path, os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o755)
	if errors.Is(err, os.ErrExist) {
		return errors.New("it is there twice")
	}
	if err != nil {
		return err
	}
	n, err := io.Copy(file, io.LimitReader(from, maxProgram+1))
	if n > maxProgram {
		err = fmt.Errorf("it is larger than %d bytes", maxProgram)
	}
	return errors.Join(err, file.Sync(), file.Close())
}

func writeFile(path string, text []byte, mode os.FileMode) error {
	file, err := os.OpenFile(path, os.O_WRONLY|os.O_CREATE|os.O_EXCL, mode)
	if err != nil {
		return err
	}
	_, err = file.Write(text)
	return errors.Join(err, file.Sync(), file.Close())
}

// copyPrograms takes programs out of a directory that a release was unpacked
// to.
func copyPrograms(from, dir string) error {
	entries, err := os.ReadDir(from)
	if err != nil {
		return api.Errorf(api.ErrValidationPath, "Invalid --firecracker-dir: %w", err).WithFlag("--firecracker-dir")
	}
	for _, e := range entries {
		found := program.FindStringSubmatch(e.Name())
		if found == nil {
			continue
		}
		if err := copyProgram(filepath.Join(from, e.Name()), filepath.Join(dir, found[1])); err != nil {
			return unusable("copy %s: %w", e.Name(), err)
		}
	}
	return nil
}

func copyProgram(from, to string) error {
	file, err := os.OpenFile(from, os.O_RDONLY|unix.O_NONBLOCK, 0)
	if err != nil {
		return err
	}
	defer file.Close()
	if info, err := file.Stat(); err != nil || !info.Mode().IsRegular() {
		return errors.Join(err, errors.New("it is not a file"))
	}
	return writeProgram(to, file)
}

// Export writes a release as an archive that Install takes.
func (s Store) Export(name, to string) (err error) {
	m, err := s.Check(name)
	if err != nil {
		return err
	}
	file, err := outfile.Create(to, 0o644)
	if err != nil {
		return err
	}
	defer file.Cleanup()
	packed := gzip.NewWriter(file)
	archive := tar.NewWriter(packed)
	var programs []string
	for program := range m.Programs {
		programs = append(programs, program)
	}
	slices.Sort(programs)
	for _, program := range programs {
		if err := s.add(archive, name, program); err != nil {
			return fmt.Errorf("export %s: %w", program, err)
		}
	}
	if err := errors.Join(archive.Close(), packed.Close()); err != nil {
		return err
	}
	return file.Commit()
}

func (s Store) add(archive *tar.Writer, name, program string) error {
	file, err := os.Open(filepath.Join(s.Path(name), program))
	if err != nil {
		return err
	}
	defer file.Close()
	info, err := file.Stat()
	if err != nil {
		return err
	}
	header := &tar.Header{Typeflag: tar.TypeReg, Name: "firecracker/" + program, Mode: 0o755, Size: info.Size()}
	if err := archive.WriteHeader(header); err != nil {
		return err
	}
	_, err = io.Copy(archive, file)
	return err
}
