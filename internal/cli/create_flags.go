package cli

import (
	"context"
	"strings"

	"github.com/spf13/cobra"

	"github.com/vmsan/vmsan/api"
	"github.com/vmsan/vmsan/internal/image"
	"github.com/vmsan/vmsan/internal/sandbox"
)

// createFlags are the flags that describe a new sandbox, as typed.
type createFlags struct {
	options             sandbox.CreateOptions
	vcpus, memory, disk string
	diskRate, diskIOPS  string
	bootTimeout         string
	labels, env         []string
	volumes             []string
	network             networkFlags
	rootfs              string
	trace               bool
	noSetup, noNetns    bool
	pull                string
	imageTyped          bool // by one flag or another
	// meant is the command that was maybe meant, of which the first word was
	// taken for the image.
	meant   []string
	runtime string
}

func (f *createFlags) register(a *app, cmd *cobra.Command) {
	f.registerKind(a, cmd)
	flags := cmd.Flags()
	o := &f.options
	flags.StringVar(&o.Name, "name", "", "unique `NAME`")
	flags.StringVar(&o.Project, "project", "", "`PROJECT` it belongs to, a label")
	flags.StringArrayVar(&f.labels, "label", nil, "label, `KEY=VALUE` (may be repeated)")
	flags.StringVar(&f.diskRate, "disk-rate", "", "limit each of its disks to so much in a second: a `SIZE` like 50m, or MiB; at least 1m")
	flags.StringVar(&f.diskIOPS, "disk-iops", "", "limit each of its disks to a `NUMBER` of reads and writes in a second; at least 10")
	flags.StringArrayVar(&f.volumes, "volume", nil, "disk that outlives the sandbox, `NAME:/PATH[:ro]`, made if it is not there (may be repeated)")
	flags.StringArrayVarP(&f.env, "env", "e", nil, "environment of every command, `KEY=VALUE` (may be repeated)")
	flags.StringVarP(&o.Workdir, "workdir", "w", "", "`DIRECTORY` that commands begin in (default: the user's home)")
	flags.StringVarP(&o.User, "user", "u", "", "`USER` that commands run as: a name or number, also with :GROUP (default: root)")
	flags.BoolVar(&o.RequireKVM, "require-kvm", false, "refuse to run without KVM")
	flags.BoolVar(&o.NoSeccomp, "no-seccomp", false, "leave the VMM's system call filter off")
	flags.StringVar(&o.Filter, "seccomp-filter", "", "system call filters for Firecracker in this `FILE`, in the place of its own: compiled, or JSON")
	flags.BoolVar(&o.NoPIDs, "no-pid-ns", false, "leave the VMM among the host's processes")
	flags.BoolVar(&f.noNetns, "no-netns", false, "refused: each sandbox has a network namespace")
	flags.MarkHidden("no-netns")
	f.network.register(cmd)
	flags.StringVar(&o.Snapshot, "snapshot", "", "go on from this `SNAPSHOT`: its memory, commands and disk")
	flags.BoolVar(&o.Cold, "cold", false, "boot, and neither use nor make a template")
	flags.BoolVar(&f.trace, "trace", false, "print how long each stage of the start took")
	markSandboxFlags(cmd)
	// What is an argument of the command is none of the flag's.
	cmd.RegisterFlagCompletionFunc("snapshot", func(cmd *cobra.Command, _ []string, toComplete string) ([]string, cobra.ShellCompDirective) {
		return a.completeSnapshots(cmd, nil, toComplete)
	})
	cmd.RegisterFlagCompletionFunc("volume", a.completeMount)
}

// registerKind registers what sandboxes have to have in common to start from
// the same template, and what that needs to be made.
func (f *createFlags) registerKind(a *app, cmd *cobra.Command) {
	flags := cmd.Flags()
	o := &f.options
	flags.StringVar(&o.Image, "image", "", "`IMAGE` to start (default: the one setup made)")
	flags.StringVar(&f.rootfs, "rootfs", "", "start from this `FILE`: whatever image import takes")
	flags.StringVar(&o.Image, "from-image", "", "the same as --image: an `IMAGE`")
	flags.StringVar(&f.runtime, "runtime", "", "the image of a `RUNTIME`: base, node22, node24, python3.13, or one of runtimes.json")
	flags.StringVar(&f.pull, "pull", string(sandbox.PullMissing), "`WHEN` to ask the image's registry: always, missing (when it is not here) or never")
	flags.StringVar(&f.vcpus, "vcpus", "1", "virtual CPUs: a `NUMBER` from 1 to 32")
	flags.StringVar(&f.memory, "memory", "256m", "memory: a `SIZE` like 512m or 2g, or MiB; at least 64m")
	flags.StringVar(&f.disk, "disk", "10g", "its own disk: a `SIZE` like 512m or 20g, or GiB; it takes space as it fills")
	flags.BoolVar(&o.Init, "init", false, "run the image's own init as PID 1")
	flags.StringVar(&o.Driver, "driver", "auto", "`DRIVER`: auto, firecracker or qemu")
	flags.StringVar(&o.Accelerator, "accel", "auto", "`ACCELERATOR`: auto, kvm, or tcg, which is software emulation")
	flags.StringVar(&o.Network, "network", "", "`NETWORK`: nat, behind the host's address, or none, and so loopback only (default: nat for root, none for others)")
	flags.StringVar(&f.bootTimeout, "boot-timeout", "2m", "how long the guest may take to come up: a `TIME` like 1m30s, or seconds")
	flags.BoolVar(&o.NoCgroup, "no-cgroup", false, "do not limit what the VMM uses of the host")
	flags.BoolVar(&o.Overcommit, "overcommit", false, "start whether or not the host has memory and disk left for it")
	flags.BoolVar(&f.noSetup, "no-setup", false, "fail instead of running setup if it is needed")
	completeChoice(cmd, "driver", "auto", "firecracker", "qemu")
	completeChoice(cmd, "accel", "auto", "kvm", "tcg")
	completeChoice(cmd, "network", "nat", "none")
	completeChoice(cmd, "pull", "always", "missing", "never")
	cmd.RegisterFlagCompletionFunc("from-image", a.completeImage)
	cmd.RegisterFlagCompletionFunc("runtime", a.completeRuntime)
	cmd.RegisterFlagCompletionFunc("image", a.completeImage)
}

// complete parses what was typed, and checks it.
func (f *createFlags) complete(cmd *cobra.Command) (err error) {
	for _, flag := range []string{"name", "image", "from-image", "runtime", "rootfs", "project", "workdir", "user", "driver", "accel", "network", "seccomp-filter", "disk-rate", "disk-iops"} {
		// The verbs take an empty value for "use the default".
		if cmd.Flags().Changed(flag) && cmd.Flag(flag).Value.String() == "" {
			return api.Errorf(emptyCode(flag), "Invalid --%s: it is empty.", flag).WithFlag("--" + flag)
		}
	}
	f.imageTyped = cmd.Flags().Changed("image") || cmd.Flags().Changed("from-image") || cmd.Flags().Changed("runtime") || cmd.Flags().Changed("rootfs")
	o := &f.options
	if f.noNetns {
		return api.Errorf(api.ErrUnsupported, "--no-netns is refused: the firewall that keeps sandboxes apart, and off this host, is in the "+
			"network namespace of each").WithFlag("--no-netns").WithHint("vmsan create --network none, for no network at all")
	}
	if err := checkSnapshotFlags(cmd); err != nil {
		return err
	}
	if err := f.checkImageFlags(cmd); err != nil {
		return err
	}
	if o.VCPUs, err = sandbox.ParseVCPUs(f.vcpus); err != nil {
		return err
	}
	if o.BootTimeout, err = sandbox.ParseDuration("--boot-timeout", f.bootTimeout); err != nil {
		return err
	}
	if err := sandbox.CheckBootTimeout(o.BootTimeout); err != nil {
		return err
	}
	if o.MemoryMiB, err = sandbox.ParseMemory(f.memory); err != nil {
		return err
	}
	if o.DiskBytes, err = sandbox.ParseDisk("--disk", f.disk); err != nil {
		return err
	}
	if f.diskRate != "" {
		if o.DiskRate, err = sandbox.ParseDiskRate(f.diskRate); err != nil {
			return err
		}
	}
	if f.diskIOPS != "" {
		if o.DiskIOPS, err = sandbox.ParseDiskIOPS(f.diskIOPS); err != nil {
			return err
		}
	}
	if o.Labels, err = parseLabels(f.labels); err != nil {
		return err
	}
	if o.Env, err = parseEnv(f.env); err != nil {
		return err
	}
	for _, text := range f.volumes {
		m, err := sandbox.ParseVolume(text)
		if err != nil {
			return err
		}
		o.Volumes = append(o.Volumes, m)
	}
	if err := f.network.complete(o); err != nil {
		return err
	}
	// Before setup, which may have to run first and takes long.
	return o.Check()
}

// importRootfs makes an image of --rootfs, without a name: it goes with the
// last sandbox that uses it, at the next image prune.
func (a *app) importRootfs(ctx context.Context, service *sandbox.Service, f *createFlags) error {
	img, err := service.ImportImage(ctx, f.rootfs, a.stdin, image.ImportOptions{Meta: image.Meta{Source: sourceOf(f.rootfs)}})
	if err != nil {
		return err
	}
	f.options.Image = "sha256:" + img.Digest
	return nil
}

// checkSnapshotFlags refuses what a snapshot has decided already.
func checkSnapshotFlags(cmd *cobra.Command) error {
	if !cmd.Flags().Changed("snapshot") {
		return nil
	}
	if cmd.Flag("snapshot").Value.String() == "" {
		return api.Errorf(api.ErrSnapshotNotFound, "Invalid --snapshot: it is empty.").WithFlag("--snapshot").WithHint("vmsan snapshot ls")
	}
	for _, flag := range []string{"image", "from-image", "runtime", "rootfs", "pull", "vcpus", "memory", "disk", "init", "driver", "accel", "cold", "network", "entrypoint", "restart", "volume"} {
		if cmd.Flags().Changed(flag) {
			return exclusive("--snapshot", "--"+flag)
		}
	}
	return nil
}

// checkImageFlags refuses several images, and a policy that there is not.
func (f *createFlags) checkImageFlags(cmd *cobra.Command) error {
	named := ""
	for _, flag := range []string{"image", "from-image", "runtime", "rootfs"} {
		if !cmd.Flags().Changed(flag) {
			continue
		}
		if named != "" {
			return exclusive("--"+named, "--"+flag)
		}
		named = flag
	}
	return sandbox.CheckPullPolicy(sandbox.PullPolicy(f.pull))
}

func emptyCode(flag string) api.Code {
	switch flag {
	case "name":
		return api.ErrValidationName
	case "image", "from-image":
		return api.ErrValidationImageRef
	case "project":
		return api.ErrValidationLabel
	case "workdir", "rootfs", "seccomp-filter":
		return api.ErrValidationPath
	case "user":
		return api.ErrValidationUser
	case "disk-rate":
		return api.ErrValidationDiskSize
	case "disk-iops":
		return api.ErrValidationInteger
	}
	return api.ErrValidationChoice
}

// exclusive says that two flags cannot be used together.
func exclusive(first, second string) error {
	return api.Errorf(api.ErrValidationFlags, "Cannot use %s and %s together", first, second).WithFlag(first).
		WithHint("use either %s or %s", first, second)
}

func parseLabels(args []string) (map[string]string, error) {
	return sandbox.ParsePairs(args, func(arg string) error {
		return api.Errorf(api.ErrValidationLabel, "Invalid --label: %.80q. Must be KEY=VALUE.", arg).WithFlag("--label")
	})
}

// parseEnv reads KEY=VALUE; like docker's, a bare KEY is not taken from our
// environment: what a sandbox gets should be visible in the command.
func parseEnv(args []string) (map[string]string, error) {
	return sandbox.ParsePairs(args, func(arg string) error {
		name, _, _ := strings.Cut(arg, "=")
		return api.Errorf(api.ErrValidationEnv, "Invalid --env: %.80q. Must be KEY=VALUE.", name).WithFlag("--env")
	})
}
