package sandbox

import (
	"context"
	"errors"
	"io"
	"path/filepath"
	"strings"
	"time"

	"github.com/vmsan/vmsan/api"
	"github.com/vmsan/vmsan/internal/filetree"
	"github.com/vmsan/vmsan/internal/guest"
	"github.com/vmsan/vmsan/internal/ignore"
)

// SyncOptions say what is made the same, and how.
type SyncOptions struct {
	VM string
	// Source is a directory of the host, Destination one of the sandbox, which
	// is made if it is not there.
	Source, Destination string
	// User owns what is made. Default: the sandbox's own user.
	User string
	// Delete removes from the destination what is not in the source.
	Delete bool
	// Checksum compares what is in files, instead of when they were changed.
	Checksum bool
	// Ignore says what is left out at both ends.
	Ignore ignore.Options
	// DryRun only reports what would be done.
	DryRun bool
	// Watch goes on until ctx ends.
	Watch bool
	// Report is called after each round that had something to do, and after
	// the first in any case.
	Report func(api.Synced)
	// Progress is optional.
	Progress filetree.Progress
}

// Sync makes a directory of a sandbox what one of the host is. What is the same
// by kind, size, mode and time is not sent again.
func (s *Service) Sync(ctx context.Context, o SyncOptions) error {
	for _, p := range []string{o.Source, o.Destination} {
		if p == "" || len(p) > maxPath || strings.ContainsRune(p, 0) {
			return api.Errorf(api.ErrValidationPath, "Invalid path: %.80q.", p)
		}
	}
	if err := ignore.Check(o.Ignore.Exclude); err != nil {
		return api.Errorf(api.ErrUsage, "Invalid --exclude: %w.", err).WithFlag("--exclude").WithHint("--exclude '*.log', or another line as in .gitignore")
	}
	source, err := findLocal(o.Source)
	switch {
	case err != nil:
		return err
	case source.Kind == guest.NoFile:
		return api.Errorf(api.ErrFileNotFound, "there is no %s", o.Source)
	case source.Kind != guest.Directory:
		return api.Errorf(api.ErrFile, "%s is not a directory", o.Source).WithHint("vmsan cp %s %s:%s", o.Source, o.VM, o.Destination)
	}
	// Kept to where it leads now: a link may lead elsewhere while we watch.
	if o.Source, err = filepath.Abs(source.Path); err != nil {
		return err
	}
	to, err := s.end(ctx, Location{VM: o.VM, Path: o.Destination})
	if err != nil {
		return err
	}
	defer to.close()
	y := &syncing{SyncOptions: o, to: to}
	err = y.run(ctx)
	if o.Watch && errors.Is(err, context.Canceled) {
		return nil // it is how one ends
	}
	return s.Explain(ctx, to.record, err)
}

// syncing is one sync under way.
type syncing struct {
	SyncOptions
	to *end
	// path is the destination, and made true once it is there.
	path string
	made bool
	// there is what the destination has: listed once, and from then on what we
	// have made of it.
	there   map[string]filetree.Entry
	watcher *treeWatcher // nil unless Watch
}

func (y *syncing) run(ctx context.Context) (err error) {
	found, err := y.to.find(ctx)
	if err != nil {
		return err
	}
	if found.Kind == guest.PlainFile || found.Kind == guest.SpecialFile {
		return api.Errorf(api.ErrFile, "%s is not a directory", y.to.Location)
	}
	y.made, y.path = found.Kind == guest.Directory, y.to.path
	if y.made {
		y.path = found.Path
		if y.there, err = y.to.list(ctx, y.path, filetree.ListOptions{Name: ".", Digests: y.Checksum}); err != nil {
			return err
		}
		if err := checkParents(y.there); err != nil {
			return api.Errorf(api.ErrGuest, "%w", err)
		}
	} else {
		y.there = map[string]filetree.Entry{}
	}
	if y.Watch {
		if y.watcher, err = newTreeWatcher(); err != nil {
			return err
		}
		defer y.watcher.close()
	}
	for first := true; ; first = false {
		if err := y.round(ctx, first); err != nil || !y.Watch {
			return err
		}
		if err := y.watcher.wait(ctx); err != nil {
			return err
		}
	}
}

// tick is how coarse the times of files may be: one that was changed twice in
// it looks as if it had been once.
const tick = 20 * time.Millisecond

// round makes the destination what the source is now.
func (y *syncing) round(ctx context.Context, first bool) error {
	began := time.Now()
	source, excluded, err := y.scan(ctx)
	if err != nil {
		return err
	}
	p, err := y.plan(ctx, source, excluded)
	if err != nil {
		return err
	}
	switch {
	case y.DryRun:
		y.Report(p.changes(source))
		return nil
	case p.empty() && y.made:
		if first {
			y.Report(api.Synced{})
		}
		return nil
	}
	done, err := y.apply(ctx, p)
	if err != nil {
		return err
	}
	y.made = true
	for _, name := range p.removed {
		delete(y.there, name)
	}
	for name := range p.wanted {
		e := source[name]
		if e.Modified.After(began.Add(-tick)) {
			// It may change once more without a trace: the next round sends it
			// again.
			e.Modified, e.Digest = time.Time{}, nil
		}
		y.there[name] = e
	}
	y.Report(done)
	return nil
}

// scan lists the source, without what is left out of it. excluded tells of any
// name whether that is.
func (y *syncing) scan(ctx context.Context) (source map[string]filetree.Entry, excluded func(string, bool) bool, err error) {
	rules, err := ignore.New(y.Source, y.Ignore)
	if err != nil {
		return nil, nil, fileError(err)
	}
	o := filetree.ListOptions{Name: ".", Digests: y.Checksum, Skip: rules.Ignored}
	if y.watcher != nil {
		o.Enter = y.watcher.enter
	}
	var entries filetree.Entries
	err = filetree.List(ctx, y.Source, o, entries.Add)
	rules.Seal()
	if err == nil {
		err = rules.Err()
	}
	return entries.ByName, rules.Ignored, fileError(err)
}

// apply sends what is wanted, and has removed what is not.
func (y *syncing) apply(ctx context.Context, p plan) (api.Synced, error) {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	r, w := io.Pipe()
	packed := make(chan filetree.Totals, 1)
	go func() {
		totals, err := filetree.Pack(ctx, w, y.Source, filetree.PackOptions{
			Name: ".", Wanted: p.wanted, Removed: p.removed, Progress: y.Progress,
		})
		packed <- totals
		w.CloseWithError(fileError(err))
	}()
	made, err := y.to.client.WriteTree(ctx, y.path, r, guest.WriteTreeOptions{Name: ".", User: y.User, Removals: true, Make: !y.made})
	if err == nil {
		err = drain(r)
	}
	r.Close()
	sent := <-packed
	// What the guest says it removed is worth no more than it says.
	return api.Synced{
		Files: sent.Files, Directories: sent.Directories, Bytes: sent.Bytes, Skipped: sent.Skipped,
		Removed: min(max(made.Removed, 0), int64(len(p.removed))),
	}, err
}
