package cli

import (
	"context"
	"strconv"
	"strings"

	"github.com/spf13/cobra"

	"github.com/vmsan/vmsan/api"
)

func (a *app) portsCommand() *cobra.Command {
	return &cobra.Command{
		Use:   "ports VM",
		Short: "List what listens in a sandbox",
		Long: "ports lists the sockets of a sandbox that take connections or packets, by TCP and UDP, with a process that has them,\n" +
			"and the published ports of this host that lead there. All but the last is what the sandbox says.",
		ValidArgsFunction: a.completeVM,
		Args:              arguments(cobra.ExactArgs(1)),
		RunE:              func(cmd *cobra.Command, args []string) error { return a.runPorts(cmd.Context(), args[0]) },
	}
}

func (a *app) runPorts(ctx context.Context, ref string) error {
	service, err := a.service()
	if err != nil {
		return err
	}
	found, err := service.Ports(ctx, ref)
	if err != nil {
		return err
	}
	ports := []api.Port{}
	var rows [][]string
	for _, p := range found {
		shown := api.Port{Protocol: p.Protocol, Address: p.At.Addr(), Port: p.At.Port(), PID: p.PID, Process: p.Process}
		for _, at := range p.Published {
			shown.Published = append(shown.Published, at.String())
		}
		pid := ""
		if p.PID != 0 {
			pid = strconv.Itoa(p.PID)
		}
		ports = append(ports, shown)
		rows = append(rows, []string{
			p.Protocol, p.At.Addr().String(), strconv.Itoa(int(p.At.Port())), orDash(pid), orDash(p.Process), orDash(strings.Join(shown.Published, ",")),
		})
	}
	if a.json {
		a.printJSON(ports)
		return nil
	}
	table(a.stdout, "PROTOCOL\tADDRESS\tPORT\tPID\tPROCESS\tPUBLISHED", rows)
	return nil
}
