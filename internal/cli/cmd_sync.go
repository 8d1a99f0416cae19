package cli

import (
	"context"
	"encoding/json"
	"fmt"
	"strings"

	"github.com/spf13/cobra"

	"github.com/vmsan/vmsan/api"
	"github.com/vmsan/vmsan/internal/sandbox"
)

func (a *app) syncCommand() *cobra.Command {
	o := sandbox.SyncOptions{}
	var noGitignore bool
	cmd := &cobra.Command{
		Use:   "sync [flags] VM SOURCE DESTINATION",
		Short: "Make a directory in a sandbox what one on the host is",
		Long: "sync sends what has changed in SOURCE, a directory on the host, to DESTINATION in the sandbox, which is made if it is\n" +
			"not there. Files of the same size, mode and time are not sent again. With --watch it goes on until it is interrupted.\n\n" +
			"What .gitignore files name is left out, and so is .git; --exclude takes lines of the same form, which have the last word.\n" +
			"What is left out is not removed either. Nothing is changed on the host.",
		Example: "  vmsan sync web . /srv/app\n" +
			"  vmsan sync web . /srv/app --watch --delete --exclude '*.log'\n" +
			"  vmsan sync web . /srv/app --delete --dry-run",
		Args:              arguments(cobra.ExactArgs(3)),
		ValidArgsFunction: a.completeVM,
		RunE: func(cmd *cobra.Command, args []string) error {
			o.VM, o.Source, o.Destination = args[0], args[1], strings.TrimPrefix(args[2], args[0]+":")
			o.Ignore.Git = !noGitignore
			return a.runSync(cmd.Context(), o)
		},
	}
	flags := cmd.Flags()
	flags.BoolVarP(&o.Watch, "watch", "w", false, "go on whenever something changes, until interrupted")
	flags.BoolVar(&o.Delete, "delete", false, "remove from DESTINATION what is not in SOURCE")
	flags.StringArrayVar(&o.Ignore.Exclude, "exclude", nil, "leave out what `PATTERN` names, a line as in .gitignore (may be repeated)")
	flags.BoolVar(&noGitignore, "no-gitignore", false, "send also what .gitignore files name, and .git")
	flags.BoolVar(&o.Checksum, "checksum", false, "compare what is in files, not their times")
	flags.BoolVarP(&o.DryRun, "dry-run", "n", false, "only say what would be done")
	flags.StringVarP(&o.User, "user", "u", "", "`USER` who owns files in the sandbox (default: the sandbox's)")
	return cmd
}

func (a *app) runSync(ctx context.Context, o sandbox.SyncOptions) error {
	if o.Watch && o.DryRun {
		return exclusive("--watch", "--dry-run")
	}
	if err := sandbox.CheckUser(o.User); err != nil {
		return err
	}
	service, err := a.service()
	if err != nil {
		return err
	}
	line := a.newCopyLine()
	o.Progress = line.show
	o.Report = func(s api.Synced) {
		line.clear()
		*line = *a.newCopyLine()
		a.printSynced(s, o)
	}
	err = service.Sync(ctx, o)
	line.clear()
	return err
}

func (a *app) printSynced(s api.Synced, o sandbox.SyncOptions) {
	switch {
	case a.json && o.Watch:
		// One line for each: there may be any number. That stdout is closed
		// cannot be told to anybody.
		json.NewEncoder(a.stdout).Encode(s)
	case a.json:
		a.printJSON(s)
	default:
		for _, c := range s.Changes {
			fmt.Fprintf(a.stdout, "%s %s\n", c.Action, printable(c.Path))
		}
	}
	format := "Sent %d files with %s, removed %d."
	if o.DryRun {
		format = "Would send %d files with %s, and remove %d."
	}
	a.say(format, s.Files, bytesText(s.Bytes), s.Removed)
	if s.Skipped > 0 {
		a.say("Left out %d devices, sockets or pipes.", s.Skipped)
	}
}
