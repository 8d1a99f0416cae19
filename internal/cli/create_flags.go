package cli

import (
	"strings"

	"github.com/spf13/cobra"

	"github.com/vmsan/vmsan/api"
	"github.com/vmsan/vmsan/internal/sandbox"
)

// createFlags are the flags that describe a new sandbox, as typed.
type createFlags struct {
	options      sandbox.CreateOptions
	memory, disk string
	labels, env  []string
	trace        bool
	noSetup      bool
}

func (f *createFlags) register(cmd *cobra.Command) {
	flags := cmd.Flags()
	o := &f.options
	flags.StringVar(&o.Image, "image", "", "image to start (default: the one setup made)")
	flags.StringVar(&o.Name, "name", "", "unique name")
	flags.StringVar(&o.Project, "project", "", "label of the project it belongs to")
	flags.StringArrayVar(&f.labels, "label", nil, "label, KEY=VALUE (may be repeated)")
	flags.IntVar(&o.VCPUs, "vcpus", sandbox.DefaultVCPUs, "virtual CPUs, 1 to 32")
	flags.StringVar(&f.memory, "memory", "256m", "memory: MiB, or 512m, 2g")
	flags.StringVar(&f.disk, "disk", "10g", "size of its own disk: GiB, or 512m, 20g")
	flags.StringArrayVarP(&f.env, "env", "e", nil, "environment of every command, KEY=VALUE (may be repeated)")
	flags.StringVarP(&o.Workdir, "workdir", "w", "", "directory that commands begin in")
	flags.StringVarP(&o.User, "user", "u", "", "user that commands run as (default: root)")
	flags.BoolVar(&o.Init, "init", false, "run the image's own init as PID 1")
	flags.StringVar(&o.Driver, "driver", "auto", "auto or qemu")
	flags.StringVar(&o.Accelerator, "accel", "auto", "auto, kvm or tcg")
	flags.BoolVar(&o.RequireKVM, "require-kvm", false, "refuse to run without KVM")
	flags.BoolVar(&o.NoSeccomp, "no-seccomp", false, "leave the VMM's system call filter off")
	flags.BoolVar(&o.NoCgroup, "no-cgroup", false, "do not limit what the VMM uses of the host")
	flags.StringVar(&o.Network, "network", "none", "none: the guest has loopback only")
	flags.DurationVar(&o.BootTimeout, "boot-timeout", sandbox.DefaultBootTimeout, "how long the guest may take to come up")
	flags.BoolVar(&f.trace, "trace", false, "print how long each stage of the start took")
	flags.BoolVar(&f.noSetup, "no-setup", false, "fail instead of running setup if it is needed")
}

// complete parses what was typed. The values of integer flags that were given
// must not be taken for "use the default".
func (f *createFlags) complete(cmd *cobra.Command) (err error) {
	if f.options.VCPUs == 0 {
		f.options.VCPUs = -1
	}
	if cmd.Flags().Changed("boot-timeout") && f.options.BootTimeout == 0 {
		f.options.BootTimeout = -1
	}
	for flag, value := range map[string]string{"name": f.options.Name, "image": f.options.Image, "driver": f.options.Driver,
		"accel": f.options.Accelerator, "network": f.options.Network} {
		if cmd.Flags().Changed(flag) && value == "" {
			return api.Errorf(api.ErrUsage, "Invalid --%s: it is empty.", flag).WithFlag("--" + flag)
		}
	}
	if f.options.MemoryMiB, err = sandbox.ParseMemory(f.memory); err != nil {
		return err
	}
	if f.options.DiskBytes, err = sandbox.ParseDisk(f.disk); err != nil {
		return err
	}
	if f.options.Labels, err = parseLabels(f.labels); err != nil {
		return err
	}
	f.options.Env, err = parseEnv(f.env)
	return err
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
