package cli

import (
	"context"
	"fmt"
	"path/filepath"
	"strings"

	"github.com/spf13/cobra"

	"github.com/vmsan/vmsan/internal/image"
	"github.com/vmsan/vmsan/internal/sandbox"
)

func (a *app) imageImportCommand() *cobra.Command {
	var o image.ImportOptions
	cmd := &cobra.Command{
		Use:   "import FILE|DIR|- [NAME]",
		Short: "Make an image of an archive or a directory",
		Long: "import makes an image and prints its digest. It takes an OCI image layout, as a directory or an archive; what\n" +
			"\"docker save\" writes; a root file system in a tar archive, or in an unmounted ext4. Archives may be compressed\n" +
			"with gzip, zstd or xz; - is standard input.",
		Example: "  vmsan image import rootfs.tar.zst team/base:1\n  docker save app | vmsan image import - app",
		Args:    arguments(cobra.RangeArgs(1, 2)),
		RunE: func(cmd *cobra.Command, args []string) error {
			if len(args) > 1 {
				o.Name = args[1]
			}
			return a.runImageImport(cmd.Context(), args[0], o)
		},
	}
	cmd.Flags().StringVar(&o.Ref, "ref", "", "which of several images, by its `NAME` there")
	return cmd
}

func (a *app) runImageImport(ctx context.Context, path string, o image.ImportOptions) error {
	if o.Name != "" {
		if _, err := image.ParseName(o.Name); err != nil {
			return err // before anything long is begun
		}
	}
	o.Source = sourceOf(path)
	bars := a.newPullBars()
	o.Progress = bars.importProgress()
	return a.makeImage(func(s *sandbox.Service) (image.Image, error) {
		defer bars.clear()
		return s.ImportImage(ctx, path, a.stdin, o)
	})
}

// sourceOf tells in words where an image came from.
func sourceOf(path string) string {
	if path == "-" {
		return "standard input"
	}
	return filepath.Base(path)
}

// makeImage has an image made, and prints its digest.
func (a *app) makeImage(bring func(*sandbox.Service) (image.Image, error)) error {
	service, err := a.service()
	if err != nil {
		return err
	}
	img, err := bring(service)
	if err != nil {
		return err
	}
	if !a.json {
		fmt.Fprintln(a.stdout, "sha256:"+img.Digest)
		return nil
	}
	names, err := service.ImageNames()
	if err != nil {
		return err
	}
	a.printJSON(img.Show(names))
	return nil
}

func (a *app) imageBuildDebianCommand() *cobra.Command {
	var o image.DebianOptions
	var include string
	cmd := &cobra.Command{
		Use:     "build-debian [NAME]",
		Short:   "Make an image of Debian packages, with mmdebstrap",
		Long:    "build-debian makes an image of Debian's minimal system and more packages, and prints its digest. It takes a minute.",
		Example: "  vmsan image build-debian --suite bookworm --include python3,git py",
		Args:    arguments(cobra.MaximumNArgs(1)),
		RunE: func(cmd *cobra.Command, args []string) error {
			if len(args) > 0 {
				o.Name = args[0]
			}
			if include != "" {
				o.Include = strings.Split(include, ",")
			}
			o.Progress = func(line string) { a.say("%s", printable(line)) }
			return a.makeImage(func(s *sandbox.Service) (image.Image, error) { return s.BuildDebianImage(cmd.Context(), o) })
		},
	}
	cmd.Flags().StringVar(&o.Suite, "suite", "", "`RELEASE`, such as bookworm (default: the host's, if that is Debian)")
	cmd.Flags().StringVar(&include, "include", "", "`PACKAGES` beside the minimal base, with commas between (default: those of the default image)")
	cmd.Flags().StringVar(&o.Mirror, "mirror", "", "`URL` of a mirror, or a line as in apt's sources.list")
	return cmd
}
