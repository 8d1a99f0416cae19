// Package sandbox has the verbs: what can be done with sandboxes, a file
// each. The command line is one door to them.
package sandbox

import (
	"context"
	"fmt"
	"log/slog"
	"os"

	"github.com/vmsan/vmsan/api"
	"github.com/vmsan/vmsan/internal/guest"
	"github.com/vmsan/vmsan/internal/hooks"
	"github.com/vmsan/vmsan/internal/image"
	"github.com/vmsan/vmsan/internal/scratch"
	"github.com/vmsan/vmsan/internal/store"
	"github.com/vmsan/vmsan/internal/vmm"
	"github.com/vmsan/vmsan/internal/vmm/firecracker"
	"github.com/vmsan/vmsan/internal/vmm/qemu"
)

// Service does things with the sandboxes of one state directory. Its methods
// may be called from any goroutine, and from several processes at a time.
type Service struct {
	layout store.Layout
	log    *slog.Logger

	// Binary finds the vmsan program that monitors are. Default: this program.
	Binary func() (string, error)
	// Hooks are this program's own; they run before the state directory's.
	Hooks []hooks.Hook
}

// Open returns the service of the state directory that layout describes, and
// makes the directory if need be. What killed commands left half made there is
// removed.
func Open(layout store.Layout, log *slog.Logger) (*Service, error) {
	if err := layout.Init(); err != nil {
		return nil, err
	}
	if _, err := scratch.Sweep(layout.Tmp()); err != nil {
		log.Warn("clean up after commands that were killed", "error", err)
	}
	return &Service{layout: layout, log: log}, nil
}

// At returns the service of a state directory as it is, for who only looks at
// it: nothing is made or removed there, and it need not exist.
func At(layout store.Layout, log *slog.Logger) *Service { return &Service{layout: layout, log: log} }

// Driver returns the driver with that name.
func Driver(layout store.Layout, spec store.Spec) (vmm.Driver, error) {
	switch spec.Driver {
	case "qemu":
		return qemu.Driver{}, nil
	case firecracker.Name:
		return firecracker.Driver{Dir: releases(layout).Path(spec.Release)}, nil
	}
	return nil, api.Errorf(api.ErrUnsupported, "there is no driver %q", spec.Driver)
}

// hooked is what runs at what happens to r: nothing, if that is vmsan's own.
func (s *Service) hooked(r *store.Record) hooks.Set {
	if r.Internal {
		return hooks.Set{}
	}
	return s.hooks()
}

func (s *Service) hooks() hooks.Set {
	return hooks.Set{Code: s.Hooks, Dir: s.layout.Hooks(), State: s.layout.Dir, Log: s.log}
}

// program is the vmsan binary that monitors are.
func (s *Service) program() (string, error) {
	if s.Binary != nil {
		return s.Binary()
	}
	self, err := os.Executable()
	if err != nil {
		return "", fmt.Errorf("find own binary: %w", err)
	}
	return self, nil
}

// images is the store of images.
func (s *Service) images() image.Store { return image.Store{Layout: s.layout} }

// Find returns the id of the sandbox that ref names: an id, a name, or the
// beginning of an id.
func (s *Service) Find(ref string) (id string, err error) { return s.layout.Find(ref) }

// Get returns the record of the sandbox that ref names: an id, a name, or the
// beginning of an id. If its monitor died it is repaired first.
func (s *Service) Get(ctx context.Context, ref string) (*store.Record, error) {
	id, err := s.layout.Find(ref)
	if err != nil {
		return nil, err
	}
	return s.repaired(ctx, id)
}

// Guest returns a client to the guest of the running sandbox r, which the
// caller closes.
func (s *Service) Guest(r *store.Record) (*guest.Client, error) {
	if r.Status != api.StatusRunning {
		return nil, notRunning(r)
	}
	return guest.New(guest.DialSocket(s.layout.GuestSocket(r.ID))), nil
}

func notRunning(r *store.Record) error {
	if r.Status == api.StatusPaused {
		return api.Errorf(api.ErrVMNotRunning, "VM %s is paused", r.ID).WithVM(r.ID).WithHint("vmsan resume %s", r.ID)
	}
	return api.Errorf(api.ErrVMNotRunning, "VM %s is not running (current status: %s)", r.ID, r.Status).WithVM(r.ID).
		WithHint("vmsan start %s", r.ID)
}

// ConsolePath is the file of the console log of the sandbox id.
func (s *Service) ConsolePath(id string) string { return s.layout.Console(id) }

// MonitorLogPath is the file of what monitor, gate and VMM of the sandbox id
// had to say.
func (s *Service) MonitorLogPath(id string) string { return s.layout.MonitorLog(id) }
