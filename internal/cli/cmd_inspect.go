package cli

import (
	"context"

	"github.com/spf13/cobra"

	"github.com/vmsan/vmsan/api"
)

func (a *app) inspectCommand() *cobra.Command {
	var metrics bool
	cmd := &cobra.Command{
		Use:     "inspect VM...",
		Aliases: []string{"get"},
		Short:   "Print everything about sandboxes, as JSON",
		Long:    "inspect prints a JSON object for one sandbox, and an array for several.",
		Args:    arguments(cobra.MinimumNArgs(1)),

		ValidArgsFunction: a.completeVMs,
		RunE:              func(cmd *cobra.Command, args []string) error { return a.runInspect(cmd.Context(), args, metrics) },
	}
	cmd.Flags().BoolVar(&metrics, "metrics", false, "also what the VMM counts, in its own form (Firecracker)")
	return cmd
}

func (a *app) runInspect(ctx context.Context, refs []string, metrics bool) error {
	service, err := a.service()
	if err != nil {
		return err
	}
	var vms []api.VM
	for _, ref := range refs {
		record, err := service.Get(ctx, ref)
		if err != nil {
			return err
		}
		vm := record.Show()
		if metrics {
			if vm.Metrics, err = service.Metrics(ctx, record); err != nil {
				return err
			}
		}
		vms = append(vms, vm)
	}
	if len(vms) == 1 {
		a.printJSON(vms[0])
		return nil
	}
	a.printJSON(vms)
	return nil
}
