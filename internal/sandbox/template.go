package sandbox

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"syscall"
	"time"

	"github.com/vmsan/vmsan/api"
	"github.com/vmsan/vmsan/internal/jail"
	"github.com/vmsan/vmsan/internal/snapshot"
	"github.com/vmsan/vmsan/internal/store"
)

// A template is a snapshot of a guest that has just booted and that nobody has
// used: sandboxes that are alike start from it instead of booting. It is made
// beside the first of them, by a process of its own.

// templates are vmsan's own snapshots.
func (s *Service) templates() snapshot.Store {
	return snapshot.Store{Dir: s.layout.Templates(), Tmp: s.layout.Tmp()}
}

// templateKey is all that a template depends on.
type templateKey struct {
	Image     string        `json:"image"`
	VCPUs     int           `json:"vcpus"`
	MemoryMiB int           `json:"memory_mib"`
	DiskBytes int64         `json:"disk_bytes"`
	Init      string        `json:"init"`
	HasNIC    bool          `json:"has_nic"`
	Host      snapshot.Host `json:"host"`
}

// templateOf is the key of the template for spec on this host, and its name.
func (s *Service) templateOf(ctx context.Context, spec store.Spec) (key templateKey, name string, err error) {
	key = templateKey{
		Image: spec.Image, VCPUs: spec.VCPUs, MemoryMiB: spec.MemoryMiB, DiskBytes: spec.DiskBytes,
		Init: spec.Init, HasNIC: spec.HasNIC(),
	}
	if key.Host, err = s.here(ctx, spec); err != nil {
		return key, "", err
	}
	named := key
	named.Host.TSCkHz = 0 // measured, and so compared with some slack
	raw, err := json.Marshal(named)
	if err != nil {
		return key, "", err
	}
	sum := sha256.Sum256(raw)
	return key, "t-" + hex.EncodeToString(sum[:12]), nil
}

// template returns the saved machine that a sandbox like spec can start from,
// or nil.
func (s *Service) template(ctx context.Context, spec store.Spec) *store.Saved {
	key, name, err := s.templateOf(ctx, spec)
	if err != nil {
		s.log.Warn("look for a template", "error", err)
		return nil
	}
	all := s.templates()
	m, err := all.Get(name)
	if api.HasCode(err, api.ErrSnapshotNotFound) {
		return nil
	}
	if err == nil {
		err = m.Fits(key.Host)
	}
	if err == nil {
		err = verify(ctx, all, m.ID)
	}
	if err != nil {
		s.log.Warn("a template cannot be used", "template", name, "error", err)
		s.dropTemplate(ctx, m.ID)
		return nil
	}
	now := time.Now()
	saved := savedIn(all, m.ID)
	// For prune: when it was used last.
	if err := os.Chtimes(filepath.Dir(saved.Memory), now, now); err != nil {
		s.log.Warn("note the use of a template", "error", err)
	}
	return saved
}

// dropTemplate removes a template that is of no use. It can be made again.
func (s *Service) dropTemplate(ctx context.Context, id string) {
	if id == "" {
		return
	}
	if err := s.templates().Delete(ctx, id, nil); err != nil {
		s.log.Warn("remove template", "template", id, "error", err)
		return
	}
	s.emit(api.Event{Type: api.EventTemplateRemove, Template: id})
}

// TemplateCommand is the hidden command of the vmsan binary that makes a
// template.
const TemplateCommand = "make-template"

// templatesVar turns the making of templates beside sandboxes off.
const templatesVar = "VMSAN_TEMPLATES"

// wantTemplate has a template made for sandboxes like spec, by a process that
// outlives this one. What goes wrong there goes into the log of templates.
func (s *Service) wantTemplate(spec store.Spec) {
	if os.Getenv(templatesVar) == "off" {
		return
	}
	if err := s.startMaker(spec); err != nil {
		s.log.Warn("make a template", "error", err)
	}
}

func (s *Service) startMaker(spec store.Spec) error {
	program, err := s.program()
	if err != nil {
		return err
	}
	wanted, err := json.Marshal(templateSpec(spec))
	if err != nil {
		return err
	}
	if err := jail.KeepFiles(); err != nil {
		return err
	}
	log, err := os.OpenFile(s.layout.TemplateLog(), os.O_WRONLY|os.O_CREATE|os.O_TRUNC, 0o600)
	if err != nil {
		return err
	}
	defer log.Close()
	cmd := exec.Command(program, TemplateCommand, s.layout.Dir)
	cmd.Dir, cmd.Stdout, cmd.Stderr = "/", log, log
	cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: true}
	read, write, err := os.Pipe()
	if err != nil {
		return err
	}
	defer read.Close()
	defer write.Close()
	cmd.Stdin = read
	// It fits into the pipe, so that nobody has to stay and write it.
	if _, err := write.Write(append(wanted, '\n')); err != nil {
		return err
	}
	if err := cmd.Start(); err != nil {
		return err
	}
	go cmd.Wait() // as in await
	return nil
}

// templateSpec is spec without all that is the user's.
func templateSpec(spec store.Spec) store.Spec {
	network := networkNone
	if spec.HasNIC() {
		network = networkDetached
	}
	return store.Spec{
		Image: spec.Image, ImageName: spec.ImageName, Kernel: spec.Kernel, Driver: spec.Driver, Accelerator: spec.Accelerator, Release: spec.Release,
		VCPUs: spec.VCPUs, MemoryMiB: spec.MemoryMiB, DiskBytes: spec.DiskBytes, Init: spec.Init,
		Network: network, BootTimeout: spec.BootTimeout, NoCgroup: spec.NoCgroup,
	}
}

// MakeTemplate makes the template for sandboxes like spec, unless it is there
// or somebody else is making one.
func (s *Service) MakeTemplate(ctx context.Context, spec store.Spec) error {
	spec = templateSpec(spec)
	_, name, err := s.templateOf(ctx, spec)
	if err != nil {
		return err
	}
	lock, held, err := store.TryLock(s.layout.TemplateLock(name))
	if err != nil || held {
		return err
	}
	defer lock.Release()
	_, _, err = s.ensureTemplate(ctx, spec, name)
	return err
}

// CreateTemplate makes the template that sandboxes of o start from, and tells
// whether it was not there yet. It waits for somebody else who is making it.
func (s *Service) CreateTemplate(ctx context.Context, o CreateOptions) (m snapshot.Manifest, made bool, err error) {
	if err := o.complete(); err != nil {
		return m, false, err
	}
	o.Cold = true // it is looked for below, where nobody else makes it
	record, err := s.plan(ctx, o)
	if err != nil {
		return m, false, err
	}
	spec := templateSpec(record.Spec)
	spec.Overcommit = o.Overcommit // which the one beside a sandbox leaves to its host
	_, name, err := s.templateOf(ctx, spec)
	if err != nil {
		return m, false, err
	}
	lock, err := s.awaitTemplateLock(ctx, name)
	if err != nil {
		return m, false, fmt.Errorf("wait for whoever makes the template: %w", err)
	}
	defer lock.Release()
	return s.ensureTemplate(ctx, spec, name)
}

// awaitTemplateLock waits as long as ctx lets it: whoever holds the lock boots
// a machine.
func (s *Service) awaitTemplateLock(ctx context.Context, name string) (*store.Lock, error) {
	for {
		lock, held, err := store.TryLock(s.layout.TemplateLock(name))
		if err != nil || !held {
			return lock, err
		}
		select {
		case <-ctx.Done():
			return nil, context.Cause(ctx)
		case <-time.After(100 * time.Millisecond):
		}
	}
}

// ensureTemplate makes the template for spec, unless it is there. The caller
// holds its lock.
func (s *Service) ensureTemplate(ctx context.Context, spec store.Spec, name string) (m snapshot.Manifest, made bool, err error) {
	if saved := s.template(ctx, spec); saved != nil {
		m, err = s.templates().Get(saved.Snapshot)
		return m, false, err
	}
	o := CreateOptions{Ephemeral: true, internal: true}
	r, err := s.bring(ctx, o.record(spec), nil)
	if err != nil {
		return m, false, fmt.Errorf("boot: %w", err)
	}
	holds, release := context.WithCancel(context.WithoutCancel(ctx))
	holding := make(chan error, 1)
	go func() { holding <- s.Hold(holds, r) }()
	m, _, err = s.saveAs(ctx, s.templates(), r, name, false)
	_, removeErr := s.Remove(context.WithoutCancel(ctx), r.ID, true)
	release()
	<-holding
	if err != nil {
		err = fmt.Errorf("save: %w", err)
	} else {
		s.emit(api.Event{Type: api.EventTemplateCreate, Template: m.ID, Image: spec.ImageName, ImageDigest: spec.Image})
	}
	err = errors.Join(err, removeErr)
	return m, err == nil, err
}

// ReadTemplateSpec reads what startMaker has written.
func ReadTemplateSpec(stdin *os.File) (spec store.Spec, err error) {
	return spec, json.NewDecoder(stdin).Decode(&spec)
}

// Templates lists all templates, the oldest first.
func (s *Service) Templates() ([]snapshot.Manifest, error) {
	return s.listAll(s.templates(), "template")
}

// DeleteTemplate removes the template that ref names.
func (s *Service) DeleteTemplate(ctx context.Context, ref string) (id string, err error) {
	id, err = s.deleteFrom(ctx, s.templates(), ref)
	if api.HasCode(err, api.ErrSnapshotNotFound) {
		return "", api.Errorf(api.ErrSnapshotNotFound, "no template %.80q", ref).WithHint("vmsan template list")
	}
	if err == nil {
		s.emit(api.Event{Type: api.EventTemplateRemove, Template: id})
	}
	return id, err
}

// The defaults of PruneTemplates.
const (
	DefaultTemplateAge  = 30 * 24 * time.Hour
	DefaultTemplateSize = 20 << 30
)

// PruneTemplates removes the templates that nobody has used for longer than
// age, and then the least recently used until the rest takes no more than size
// bytes on the disk. Those that this host cannot use any more go too. It
// returns what it removed.
func (s *Service) PruneTemplates(ctx context.Context, age time.Duration, size int64) (removed []snapshot.Manifest, err error) {
	manifests, err := s.Templates()
	if err != nil {
		return nil, err
	}
	used := map[string]time.Time{}
	for _, m := range manifests {
		info, err := os.Stat(filepath.Dir(savedIn(s.templates(), m.ID).Memory))
		if err != nil {
			continue // somebody else removes it
		}
		used[m.ID] = info.ModTime()
	}
	slices.SortFunc(manifests, func(a, b snapshot.Manifest) int { return used[b.ID].Compare(used[a.ID]) })
	var kept int64
	for _, m := range manifests {
		kept += storedBytes(m)
		stale := time.Since(used[m.ID]) > age || kept > size || s.outdated(ctx, m)
		if !stale {
			continue
		}
		if err := s.templates().Delete(ctx, m.ID, func() error { return s.checkUnused(m.ID) }); err != nil {
			return removed, err
		}
		s.emit(api.Event{Type: api.EventTemplateRemove, Template: m.ID})
		kept -= storedBytes(m)
		removed = append(removed, m)
	}
	return removed, nil
}

// storedBytes is what a snapshot takes on the disk, about.
func storedBytes(m snapshot.Manifest) (n int64) {
	for _, f := range m.Files {
		n += f.Stored
	}
	return n
}

// outdated tells whether m was made by or for something that is not here any
// more.
func (s *Service) outdated(ctx context.Context, m snapshot.Manifest) bool {
	here, err := s.here(ctx, s.specOf(m.Host))
	if err != nil {
		return false
	}
	_, imageErr := s.images().Check(m.Image)
	return m.Fits(here) != nil || m.Host.Agent != here.Agent || imageErr != nil
}
