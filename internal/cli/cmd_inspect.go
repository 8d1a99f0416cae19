package cli

import (
	"context"

	"github.com/spf13/cobra"

	"github.com/vmsan/vmsan/api"
)

func (a *app) inspectCommand() *cobra.Command {
	var o inspectOptions
	cmd := &cobra.Command{
		Use:     "inspect VM...",
		Aliases: []string{"get"},
		Short:   "Print everything about sandboxes, as JSON",
		Long:    "inspect prints a JSON object for one sandbox, and an array for several.",
		Args:    arguments(cobra.MinimumNArgs(1)),

		ValidArgsFunction: a.completeVMs,
		RunE:              func(cmd *cobra.Command, args []string) error { return a.runInspect(cmd.Context(), args, o) },
	}
	cmd.Flags().BoolVar(&o.metrics, "metrics", false, "also what the VMM counts, in its own form (Firecracker)")
	cmd.Flags().BoolVar(&o.security, "security", false, "also what isolation is in force, as the kernel tells")
	return cmd
}

type inspectOptions struct{ metrics, security bool }

func (a *app) runInspect(ctx context.Context, refs []string, o inspectOptions) error {
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
		if o.security {
			held, err := service.Security(record)
			if err != nil {
				return err
			}
			vm.Security = &held
		}
		if o.metrics {
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
