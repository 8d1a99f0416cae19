package sandbox

import (
	"context"
	"fmt"
	"net/netip"
	"os"
	"path/filepath"
	"time"

	"github.com/vmsan/vmsan/api"
	"github.com/vmsan/vmsan/internal/agent/binary"
	"github.com/vmsan/vmsan/internal/guest"
	"github.com/vmsan/vmsan/internal/jail"
	"github.com/vmsan/vmsan/internal/kernel"
	"github.com/vmsan/vmsan/internal/network"
	"github.com/vmsan/vmsan/internal/setup"
	"github.com/vmsan/vmsan/internal/vmm"
	"github.com/vmsan/vmsan/internal/vmm/qemu"
)

// SetupOptions say what to set up.
type SetupOptions struct {
	Kernel    string       // a kernel's file
	KernelDeb string       // a Debian package with a kernel
	SkipImage bool         // leave out the default image
	Pool      netip.Prefix // where sandboxes get addresses from; zero: as it is
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
	return setup.Run(ctx, setup.Options{
		Layout: s.layout, Agent: agent, Kernel: o.Kernel, KernelDeb: o.KernelDeb, SkipImage: o.SkipImage,
		Accels: accels, VMM: features.Name + " " + version, Progress: o.Progress,
		Probe:      func(ctx context.Context, accel string, k kernel.Kernel) error { return s.probe(ctx, driver, accel, k) },
		KeepKernel: s.usesKernel,
		Pool:       o.Pool, CheckPool: network.CheckPool,
	})
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

// usesKernel tells whether a sandbox was made with the kernel digest.
func (s *Service) usesKernel(digest string) bool {
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
	ctx, cancel := context.WithTimeoutCause(ctx, probeTime, fmt.Errorf("the guest did not answer within %s", probeTime))
	defer cancel()
	dir, err := os.MkdirTemp(s.layout.Run, "probe-")
	if err != nil {
		return err
	}
	defer os.RemoveAll(dir)
	spec := vmm.Spec{
		ID: "probe", VCPUs: 1, MemoryMiB: probeMemory, Accelerator: vmm.Accelerator(accel),
		Kernel: kernel.VmlinuxPath(s.layout, k.Digest), Initramfs: kernel.InitramfsPath(s.layout, k.Digest),
		Cmdline: []string{"vmsan.probe"},
	}
	if os.Geteuid() == 0 {
		root := filepath.Join(dir, "root")
		if err := os.Mkdir(root, 0o700); err != nil {
			return err
		}
		spec.Jail = vmm.Jail{User: &jail.User{UID: probeUID, GID: probeUID}, Root: root}
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
