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
	found, findErr := sandbox.At(layout, a.log).Leftovers(ctx)
	c := api.Collection{Removed: []api.Leftover{}, Kept: []api.Leftover{}, Failed: []api.Leftover{}}
	var failure error
	for _, l := range found {
		shown := api.Leftover{What: l.What, VM: l.VM, Kept: l.Kept}
		switch {
		case l.Kept != "":
			c.Kept = append(c.Kept, shown)
		case dryRun:
			c.Removed = append(c.Removed, shown)
		default:
			if err := l.Remove(ctx); err != nil {
				shown.Error, failure = err.Error(), err
				c.Failed = append(c.Failed, shown)
				continue
			}
			c.Removed = append(c.Removed, shown)
		}
	}
	if findErr != nil && len(found) == 0 {
		return findErr
	}
	if a.json {
		a.printJSON(c)
	} else {
		a.printCollection(c, dryRun)
	}
	if findErr != nil {
		a.log.Warn("look for leftovers", "error", findErr)
		failure = findErr
	}
	if failure != nil {
		return exitStatus(api.Codes[api.AsError(failure).Code].Kind)
	}
	return nil
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
