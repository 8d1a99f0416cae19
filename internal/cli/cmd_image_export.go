package cli

import (
	"context"
	"fmt"
	"os"

	"github.com/spf13/cobra"
	"golang.org/x/term"

	"github.com/vmsan/vmsan/api"
	"github.com/vmsan/vmsan/internal/outfile"
)

func (a *app) imageExportCommand() *cobra.Command {
	return &cobra.Command{
		Use:               "export IMAGE FILE",
		Short:             "Write an image to one file, or to standard output with -",
		Long:              "export writes an OCI image layout as a tar archive. The image has one layer in it, whatever it was made of.",
		Args:              arguments(cobra.ExactArgs(2)),
		ValidArgsFunction: a.completeImage,
		RunE: func(cmd *cobra.Command, args []string) error {
			return a.runImageExport(cmd.Context(), args[0], args[1])
		},
	}
}

func (a *app) runImageExport(ctx context.Context, ref, path string) error {
	service, err := a.service()
	if err != nil {
		return err
	}
	if path == "-" {
		if file, ok := a.stdout.(*os.File); ok && term.IsTerminal(int(file.Fd())) || a.json {
			return api.Errorf(api.ErrUsage, "an archive cannot be printed here").WithHint("vmsan image export %s FILE", ref)
		}
		_, err := service.ExportImage(ctx, ref, a.stdout)
		return err
	}
	file, err := outfile.Create(path, 0o644)
	if err != nil {
		return err
	}
	defer file.Cleanup()
	img, err := service.ExportImage(ctx, ref, file)
	if err == nil {
		err = file.Commit()
	}
	if err != nil {
		return fmt.Errorf("write archive %s: %w", path, err)
	}
	if a.json {
		a.printJSON(api.ImageArchive{Digest: img.Digest, Path: path})
	}
	return nil
}
