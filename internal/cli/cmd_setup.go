package cli

import (
	"context"
	"fmt"

	"github.com/spf13/cobra"
	"golang.org/x/term"

	"github.com/vmsan/vmsan/api"
	"github.com/vmsan/vmsan/internal/sandbox"
	"github.com/vmsan/vmsan/internal/setup"
	"github.com/vmsan/vmsan/internal/vmm/firecracker/release"
)

func (a *app) setupCommand() *cobra.Command {
	var o sandbox.SetupOptions
	var check bool
	var pool string
	var fc release.Source
	cmd := &cobra.Command{
		Use:   "setup",
		Short: "Get a kernel and the default image, and find out what works here",
		Long: "setup gets a kernel and makes the default image, both inside the state directory, and boots the kernel\n" +
			"once under each accelerator to find out which ones work on this host. It can be run again at any time.",
		Args: arguments(cobra.NoArgs),
		RunE: func(cmd *cobra.Command, _ []string) error {
			if o.Kernel != "" && o.KernelDeb != "" {
				return exclusive("--kernel", "--kernel-deb")
			}
			if err := checkRelease(cmd, &fc); err != nil {
				return err
			}
			o.Release = fc
			if check {
				return a.runSetupCheck()
			}
			if cmd.Flags().Changed("network-pool") {
				var err error
				if o.Pool, err = sandbox.ParsePool(pool); err != nil {
					return err
				}
			}
			return a.runSetup(cmd.Context(), o)
		},
	}
	cmd.Flags().StringVar(&o.Kernel, "kernel", "", "use the kernel in this `FILE`: a vmlinux or bzImage")
	cmd.Flags().StringVar(&o.KernelDeb, "kernel-deb", "", "use the kernel in this Debian package, a `FILE`")
	cmd.Flags().BoolVar(&o.SkipImage, "no-image", false, "leave out the default image")
	cmd.Flags().StringVar(&pool, "network-pool", "", "give sandboxes addresses from this `CIDR`, which nothing else on the host may use (default: 198.18.0.0/15)")
	cmd.Flags().BoolVar(&fc.Download, "firecracker", false, "download Firecracker and its jailer, unless they are there")
	cmd.Flags().StringVar(&fc.Version, "firecracker-version", "", "the `VERSION` to download (default: "+release.Version+")")
	cmd.Flags().StringVar(&fc.URL, "firecracker-url", "", "download from a mirror of its releases, a `URL` (default: "+release.DefaultURL+")")
	cmd.Flags().StringVar(&fc.Dir, "firecracker-dir", "", "take Firecracker and its jailer from this `DIRECTORY`")
	cmd.Flags().StringVar(&fc.Archive, "bundle", "", "take them from this `FILE`: a release's archive, or one that --bundle-out has written")
	cmd.Flags().StringVar(&o.ReleaseTo, "bundle-out", "", "write them to this `FILE`, for hosts without internet")
	cmd.Flags().BoolVar(&check, "check", false, "change nothing, say what is missing")
	return cmd
}

// checkRelease refuses several sources of Firecracker.
func checkRelease(cmd *cobra.Command, from *release.Source) error {
	named := ""
	for _, flag := range []string{"firecracker", "firecracker-dir", "bundle"} {
		if !cmd.Flags().Changed(flag) {
			continue
		}
		if named != "" {
			return exclusive("--"+named, "--"+flag)
		}
		if cmd.Flag(flag).Value.String() == "" {
			return api.Errorf(api.ErrValidationPath, "Invalid --%s: it is empty.", flag).WithFlag("--" + flag)
		}
		named = flag
	}
	for _, flag := range []string{"firecracker-version", "firecracker-url"} {
		switch {
		case !cmd.Flags().Changed(flag):
		case named != "" && named != "firecracker":
			return exclusive("--"+named, "--"+flag)
		default:
			from.Download = true
		}
	}
	return nil
}

func (a *app) runSetup(ctx context.Context, o sandbox.SetupOptions) error {
	service, err := a.service()
	if err != nil {
		return err
	}
	o.Progress = a.progress()
	record, err := service.Setup(ctx, o)
	if err != nil {
		return err
	}
	if a.json {
		a.printJSON(record)
		return nil
	}
	for _, v := range record.Verdicts {
		if v.Works {
			a.say("%s works (booted in %.1f s)", v.Accel, v.Seconds)
		} else {
			a.say("%s does not work here: %s", v.Accel, v.Reason)
		}
	}
	uses := record.Accel
	if v := record.Firecracker; v != nil && v.Works {
		uses = v.VMM
	} else if v != nil {
		a.say("%s does not work here: %s", v.VMM, v.Reason)
	}
	a.say("vmsan is ready and uses %s.", uses)
	return nil
}

// runSetupCheck fails if something is missing, so that scripts can ask.
func (a *app) runSetupCheck() error {
	service, err := a.service()
	if err != nil {
		return err
	}
	missing, err := service.CheckSetup()
	if err != nil {
		return err
	}
	list := []api.SetupItem{}
	for _, m := range missing {
		list = append(list, api.SetupItem{Step: string(m.Step), Detail: m.Detail})
	}
	if a.json {
		a.printJSON(api.SetupCheck{Ready: len(list) == 0, Missing: list})
	} else {
		for _, m := range list {
			fmt.Fprintf(a.stdout, "%s: %s\n", m.Step, m.Detail)
		}
	}
	if len(list) == 0 {
		a.say("nothing is missing")
		return nil
	}
	return exitStatus(api.KindSetup)
}

// progress shows what setup does: on a terminal in one line that changes,
// elsewhere in a line each.
func (a *app) progress() func(setup.Event) {
	if a.json || a.quiet {
		return nil
	}
	file, ok := a.stderr.(interface{ Fd() uintptr })
	terminal := ok && term.IsTerminal(int(file.Fd()))
	return func(e setup.Event) {
		text := fmt.Sprintf("%-7s %s", e.Step, e.Detail)
		switch {
		case e.State == setup.Running && terminal:
			fmt.Fprintf(a.stderr, "\r\x1b[K  … %s", text)
		case e.State == setup.Running:
			fmt.Fprintf(a.stderr, "  ... %s\n", text)
		case terminal:
			fmt.Fprintf(a.stderr, "\r\x1b[K%s %s\n", mark(e.State), text)
		default:
			fmt.Fprintf(a.stderr, "%s %s\n", mark(e.State), text)
		}
	}
}

func mark(s setup.State) string {
	if s == setup.Failed {
		return "no "
	}
	return "ok "
}
