package cli

import (
	"context"
	"fmt"

	"github.com/spf13/cobra"

	"github.com/vmsan/vmsan/api"
	"github.com/vmsan/vmsan/internal/sandbox"
)

func (a *app) gcCommand() *cobra.Command {
	var dryRun bool
	cmd := &cobra.Command{
		Use:   "gc",
		Short: "Remove what dead sandboxes have left on this host",
		Long: "gc takes back what sandboxes whose monitor died, and commands that were killed, have left: processes, cgroups,\n" +
			"networks, mounts, files and numbers. Nothing of a living sandbox is touched, and nothing that cannot be proved to be\n" +
			"this state directory's. Other commands do the same for each dead sandbox that they meet.",
		Args: arguments(cobra.NoArgs),
		RunE: func(cmd *cobra.Command, _ []string) error { return a.runGC(cmd.Context(), dryRun) },
	}
	cmd.Flags().BoolVar(&dryRun, "dry-run", false, "say what would be removed")
	return cmd
}

func (a *app) runGC(ctx context.Context, dryRun bool) error {
	layout, err := a.stateLayout()
	if err != nil {
		return err
	}
	c, err := sandbox.At(layout, a.log).CollectLeftovers(ctx, dryRun)
	if a.json && (err == nil || len(c.Failed) > 0) {
		a.printJSON(c)
	} else {
		a.printCollection(c, dryRun)
	}
	if len(c.Failed) > 0 {
		return exitStatus(api.KindInternal)
	}
	return err
}

func (a *app) printCollection(c api.Collection, dryRun bool) {
	for _, l := range c.Removed {
		fmt.Fprintln(a.stdout, describeLeftover(l))
	}
	for _, l := range c.Kept {
		a.say("left alone: %s: %s", describeLeftover(l), printable(l.Kept))
	}
	for _, l := range c.Failed {
		a.say("vmsan: %s", printable(oneLine(l.Error)))
	}
	if dryRun {
		a.say("leftovers that would be removed: %d", len(c.Removed))
	} else {
		a.say("leftovers removed: %d", len(c.Removed))
	}
}

func describeLeftover(l api.Leftover) string {
	if l.VM != "" {
		return l.VM + ": " + printable(l.What)
	}
	return printable(l.What)
}
