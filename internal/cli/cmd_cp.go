package cli

import (
	"context"
	"fmt"
	"time"

	"github.com/spf13/cobra"

	"github.com/vmsan/vmsan/api"
	"github.com/vmsan/vmsan/internal/filetree"
	"github.com/vmsan/vmsan/internal/sandbox"
)

func (a *app) cpCommand() *cobra.Command {
	var o sandbox.CopyOptions
	cmd := &cobra.Command{
		Use:   "cp [flags] SOURCE DESTINATION",
		Short: "Copy files and directories to, from and between sandboxes",
		Long: "cp copies a file or a directory with all in it. VM:PATH is in a sandbox, and begins at the user's home unless\n" +
			"it is absolute; a PATH on the host that has a colon is written ./PATH. - is a tar stream, on stdin or stdout.\n" +
			"A destination that is a directory gets the copy inside; SOURCE/. is what is in a directory.\n\n" +
			"Modes, times, links, holes and the user's extended attributes are kept. Files belong to you, or to the\n" +
			"sandbox's user. Devices, sockets and pipes are left out. A file has its name only when it is whole.",
		Example: "  vmsan cp src web:/srv\n" +
			"  vmsan cp web:/var/log/app.log .\n" +
			"  vmsan cp web:/srv/. other:/srv\n" +
			"  tar -c . | vmsan cp - web:/srv",
		Args:              arguments(cobra.ExactArgs(2)),
		ValidArgsFunction: a.completePath,
		RunE: func(cmd *cobra.Command, args []string) error {
			o.Source, o.Destination = sandbox.ParseLocation(args[0]), sandbox.ParseLocation(args[1])
			if err := a.checkStream(o.Destination); err != nil {
				return err
			}
			return a.runCopies(cmd.Context(), []sandbox.CopyOptions{o})
		},
	}
	cmd.Flags().BoolVarP(&o.KeepOwners, "archive", "a", false, "keep the numbers of owners and groups, and set-id bits")
	cmd.Flags().StringVarP(&o.User, "user", "u", "", "`USER` who owns files in the sandbox (default: the sandbox's)")
	registerResume(cmd, &o.Resume)
	return cmd
}

func registerResume(cmd *cobra.Command, resume *bool) {
	cmd.Flags().BoolVar(resume, "resume", false, "go on with a copy that broke off, and keep what there is if this one does")
}

func (a *app) uploadCommand() *cobra.Command {
	var destination, user string
	var resume bool
	cmd := &cobra.Command{
		Use:               "upload [flags] VM FILE...",
		Short:             "Copy files and directories to a sandbox",
		Example:           "  vmsan upload web app.py data -d /srv",
		Args:              arguments(cobra.MinimumNArgs(2)),
		ValidArgsFunction: a.completeVM,
		RunE: func(cmd *cobra.Command, args []string) error {
			var copies []sandbox.CopyOptions
			for _, file := range args[1:] {
				copies = append(copies, sandbox.CopyOptions{
					Source: sandbox.Location{Path: file}, Destination: sandbox.Location{VM: args[0], Path: destination}, User: user,
					Into: len(args) > 2, Resume: resume,
				})
			}
			return a.runCopies(cmd.Context(), copies)
		},
	}
	cmd.Flags().StringVarP(&destination, "dest", "d", "~", "`DIRECTORY` in the sandbox, or the name of a single copy")
	cmd.Flags().StringVarP(&user, "user", "u", "", "`USER` who owns the files (default: the sandbox's)")
	registerResume(cmd, &resume)
	return cmd
}

func (a *app) downloadCommand() *cobra.Command {
	var destination string
	var resume bool
	cmd := &cobra.Command{
		Use:               "download [flags] VM PATH",
		Short:             "Copy a file or directory from a sandbox",
		Example:           "  vmsan download web /var/log/app.log -d logs/",
		Args:              arguments(cobra.ExactArgs(2)),
		ValidArgsFunction: a.completeVM,
		RunE: func(cmd *cobra.Command, args []string) error {
			return a.runCopies(cmd.Context(), []sandbox.CopyOptions{{
				Source: sandbox.Location{VM: args[0], Path: args[1]}, Destination: sandbox.Location{Path: destination}, Resume: resume,
			}})
		},
	}
	cmd.Flags().StringVarP(&destination, "dest", "d", ".", "`PATH` on the host: a directory, or the name of the copy")
	registerResume(cmd, &resume)
	return cmd
}

// checkStream keeps what is not meant for it off stdout: our JSON off a tar
// stream, and the stream off a terminal, which does what a guest has it do.
func (a *app) checkStream(to sandbox.Location) error {
	if to != (sandbox.Location{Path: "-"}) {
		return nil
	}
	if a.json {
		return api.Errorf(api.ErrValidationFlags, "Cannot use --json with a tar stream on stdout").WithFlag("--json")
	}
	if _, ok := terminalFD(a.stdout); ok {
		return api.Errorf(api.ErrUsage, "a tar stream is nothing for a terminal").WithHint("vmsan cp VM:PATH - | tar -t")
	}
	return nil
}

func (a *app) runCopies(ctx context.Context, copies []sandbox.CopyOptions) error {
	service, err := a.service()
	if err != nil {
		return err
	}
	var total api.Copied
	for _, o := range copies {
		if o.User != "" {
			if err := sandbox.CheckUser(o.User); err != nil {
				return err
			}
		}
		line := a.newCopyLine()
		o.Stdin, o.Stdout, o.Progress = a.stdin, a.stdout, line.show
		totals, err := service.Copy(ctx, o)
		line.clear()
		if err != nil {
			return err
		}
		total.Files += totals.Files
		total.Directories += totals.Directories
		total.Bytes += totals.Bytes
		total.Skipped += totals.Skipped
		total.Kept += totals.Kept
	}
	if total.Kept > 0 {
		a.say("%d files were there already.", total.Kept)
	}
	if total.Skipped > 0 {
		a.say("Left out %d devices, sockets or pipes.", total.Skipped)
	}
	if a.json {
		a.printJSON(total)
	}
	return nil
}

// copyLine shows on a terminal how a copy gets on.
type copyLine struct {
	app   *app
	begun time.Time
	last  time.Time
	shown bool
}

// newCopyLine is silent where nobody looks.
func (a *app) newCopyLine() *copyLine {
	l := &copyLine{begun: time.Now()}
	if _, ok := terminalFD(a.stderr); ok && !a.json && !a.quiet {
		l.app = a
	}
	return l
}

func (l *copyLine) show(t filetree.Totals) {
	if l.app == nil || time.Since(l.last) < redraw || time.Since(l.begun) < time.Second {
		return
	}
	l.last, l.shown = time.Now(), true
	rate := float64(t.Bytes) / time.Since(l.begun).Seconds()
	fmt.Fprintf(l.app.stderr, "\r\x1b[K%s in %d files, %s/s", bytesText(t.Bytes), t.Files, bytesText(int64(rate)))
}

func (l *copyLine) clear() {
	if l.shown {
		fmt.Fprint(l.app.stderr, "\r\x1b[K")
	}
}
