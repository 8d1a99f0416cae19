package cli

import (
	"context"
	"errors"

	"github.com/spf13/cobra"

	"github.com/vmsan/vmsan/api"
	"github.com/vmsan/vmsan/internal/sandbox"
)

func (a *app) portForwardCommand() *cobra.Command {
	return &cobra.Command{
		Use:   "port-forward VM [[ADDRESS:]LOCAL:]REMOTE...",
		Short: "Lead connections to ports of this host to a sandbox's own",
		Long: "port-forward listens on LOCAL, a port or the path of a socket, and leads what connects to REMOTE in the sandbox,\n" +
			"until it is interrupted. It needs no network and no policy that allows it. LOCAL 0 is a port that is free;\n" +
			"without ADDRESS only this host can connect.",
		Example: "  vmsan port-forward web 8080:80\n" +
			"  vmsan port-forward web /tmp/db.sock:/run/postgresql/.s.PGSQL.5432",
		Args:              arguments(cobra.MinimumNArgs(2)),
		ValidArgsFunction: a.completeVM,
		RunE: func(cmd *cobra.Command, args []string) error {
			var forwardings []sandbox.Forwarding
			for _, text := range args[1:] {
				f, err := sandbox.ParseForwarding(text)
				if err != nil {
					return err
				}
				forwardings = append(forwardings, f)
			}
			return a.runPortForward(cmd.Context(), args[0], forwardings)
		},
	}
}

func (a *app) runPortForward(ctx context.Context, ref string, forwardings []sandbox.Forwarding) error {
	service, err := a.service()
	if err != nil {
		return err
	}
	err = service.Forward(ctx, ref, forwardings, func(open []sandbox.Forwarding) {
		var list []api.Forwarding
		for _, f := range open {
			a.say("%s leads to %s in the sandbox", f.Local.Address, f.Remote.Address)
			list = append(list, api.Forwarding{Local: f.Local.Address, Remote: f.Remote.Address})
		}
		if a.json {
			a.printJSON(list)
		}
	})
	if errors.Is(err, context.Canceled) {
		return nil // it was told to stop
	}
	return err
}
