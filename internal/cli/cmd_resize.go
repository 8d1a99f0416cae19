package cli

import (
	"context"
	"fmt"

	"github.com/spf13/cobra"

	"github.com/vmsan/vmsan/api"
	"github.com/vmsan/vmsan/internal/sandbox"
)

func (a *app) resizeCommand() *cobra.Command {
	var size string
	cmd := &cobra.Command{
		Use:   "resize VM --disk SIZE",
		Short: "Give a sandbox a larger disk",
		Long: "resize grows a sandbox's own disk. One that runs has the room at once, one that is stopped from its next start on.\n" +
			"Disks do not shrink.",
		Example:           "  vmsan resize web --disk 20g",
		Args:              arguments(cobra.ExactArgs(1)),
		ValidArgsFunction: a.completeVM,
		RunE: func(cmd *cobra.Command, args []string) error {
			if !cmd.Flags().Changed("disk") {
				return api.Errorf(api.ErrUsage, "resize is not told to what size").WithFlag("--disk").WithHint("vmsan resize %.80s --disk SIZE", args[0])
			}
			return a.runResize(cmd.Context(), args[0], size)
		},
	}
	cmd.Flags().StringVar(&size, "disk", "", "the `SIZE` to grow to, like 20g, or GiB")
	return cmd
}

func (a *app) runResize(ctx context.Context, ref, size string) error {
	bytes, err := sandbox.ParseDisk("--disk", size)
	if err != nil {
		return err
	}
	service, err := a.service()
	if err != nil {
		return err
	}
	record, err := service.Resize(ctx, ref, bytes)
	if err != nil {
		return err
	}
	if a.json {
		a.printJSON(show(record))
		return nil
	}
	fmt.Fprintln(a.stdout, record.ID)
	return nil
}
