package sandbox

import (
	"context"
	"fmt"
	"slices"
	"strings"

	"github.com/vmsan/vmsan/api"
	"github.com/vmsan/vmsan/internal/agent/binary"
	"github.com/vmsan/vmsan/internal/doctor"
	"github.com/vmsan/vmsan/internal/kernel"
	"github.com/vmsan/vmsan/internal/setup"
	"github.com/vmsan/vmsan/internal/vmm/firecracker"
	"github.com/vmsan/vmsan/internal/vmm/qemu"
)

// DoctorOptions say what to look at.
type DoctorOptions struct {
	Checks []string // all, if there are none
	Fix    bool     // mend what can be mended
	Probe  bool     // boot guests and ask resolvers, instead of believing
	Found  func(api.Finding)
}

// Doctor looks at the host. It needs no state directory.
func (s *Service) Doctor(ctx context.Context, o DoctorOptions) ([]api.Finding, error) {
	for _, name := range o.Checks {
		if !slices.Contains(doctor.Names(), name) {
			return nil, api.Errorf(api.ErrValidationChoice, "Invalid CHECK: %.80q. Must be one of: %s.", name,
				strings.Join(doctor.Names(), ", ")).WithHint("vmsan doctor --list")
		}
	}
	driver := qemu.Driver{}
	options := doctor.Options{
		Layout: s.layout, Agent: binary.Digest(), Checks: o.Checks, Fix: o.Fix, Found: o.Found,
		VMMs: append([]doctor.VMM{{
			Name: driver.Features().Name, Version: driver.Version, Oldest: "7.2", Install: "apt-get install qemu-system-x86",
		}}, s.installedFirecracker()...),
		Collect: s.CollectLeftovers, AskResolvers: o.Probe,
	}
	if o.Probe {
		options.Boot = s.bootAgain
	}
	return doctor.Run(ctx, options)
}

// installedFirecracker is the release that setup has, if it has one: whole, and
// of a version.
func (s *Service) installedFirecracker() []doctor.VMM {
	ready, err := setup.Load(s.layout)
	if err != nil || ready.FirecrackerRelease == "" {
		return nil // what is wrong with the record is another check's
	}
	version := func(ctx context.Context) (string, error) {
		if _, err := releases(s.layout).Check(ready.FirecrackerRelease); err != nil {
			return "", err
		}
		return firecracker.Driver{Dir: releases(s.layout).Path(ready.FirecrackerRelease)}.Version(ctx)
	}
	return []doctor.VMM{{Name: firecracker.Name, Version: version, Oldest: "1.12", Install: "vmsan setup --firecracker"}}
}

// bootAgain is the probe of setup, with the kernel that sandboxes start with.
func (s *Service) bootAgain(ctx context.Context, accel string) error {
	ready, err := setup.Load(s.layout)
	if err != nil {
		return err
	}
	k, err := kernel.Load(s.layout, ready.Kernel)
	if err != nil {
		return fmt.Errorf("boot a guest: %w", err)
	}
	return s.probe(ctx, qemu.Driver{}, accel, k)
}
