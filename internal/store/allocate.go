package store

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"slices"

	"github.com/vmsan/vmsan/api"
	"github.com/vmsan/vmsan/internal/fault"
	"github.com/vmsan/vmsan/internal/scratch"
)

// Init makes the directories that every command needs.
func (l Layout) Init() error {
	if err := l.CheckDir(); err != nil {
		return err
	}
	for _, dir := range []string{l.Dir, l.Sandboxes(), l.Run} {
		if err := os.MkdirAll(dir, 0o700); err != nil {
			return api.Errorf(api.ErrValidationStateDir, "make directory %s: %w", dir, err).WithFlag("--dir").
				WithHint("vmsan --dir DIRECTORY ..., with one that you own")
		}
	}
	return l.checkRun()
}

// CheckDir makes sure that the state directory is vmsan's, and this user's, if
// it is there: whoever mistypes --dir is not to find our files among theirs.
func (l Layout) CheckDir() error {
	info, err := os.Stat(l.Sandboxes())
	if err == nil && owner(info) != uint32(os.Geteuid()) {
		return api.Errorf(api.ErrValidationStateDir, "state directory %s belongs to the user with the id %d", l.Dir, owner(info)).WithFlag("--dir").
			WithHint("sudo -u '#%d' vmsan ...", owner(info))
	}
	if err == nil || !errors.Is(err, fs.ErrNotExist) {
		return nil // what cannot be looked at is told by whoever needs it
	}
	entries, err := os.ReadDir(l.Dir)
	if err != nil {
		return nil // it is not there, or else cannot be written either
	}
	own := l.entries()
	foreign := slices.IndexFunc(entries, func(e fs.DirEntry) bool { return !slices.Contains(own, e.Name()) })
	if foreign >= 0 {
		return api.Errorf(api.ErrValidationStateDir, "%s is not a state directory: there are other things than vmsan's in it, like %q",
			l.Dir, entries[foreign].Name()).WithFlag("--dir").
			WithHint("vmsan --dir DIRECTORY ..., with one that is empty, or that is not there yet")
	}
	return nil
}

// checkRun makes sure that nobody else prepared the run directory, which for
// users without a runtime directory is in /tmp.
func (l Layout) checkRun() error {
	info, err := os.Lstat(l.Run)
	if err != nil {
		return fmt.Errorf("look at run directory: %w", err)
	}
	if !info.IsDir() || info.Mode().Perm()&0o022 != 0 || owner(info) != uint32(os.Geteuid()) {
		return api.Errorf(api.ErrValidationStateDir, "run directory %s is not this user's alone", l.Run)
	}
	return nil
}

// Allocate gives r a new id and slot, checks that its name is free, and
// saves it. Slots that usable objects to are passed over: something on the
// host is still named after them. The sandbox's directory is there then, and
// its lock is held: the caller releases it.
func (l Layout) Allocate(ctx context.Context, r *Record, usable func(slot int) (bool, error)) (*Lock, error) {
	all, err := AcquireLock(ctx, l.Lock())
	if err != nil {
		return nil, err
	}
	defer all.Release()
	x, err := l.openIndex()
	if err != nil {
		return nil, err
	}
	if err := x.checkName(r.Name, ""); err != nil {
		return nil, err
	}
	if r.Slot, err = x.takeSlot(usable); err != nil {
		return nil, err
	}
	// Whoever dies here leaves a number that no sandbox has.
	if err := fault.After("allocate: slot taken", nil); err != nil {
		return nil, errors.Join(err, x.free(r))
	}
	lock, err := l.make(ctx, r, x)
	if err != nil {
		return nil, errors.Join(err, x.free(r))
	}
	return lock, nil
}

// make makes the sandbox's directory with its record elsewhere, and then puts
// it into its place: whoever is killed on the way leaves no half of one.
func (l Layout) make(ctx context.Context, r *Record, x *index) (lock *Lock, err error) {
	if r.ID, err = l.unusedID(); err != nil {
		return nil, err
	}
	dir, err := scratch.New(l.Tmp(), "sandbox")
	if err != nil {
		return nil, err
	}
	defer dir.Close()
	draft := Layout{Dir: dir.Path, Run: l.Run}
	if err := os.MkdirAll(draft.Sandbox(r.ID), 0o700); err != nil {
		return nil, fmt.Errorf("make sandbox directory: %w", err)
	}
	if lock, err = AcquireLock(ctx, draft.SandboxLock(r.ID)); err != nil {
		return nil, err
	}
	if err = fault.After("allocate: name given", x.giveName(r.Name, r.ID)); err == nil {
		err = fault.After("allocate: recorded", draft.Save(r))
	}
	if err == nil {
		err = os.Rename(draft.Sandbox(r.ID), l.Sandbox(r.ID))
	}
	if err != nil {
		lock.Release()
		return nil, err
	}
	return lock, nil
}

// unusedID returns an id that no sandbox has. The caller holds the lock of
// allocation, so that none will have it soon.
func (l Layout) unusedID() (string, error) {
	for range 10 {
		if id := newID(); l.gone(id) {
			return id, nil
		}
	}
	return "", fmt.Errorf("find an id for a sandbox: none that is free in %s", l.Sandboxes())
}

// checkName fails if a sandbox other than id has the name.
func (x *index) checkName(name, id string) error {
	other, err := x.named(name)
	if err == nil && other != "" && other != id {
		err = nameTaken(name, other)
	}
	return err
}

func nameTaken(name, id string) error {
	return api.Errorf(api.ErrVMNameTaken, "the name %s is taken by %s", name, id).WithFlag("--name").
		WithHint("vmsan rename %s NEWNAME, or vmsan rm -f %s", name, name)
}

// WithName calls save while no other sandbox can take name, which must be
// free or r's own.
func (l Layout) WithName(ctx context.Context, id, name string, save func() error) error {
	all, err := AcquireLock(ctx, l.Lock())
	if err != nil {
		return err
	}
	defer all.Release()
	x, err := l.openIndex()
	if err != nil {
		return err
	}
	if err := x.checkName(name, id); err != nil {
		return err
	}
	if err := fault.After("rename: name given", x.giveName(name, id)); err != nil {
		return err
	}
	return save()
}

// gravePrefix begins the names of scratch directories that removed sandboxes
// are put into.
const gravePrefix = "removed"

// Delete removes all files of the sandbox id in one step, so that no half of
// it is ever seen: its directory is renamed away first.
func (l Layout) Delete(id string) error {
	if !ValidID(id) {
		return notFound(id)
	}
	record, err := l.Load(id)
	if err != nil && !api.HasCode(err, api.ErrVMRecord) && !api.HasCode(err, api.ErrVMNotFound) {
		return err
	}
	grave, err := scratch.New(l.Tmp(), gravePrefix)
	if err != nil {
		return fmt.Errorf("delete sandbox %s: %w", id, err)
	}
	defer grave.Close()
	err = os.Rename(l.Sandbox(id), grave.Join(id))
	if err != nil && !l.gone(id) {
		return fmt.Errorf("delete sandbox %s: %w", id, err)
	}
	if err := fault.After("delete: moved away", os.RemoveAll(l.SandboxRun(id))); err != nil {
		return fmt.Errorf("delete sockets of %s: %w", id, err)
	}
	// While the grave is open its slot is not taken for one that was forgotten.
	if err := fault.After("delete: slot freed", l.free(record)); err != nil {
		return err
	}
	if err := grave.Close(); err != nil {
		return fmt.Errorf("delete files of %s: %w", id, err)
	}
	return nil
}

// free gives back the number and the name of a sandbox that is gone. Those of
// one whose record could not be read (nil) are found free later.
func (l Layout) free(r *Record) error {
	if r == nil {
		return nil
	}
	all, err := AcquireLock(context.Background(), l.Lock())
	if err != nil {
		return err
	}
	defer all.Release()
	x, err := l.openIndex()
	if err != nil {
		return err
	}
	return x.free(r)
}

// gone tells whether the sandbox id has no directory: what could not be moved
// away may also lack a place to be moved to.
func (l Layout) gone(id string) bool {
	_, err := os.Lstat(l.Sandbox(id))
	return os.IsNotExist(err)
}
