package sandbox

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"os/exec"
	"time"

	"github.com/vmsan/vmsan/api"
	"github.com/vmsan/vmsan/internal/agent/binary"
	"github.com/vmsan/vmsan/internal/guest"
	"github.com/vmsan/vmsan/internal/kernel"
	"github.com/vmsan/vmsan/internal/network"
	"github.com/vmsan/vmsan/internal/scratch"
	"github.com/vmsan/vmsan/internal/setup"
	"github.com/vmsan/vmsan/internal/vmm"
	"github.com/vmsan/vmsan/internal/vmm/firecracker"
	"github.com/vmsan/vmsan/internal/vmm/firecracker/release"
	"github.com/vmsan/vmsan/internal/vmm/qemu"
)

// SetupOptions say what to set up.
type SetupOptions struct {
	Kernel    string         // a kernel's file
	KernelDeb string         // a Debian package with a kernel
	SkipImage bool           // leave out the default image
	Release   release.Source // of Firecracker; zero: the one there is
	ReleaseTo string         // file that gets the release, to be used elsewhere
	Pool      netip.Prefix   // where sandboxes get addresses from; zero: as it is
	Progress  func(setup.Event)
}

// Setup prepares the state directory; see setup.Run.
func (s *Service) Setup(ctx context.Context, o SetupOptions) (setup.Record, error) {
	agent, err := binary.Agent()
	if err != nil {
		return setup.Record{}, err
	}
	driver := qemu.Driver{}
	version, err := driver.Version(ctx)
	if err != nil {
		return setup.Record{}, api.Errorf(api.ErrSetupMissingBinary, "QEMU cannot be used: %w", err).
			WithHint("apt-get install qemu-system-x86")
	}
	features := driver.Features()
	var accels []string
	for _, a := range features.Accelerators {
		accels = append(accels, string(a))
	}
	record, err := setup.Run(ctx, setup.Options{
		Layout: s.layout, Agent: agent, Kernel: o.Kernel, KernelDeb: o.KernelDeb, SkipImage: o.SkipImage,
		Accels: accels, VMM: features.Name + " " + version, Progress: o.Progress,
		Probe:       func(ctx context.Context, accel string, k kernel.Kernel) error { return s.probe(ctx, driver, accel, k) },
		Release:     s.installRelease(o.Release),
		Firecracker: func(release string) *setup.Second { return s.firecrackerProbe(ctx, release) },
		KeepKernel:  s.usesKernel,
		Pool:        o.Pool, CheckPool: network.CheckPool,
	})
	if err == nil {
		err = s.pruneReleases(record.FirecrackerRelease)
	}
	if err == nil && o.ReleaseTo != "" {
		err = s.exportRelease(record, o.ReleaseTo)
	}
	if err == nil && !o.SkipImage {
		err = s.setupTemplate(ctx, o.Progress)
	}
	if err == nil {
		s.emit(api.Event{Type: api.EventSetup, Image: record.ImageName})
	}
	return record, err
}

// firecrackerProbe is nil where there is no Firecracker to be tried.
func (s *Service) firecrackerProbe(ctx context.Context, release string) *setup.Second {
	driver := firecracker.Driver{Dir: releases(s.layout).Path(release)}
	if _, err := exec.LookPath(driver.Program()); errors.Is(err, exec.ErrNotFound) || os.Geteuid() != 0 {
		return nil
	}
	version, err := driver.Version(ctx)
	return &setup.Second{
		VMM: "firecracker " + version,
		Probe: func(ctx context.Context, k kernel.Kernel) error {
			if err != nil {
				return err
			}
			return s.probe(ctx, driver, "kvm", k)
		},
	}
}

// stepTemplate is the last step of setup.
const stepTemplate setup.Step = "template"

// setupTemplate makes the template of a sandbox with the defaults.
func (s *Service) setupTemplate(ctx context.Context, progress func(setup.Event)) error {
	if progress == nil {
		progress = func(setup.Event) {}
	}
	progress(setup.Event{Step: stepTemplate, State: setup.Running, Detail: "booting and saving a sandbox with the defaults"})
	began := time.Now()
	_, made, err := s.CreateTemplate(ctx, CreateOptions{})
	switch {
	case err != nil:
		progress(setup.Event{Step: stepTemplate, State: setup.Failed, Detail: err.Error()})
		return fmt.Errorf("make the template of a default sandbox: %w", err)
	case made:
		progress(setup.Event{Step: stepTemplate, State: setup.Done, Detail: fmt.Sprintf("made in %.1f s", time.Since(began).Seconds())})
	default:
		progress(setup.Event{Step: stepTemplate, State: setup.Kept, Detail: "it was there already"})
	}
	return nil
}

// CheckSetup tells what Setup would have to do, without doing it.
func (s *Service) CheckSetup() ([]setup.Item, error) {
	agent, err := binary.Agent()
	if err != nil {
		return nil, err
	}
	return setup.Check(s.layout, agent)
}

// Ready fails with api.ErrSetupRequired if Setup has to be run before a
// sandbox can be created. It is cheap.
func (s *Service) Ready() error {
	record, err := setup.Load(s.layout)
	if err != nil {
		return err
	}
	if record.Accel == "" {
		return notReady("it was interrupted")
	}
	k, err := kernel.Load(s.layout, record.Kernel)
	if err != nil {
		return notReady(fmt.Sprintf("the kernel is missing from %s", s.layout.Dir))
	}
	if k.AgentDigest != binary.Digest() {
		return notReady("the guest agent is another version's")
	}
	return nil
}

func notReady(why string) error {
	return api.Errorf(api.ErrSetupRequired, "vmsan has to be set up again: %s", why).WithHint("vmsan setup")
}

// usesKernel tells whether a sandbox or a snapshot was made with the kernel
// digest.
func (s *Service) usesKernel(digest string) bool {
	snapshots, brokenSnapshots, err := s.snapshots().List()
	if err != nil || len(brokenSnapshots) > 0 {
		return true
	}
	for _, m := range snapshots {
		if m.Host.Kernel == digest {
			return true
		}
	}
	records, broken, err := s.layout.List()
	if err != nil || len(broken) > 0 {
		return true
	}
	for _, r := range records {
		if r.Spec.Kernel == digest {
			return true
		}
	}
	return false
}

// probeTime is how long a guest without disks may take to come up. It takes
// two seconds; a busy host may need many.
const probeTime = 45 * time.Second

// probeMemory is enough for kernel and agent, in MiB.
const probeMemory = 128

// probeUID is the host's user of the probe's VMM: below all sandboxes'.
const probeUID = 1_599_999_999

// probe boots the kernel with nothing but the agent, under an accelerator:
// only that shows whether it works.
func (s *Service) probe(ctx context.Context, driver vmm.Driver, accel string, k kernel.Kernel) error {
	ctx, cancel := context.WithTimeoutCause(ctx, probeTime, fmt.Errorf("%w within %s", setup.ErrHung, probeTime))
	defer cancel()
	// In a scratch directory, which goes even if this process is killed.
	dir, err := scratch.New(s.layout.Tmp(), "probe")
	if err != nil {
		return err
	}
	defer dir.Close()
	shut, release, err := helperJail(dir.Path, "jail-", probeUID)
	if err != nil {
		return err
	}
	defer release()
	spec := vmm.Spec{
		ID: "probe", VCPUs: 1, MemoryMiB: probeMemory, Accelerator: vmm.Accelerator(accel),
		Kernel: kernel.VmlinuxPath(s.layout, k.Digest), Initramfs: kernel.InitramfsPath(s.layout, k.Digest),
		Cmdline: []string{"vmsan.probe"}, Jail: shut,
	}
	return bootOnce(ctx, driver, spec)
}

// bootOnce starts a machine, waits for its agent and ends it.
func bootOnce(ctx context.Context, driver vmm.Driver, spec vmm.Spec) error {
	vm, err := driver.Start(ctx, spec)
	if err != nil {
		return err
	}
	defer vm.Stop(ctx)
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	go func() {
		<-vm.Done()
		cancel(fmt.Errorf("the guest did not come up: %s", vm.Exit().Reason))
	}()
	host, err := vm.Link().DialGuest(ctx)
	if err != nil {
		return err
	}
	defer host.Close()
	return guest.New(host.Dial).Health(ctx)
}
