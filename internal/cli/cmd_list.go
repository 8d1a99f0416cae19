package cli

import (
	"context"
	"fmt"

	"github.com/spf13/cobra"

	"github.com/vmsan/vmsan/api"
	"github.com/vmsan/vmsan/internal/sandbox"
)

func (a *app) listCommand() *cobra.Command {
	var filter sandbox.Filter
	var labels []string
	var status string
	cmd := &cobra.Command{
		Use:     "list",
		Aliases: []string{"ls"},
		Short:   "List sandboxes",
		Long:    "list prints the sandboxes, the oldest first. With --quiet it prints their ids alone.",
		Args:    arguments(cobra.NoArgs),
		RunE: func(cmd *cobra.Command, _ []string) (err error) {
			filter.Status = api.Status(status)
			if status != "" && !filter.Status.Valid() {
				return api.Errorf(api.ErrValidationChoice, "Invalid --status: %.80q. Must be one of: creating, running, "+
					"paused, stopped, error.", status).WithFlag("--status")
			}
			if filter.Labels, err = parseLabels(labels); err != nil {
				return err
			}
			return a.runList(cmd.Context(), filter)
		},
	}
	cmd.Flags().StringVar(&filter.Name, "name", "", "only the one with this `NAME`")
	cmd.Flags().StringVar(&filter.Project, "project", "", "only those of this `PROJECT`")
	cmd.Flags().StringArrayVar(&labels, "label", nil, "only those with this label, `KEY=VALUE` (may be repeated)")
	cmd.Flags().StringVar(&status, "status", "", "only those with this `STATUS`: creating, running, paused, stopped or error")
	completeChoice(cmd, "status", "creating", "running", "paused", "stopped", "error")
	return cmd
}

func (a *app) runList(ctx context.Context, filter sandbox.Filter) error {
	service, err := a.service()
	if err != nil {
		return err
	}
	records, err := service.List(ctx, filter)
	if err != nil {
		return err
	}
	vms := []api.VM{}
	var rows [][]string
	for _, r := range records {
		vms = append(vms, r.Show())
		rows = append(rows, []string{
			r.ID, orDash(r.Name), string(r.Status), ago(r.CreatedAt), r.Spec.ImageName, fmt.Sprint(r.Spec.VCPUs),
			mebibytes(int64(r.Spec.MemoryMiB)), r.Spec.Driver + "/" + r.Spec.Accelerator, timeLeft(r),
		})
	}
	switch {
	case a.json:
		a.printJSON(vms)
	case a.quiet:
		for _, vm := range vms {
			fmt.Fprintln(a.stdout, vm.ID)
		}
	default:
		table(a.stdout, "ID\tNAME\tSTATUS\tCREATED\tIMAGE\tVCPUS\tMEMORY\tDRIVER\tTIMEOUT", rows)
	}
	return nil
}

func orDash(s string) string {
	if s == "" {
		return "-"
	}
	return s
}
