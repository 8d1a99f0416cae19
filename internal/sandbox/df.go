package sandbox

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/vmsan/vmsan/internal/usage"
)

// DiskUsage is what the state directory takes on the host's disk, in bytes.
type DiskUsage struct {
	Kinds []UsageOfKind
	// Used is what all of it takes together: what is shared counts once.
	Used int64
	// Free and Capacity are those of the file system it is on.
	Free, Capacity int64
}

// UsageOfKind is what all things of a kind take.
type UsageOfKind struct {
	Kind  string
	Items []UsageItem
}

// Sum is what they take, with what several of them share in each.
func (k UsageOfKind) Sum() (u usage.Use, reclaimable int64) {
	for _, item := range k.Items {
		u.Add(item.Use)
		if item.Reclaimable {
			reclaimable += item.Unique()
		}
	}
	return u, reclaimable
}

// UsageItem is what one thing takes.
type UsageItem struct {
	usage.Use
	ID   string // of the file or directory
	Name string // the user's, if there is one
	// Reclaimable things can be removed and nothing is lost: nobody uses
	// them, and they can be made or fetched again.
	Reclaimable bool
}

// DiskUsage measures. What is made or removed meanwhile is in it or not.
func (s *Service) DiskUsage(ctx context.Context) (d DiskUsage, err error) {
	known, err := s.lookAround()
	if err != nil {
		return d, err
	}
	var meter usage.Meter
	for _, k := range []struct {
		kind        string
		dirs        []string
		name        func(id string) string
		reclaimable func(id string) bool
	}{
		{"images", []string{s.layout.Images()}, known.imageName, known.freeImage},
		{"templates", []string{s.layout.Templates()}, nil, known.freeTemplate},
		{"snapshots", []string{s.layout.Snapshots()}, known.snapshotName, nil},
		{"sandboxes", []string{s.layout.Sandboxes()}, known.sandboxName, nil},
		{"volumes", []string{s.layout.Volumes()}, nil, nil},
		{"layers", []string{filepath.Join(s.layout.Blobs(), "sha256"), filepath.Join(s.layout.Blobs(), "partial")}, nil, always},
		{"kernels", []string{s.layout.Kernels()}, nil, nil},
		{"blanks", []string{s.layout.Blanks()}, nil, nil},
		{"releases", []string{s.layout.Releases()}, nil, nil},
		{"unfinished", []string{s.layout.Tmp()}, nil, nil},
	} {
		measured := UsageOfKind{Kind: k.kind}
		for _, dir := range k.dirs {
			items, err := measure(ctx, &meter, dir)
			if err != nil {
				return d, err
			}
			measured.Items = append(measured.Items, items...)
		}
		for i := range measured.Items {
			item := &measured.Items[i]
			if k.name != nil {
				item.Name = k.name(item.ID)
			}
			item.Reclaimable = k.reclaimable != nil && k.reclaimable(item.ID)
		}
		d.Kinds = append(d.Kinds, measured)
	}
	d.Used = meter.Total()
	var st unix.Statfs_t
	if err := unix.Statfs(s.layout.Dir, &st); err != nil {
		return d, fmt.Errorf("look at the disk of %s: %w", s.layout.Dir, err)
	}
	d.Free, d.Capacity = int64(st.Bavail)*st.Frsize, int64(st.Blocks)*st.Frsize
	return d, nil
}

func always(string) bool { return true }

// measure measures all that is in a directory, each for itself.
func measure(ctx context.Context, meter *usage.Meter, dir string) (items []UsageItem, err error) {
	entries, err := os.ReadDir(dir)
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return nil, fmt.Errorf("measure %s: %w", dir, err)
	}
	for _, e := range entries {
		use, err := meter.Tree(ctx, filepath.Join(dir, e.Name()))
		if err != nil {
			return nil, err
		}
		items = append(items, UsageItem{Use: use, ID: e.Name()})
	}
	return items, nil
}

// surroundings are what is known of who uses what.
type surroundings struct {
	names         map[string]string // of images, to digests
	sandboxes     map[string]string // names by ids
	snapshots     map[string]string // names by ids
	usedImages    map[string]bool
	usedTemplates map[string]bool
	// unsure is true if something could not be read: it may use anything.
	unsure bool
}

func (s *Service) lookAround() (k surroundings, err error) {
	k = surroundings{sandboxes: map[string]string{}, snapshots: map[string]string{}, usedImages: map[string]bool{}, usedTemplates: map[string]bool{}}
	if k.names, err = s.images().Names(); err != nil {
		return k, err
	}
	records, broken, err := s.layout.List()
	if err != nil {
		return k, err
	}
	for _, r := range records {
		k.sandboxes[r.ID], k.usedImages[r.Spec.Image] = r.Name, true
		if r.Saved != nil {
			k.usedTemplates[r.Saved.Snapshot] = true
		}
	}
	manifests, brokenSnapshots, err := s.snapshots().List()
	if err != nil {
		return k, err
	}
	for _, m := range manifests {
		k.snapshots[m.ID], k.usedImages[m.Image] = m.Name, true
	}
	if def, err := s.Image(""); err == nil {
		k.usedImages[def.Digest] = true
	}
	k.unsure = len(broken) > 0 || len(brokenSnapshots) > 0
	return k, nil
}

func (k surroundings) imageName(digest string) string {
	var names []string
	for name, of := range k.names {
		if of == digest {
			names = append(names, name)
		}
	}
	slices.Sort(names)
	return strings.Join(names, ",")
}

func (k surroundings) sandboxName(id string) string  { return k.sandboxes[id] }
func (k surroundings) snapshotName(id string) string { return k.snapshots[id] }
func (k surroundings) freeImage(digest string) bool  { return !k.unsure && !k.usedImages[digest] }
func (k surroundings) freeTemplate(id string) bool   { return !k.unsure && !k.usedTemplates[id] }
