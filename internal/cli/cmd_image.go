package cli

import (
	"fmt"
	"strings"

	"github.com/spf13/cobra"

	"github.com/vmsan/vmsan/api"
)

func (a *app) imageCommand() *cobra.Command {
	cmd := &cobra.Command{
		Use:   "image COMMAND",
		Short: "Get, list and remove what sandboxes start from",
		Long: "Images are root file systems with a word on how to run them. They have names, such as team/python:3.12, and a\n" +
			"digest, which sha256: and its first digits stand for.",
		Args: arguments(cobra.NoArgs),
		RunE: func(cmd *cobra.Command, _ []string) error { return cmd.Help() },
	}
	cmd.AddCommand(a.imagePullCommand(), a.imageImportCommand(), a.imageBuildDebianCommand(), a.imageCommitCommand(), a.imageListCommand(),
		a.imageInspectCommand(), a.imageTagCommand(), a.imageRemoveCommand(), a.imagePruneCommand(), a.imageExportCommand())
	return cmd
}

func (a *app) imageListCommand() *cobra.Command {
	return &cobra.Command{
		Use:     "list",
		Aliases: []string{"ls"},
		Short:   "List images",
		Long:    "list prints the images, the newest first. With --quiet it prints their digests alone.",
		Args:    arguments(cobra.NoArgs),
		RunE:    func(*cobra.Command, []string) error { return a.runImageList() },
	}
}

func (a *app) runImageList() error {
	service, err := a.service()
	if err != nil {
		return err
	}
	images, err := service.Images()
	if err != nil {
		return err
	}
	names, err := service.ImageNames()
	if err != nil {
		return err
	}
	shown := []api.Image{}
	for _, img := range images {
		shown = append(shown, img.Show(names))
	}
	switch {
	case a.json:
		a.printJSON(shown)
	case a.quiet:
		for _, img := range shown {
			fmt.Fprintln(a.stdout, "sha256:"+img.Digest)
		}
	default:
		var rows [][]string
		for _, img := range shown {
			rows = append(rows, []string{orDash(strings.Join(img.Names, ",")), "sha256:" + img.Digest[:12],
				mebibytes(img.SizeBytes >> 20), ago(img.CreatedAt), printable(img.Source)})
		}
		table(a.stdout, "NAME\tDIGEST\tSIZE\tCREATED\tSOURCE", rows)
	}
	return nil
}

func (a *app) imageInspectCommand() *cobra.Command {
	return &cobra.Command{
		Use:               "inspect IMAGE",
		Short:             "Print everything about an image, as JSON",
		Args:              arguments(cobra.ExactArgs(1)),
		ValidArgsFunction: a.completeImage,
		RunE: func(_ *cobra.Command, args []string) error {
			service, err := a.service()
			if err != nil {
				return err
			}
			img, err := service.Image(args[0])
			if err != nil {
				return err
			}
			names, err := service.ImageNames()
			if err != nil {
				return err
			}
			a.printJSON(img.Show(names))
			return nil
		},
	}
}

func (a *app) imageTagCommand() *cobra.Command {
	return &cobra.Command{
		Use:               "tag IMAGE NAME",
		Short:             "Give an image another name, taken from the image that has it",
		Args:              arguments(cobra.ExactArgs(2)),
		ValidArgsFunction: a.completeImage,
		RunE: func(cmd *cobra.Command, args []string) error {
			service, err := a.service()
			if err != nil {
				return err
			}
			img, err := service.TagImage(cmd.Context(), args[0], args[1])
			if err != nil {
				return err
			}
			if !a.json {
				return nil
			}
			names, err := service.ImageNames()
			if err != nil {
				return err
			}
			a.printJSON(img.Show(names))
			return nil
		},
	}
}
