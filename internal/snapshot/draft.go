package snapshot

import (
	"context"
	"crypto/rand"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"time"

	"golang.org/x/sync/errgroup"

	"github.com/vmsan/vmsan/internal/scratch"
)

// Draft is a snapshot in the making. Its methods are for one goroutine.
type Draft struct {
	store   Store
	dir     *scratch.Dir
	work    errgroup.Group // digests and syncs
	cancels []context.CancelFunc

	mu    sync.Mutex // guards files
	files map[string]File
}

// made is the name of the snapshot's directory in the scratch directory.
const made = "made"

// New begins a snapshot. The caller has to Close the draft.
func (s Store) New() (*Draft, error) {
	dir, err := scratch.New(s.Tmp, "snapshot")
	if err != nil {
		return nil, scratch.Explain(err)
	}
	if err := os.Mkdir(dir.Join(made), 0o700); err != nil {
		return nil, scratch.Explain(errors.Join(fmt.Errorf("begin snapshot: %w", err), dir.Close()))
	}
	return &Draft{store: s, dir: dir, files: map[string]File{}}, nil
}

// Path is where the file of that name is to be made.
func (d *Draft) Path(name string) string { return filepath.Join(d.dir.Join(made), name) }

// Join returns the path of a file that is of use only while the snapshot is
// made, and goes with the draft.
func (d *Draft) Join(name string) string { return d.dir.Join(name) }

// Done says that the file of that name is as it will be: it begins, in the
// background, to be digested and synced, unless ctx ends.
func (d *Draft) Done(ctx context.Context, name string) {
	ctx, cancel := context.WithCancel(ctx)
	d.cancels = append(d.cancels, cancel)
	d.work.Go(func() error {
		f, err := finish(ctx, d.Path(name))
		if err != nil {
			return err
		}
		d.mu.Lock()
		defer d.mu.Unlock()
		d.files[name] = f
		return nil
	})
}

func finish(ctx context.Context, path string) (File, error) {
	file, err := os.Open(path)
	if err != nil {
		return File{}, err
	}
	defer file.Close()
	if err := file.Chmod(0o400); err != nil {
		return File{}, err
	}
	synced := make(chan error, 1)
	go func() { synced <- file.Sync() }()
	f, err := digest(ctx, file)
	return f, errors.Join(err, <-synced)
}

// wait returns what Done found out.
func (d *Draft) wait() (map[string]File, error) {
	if err := d.work.Wait(); err != nil {
		return nil, err
	}
	return d.files, nil
}

// Publish makes the snapshot visible, complete and synced, under a new id and
// the manifest's name, and returns the finished manifest. Every file has to
// be Done. If the name is taken, that is ErrSnapshotNameTaken. A disk that is
// full is ErrDiskFull.
func (d *Draft) Publish(ctx context.Context, m Manifest) (Manifest, error) {
	files, err := d.wait()
	if err == nil {
		m.Format, m.ID, m.Files = formatVersion, newID(), files
		if m.CreatedAt.IsZero() {
			m.CreatedAt = time.Now().UTC()
		}
		err = d.publish(ctx, m)
	}
	if err != nil {
		return Manifest{}, scratch.Explain(fmt.Errorf("make snapshot: %w", err))
	}
	return m, nil
}

func (d *Draft) publish(ctx context.Context, m Manifest) error {
	if err := m.check(); err != nil {
		return fmt.Errorf("its manifest is not one: %w", err)
	}
	if err := d.writeManifest(m); err != nil {
		return err
	}
	unlock, err := d.store.lock(ctx)
	if err != nil {
		return err
	}
	defer unlock()
	if m.Name != "" {
		if err := d.store.CheckName(m.Name); err != nil {
			return err
		}
	}
	return d.dir.Publish(made, d.store.path(m.ID))
}

func (d *Draft) writeManifest(m Manifest) error {
	raw, err := json.MarshalIndent(m, "", "  ")
	if err != nil {
		return err
	}
	file, err := os.OpenFile(d.Path(manifestFile), os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o400)
	if err != nil {
		return err
	}
	defer file.Close()
	if _, err := file.Write(append(raw, '\n')); err != nil {
		return err
	}
	return file.Sync()
}

// newID is sn and ten of the 32 letters and digits of base32.
func newID() string { return "sn" + strings.ToLower(rand.Text()[:10]) }

// Close removes what was not published. Calling it twice is fine.
func (d *Draft) Close() error {
	for _, cancel := range d.cancels {
		cancel()
	}
	d.work.Wait()
	return d.dir.Close()
}
