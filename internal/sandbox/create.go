package sandbox

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/vmsan/vmsan/api"
	"github.com/vmsan/vmsan/internal/disk"
	"github.com/vmsan/vmsan/internal/setup"
	"github.com/vmsan/vmsan/internal/store"
)

// Create makes a sandbox and starts it; it returns when the guest answers.
// If the sandbox does not come up nothing of it is left.
func (s *Service) Create(ctx context.Context, o CreateOptions) (*store.Record, error) {
	if err := o.complete(); err != nil {
		return nil, err
	}
	record, err := s.plan(o)
	if err != nil {
		return nil, err
	}
	if err := checkNetwork(record.Spec); err != nil {
		return nil, err
	}
	began := time.Now()
	lock, err := s.layout.Allocate(ctx, record, slotUsable(record.Spec))
	if err != nil {
		return nil, fmt.Errorf("create sandbox: %w", err)
	}
	defer lock.Release()
	record.Trace = append(record.Trace, stage("allocate", began, ""))
	err = s.prepare(ctx, record)
	if err == nil {
		err = s.launch(ctx, record, lock, o.First)
	}
	if err != nil {
		return nil, errors.Join(fmt.Errorf("create sandbox: %w", err), s.discard(record.ID))
	}
	return s.layout.Load(record.ID)
}

// discard removes a sandbox that did not come up, and what a monitor that was
// ended on the way has left of it. The caller holds the lock.
func (s *Service) discard(id string) error {
	record, err := s.layout.Load(id)
	if err != nil {
		return err
	}
	return errors.Join(s.takeBack(record), s.layout.Delete(id))
}

// plan makes the record of what o asks for on this host.
func (s *Service) plan(o CreateOptions) (*store.Record, error) {
	ready, err := setup.Load(s.layout)
	if err != nil {
		return nil, err
	}
	driver := o.Driver
	if driver == "auto" {
		driver = "qemu"
	}
	accelerator, err := choose(ready, o)
	if err != nil {
		return nil, err
	}
	ref := o.Image
	if ref == "" {
		ref = ready.ImageName
	}
	if ref == "" {
		return nil, api.Errorf(api.ErrImageNotFound, "setup was told not to make the default image, and no other was named").
			WithFlag("--image").WithHint("vmsan setup")
	}
	image, err := s.images().Resolve(ref)
	if err != nil {
		return nil, err
	}
	if _, err := s.images().Check(image.Digest); err != nil {
		return nil, err
	}
	record := &store.Record{
		Name: o.Name, Project: o.Project, Labels: o.Labels,
		Status: api.StatusCreating, CreatedAt: time.Now().UTC(), Ephemeral: o.Ephemeral,
		Spec: store.Spec{
			Image: image.Digest, ImageName: ref, Kernel: ready.Kernel,
			Driver: driver, Accelerator: accelerator,
			VCPUs: o.VCPUs, MemoryMiB: o.MemoryMiB, DiskBytes: o.DiskBytes,
			Env: o.Env, Workdir: o.Workdir, User: o.User,
			Network: o.Network, Policy: o.Policy, Publications: o.Publications, Resolvers: o.Resolvers, Bandwidth: o.Bandwidth,
			RequireKVM: o.RequireKVM, NoSeccomp: o.NoSeccomp, NoCgroup: o.NoCgroup,
			BootTimeout: o.BootTimeout,
		},
	}
	if record.Spec.Networked() {
		record.Spec.Pool = ready.Pool
	}
	if o.Init {
		record.Spec.Init = initPath
	}
	return record, nil
}

// choose picks the accelerator: the one asked for, if the boot that setup
// made says that it works.
func choose(ready setup.Record, o CreateOptions) (string, error) {
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

// prepare makes the sandbox's own disk.
func (s *Service) prepare(ctx context.Context, r *store.Record) error {
	began := time.Now()
	blank, err := disk.EnsureBlank(ctx, s.layout, r.Spec.DiskBytes)
	if err != nil {
		return err
	}
	method, err := disk.Clone(s.layout.Overlay(r.ID), blank)
	if err != nil {
		return err
	}
	r.Trace = append(r.Trace, stage("disk", began, string(method)))
	return s.layout.Save(r)
}

func stage(name string, began time.Time, detail string) api.Stage {
	return api.Stage{Name: name, Milliseconds: float64(time.Since(began).Microseconds()) / 1000, Detail: detail}
}
