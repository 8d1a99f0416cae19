package cli

import (
	"context"
	"fmt"

	"github.com/spf13/cobra"

	"github.com/vmsan/vmsan/api"
	"github.com/vmsan/vmsan/internal/sandbox"
	"github.com/vmsan/vmsan/internal/store"
)

func (a *app) resizeCommand() *cobra.Command {
	var disk, memory string
	cmd := &cobra.Command{
		Use:   "resize VM --disk SIZE | --memory SIZE",
		Short: "Give a sandbox a larger disk, or leave it less memory",
		Long: "resize --disk grows a sandbox's own disk. One that runs has the room at once, one that is stopped from its next\n" +
			"start on. Disks do not shrink.\n\n" +
			"resize --memory leaves a running sandbox less memory than it was made with, or all of it again, until it boots\n" +
			"again. What it is to give back it gives as soon as it can spare it.",
		Example:           "  vmsan resize web --disk 20g",
		Args:              arguments(cobra.ExactArgs(1)),
		ValidArgsFunction: a.completeVM,
		RunE: func(cmd *cobra.Command, args []string) error {
			more, less := cmd.Flags().Changed("disk"), cmd.Flags().Changed("memory")
			switch {
			case more && less:
				return api.Errorf(api.ErrValidationFlags, "Cannot use --disk and --memory together").WithFlag("--memory").
					WithHint("vmsan resize %.80s --disk SIZE", args[0])
			case more:
				return a.runResizeDisk(cmd.Context(), args[0], disk)
			case less:
				return a.runResizeMemory(cmd.Context(), args[0], memory)
			}
			return api.Errorf(api.ErrUsage, "resize is not told to what size").WithFlag("--disk").WithHint("vmsan resize %.80s --disk SIZE", args[0])
		},
	}
	cmd.Flags().StringVar(&disk, "disk", "", "the `SIZE` to grow to, like 20g, or GiB")
	cmd.Flags().StringVar(&memory, "memory", "", "the `SIZE` to leave, like 128m, or MiB (Firecracker)")
	return cmd
}

func (a *app) runResizeDisk(ctx context.Context, ref, size string) error {
	bytes, err := sandbox.ParseDisk("--disk", size)
	if err != nil {
		return err
	}
	service, err := a.service()
	if err != nil {
		return err
	}
	return a.printResized(service.Resize(ctx, ref, bytes))
}

func (a *app) runResizeMemory(ctx context.Context, ref, size string) error {
	mib, err := sandbox.ParseMemory(size)
	if err != nil {
		return err
	}
	service, err := a.service()
	if err != nil {
		return err
	}
	return a.printResized(service.ResizeMemory(ctx, ref, mib))
}

func (a *app) printResized(record *store.Record, err error) error {
	if err != nil {
		return err
	}
	if a.json {
		a.printJSON(record.Show())
		return nil
	}
	fmt.Fprintln(a.stdout, record.ID)
	return nil
}
