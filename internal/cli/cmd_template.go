package cli

import (
	"context"
	"time"

	"github.com/spf13/cobra"

	"github.com/vmsan/vmsan/api"
	"github.com/vmsan/vmsan/internal/sandbox"
)

func (a *app) templateCommand() *cobra.Command {
	cmd := &cobra.Command{
		Use:   "template COMMAND",
		Short: "Look after what new sandboxes start from",
		Long: "Templates are saved machines that have just booted, made by vmsan itself beside the first sandbox of a kind, or by\n" +
			"create: others of that kind start from it in a fraction of the time. They can be removed at any time.\n" +
			"VMSAN_TEMPLATES=off keeps vmsan from making any beside a sandbox.",
		Args: arguments(cobra.NoArgs),
		RunE: func(cmd *cobra.Command, _ []string) error { return cmd.Help() },
	}
	cmd.AddCommand(
		a.templateCreateCommand(),
		&cobra.Command{
			Use: "list", Aliases: []string{"ls"}, Short: "List templates", Args: arguments(cobra.NoArgs),
			RunE: func(*cobra.Command, []string) error { return a.listManifests((*sandbox.Service).Templates) },
		},
		&cobra.Command{
			Use: "remove TEMPLATE...", Aliases: []string{"rm"}, Short: "Remove templates", Args: arguments(cobra.MinimumNArgs(1)),
			ValidArgsFunction: func(cmd *cobra.Command, args []string, _ string) ([]string, cobra.ShellCompDirective) {
				return a.completeManifests(cmd, args, (*sandbox.Service).Templates)
			},
			RunE: func(cmd *cobra.Command, args []string) error {
				return a.removeEach(cmd.Context(), args, (*sandbox.Service).DeleteTemplate)
			},
		},
		a.templatePruneCommand(),
	)
	return cmd
}

func (a *app) templateCreateCommand() *cobra.Command {
	var f createFlags
	cmd := &cobra.Command{
		Use:     "create [flags]",
		Short:   "Make a template before there is a sandbox",
		Example: "  vmsan template create --image node:22 --memory 512m",
		Long: "create makes the template that sandboxes of the same image, size, network and driver start from, unless it is\n" +
			"there, and prints its id. So the first of them need not boot either.",
		Args: arguments(cobra.NoArgs),
		RunE: func(cmd *cobra.Command, _ []string) error {
			if err := f.complete(cmd); err != nil {
				return err
			}
			return a.runTemplateCreate(cmd.Context(), f)
		},
	}
	f.registerKind(a, cmd)
	markSandboxFlags(cmd)
	return cmd
}

func (a *app) runTemplateCreate(ctx context.Context, f createFlags) error {
	service, err := a.readyFor(ctx, &f)
	if err != nil {
		return err
	}
	began := time.Now()
	m, made, err := service.CreateTemplate(ctx, f.options)
	if err != nil {
		return err
	}
	a.printManifest(m)
	if made {
		a.say("made in %.1f s", time.Since(began).Seconds())
	} else {
		a.say("it was there already")
	}
	return nil
}

func (a *app) templatePruneCommand() *cobra.Command {
	var age, size string
	cmd := &cobra.Command{
		Use:   "prune",
		Short: "Remove templates that are old, of no use here, or too many",
		Args:  arguments(cobra.NoArgs),
		RunE:  func(cmd *cobra.Command, _ []string) error { return a.runTemplatePrune(cmd.Context(), age, size) },
	}
	cmd.Flags().StringVar(&age, "age", "30d", "remove what was not used for this `TIME`")
	cmd.Flags().StringVar(&size, "size", "20g", "keep no more than this `SIZE` in all")
	return cmd
}

func (a *app) runTemplatePrune(ctx context.Context, age, size string) error {
	longest, err := sandbox.ParseDuration("--age", age)
	if err != nil {
		return err
	}
	largest, err := sandbox.ParseTotal("--size", size)
	if err != nil {
		return err
	}
	service, err := a.service()
	if err != nil {
		return err
	}
	removed, err := service.PruneTemplates(ctx, longest, largest)
	if err != nil {
		return err
	}
	shown := []api.Snapshot{}
	for _, m := range removed {
		shown = append(shown, m.Show())
		a.say("removed %s", m.ID)
	}
	if a.json {
		a.printJSON(shown)
	}
	return nil
}
