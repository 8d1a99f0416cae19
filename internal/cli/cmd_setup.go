package cli

import (
	"context"
	"fmt"

	"github.com/spf13/cobra"
	"golang.org/x/term"

	"github.com/vmsan/vmsan/api"
	"github.com/vmsan/vmsan/internal/sandbox"
	"github.com/vmsan/vmsan/internal/setup"
)

func (a *app) setupCommand() *cobra.Command {
	var o sandbox.SetupOptions
	var check bool
	var pool string
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
	cmd.Flags().BoolVar(&check, "check", false, "change nothing, say what is missing")
	return cmd
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
