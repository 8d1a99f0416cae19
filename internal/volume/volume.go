// Package volume keeps named disks that outlive the sandboxes they are in.
package volume

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"github.com/vmsan/vmsan/api"
	"github.com/vmsan/vmsan/internal/disk"
	"github.com/vmsan/vmsan/internal/scratch"
	"github.com/vmsan/vmsan/internal/store"
)

// Store has the volumes of a state directory. Its methods may be called from
// any goroutine, and from several processes at a time.
type Store struct{ Layout store.Layout }

// Volume is one as it is on the disk.
type Volume struct {
	Name      string
	CreatedAt time.Time
	Size      int64 // of its disk, in bytes
	Used      int64 // of that, what the host's disk has
}

// meta is what is in a volume's volume.json.
type meta struct {
	Version   int       `json:"version"`
	CreatedAt time.Time `json:"created_at"`
}

const (
	metaVersion = 1
	maxMeta     = 64 << 10
)

// Path is where the disk of the volume with that name is.
func (s Store) Path(name string) string { return filepath.Join(s.dir(name), "disk.ext4") }

func (s Store) dir(name string) string      { return filepath.Join(s.Layout.Volumes(), name) }
func (s Store) metaPath(name string) string { return filepath.Join(s.dir(name), "volume.json") }

// lock keeps volumes from being made and removed meanwhile.
func (s Store) lock(ctx context.Context) (unlock func(), err error) {
	if err := os.MkdirAll(s.Layout.Volumes(), 0o700); err != nil {
		return nil, err
	}
	return scratch.Lock(ctx, s.Layout.Volumes())
}

// Create makes an empty volume of size bytes.
func (s Store) Create(ctx context.Context, name string, size int64) (Volume, error) {
	v, made, err := s.Ensure(ctx, name, size)
	if err == nil && !made {
		return v, api.Errorf(api.ErrVolumeExists, "there is a volume %s already", name).WithHint("vmsan volume inspect %s", name)
	}
	return v, err
}

// Ensure makes a volume unless it is there, of whatever size.
func (s Store) Ensure(ctx context.Context, name string, size int64) (v Volume, made bool, err error) {
	unlock, err := s.lock(ctx)
	if err != nil {
		return v, false, fmt.Errorf("make volume %s: %w", name, err)
	}
	defer unlock()
	if v, err = s.Get(name); !api.HasCode(err, api.ErrVolumeNotFound) {
		return v, false, err
	}
	if err := s.make(ctx, name, size); err != nil {
		return v, false, scratch.Explain(fmt.Errorf("make volume %s: %w", name, err))
	}
	v, err = s.Get(name)
	return v, true, err
}

// make makes the volume's directory elsewhere, and then puts it into its
// place: whoever is killed on the way leaves no half of one.
func (s Store) make(ctx context.Context, name string, size int64) error {
	blank, err := disk.EnsureBlank(ctx, s.Layout, size)
	if err != nil {
		return err
	}
	dir, err := scratch.New(s.Layout.Tmp(), "volume")
	if err != nil {
		return err
	}
	defer dir.Close()
	draft := Store{store.Layout{Dir: dir.Path}}
	if err := os.MkdirAll(draft.dir(name), 0o700); err != nil {
		return err
	}
	if _, err := disk.Clone(ctx, draft.Path(name), blank); err != nil {
		return err
	}
	if err := syncFile(draft.Path(name)); err != nil {
		return err
	}
	raw, err := json.Marshal(meta{Version: metaVersion, CreatedAt: time.Now().UTC()})
	if err != nil {
		return err
	}
	if err := os.WriteFile(draft.metaPath(name), append(raw, '\n'), 0o600); err != nil {
		return err
	}
	if err := syncFile(draft.metaPath(name)); err != nil {
		return err
	}
	return dir.Publish(filepath.Join("volumes", name), s.dir(name))
}

func syncFile(path string) error {
	f, err := os.Open(path)
	if err != nil {
		return err
	}
	defer f.Close()
	return f.Sync()
}

// Get returns the volume with that name.
func (s Store) Get(name string) (v Volume, err error) {
	if !store.ValidName(name) {
		return v, notFound(name)
	}
	info, err := os.Stat(s.Path(name))
	if errors.Is(err, fs.ErrNotExist) {
		return v, notFound(name)
	}
	if err != nil {
		return v, fmt.Errorf("look at volume %s: %w", name, err)
	}
	m, err := s.readMeta(name)
	if err != nil {
		return v, fmt.Errorf("read volume %s: %w", name, err)
	}
	return Volume{Name: name, CreatedAt: m.CreatedAt, Size: info.Size(), Used: info.Sys().(*syscall.Stat_t).Blocks * 512}, nil
}

func notFound(name string) error {
	return api.Errorf(api.ErrVolumeNotFound, "volume not found: %.80q", name).WithHint("vmsan volume list")
}

func (s Store) readMeta(name string) (m meta, err error) {
	f, err := os.Open(s.metaPath(name))
	if err != nil {
		return m, err
	}
	defer f.Close()
	if err := json.NewDecoder(io.LimitReader(f, maxMeta)).Decode(&m); err != nil {
		return m, err
	}
	if m.Version > metaVersion {
		return m, fmt.Errorf("a newer vmsan made it (version %d, this one knows %d)", m.Version, metaVersion)
	}
	return m, nil
}

// List returns all volumes, by their names. What cannot be read is in broken
// and does not keep the others from being listed.
func (s Store) List() (volumes []Volume, broken map[string]error, err error) {
	entries, err := os.ReadDir(s.Layout.Volumes())
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil, nil
	}
	if err != nil {
		return nil, nil, fmt.Errorf("list volumes: %w", err)
	}
	broken = map[string]error{}
	for _, e := range entries {
		v, err := s.Get(e.Name())
		switch {
		case err == nil:
			volumes = append(volumes, v)
		case !api.HasCode(err, api.ErrVolumeNotFound):
			broken[e.Name()] = err
		}
	}
	slices.SortFunc(volumes, func(a, b Volume) int { return strings.Compare(a.Name, b.Name) })
	return volumes, broken, nil
}

// Remove removes a volume with all that is in it, unless unused objects, which
// is asked while none can be made or removed, or a machine has it.
func (s Store) Remove(ctx context.Context, name string, unused func() error) error {
	unlock, err := s.lock(ctx)
	if err != nil {
		return fmt.Errorf("remove volume %s: %w", name, err)
	}
	defer unlock()
	if _, err := os.Lstat(s.dir(name)); !store.ValidName(name) || errors.Is(err, fs.ErrNotExist) {
		return notFound(name)
	}
	if err := unused(); err != nil {
		return err
	}
	switch f, err := s.Open(name, false); {
	case err == nil:
		defer f.Close()
	case errors.Is(err, ErrHeld):
		return inUse(name)
	case !api.HasCode(err, api.ErrVolumeNotFound):
		return err // if its disk is lost, the rest can go
	}
	grave, err := scratch.New(s.Layout.Tmp(), "removed")
	if err != nil {
		return fmt.Errorf("remove volume %s: %w", name, err)
	}
	if err := os.Rename(s.dir(name), grave.Join(name)); err != nil {
		return errors.Join(fmt.Errorf("remove volume %s: %w", name, err), grave.Close())
	}
	return grave.Close()
}

func inUse(name string) error {
	return api.Errorf(api.ErrVolumeInUse, "volume %s is in use by a machine that is just ending", name).WithHint("try again")
}

// ErrHeld is that a machine has a volume in a way that excludes another.
var ErrHeld = errors.New("the volume is held")

// Open opens a volume's disk for a machine, and locks it: one machine writes,
// or any number reads. The lock is the opened file's, so whoever it is handed
// to holds it too: it is free when the last of them has closed it or died. An
// ErrHeld is that somebody else has it.
func (s Store) Open(name string, readOnly bool) (*os.File, error) {
	flag, how := os.O_RDWR, unix.LOCK_EX
	if readOnly {
		flag, how = os.O_RDONLY, unix.LOCK_SH
	}
	f, err := os.OpenFile(s.Path(name), flag, 0)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, notFound(name)
	}
	if err != nil {
		return nil, fmt.Errorf("open volume %s: %w", name, err)
	}
	err = unix.Flock(int(f.Fd()), how|unix.LOCK_NB)
	if err == nil {
		return f, nil
	}
	f.Close()
	if errors.Is(err, unix.EWOULDBLOCK) {
		err = ErrHeld
	}
	return nil, fmt.Errorf("lock volume %s: %w", name, err)
}
