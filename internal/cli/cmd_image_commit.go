package cli

import (
	"context"
	"time"

	"github.com/spf13/cobra"

	"github.com/vmsan/vmsan/internal/image"
	"github.com/vmsan/vmsan/internal/sandbox"
)

func (a *app) imageCommitCommand() *cobra.Command {
	var o sandbox.CommitOptions
	cmd := &cobra.Command{
		Use:   "commit VM NAME",
		Short: "Make an image of a sandbox's files",
		Long: "commit makes an image of a sandbox's image and of what the sandbox has written, and prints its digest. A sandbox that\n" +
			"runs goes on; its commands hold still while its disk is copied. Its memory is not in the image: for that there are\n" +
			"snapshots. The image is run as the sandbox's image is, unless --change says otherwise in the words of a Dockerfile:\n" +
			"CMD, ENTRYPOINT, ENV, EXPOSE, LABEL, STOPSIGNAL, USER and WORKDIR.",
		Example:           `  vmsan image commit web-1 team/web:2 --change 'ENV MODE=production' --change 'CMD ["server", "--verbose"]'`,
		Args:              arguments(cobra.ExactArgs(2)),
		ValidArgsFunction: a.completeVM,
		RunE: func(cmd *cobra.Command, args []string) error {
			o.Name = args[1]
			return a.runImageCommit(cmd.Context(), args[0], o)
		},
	}
	cmd.Flags().StringArrayVar(&o.Changes, "change", nil, "`INSTRUCTION` that changes how the image is run; may be given several times")
	cmd.Flags().StringVar(&o.Message, "message", "", "`TEXT` that tells what the image is")
	return cmd
}

func (a *app) runImageCommit(ctx context.Context, ref string, o sandbox.CommitOptions) error {
	var pause time.Duration
	err := a.makeImage(func(s *sandbox.Service) (img image.Image, err error) {
		img, pause, err = s.CommitImage(ctx, ref, o)
		return img, err
	})
	if err == nil && pause > 0 {
		a.say("%s stood still for %.0f ms", ref, milliseconds(pause))
	}
	return err
}
