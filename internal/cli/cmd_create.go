package cli

import (
	"context"
	"fmt"

	"github.com/spf13/cobra"

	"github.com/vmsan/vmsan/internal/sandbox"
)

func (a *app) createCommand() *cobra.Command {
	var f createFlags
	cmd := &cobra.Command{
		Use:     "create [flags]",
		Short:   "Create and start a sandbox",
		Example: "  vmsan create --name web --memory 512m",
		Args:    arguments(cobra.NoArgs),
		RunE: func(cmd *cobra.Command, _ []string) error {
			if err := f.complete(cmd); err != nil {
				return err
			}
			return a.runCreate(cmd.Context(), f)
		},
	}
	f.register(cmd)
	return cmd
}

func (a *app) runCreate(ctx context.Context, f createFlags) error {
	service, err := a.service()
	if err != nil {
		return err
	}
	if err := a.ensureSetup(ctx, service, f.noSetup); err != nil {
		return err
	}
	record, err := service.Create(ctx, f.options)
	if err != nil {
		return err
	}
	if a.json {
		a.printJSON(show(record))
		return nil
	}
	fmt.Fprintln(a.stdout, record.ID)
	if f.trace {
		a.printTrace(record.Trace)
	}
	return nil
}

// ensureSetup runs setup if nobody has, unless that was forbidden.
func (a *app) ensureSetup(ctx context.Context, service *sandbox.Service, forbidden bool) error {
	err := service.Ready()
	if err == nil || forbidden {
		return err
	}
	a.say("vmsan is not set up here yet; this is done once.")
	_, err = service.Setup(ctx, sandbox.SetupOptions{Progress: a.progress()})
	return err
}
