package sandbox

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"time"

	"github.com/vmsan/vmsan/api"
	"github.com/vmsan/vmsan/internal/disk"
	"github.com/vmsan/vmsan/internal/fault"
	"github.com/vmsan/vmsan/internal/hooks"
	"github.com/vmsan/vmsan/internal/setup"
	"github.com/vmsan/vmsan/internal/store"
	"github.com/vmsan/vmsan/internal/vmm/firecracker"
)

// Create makes a sandbox and starts it; it returns when the guest answers.
// If the sandbox does not come up nothing of it is left.
func (s *Service) Create(ctx context.Context, o CreateOptions) (*store.Record, error) {
	if err := o.complete(); err != nil {
		return nil, err
	}
	record, err := s.plan(ctx, o)
	if err != nil {
		return nil, err
	}
	if err := checkNetwork(record.Spec); err != nil {
		return nil, err
	}
	if err := s.lookForVolumes(record.Spec.Volumes); err != nil {
		return nil, err
	}
	template := record.Saved
	created, err := s.bring(ctx, record, o.First)
	if template != nil && o.Snapshot == "" && ctx.Err() == nil && errors.As(err, new(*launchError)) && api.AsError(err).Code != api.ErrInternal {
		s.log.Warn("a template cannot be used; booting instead", "error", err)
		s.dropTemplate(ctx, template.Snapshot)
		again := o.record(record.Spec)
		created, err = s.bring(ctx, again, o.First)
	}
	if err != nil {
		return nil, fmt.Errorf("create sandbox: %w", err)
	}
	if !o.Cold && !o.NoSeccomp && template == nil {
		s.wantTemplate(record.Spec)
	}
	return created, nil
}

// bring makes a sandbox of a record, and starts it. first is the caller's. One
// that is ephemeral is held. If it fails nothing is left.
func (s *Service) bring(ctx context.Context, record *store.Record, first *os.File) (*store.Record, error) {
	if err := s.admit(record.Spec); err != nil {
		return nil, err
	}
	began := time.Now()
	lock, err := s.layout.Allocate(ctx, record, slotUsable(record.Spec))
	if err != nil {
		return nil, err
	}
	defer lock.Release()
	err = fault.After("create: allocated", nil)
	s.emitOf(record, api.EventVMCreate, func(e *api.Event) { e.Image, e.ImageDigest = record.Spec.ImageName, record.Spec.Image })
	record.Trace = append(record.Trace, stage("allocate", began, ""))
	warn := s.watchFirewall(record.Spec)
	hooked, launched := s.hooked(record), false
	if err == nil {
		err = hooked.Before(ctx, hooks.Of(api.HookBeforeCreate, record))
	}
	// From here on the record keeps the image, which nothing did before.
	if err == nil {
		_, err = s.images().CheckSettled(ctx, record.Spec.Image)
	}
	if err == nil {
		err = fault.After("create: volumes made", s.ensureVolumes(ctx, record.Spec.Volumes))
	}
	if err == nil {
		err = fault.After("create: disk made", s.prepare(ctx, record))
	}
	if err == nil {
		launched = true
		if err = s.launch(ctx, record, lock, first); err != nil {
			err = &launchError{err}
		}
	}
	if err != nil {
		err = errors.Join(err, s.discard(record.ID))
		hooked.After(ctx, hooks.Failed("create", record, launched, err)...)
		return nil, err
	}
	if record.Ephemeral && !record.Internal {
		// The monitor ends it when this connection breaks, whatever becomes of
		// us; it does not wait for hooks to be done.
		go func() {
			if err := s.Hold(context.WithoutCancel(ctx), record); err != nil {
				s.log.Warn("hold an ephemeral sandbox", "vm", record.ID, "error", err)
			}
		}()
	}
	fault.Here("create: launched")
	warn()
	created, err := s.layout.Load(record.ID)
	if err != nil {
		return nil, err
	}
	lock.Release() // hooks may do things to it
	hooked.After(ctx, hooks.CameUp(api.HookAfterCreate, api.StatusCreating, created)...)
	return created, nil
}

// launchError is of a machine that did not come up, and not of what comes
// before that.
type launchError struct{ error }

func (e *launchError) Unwrap() error { return e.error }

// discard removes a sandbox that did not come up, and what a monitor that was
// ended on the way has left of it. The caller holds the lock.
func (s *Service) discard(id string) error {
	record, err := s.layout.Load(id)
	if err != nil {
		return err
	}
	return errors.Join(s.takeBack(record), s.forget(record))
}

// plan makes the record of what o asks for on this host.
func (s *Service) plan(ctx context.Context, o CreateOptions) (*store.Record, error) {
	ready, err := setup.Load(s.layout)
	if err != nil {
		return nil, err
	}
	spec := store.Spec{
		Env: o.Env, Workdir: o.Workdir, User: o.User, Volumes: o.Volumes, DiskRate: o.DiskRate, DiskIOPS: o.DiskIOPS,
		Network: o.Network, Policy: o.Policy, Publications: o.Publications, Resolvers: o.Resolvers, Bandwidth: o.Bandwidth,
		Pool: ready.Pool, RequireKVM: o.RequireKVM, Overcommit: o.Overcommit, NoSeccomp: o.NoSeccomp, NoCgroup: o.NoCgroup, NoPIDs: o.NoPIDs,
		BootTimeout: o.BootTimeout, Timeout: o.Timeout, IdleTimeout: o.IdleTimeout, OnTimeout: o.OnTimeout,
	}
	if o.Snapshot != "" {
		return s.planSnapshot(ctx, o, spec)
	}
	if spec.ImageName = o.Image; o.Image == "" {
		spec.ImageName = ready.ImageName
	}
	image, err := s.Image(o.Image)
	if err != nil {
		return nil, err
	}
	if _, err := s.images().Check(image.Digest); err != nil {
		return nil, err
	}
	if err := o.honour(image.Config); err != nil {
		return nil, err
	}
	spec.Env, spec.Workdir, spec.User = o.Env, o.Workdir, o.User
	if o.Entrypoint {
		if err := setMain(&spec, image.Config); err != nil {
			return nil, err
		}
	}
	spec.Restart = o.Restart
	if spec.Driver, spec.Accelerator, err = choose(ready, o); err != nil {
		return nil, err
	}
	if spec.Filter, err = o.readFilter(ctx, spec.Driver, firecracker.Driver{Dir: releases(s.layout).Path(spec.Release)}); err != nil {
		return nil, err
	}
	spec.Release = s.release(spec.Driver)
	spec.Image, spec.Kernel = image.Digest, ready.Kernel
	spec.VCPUs, spec.MemoryMiB, spec.DiskBytes = o.VCPUs, o.MemoryMiB, o.DiskBytes
	if o.Init {
		spec.Init = initPath
	}
	record := o.record(spec)
	// Restoring needs a filter of system calls to hand the memory over.
	o.Cold = o.Cold || o.NoSeccomp
	if !o.Cold {
		record.Saved = s.template(ctx, spec)
	}
	return record, nil
}

// record is that of a sandbox which is about to be created.
func (o CreateOptions) record(spec store.Spec) *store.Record {
	if !spec.Networked() {
		spec.Pool = netip.Prefix{}
	}
	return &store.Record{
		Name: o.Name, Project: o.Project, Labels: o.Labels, Spec: spec,
		Status: api.StatusCreating, CreatedAt: time.Now().UTC(), Ephemeral: o.Ephemeral, Internal: o.internal,
	}
}

// choose picks the driver and the accelerator: those asked for, if the boot
// that setup made says that they work, and Firecracker where that works.
func choose(ready setup.Record, o CreateOptions) (driver, accelerator string, err error) {
	// Its jailer takes root to start.
	works := ready.Firecracker != nil && ready.Firecracker.Works && os.Geteuid() == 0
	switch {
	case o.Driver == "firecracker" && !works:
		return "", "", noFirecracker(ready)
	case o.Driver == "firecracker", o.Driver == "auto" && o.Accelerator != "tcg" && works:
		return "firecracker", "kvm", nil
	}
	accelerator, err = chooseAccelerator(ready, o)
	return "qemu", accelerator, err
}

func noFirecracker(ready setup.Record) error {
	switch v := ready.Firecracker; {
	case os.Geteuid() != 0:
		return api.Errorf(api.ErrPermission, "Firecracker's jailer needs root").WithFlag("--driver").
			WithHint("sudo vmsan, or --driver qemu")
	case v == nil:
		return api.Errorf(api.ErrSetupMissingBinary, "Firecracker was not there when this host was set up").WithFlag("--driver").
			WithHint("vmsan setup --firecracker, or vmsan setup with firecracker and jailer in the search path")
	default:
		return api.Errorf(api.ErrSetupKVMUnavailable, "Firecracker does not work on this host: %s", v.Reason).WithFlag("--driver").
			WithHint("vmsan setup, once it does; or --driver qemu")
	}
}

// chooseAccelerator picks QEMU's.
func chooseAccelerator(ready setup.Record, o CreateOptions) (string, error) {
	wanted := o.Accelerator
	if o.RequireKVM {
		wanted = "kvm"
	}
	if wanted == "auto" {
		if ready.Accel == "" {
			return "", api.Errorf(api.ErrSetupNoAccelerator, "no accelerator could boot a guest on this host").
				WithHint("vmsan setup, after installing QEMU: apt-get install qemu-system-x86")
		}
		return ready.Accel, nil
	}
	for _, v := range ready.Verdicts {
		if v.Accel == wanted && v.Works {
			return wanted, nil
		}
		if v.Accel == wanted {
			return "", unusable(wanted, v.Reason)
		}
	}
	return "", unusable(wanted, "setup has not tried it")
}

func unusable(accelerator, reason string) error {
	err := api.Errorf(api.ErrSetupNoAccelerator, "%s does not work on this host: %s", accelerator, reason)
	if accelerator == "kvm" {
		err.Code = api.ErrSetupKVMUnavailable
		return err.WithFlag("--require-kvm").WithHint("vmsan setup, once KVM works; or use software emulation: --accel tcg")
	}
	return err.WithFlag("--accel").WithHint("vmsan setup")
}

// prepare makes the sandbox's own disk: empty, or as it was saved.
func (s *Service) prepare(ctx context.Context, r *store.Record) error {
	began := time.Now()
	var source string
	var err error
	if r.Saved != nil {
		source = overlayOf(r.Saved)
	} else if source, err = disk.EnsureBlank(ctx, s.layout, r.Spec.DiskBytes); err != nil {
		return err
	}
	method, err := disk.Clone(ctx, s.layout.Overlay(r.ID), source)
	if err != nil {
		return err
	}
	r.Trace = append(r.Trace, stage("disk", began, string(method)))
	return s.layout.Save(r)
}

func stage(name string, began time.Time, detail string) api.Stage {
	return api.Stage{Name: name, Milliseconds: float64(time.Since(began).Microseconds()) / 1000, Detail: detail}
}
