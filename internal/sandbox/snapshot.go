package sandbox

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"path/filepath"
	"slices"
	"time"

	"github.com/vmsan/vmsan/api"
	"github.com/vmsan/vmsan/internal/disk"
	"github.com/vmsan/vmsan/internal/fault"
	"github.com/vmsan/vmsan/internal/hooks"
	"github.com/vmsan/vmsan/internal/kernel"
	"github.com/vmsan/vmsan/internal/monitor/control"
	"github.com/vmsan/vmsan/internal/policy"
	"github.com/vmsan/vmsan/internal/snapshot"
	"github.com/vmsan/vmsan/internal/store"
	"github.com/vmsan/vmsan/internal/vmm/firecracker"
)

// snapshots are the user's.
func (s *Service) snapshots() snapshot.Store {
	return snapshot.Store{Dir: s.layout.Snapshots(), Tmp: s.layout.Tmp()}
}

// guestOptions are what a sandbox keeps of its source besides what the
// machine is made of.
type guestOptions struct {
	Network string `json:"network"`
	// MemoryLeftMiB is what its balloon has left; see store.Spec.
	MemoryLeftMiB int               `json:"memory_left_mib,omitempty"`
	Init          string            `json:"init,omitempty"`
	Env           map[string]string `json:"env,omitempty"`
	Workdir       string            `json:"workdir,omitempty"`
	// What the memory runs already, and a later boot is to run again.
	Main       []string `json:"main,omitempty"`
	Restart    string   `json:"restart,omitempty"`
	StopSignal int      `json:"stop_signal,omitempty"`
	User       string   `json:"user,omitempty"`
	Resolvers  []string `json:"resolvers,omitempty"`
}

// manifest describes the sandbox r as it is saved.
func (s *Service) manifest(ctx context.Context, r *store.Record) (m snapshot.Manifest, err error) {
	m = snapshot.Manifest{
		SourceID: r.ID, SourceName: r.Name, Image: r.Spec.Image, ImageName: r.Spec.ImageName,
		VCPUs: r.Spec.VCPUs, MemoryMiB: r.Spec.MemoryMiB, DiskBytes: r.Spec.DiskBytes,
	}
	if m.Host, err = s.here(ctx, r.Spec); err != nil {
		return m, err
	}
	if m.Policy, err = json.Marshal(r.Spec.Policy); err != nil {
		return m, err
	}
	m.Guest, err = json.Marshal(guestOptions{
		Network: r.Spec.Network, MemoryLeftMiB: r.Spec.MemoryLeftMiB, Init: r.Spec.Init, Env: r.Spec.Env, Workdir: r.Spec.Workdir, User: r.Spec.User,
		Main: r.Spec.Main, Restart: r.Spec.Restart, StopSignal: r.Spec.StopSignal,
	})
	return m, err
}

// CreateSnapshot saves the sandbox that ref names under a name, which may be
// empty. It goes on meanwhile but for a pause, which is returned, unless stop
// is given.
func (s *Service) CreateSnapshot(ctx context.Context, ref, name string, stop bool) (m snapshot.Manifest, pause time.Duration, err error) {
	if name != "" && !snapshot.ValidName(name) {
		return m, 0, api.Errorf(api.ErrValidationName, "Invalid --name: %.80q. Must be 1 to 63 letters, digits, dots, "+
			"dashes and underscores, beginning with a letter or digit, and not an id.", name).WithFlag("--name")
	}
	r, err := s.Get(ctx, ref)
	if err != nil {
		return m, 0, err
	}
	if r.Status != api.StatusRunning && (r.Status != api.StatusPaused || r.Reclaimed()) {
		return m, 0, notRunning(r)
	}
	if err := checkSavable(r, "snapshot"); err != nil {
		return m, 0, err
	}
	all := s.snapshots()
	if name != "" {
		if err := all.CheckName(name); err != nil {
			return m, 0, err
		}
	}
	m, pause, err = s.saveAs(ctx, all, r, name, stop)
	if err == nil {
		s.emitOf(r, api.EventSnapshotCreate, func(e *api.Event) { e.Snapshot = m.ID })
	}
	switch {
	case stop && err == nil:
		if err = s.stop(ctx, r, 0); api.HasCode(err, api.ErrHook) && r.Status == api.StatusRunning {
			err = errors.Join(err, s.goOn(ctx, r))
		}
	case stop && r.Status == api.StatusRunning:
		err = errors.Join(err, s.goOn(ctx, r))
	}
	if err != nil {
		return m, pause, fmt.Errorf("snapshot %s: %w", r.ID, err)
	}
	event, shown := hooks.Of(api.HookSnapshotAfterCreate, r), m.Show()
	event.Snapshot = &shown
	s.hooked(r).After(ctx, event)
	return m, pause, nil
}

// saveAs saves the sandbox r into a store of snapshots. With stand it stays
// paused.
func (s *Service) saveAs(ctx context.Context, all snapshot.Store, r *store.Record, name string, stand bool) (
	m snapshot.Manifest, pause time.Duration, err error) {
	if m, err = s.manifest(ctx, r); err != nil {
		return m, 0, err
	}
	m.Name = name
	draft, err := all.New()
	if err = fault.After("snapshot: begun", err); err != nil {
		return m, 0, err
	}
	defer draft.Close()
	answer, err := s.saveInto(ctx, r, draft, control.SaveRequest{Stand: stand})
	if err != nil {
		return m, 0, err
	}
	for _, name := range []string{snapshot.MemoryFile, snapshot.StateFile, snapshot.OverlayFile} {
		draft.Done(ctx, name)
	}
	m, err = draft.Publish(ctx, m)
	if err = fault.After("snapshot: published", err); err != nil {
		return m, answer.Paused, err
	}
	s.trust(all, m.ID)
	return m, answer.Paused, nil
}

// Snapshots lists all snapshots, the oldest first. One that cannot be read is
// logged.
func (s *Service) Snapshots() ([]snapshot.Manifest, error) {
	return s.listAll(s.snapshots(), "snapshot")
}

func (s *Service) listAll(all snapshot.Store, what string) ([]snapshot.Manifest, error) {
	manifests, broken, err := all.List()
	for id, err := range broken {
		s.log.Warn(err.Error(), "hint", fmt.Sprintf("vmsan %s rm %s", what, id))
	}
	return manifests, err
}

// Snapshot returns the manifest of the snapshot that ref names. With verify
// its files' digests are compared.
func (s *Service) Snapshot(ctx context.Context, ref string, verify bool) (snapshot.Manifest, error) {
	all := s.snapshots()
	m, err := all.Get(ref)
	if err == nil && verify {
		err = all.Verify(ctx, m.ID)
	}
	return m, err
}

// DeleteSnapshot removes the snapshot that ref names. Sandboxes that were made
// of it do not need it any more.
func (s *Service) DeleteSnapshot(ctx context.Context, ref string) (id string, err error) {
	id, err = s.deleteFrom(ctx, s.snapshots(), ref)
	if err == nil {
		s.emit(api.Event{Type: api.EventSnapshotRemove, Snapshot: id})
	}
	return id, err
}

func (s *Service) deleteFrom(ctx context.Context, all snapshot.Store, ref string) (id string, err error) {
	id = ref
	if !snapshot.ValidID(ref) {
		m, err := all.Get(ref)
		if err != nil {
			return ref, err
		}
		id = m.ID
	} else if _, err := all.Get(ref); api.HasCode(err, api.ErrSnapshotNotFound) {
		return id, err
	}
	return id, all.Delete(ctx, id, func() error { return s.checkUnused(id) })
}

// checkUnused fails if a sandbox is about to start from the snapshot id.
func (s *Service) checkUnused(id string) error {
	records, _, err := s.layout.List()
	if err != nil {
		return err
	}
	i := slices.IndexFunc(records, func(r *store.Record) bool { return r.Saved != nil && r.Saved.Snapshot == id })
	if i < 0 {
		return nil
	}
	return api.Errorf(api.ErrSnapshotInUse, "VM %s is about to start from snapshot %s", records[i].ID, id).WithVM(records[i].ID)
}

// ExportSnapshot writes the snapshot that ref names to w, as one archive.
func (s *Service) ExportSnapshot(ctx context.Context, ref string, w io.Writer) (id string, err error) {
	all := s.snapshots()
	m, err := all.Get(ref)
	if err != nil {
		return ref, err
	}
	if err := all.Export(ctx, m.ID, w); err != nil {
		return m.ID, err
	}
	s.emit(api.Event{Type: api.EventSnapshotExport, Snapshot: m.ID})
	return m.ID, nil
}

// ImportSnapshot makes a snapshot of an archive.
func (s *Service) ImportSnapshot(ctx context.Context, r io.Reader, name string) (snapshot.Manifest, error) {
	all := s.snapshots()
	m, err := all.Import(ctx, r, name)
	if err == nil {
		s.trust(all, m.ID)
		s.emit(api.Event{Type: api.EventSnapshotImport, Snapshot: m.ID})
	}
	return m, err
}

// usable returns the snapshot that ref names if it can be restored here.
func (s *Service) usable(ctx context.Context, ref string) (m snapshot.Manifest, g guestOptions, err error) {
	all := s.snapshots()
	if m, err = all.Get(ref); err != nil {
		return m, g, err
	}
	if g, err = optionsOf(m); err != nil {
		return m, g, api.Errorf(api.ErrSnapshotCorrupt, "snapshot %s: read its options: %w", m.ID, err)
	}
	here, err := s.here(ctx, s.specOf(m.Host))
	if err != nil {
		return m, g, err
	}
	if err := m.Fits(here); err != nil {
		return m, g, err
	}
	// Its memory has a kernel, but the next boot of the sandbox takes this.
	if _, err := kernel.Load(s.layout, m.Host.Kernel); err != nil {
		return m, g, api.Errorf(api.ErrSnapshotUnfit, "snapshot %s: its kernel is not on this host: %w", m.ID, err).
			WithHint("make the snapshot again on this host")
	}
	if _, err := s.images().Check(m.Image); err != nil {
		return m, g, fmt.Errorf("snapshot %s: its image %s: %w", m.ID, m.ImageName, err)
	}
	return m, g, verify(ctx, all, m.ID)
}

// optionsOf reads and checks what is kept in a manifest, which may come from
// anywhere.
func optionsOf(m snapshot.Manifest) (g guestOptions, err error) {
	if err := json.Unmarshal(m.Guest, &g); err != nil {
		return g, err
	}
	for _, check := range []func() error{
		func() error { return checkChoice("network", g.Network, networkNAT, networkNone) },
		func() error { return checkChoice("init", g.Init, "", initPath) },
		func() error { return CheckEnv(g.Env) },
		func() error { return CheckWorkdir(g.Workdir) },
		func() error { return CheckUser(g.User) },
		func() error { return checkInteger("memory left", g.MemoryLeftMiB, 0, m.MemoryMiB, " MiB") },
	} {
		if err := check(); err != nil {
			return g, err
		}
	}
	return g, nil
}

// policyOf is that of the sandbox that was saved.
func policyOf(m snapshot.Manifest) (p policy.Policy, err error) {
	if err = json.Unmarshal(m.Policy, &p); err == nil {
		if p.Mode == "" {
			err = errors.New("it has no mode")
		} else {
			p, err = newPolicy(p.Mode, p.AllowedDomains, p.AllowedCIDRs, p.DeniedCIDRs)
		}
	}
	if err != nil {
		return p, api.Errorf(api.ErrSnapshotCorrupt, "snapshot %s: read its policy: %w", m.ID, err)
	}
	return p, nil
}

// savedIn names the files of a snapshot.
func savedIn(all snapshot.Store, id string) *store.Saved {
	dir := filepath.Join(all.Dir, id)
	return &store.Saved{
		Memory: filepath.Join(dir, snapshot.MemoryFile), State: filepath.Join(dir, snapshot.StateFile), Snapshot: id,
	}
}

// overlayOf is the copy of a disk that goes with a saved machine.
func overlayOf(saved *store.Saved) string {
	return filepath.Join(filepath.Dir(saved.Memory), snapshot.OverlayFile)
}

// planSnapshot makes the record of a sandbox that goes on from a snapshot. What
// was saved cannot be changed by options; the network's rules can.
func (s *Service) planSnapshot(ctx context.Context, o CreateOptions, pool store.Spec) (*store.Record, error) {
	m, g, err := s.usable(ctx, o.Snapshot)
	if err != nil {
		return nil, err
	}
	spec := pool
	spec.Image, spec.ImageName, spec.Kernel = m.Image, m.ImageName, m.Host.Kernel
	spec.Driver, spec.Accelerator, spec.Release = m.Host.Driver, m.Host.Accelerator, s.releaseOf(m.Host)
	if spec.Filter, err = o.readFilter(ctx, spec.Driver, firecracker.Driver{Dir: releases(s.layout).Path(spec.Release)}); err != nil {
		return nil, err
	}
	spec.VCPUs, spec.MemoryMiB, spec.DiskBytes = m.VCPUs, m.MemoryMiB, m.DiskBytes
	spec.Init, spec.Network, spec.MemoryLeftMiB = g.Init, g.Network, g.MemoryLeftMiB
	spec.Main, spec.Restart, spec.StopSignal = g.Main, g.Restart, g.StopSignal
	if spec.Env == nil {
		spec.Env = g.Env
	}
	if spec.Workdir == "" {
		spec.Workdir = g.Workdir
	}
	if spec.User == "" {
		spec.User = g.User
	}
	if o.Policy.Mode == "" && g.Network == networkNAT {
		if spec.Policy, err = policyOf(m); err != nil {
			return nil, err
		}
	}
	if g.Network == networkNone && o.needsNetwork() {
		return nil, api.Errorf(api.ErrValidationFlags, "snapshot %s is of a sandbox without a network", m.ID).WithFlag("--snapshot")
	}
	if g.Network == networkNone {
		spec.Policy = policy.Policy{}
	}
	r := o.record(spec)
	r.Saved = savedIn(s.snapshots(), m.ID)
	return r, nil
}

// Restore puts the sandbox that ref names back to a snapshot: memory, commands
// and disk. Its id, name, network and ports stay.
func (s *Service) Restore(ctx context.Context, ref, snap string) (*store.Record, error) {
	r, err := s.Get(ctx, ref)
	if err != nil {
		return nil, err
	}
	m, g, err := s.usable(ctx, snap)
	if err != nil {
		return nil, err
	}
	if g.Network != r.Spec.Network {
		return nil, api.Errorf(api.ErrSnapshotUnfit, "snapshot %s is of a sandbox with the network %s, and VM %s has %s", m.ID, g.Network,
			r.ID, r.Spec.Network).WithVM(r.ID)
	}
	if err := checkSavable(r, "restore"); err != nil {
		return nil, err
	}
	// Memory that it gave back goes too: it does not fit the disk that comes.
	if _, err := s.Stop(ctx, r.ID, 0); err != nil {
		return nil, fmt.Errorf("restore %s: %w", r.ID, err)
	}
	lock, r, err := s.own(ctx, r.ID)
	if err != nil {
		return nil, err
	}
	defer lock.Release()
	if err := fault.After("restore: stopped", nil); err != nil {
		return nil, fmt.Errorf("restore %s: %w", r.ID, err)
	}
	r.Saved = savedIn(s.snapshots(), m.ID)
	r.Spec.Image, r.Spec.ImageName, r.Spec.Kernel = m.Image, m.ImageName, m.Host.Kernel
	r.Spec.Driver, r.Spec.Accelerator, r.Spec.Init = m.Host.Driver, m.Host.Accelerator, g.Init
	r.Spec.Release, r.Spec.MemoryLeftMiB = s.releaseOf(m.Host), g.MemoryLeftMiB
	r.Spec.VCPUs, r.Spec.MemoryMiB, r.Spec.DiskBytes = m.VCPUs, m.MemoryMiB, m.DiskBytes
	r.Grown = false
	err = fault.After("restore: disk replaced", s.replaceOverlay(ctx, r))
	if err == nil {
		// Whatever the start is refused for, the next one goes on from there.
		err = s.layout.Save(r)
	}
	if err != nil {
		return nil, fmt.Errorf("restore %s: %w", r.ID, err)
	}
	s.emitOf(r, api.EventVMRestore, func(e *api.Event) { e.Snapshot = m.ID })
	return s.startOwned(ctx, r, lock)
}

// replaceOverlay puts a copy of the saved disk in the place of the one there
// is, which is kept until the copy is whole.
func (s *Service) replaceOverlay(ctx context.Context, r *store.Record) error {
	next := s.layout.Overlay(r.ID) + ".next"
	if err := removeFile(next); err != nil {
		return err
	}
	_, err := disk.Clone(ctx, next, overlayOf(r.Saved))
	if err = fault.After("restore: disk cloned", err); err != nil {
		return err
	}
	return renameFile(next, s.layout.Overlay(r.ID))
}
