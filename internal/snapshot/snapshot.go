// Package snapshot keeps saved machines: memory, device state, the sandbox's
// own disk, and a manifest that describes them. A snapshot that is listed is
// complete and on the disk: it is made in a locked scratch directory, synced,
// and renamed into place.
package snapshot

import (
	"context"
	"errors"
	"io"
	"os"
	"path/filepath"
)

// The files in a snapshot's directory.
const (
	MemoryFile   = "memory"
	StateFile    = "state"
	OverlayFile  = "overlay.ext4"
	manifestFile = "manifest.json"
)

// fileNames are those that the manifest has digests of.
var fileNames = []string{MemoryFile, StateFile, OverlayFile}

// Store is a directory of snapshots. Its methods may be called from several
// processes and goroutines at a time.
type Store struct {
	// Dir has a directory for each snapshot, named by its id.
	Dir string
	// Tmp is for snapshots in the making, on Dir's file system.
	Tmp string
}

// New begins a snapshot. The caller has to Close the draft.
func (s Store) New() (*Draft, error) { return nil, errors.ErrUnsupported }

// Draft is a snapshot in the making. Not for several goroutines.
type Draft struct{}

// Path is where the file of that name is to be made.
func (d *Draft) Path(name string) string { return "" }

// Done says that the file of that name is as it will be: it begins, in the
// background, to be digested and synced.
func (d *Draft) Done(name string) {}

// Publish makes the snapshot visible, complete and synced, under a new id and
// the manifest's name, and returns the finished manifest. If the name is
// taken, that is ErrSnapshotNameTaken. A disk that is full is ErrDiskFull.
func (d *Draft) Publish(ctx context.Context, m Manifest) (Manifest, error) {
	return m, errors.ErrUnsupported
}

// Close removes what was not published. Calling it twice is fine.
func (d *Draft) Close() error { return nil }

// Get finds the snapshot that the user means by ref: an id, a name, or the
// beginning of exactly one id.
func (s Store) Get(ref string) (Manifest, error) { return Manifest{}, errors.ErrUnsupported }

// List reads all manifests, in the order of their creation. Those that cannot
// be read are in broken, by id.
func (s Store) List() (manifests []Manifest, broken map[string]error, err error) {
	return nil, nil, errors.ErrUnsupported
}

// Open opens the snapshot id, whose files have to have the sizes that they
// had; their bytes are for Verify. A file that is missing or of another size
// is ErrSnapshotCorrupt. What is open can be used even if the snapshot is
// deleted meanwhile. The caller has to Close it.
func (s Store) Open(id string) (*Snapshot, error) { return nil, errors.ErrUnsupported }

// Snapshot is one that is open.
type Snapshot struct {
	Manifest               Manifest
	Memory, State, Overlay *os.File // for reading
}

// Close closes the files.
func (s *Snapshot) Close() error { return nil }

// Verify reads all files of the snapshot id and compares their digests.
func (s Store) Verify(ctx context.Context, id string) error { return errors.ErrUnsupported }

// Delete removes the snapshot id. It is no error if there is none, or half of
// one. inUse returns an error, which Delete then returns, if somebody needs
// the snapshot; no other Delete or Publish runs meanwhile. Nil means nobody.
func (s Store) Delete(ctx context.Context, id string, inUse func() error) error {
	return errors.ErrUnsupported
}

// Export writes the snapshot id to w as one archive. Holes do not travel.
func (s Store) Export(ctx context.Context, id string, w io.Writer) error {
	return errors.ErrUnsupported
}

// Import makes a snapshot of an archive, which may come from anywhere, under
// a new id; name replaces the archive's if it is not empty. All digests are
// checked. What is not an intact snapshot is ErrSnapshotInvalid, and nothing
// of it is left.
func (s Store) Import(ctx context.Context, r io.Reader, name string) (Manifest, error) {
	return Manifest{}, errors.ErrUnsupported
}

func (s Store) path(id string) string { return filepath.Join(s.Dir, id) }
