package sandbox

import (
	"context"
	"fmt"
	"io/fs"
	"maps"
	"path"
	"slices"

	"github.com/vmsan/vmsan/api"
	"github.com/vmsan/vmsan/internal/filetree"
)

// plan is what makes a destination what its source is.
type plan struct {
	wanted map[string]filetree.Part
	// removed has what is in a directory before it.
	removed []string
}

func (p plan) empty() bool { return len(p.wanted)+len(p.removed) == 0 }

// changes are what the plan would do.
func (p plan) changes(source map[string]filetree.Entry) api.Synced {
	s := api.Synced{Removed: int64(len(p.removed))}
	for _, name := range p.removed {
		s.Changes = append(s.Changes, api.SyncChange{Action: api.SyncRemove, Path: name})
	}
	for _, name := range slices.Sorted(maps.Keys(p.wanted)) {
		e := source[name]
		if e.Mode.IsDir() {
			s.Directories++
			name += "/"
		} else {
			s.Files++
			s.Bytes += e.Size
		}
		s.Changes = append(s.Changes, api.SyncChange{Action: api.SyncSend, Path: name})
	}
	return s
}

// plan compares source with what is there. A directory in which something
// changes is wanted as well, for that changes its time.
func (y *syncing) plan(ctx context.Context, source map[string]filetree.Entry, excluded func(string, bool) bool) (plan, error) {
	p := plan{wanted: map[string]filetree.Part{}}
	want := func(name string) {
		p.wanted[name] = filetree.Part{}
		if parent := path.Dir(name); parent != "." {
			p.wanted[parent] = filetree.Part{}
		}
	}
	clashes := map[string]bool{} // directories that a file takes the place of
	for name, s := range source {
		t, ok := y.there[name]
		if name == "." || special(s) || filetree.IsPartial(path.Base(name)) || ok && y.same(s, t) {
			continue
		}
		want(name)
		switch {
		case !ok || s.Mode.IsDir() == t.Mode.IsDir():
		case t.Mode.IsDir():
			clashes[name] = true
			fallthrough
		default:
			p.removed = append(p.removed, name)
		}
	}
	for name, t := range y.there {
		if err := ctx.Err(); err != nil {
			return plan{}, err
		}
		if name == "." || filetree.IsPartial(path.Base(name)) {
			continue
		}
		_, stays := source[name]
		clash := inOneOf(clashes, name)
		switch {
		case clash != "" && !y.Delete:
			return plan{}, api.Errorf(api.ErrFile, "%.200q is a file, and a directory with something in it in the sandbox", clash).
				WithFlag("--delete").WithHint("vmsan sync --delete, to remove it with all in it")
		case y.Delete && !stays && !excluded(name, t.Mode.IsDir()):
			p.removed = append(p.removed, name)
		}
	}
	y.keepAround(&p, clashes)
	for _, name := range p.removed {
		if parent := path.Dir(name); source[parent].Mode.IsDir() && parent != "." {
			p.wanted[parent] = filetree.Part{}
		}
	}
	slices.Sort(p.removed)
	slices.Reverse(p.removed)
	return p, nil
}

// keepAround takes out of the plan the removal of directories that something
// stays in: what is excluded, most of all.
func (y *syncing) keepAround(p *plan, clashes map[string]bool) {
	gone := make(map[string]bool, len(p.removed))
	for _, name := range p.removed {
		gone[name] = true
	}
	for name := range y.there {
		if gone[name] {
			continue
		}
		// Whatever is around what stays has gone[d] false from then on.
		for d := path.Dir(name); gone[d] && !clashes[d]; d = path.Dir(d) {
			gone[d] = false
		}
	}
	p.removed = slices.DeleteFunc(p.removed, func(name string) bool { return !gone[name] })
}

// inOneOf is the directory that a name is in, if it is one of those.
func inOneOf(directories map[string]bool, name string) string {
	if len(directories) == 0 {
		return ""
	}
	for d := path.Dir(name); d != "."; d = path.Dir(d) {
		if directories[d] {
			return d
		}
	}
	return ""
}

// checkParents fails if a listing lacks the directory of something in it: a
// guest could else make up more directories than there may be entries.
func checkParents(entries map[string]filetree.Entry) error {
	for name := range entries {
		parent := path.Dir(name)
		if e, ok := entries[parent]; parent != "." && (!ok || !e.Mode.IsDir()) {
			return fmt.Errorf("the sandbox lists %.200q, and not the directory that it is in", name)
		}
	}
	return nil
}

// special files are not copied.
func special(e filetree.Entry) bool {
	return !e.Mode.IsRegular() && !e.Mode.IsDir() && e.Mode.Type() != fs.ModeSymlink
}

// sentBits are those of a mode that are sent.
const sentBits = fs.ModePerm | fs.ModeSticky

// same tells whether what is there needs no sending.
func (y *syncing) same(s, there filetree.Entry) bool {
	switch {
	case s.Mode.Type() == fs.ModeSymlink:
		return sameLink(s, there)
	case !sameFile(s, there) || s.Mode&sentBits != there.Mode&sentBits:
		return false
	case y.Checksum && s.Mode.IsRegular():
		return s.Digest != nil && string(s.Digest) == string(there.Digest)
	}
	return s.Modified.Equal(there.Modified)
}
