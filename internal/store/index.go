package store

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"math/bits"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"github.com/vmsan/vmsan/api"
	"github.com/vmsan/vmsan/internal/scratch"
)

// index knows which slots and names are taken without a look at every record:
// a bit for each slot in the file slots, and for each name a symbolic link in
// names to the sandbox's id. It follows from the records, which are what
// counts; it is made from them once per boot of the host, so that a loss of
// power cannot leave one that is older than they are.
//
// All of it is done under Layout.Lock.
type index struct {
	layout Layout
	dir    string
	slots  [Slots / 8]byte
}

// openIndex reads the index, and makes it if there is none.
func (l Layout) openIndex() (*index, error) {
	x := &index{layout: l, dir: l.Index()}
	raw, err := os.ReadFile(x.slotsFile())
	if errors.Is(err, fs.ErrNotExist) || err == nil && len(raw) != len(x.slots) {
		return x, x.rebuild()
	}
	if err != nil {
		return nil, fmt.Errorf("read index of slots: %w", err)
	}
	copy(x.slots[:], raw)
	return x, nil
}

func (x *index) slotsFile() string        { return filepath.Join(x.dir, "slots") }
func (x *index) nameLink(n string) string { return filepath.Join(x.dir, "names", n) }

// rebuild makes the index from the records. The slots' file comes last: it is
// the sign that the index is whole.
func (x *index) rebuild() error {
	records, _, err := x.layout.List()
	if err != nil {
		return err
	}
	if err := os.RemoveAll(x.dir); err != nil {
		return fmt.Errorf("clear index: %w", err)
	}
	if err := os.MkdirAll(x.nameLink(""), 0o700); err != nil {
		return fmt.Errorf("make index: %w", err)
	}
	clear(x.slots[:])
	for _, r := range records {
		x.set(r.Slot, true)
		if err := x.giveName(r.Name, r.ID); err != nil {
			return err
		}
	}
	return x.save()
}

func (x *index) set(slot int, taken bool) {
	if bit := byte(1) << (slot % 8); taken {
		x.slots[slot/8] |= bit
	} else {
		x.slots[slot/8] &^= bit
	}
}

// save writes the slots, in place: a process that is killed on the way leaves
// some of the new bytes and some of the old, and has changed one of them.
func (x *index) save() error {
	file, err := os.OpenFile(x.slotsFile(), os.O_WRONLY|os.O_CREATE, 0o600)
	if err == nil {
		_, err = file.WriteAt(x.slots[:], 0)
		err = errors.Join(err, file.Close())
	}
	if err != nil {
		return fmt.Errorf("write index of slots: %w", err)
	}
	return nil
}

// takeSlot takes the lowest free slot for which usable does not object. What
// sandboxes left that were killed while they were removed is found when all
// slots seem to be taken.
func (x *index) takeSlot(usable func(slot int) (bool, error)) (int, error) {
	for range 2 {
		slot, err := x.freeSlot(usable)
		if err != nil {
			return 0, err
		}
		if slot >= 0 {
			x.set(slot, true)
			return slot, x.save()
		}
		if err := x.rebuild(); err != nil {
			return 0, err
		}
	}
	return 0, api.Errorf(api.ErrVMSlotsExhausted, "all %d sandbox numbers are taken", Slots).
		WithHint("vmsan rm VM...")
}

// Forgotten counts the slots that are noted as taken and that no sandbox has:
// whoever removed theirs was killed before the end. With mend they are given
// back. While a sandbox is being removed, or has a record that cannot be read,
// it is not certain whose they are, and none count; nor while there are sockets
// of a sandbox without files, which may live and use its number.
func (l Layout) Forgotten(ctx context.Context, mend bool) (n int, err error) {
	x := &index{layout: l, dir: l.Index()}
	if _, err := os.Stat(x.slotsFile()); errors.Is(err, fs.ErrNotExist) {
		return 0, nil
	}
	all, err := AcquireLock(ctx, l.Lock())
	if err != nil {
		return 0, err
	}
	defer all.Release()
	if x, err = l.openIndex(); err != nil {
		return 0, err
	}
	if n, err = x.forgotten(); err != nil || n == 0 || !mend {
		return n, err
	}
	return n, x.rebuild()
}

func (x *index) forgotten() (n int, err error) {
	records, broken, err := x.layout.List()
	if err != nil || len(broken) > 0 {
		return 0, err
	}
	// After the records: one that is missing there has its grave by now.
	for _, uncertain := range []func() (bool, error){x.layout.removing, x.layout.haunted} {
		if yes, err := uncertain(); err != nil || yes {
			return 0, err
		}
	}
	have := &index{}
	for _, r := range records {
		have.set(r.Slot, true)
	}
	for i := range x.slots {
		n += bits.OnesCount8(x.slots[i] &^ have.slots[i])
	}
	return n, nil
}

// removing tells whether anybody is removing a sandbox.
func (l Layout) removing() (bool, error) {
	dead, err := scratch.Dead(l.Tmp())
	if err != nil {
		return false, err
	}
	all, err := scratch.List(l.Tmp())
	return slices.ContainsFunc(all, func(name string) bool {
		return strings.HasPrefix(name, gravePrefix+"-") && !slices.Contains(dead, name)
	}), err
}

// haunted tells whether a sandbox without files has a run directory.
func (l Layout) haunted() (bool, error) {
	entries, err := os.ReadDir(l.Run)
	return slices.ContainsFunc(entries, func(e fs.DirEntry) bool {
		return ValidID(e.Name()) && l.gone(e.Name())
	}), err
}

// freeSlot returns -1 if there is none.
func (x *index) freeSlot(usable func(slot int) (bool, error)) (int, error) {
	for at, taken := range x.slots {
		for free := ^taken; free != 0; free &= free - 1 {
			slot := 8*at + bits.TrailingZeros8(free)
			ok, err := usable(slot)
			if err != nil {
				return 0, fmt.Errorf("take number %d: %w", slot, err)
			}
			if ok {
				return slot, nil
			}
		}
	}
	return -1, nil
}

// free gives back what a sandbox had that is gone.
func (x *index) free(r *Record) error {
	x.set(r.Slot, false)
	if x.holder(r.Name) == r.ID {
		if err := os.Remove(x.nameLink(r.Name)); err != nil {
			return fmt.Errorf("give back name %s: %w", r.Name, err)
		}
	}
	return x.save()
}

// holder is the id that a name was given to, or "".
func (x *index) holder(name string) string {
	if name == "" {
		return ""
	}
	id, err := os.Readlink(x.nameLink(name))
	if err != nil {
		return ""
	}
	return id
}

// named returns the id of the sandbox that has the name now, or "".
func (x *index) named(name string) (id string, err error) {
	id = x.holder(name)
	if id == "" {
		return "", nil
	}
	r, err := x.layout.Load(id)
	switch {
	case api.HasCode(err, api.ErrVMNotFound):
		return "", nil
	case api.HasCode(err, api.ErrVMRecord):
		return id, nil // what cannot be read keeps its name
	case err != nil:
		return "", err
	case r.Name != name:
		return "", nil
	}
	return id, nil
}

// noted returns the id of the sandbox that has the name, if the index knows
// it. It needs no lock: what it finds it checks.
func (l Layout) noted(name string) (id string) {
	x := &index{layout: l, dir: l.Index()}
	if id, err := x.named(name); err == nil {
		return id
	}
	return ""
}

// giveName notes that the sandbox id has the name, or is about to have it.
func (x *index) giveName(name, id string) error {
	if name == "" {
		return nil
	}
	if err := os.Remove(x.nameLink(name)); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("give name %s: %w", name, err)
	}
	if err := os.Symlink(id, x.nameLink(name)); err != nil {
		return fmt.Errorf("give name %s: %w", name, err)
	}
	return nil
}
