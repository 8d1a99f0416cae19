package cli

import (
	"context"
	"fmt"

	"github.com/spf13/cobra"

	"github.com/vmsan/vmsan/api"
)

func (a *app) imageRemoveCommand() *cobra.Command {
	return &cobra.Command{
		Use:     "remove IMAGE...",
		Aliases: []string{"rm"},
		Short:   "Remove images, or names of images",
		Long: "remove takes a name off its image. An image without a name, or named by its digest, is removed, with its templates,\n" +
			"unless a sandbox or a snapshot was made of it.",
		Args:              arguments(cobra.MinimumNArgs(1)),
		ValidArgsFunction: a.completeImages,
		RunE:              func(cmd *cobra.Command, args []string) error { return a.runImageRemove(cmd.Context(), args) },
	}
}

func (a *app) runImageRemove(ctx context.Context, refs []string) error {
	service, err := a.service()
	if err != nil {
		return err
	}
	shown := []api.ImageRemoved{}
	for _, ref := range refs {
		removed, err := service.RemoveImage(ctx, ref)
		if err != nil {
			return err
		}
		shown = append(shown, api.ImageRemoved(removed))
		for _, name := range removed.Names {
			a.say("took the name %s off", name)
		}
		if removed.Digest != "" && !a.json {
			fmt.Fprintln(a.stdout, "sha256:"+removed.Digest)
		}
	}
	if a.json {
		a.printJSON(shown)
	}
	return nil
}

func (a *app) imagePruneCommand() *cobra.Command {
	var all bool
	cmd := &cobra.Command{
		Use:   "prune",
		Short: "Remove images that have no name and that nothing uses, and layers that pulls have kept",
		Args:  arguments(cobra.NoArgs),
		RunE:  func(cmd *cobra.Command, _ []string) error { return a.runImagePrune(cmd.Context(), all) },
	}
	cmd.Flags().BoolVar(&all, "all", false, "also those with names, but for the default image")
	return cmd
}

func (a *app) runImagePrune(ctx context.Context, all bool) error {
	service, err := a.service()
	if err != nil {
		return err
	}
	names, err := service.ImageNames()
	if err != nil {
		return err
	}
	removed, err := service.PruneImages(ctx, all)
	shown := []api.Image{}
	for _, img := range removed {
		shown = append(shown, img.Show(names))
		if !a.json {
			fmt.Fprintln(a.stdout, "sha256:"+img.Digest)
		}
	}
	if err != nil {
		return err
	}
	layers, bytes, err := service.PrunePulled()
	if layers > 0 {
		a.say("removed %d layers that pulls have kept, %s", layers, bytesText(bytes))
	}
	if a.json && err == nil {
		a.printJSON(shown)
	}
	return err
}
