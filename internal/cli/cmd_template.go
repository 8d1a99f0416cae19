package cli

import (
	"context"

	"github.com/spf13/cobra"

	"github.com/vmsan/vmsan/api"
	"github.com/vmsan/vmsan/internal/sandbox"
)

func (a *app) templateCommand() *cobra.Command {
	cmd := &cobra.Command{
		Use:   "template COMMAND",
		Short: "Look after what new sandboxes start from",
		Long: "Templates are saved machines that have just booted, made by vmsan itself beside the first sandbox of a kind: others of\n" +
			"that kind start from it in a fraction of the time. They can be removed at any time. VMSAN_TEMPLATES=off keeps\n" +
			"vmsan from making any.",
		Args: arguments(cobra.NoArgs),
		RunE: func(cmd *cobra.Command, _ []string) error { return cmd.Help() },
	}
	cmd.AddCommand(
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
