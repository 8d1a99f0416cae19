package cli

import (
	"context"
	"fmt"

	"github.com/spf13/cobra"

	"github.com/vmsan/vmsan/api"
	"github.com/vmsan/vmsan/internal/sandbox"
)

func (a *app) resizeCommand() *cobra.Command {
	var memory string
	cmd := &cobra.Command{
		Use:   "resize VM --memory SIZE",
		Short: "Take memory from a sandbox, and give it back",
		Long: "resize leaves a running sandbox less memory than it was made with, or all of it again, until it boots again. What\n" +
			"it is to give back it gives as soon as it can spare it.",
		Example:           "  vmsan resize web --memory 128m",
		Args:              arguments(cobra.ExactArgs(1)),
		ValidArgsFunction: a.completeVM,
		RunE: func(cmd *cobra.Command, args []string) error {
			if !cmd.Flags().Changed("memory") {
				return api.Errorf(api.ErrUsage, "resize is not told to what size").WithFlag("--memory").WithHint("vmsan resize %.80s --memory SIZE", args[0])
			}
			return a.runResizeMemory(cmd.Context(), args[0], memory)
		},
	}
	cmd.Flags().StringVar(&memory, "memory", "", "the `SIZE` to leave, like 128m, or MiB (Firecracker)")
	return cmd
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
	record, err := service.ResizeMemory(ctx, ref, mib)
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
