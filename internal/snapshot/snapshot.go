// Package snapshot keeps saved machines: memory, device state, the sandbox's
// own disk, and a manifest that describes them. A snapshot that is listed is
// complete and on the disk: it is made in a locked scratch directory, synced,
// and renamed into place.
//
// The digest of a file is SHA-256 over, for each chunk of 128 KiB that is not
// all zero, in order, its index as eight bytes, highest first, and the
// SHA-256 of the chunk; and then the file's size as eight bytes. It says
// nothing of where the file has holes, which differs between file systems,
// and can be computed on many CPUs without reading holes.
package snapshot

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/vmsan/vmsan/api"
	"github.com/vmsan/vmsan/internal/fault"
	"github.com/vmsan/vmsan/internal/scratch"
)

// The files in a snapshot's directory.
const (
	MemoryFile   = "memory"
	StateFile    = "state"
	OverlayFile  = "overlay.ext4"
	manifestFile = "manifest.json"
)

// fileNames are those that the manifest has digests of, in the order in which
// they are in an archive.
var fileNames = []string{StateFile, MemoryFile, OverlayFile}

// Store is a directory of snapshots. Its methods may be called from several
// processes and goroutines at a time.
type Store struct {
	// Dir has a directory for each snapshot, named by its id.
	Dir string
	// Tmp is for snapshots in the making, on Dir's file system.
	Tmp string
}

func (s Store) path(id string) string { return filepath.Join(s.Dir, id) }

// Snapshot is one that is open.
type Snapshot struct {
	Manifest               Manifest
	Memory, State, Overlay *os.File // for reading
}

// Open opens the snapshot id, whose files have to have the sizes that they
// had; their bytes are for Verify. A file that is missing or of another size
// is ErrSnapshotCorrupt. What is open can be used even if the snapshot is
// deleted meanwhile. The caller has to Close it.
func (s Store) Open(id string) (*Snapshot, error) {
	m, err := s.load(id)
	if err != nil {
		return nil, err
	}
	open := &Snapshot{Manifest: m}
	for name, file := range open.files() {
		if *file, err = s.openFile(m, name); err != nil {
			open.Close()
			return nil, corrupt(id, err)
		}
	}
	return open, nil
}

func (s *Snapshot) files() map[string]**os.File {
	return map[string]**os.File{MemoryFile: &s.Memory, StateFile: &s.State, OverlayFile: &s.Overlay}
}

// Close closes the files.
func (s *Snapshot) Close() error {
	var errs []error
	for _, file := range s.files() {
		if *file != nil {
			errs = append(errs, (*file).Close())
		}
	}
	return errors.Join(errs...)
}

func (s Store) openFile(m Manifest, name string) (*os.File, error) {
	file, err := os.OpenFile(filepath.Join(s.path(m.ID), name), os.O_RDONLY|unix.O_NOFOLLOW, 0)
	if err != nil {
		return nil, err
	}
	info, err := file.Stat()
	if err == nil && (!info.Mode().IsRegular() || info.Size() != m.Files[name].Size) {
		err = fmt.Errorf("%s has %d bytes instead of %d", name, info.Size(), m.Files[name].Size)
	}
	if err != nil {
		file.Close()
		return nil, err
	}
	return file, nil
}

// Verify reads all files of the snapshot id and compares their digests.
func (s Store) Verify(ctx context.Context, id string) error {
	open, err := s.Open(id)
	if err != nil {
		return err
	}
	defer open.Close()
	for name, file := range open.files() {
		got, err := digest(ctx, *file)
		if err != nil {
			return fmt.Errorf("verify snapshot %s: %w", id, err)
		}
		if want := open.Manifest.Files[name]; got != want {
			return corrupt(id, fmt.Errorf("%s has the digest %.12s instead of %.12s", name, got.Digest, want.Digest))
		}
	}
	return nil
}

// load reads a manifest.
func (s Store) load(id string) (Manifest, error) {
	if !ValidID(id) {
		return Manifest{}, notFound(id)
	}
	raw, err := readManifest(filepath.Join(s.path(id), manifestFile))
	if errors.Is(err, fs.ErrNotExist) {
		if _, err := os.Stat(s.path(id)); err != nil {
			return Manifest{}, notFound(id)
		}
	}
	if errors.Is(err, fs.ErrPermission) {
		return Manifest{}, api.Errorf(api.ErrPermission, "read snapshot %s: %w", id, err)
	}
	if err != nil {
		return Manifest{}, corrupt(id, err)
	}
	m, err := parseManifest(raw)
	if err == nil && m.ID != id {
		err = fmt.Errorf("its manifest is that of %s", m.ID)
	}
	if err != nil {
		return Manifest{}, corrupt(id, fmt.Errorf("read its manifest: %w", err))
	}
	return m, nil
}

func readManifest(path string) ([]byte, error) {
	file, err := os.OpenFile(path, os.O_RDONLY|unix.O_NOFOLLOW|unix.O_NONBLOCK, 0)
	if err != nil {
		return nil, err
	}
	defer file.Close()
	return io.ReadAll(io.LimitReader(file, maxManifest+1))
}

func notFound(ref string) error {
	return api.Errorf(api.ErrSnapshotNotFound, "no snapshot %.80q", ref).WithHint("vmsan snapshot list")
}

func corrupt(id string, err error) error {
	return api.Errorf(api.ErrSnapshotCorrupt, "snapshot %s is damaged: %w", id, err).
		WithHint("vmsan snapshot rm %s", id)
}

// List reads all manifests, in the order of their creation. Those that cannot
// be read are in broken, by id.
func (s Store) List() (manifests []Manifest, broken map[string]error, err error) {
	entries, err := os.ReadDir(s.Dir)
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return nil, nil, fmt.Errorf("list snapshots: %w", err)
	}
	broken = map[string]error{}
	for _, e := range entries {
		if !ValidID(e.Name()) {
			continue
		}
		m, err := s.load(e.Name())
		switch {
		case err == nil:
			manifests = append(manifests, m)
		case !api.HasCode(err, api.ErrSnapshotNotFound): // else it was deleted meanwhile
			broken[e.Name()] = err
		}
	}
	slices.SortFunc(manifests, func(a, b Manifest) int {
		if order := a.CreatedAt.Compare(b.CreatedAt); order != 0 {
			return order
		}
		return strings.Compare(a.ID, b.ID)
	})
	return manifests, broken, nil
}

// Get finds the snapshot that the user means by ref: an id, a name, or the
// beginning of exactly one id.
func (s Store) Get(ref string) (Manifest, error) {
	if ValidID(ref) {
		return s.load(ref)
	}
	if !ValidName(ref) {
		return Manifest{}, notFound(ref)
	}
	manifests, broken, err := s.List()
	if err != nil {
		return Manifest{}, err
	}
	var begins []string
	for _, m := range manifests {
		if m.Name == ref {
			return m, nil
		}
		begins = append(begins, m.ID)
	}
	for id := range broken {
		begins = append(begins, id)
	}
	begins = slices.DeleteFunc(begins, func(id string) bool { return !strings.HasPrefix(id, ref) })
	switch len(begins) {
	case 0:
		return Manifest{}, notFound(ref)
	case 1:
		return s.load(begins[0])
	}
	slices.Sort(begins)
	return Manifest{}, api.Errorf(api.ErrSnapshotAmbiguous, "%s is the beginning of %d ids: %s", ref, len(begins),
		strings.Join(begins[:min(len(begins), 5)], ", ")).WithHint("vmsan snapshot list")
}

// CheckName tells whether a snapshot could have that name: it may still be
// taken before it is published.
func (s Store) CheckName(name string) error {
	if !ValidName(name) {
		return api.Errorf(api.ErrValidationName, "snapshot name %.80q is malformed", name).
			WithHint("names are 1 to 63 letters, digits, dots, dashes and underscores")
	}
	manifests, _, err := s.List()
	if err != nil {
		return err
	}
	for _, m := range manifests {
		if m.Name == name {
			return api.Errorf(api.ErrSnapshotNameTaken, "snapshot %s has the name %s", m.ID, name).
				WithHint("vmsan snapshot rm %s", name)
		}
	}
	return nil
}

// lock keeps other processes from publishing and deleting.
func (s Store) lock(ctx context.Context) (unlock func(), err error) {
	// What is in a guest's memory is nobody else's business.
	if err := os.MkdirAll(s.Dir, 0o700); err != nil {
		return nil, err
	}
	return scratch.Lock(ctx, s.Dir)
}

// Delete removes the snapshot id. It is no error if there is none, or half of
// one. inUse returns an error, which Delete then returns, if somebody needs
// the snapshot; nothing is published or deleted meanwhile. Nil means nobody.
func (s Store) Delete(ctx context.Context, id string, inUse func() error) error {
	if !ValidID(id) {
		return notFound(id)
	}
	unlock, err := s.lock(ctx)
	if err != nil {
		return fmt.Errorf("delete snapshot %s: %w", id, err)
	}
	defer unlock()
	if inUse != nil {
		if err := inUse(); err != nil {
			return err
		}
	}
	if err := s.remove(id); err != nil {
		return fmt.Errorf("delete snapshot %s: %w", id, err)
	}
	return nil
}

// remove takes the snapshot out of sight at once, and then its files away.
func (s Store) remove(id string) error {
	dir, err := scratch.New(s.Tmp, "deleted")
	if err != nil {
		return err
	}
	err = os.Rename(s.path(id), dir.Join(id))
	if errors.Is(err, fs.ErrNotExist) {
		err = nil
	}
	return errors.Join(fault.After("snapshot: moved away", err), dir.Close())
}
