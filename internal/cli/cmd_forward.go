package cli

import (
	"context"
	"errors"

	"github.com/spf13/cobra"

	"github.com/vmsan/vmsan/api"
	"github.com/vmsan/vmsan/internal/sandbox"
)

func (a *app) portForwardCommand() *cobra.Command {
	var reverse []string
	cmd := &cobra.Command{
		Use:   "port-forward VM [[ADDRESS:]LOCAL:]REMOTE...",
		Short: "Lead connections to ports of this host to a sandbox's own, or back",
		Long: "port-forward listens on LOCAL, a port or the path of a socket, and leads what connects to REMOTE in the sandbox,\n" +
			"until it is interrupted. It needs no network and no policy that allows it. LOCAL 0 is a port that is free;\n" +
			"without ADDRESS only this host can connect.\n\n" +
			"With --reverse it listens in the sandbox, on a port or the path of a socket, and leads what connects there to\n" +
			"TARGET: HOST:PORT as this host reaches it, a port of this host, or the path of a socket. The sandbox then reaches\n" +
			"that, whatever its policy, and nothing else.",
		Example: "  vmsan port-forward web 8080:80\n" +
			"  vmsan port-forward web /tmp/db.sock:/run/postgresql/.s.PGSQL.5432\n" +
			"  vmsan port-forward web -R 5432:db.example.com:5432 -R /run/agent.sock:$SSH_AUTH_SOCK",
		Args:              arguments(cobra.MinimumNArgs(1)),
		ValidArgsFunction: a.completeVM,
		RunE: func(cmd *cobra.Command, args []string) error {
			forwardings, err := parseForwardings(args[1:], reverse)
			if err != nil {
				return err
			}
			return a.runPortForward(cmd.Context(), args[0], forwardings)
		},
	}
	cmd.Flags().StringArrayVarP(&reverse, "reverse", "R", nil, "lead connections in the sandbox to this host: `[ADDRESS:]PORT:TARGET` (may be repeated)")
	return cmd
}

func parseForwardings(forward, reverse []string) (all []sandbox.Forwarding, err error) {
	if len(forward)+len(reverse) == 0 {
		return nil, api.Errorf(api.ErrUsage, "nothing is to be forwarded").WithHint("vmsan port-forward VM 8080:80")
	}
	for _, text := range forward {
		f, err := sandbox.ParseForwarding(text)
		if err != nil {
			return nil, err
		}
		all = append(all, f)
	}
	for _, text := range reverse {
		f, err := sandbox.ParseReverse(text)
		if err != nil {
			return nil, err
		}
		all = append(all, f)
	}
	return all, nil
}

func (a *app) runPortForward(ctx context.Context, ref string, forwardings []sandbox.Forwarding) error {
	service, err := a.service()
	if err != nil {
		return err
	}
	err = service.Forward(ctx, ref, forwardings, func(open []sandbox.Forwarding) {
		var list []api.Forwarding
		for _, f := range open {
			if f.Reverse {
				a.say("%s in the sandbox leads to %s", f.Remote.Address, f.Local.Address)
			} else {
				a.say("%s leads to %s in the sandbox", f.Local.Address, f.Remote.Address)
			}
			list = append(list, api.Forwarding{Local: f.Local.Address, Remote: f.Remote.Address, Reverse: f.Reverse})
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
