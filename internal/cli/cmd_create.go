package cli

import (
	"context"
	"fmt"

	"github.com/spf13/cobra"

	"github.com/vmsan/vmsan/api"
	"github.com/vmsan/vmsan/internal/sandbox"
)

func (a *app) createCommand() *cobra.Command {
	var f createFlags
	var limits limitFlags
	cmd := &cobra.Command{
		Use:     "create [flags]",
		Short:   "Create and start a sandbox",
		Example: "  vmsan create --name web --memory 512m",
		Long: "create makes a sandbox, starts it and prints its id. It stays until it is removed; its disk also outlives\n" +
			"stop and start. If vmsan has not been set up here yet, that is done first.",
		Args: arguments(cobra.NoArgs),
		RunE: func(cmd *cobra.Command, _ []string) error {
			if err := limits.complete(cmd, &f.options); err != nil {
				return err
			}
			if err := f.complete(cmd); err != nil {
				return err
			}
			return a.runCreate(cmd.Context(), f)
		},
	}
	f.register(a, cmd)
	limits.register(cmd)
	cmd.Flags().BoolVar(&f.options.Entrypoint, "entrypoint", false, "run what the image says as the main process: its output is in the logs, and its end is the sandbox's")
	cmd.Flags().StringVar(&f.options.Restart, "restart", "", "when the main process is started again instead, a `POLICY`: no, always, on-failure or on-failure:N; always also starts the sandbox with the host (default: no)")
	completeChoice(cmd, "restart", "no", "always", "on-failure")
	return cmd
}

func (a *app) runCreate(ctx context.Context, f createFlags) error {
	service, err := a.readyFor(ctx, &f)
	if err != nil {
		return err
	}
	record, err := service.Create(ctx, f.options)
	if err != nil {
		return err
	}
	if a.json {
		a.printJSON(record.Show())
		return nil
	}
	fmt.Fprintln(a.stdout, record.ID)
	if f.trace {
		a.printTrace(record.Trace)
	}
	return nil
}

// readyFor sees to it that there is all that a sandbox of f is made of.
func (a *app) readyFor(ctx context.Context, f *createFlags) (*sandbox.Service, error) {
	service, err := a.service()
	if err != nil {
		return nil, err
	}
	if err := a.ensureSetup(ctx, service, f.noSetup); err != nil {
		return nil, err
	}
	return service, a.bringImage(ctx, service, f)
}

// ensureSetup runs setup if nobody has, unless that was forbidden.
func (a *app) ensureSetup(ctx context.Context, service *sandbox.Service, forbidden bool) error {
	err := service.Ready()
	if err == nil || forbidden {
		return err
	}
	a.say("%s; this is done now, once.", api.AsError(err).Message)
	_, err = service.Setup(ctx, sandbox.SetupOptions{Progress: a.progress()})
	return err
}
