package cli

import (
	"context"

	"github.com/spf13/cobra"

	"github.com/vmsan/vmsan/api"
	"github.com/vmsan/vmsan/internal/sandbox"
)

func (a *app) recoverCommand() *cobra.Command {
	var stop bool
	cmd := &cobra.Command{
		Use:   "recover [flags]",
		Short: "Put things right after the host has restarted",
		Long: "recover corrects the records of sandboxes that ran when the host went down, takes back what is left of them, and\n" +
			"starts those that were created with --restart always, unless somebody had stopped them. With --stop it shuts all\n" +
			"sandboxes down, as is done before the host does; it prints the ids of those that it started or stopped.\n" +
			"The service vmsan-restore calls both.",
		Args: arguments(cobra.NoArgs),
		RunE: func(cmd *cobra.Command, _ []string) error { return a.runRecover(cmd.Context(), stop) },
	}
	cmd.Flags().BoolVar(&stop, "stop", false, "shut sandboxes down instead, to be started again by the next recover")
	return cmd
}

func (a *app) runRecover(ctx context.Context, stop bool) error {
	service, err := a.service()
	if err != nil {
		return err
	}
	find, do := service.Interrupted, func(s *sandbox.Service, id string) (api.Result, error) {
		record, err := s.Start(ctx, id)
		return started(record), err
	}
	if stop {
		find, do = service.Running, func(s *sandbox.Service, id string) (api.Result, error) {
			record, err := s.Interrupt(ctx, id)
			return ended(record), err
		}
	}
	ids, err := find(ctx)
	if err != nil {
		return err
	}
	return a.each(ids, do)
}
