package cli

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"strings"

	"github.com/spf13/cobra"

	"github.com/vmsan/vmsan/api"
	"github.com/vmsan/vmsan/internal/registry"
	"github.com/vmsan/vmsan/internal/sandbox"
)

func (a *app) imagePullCommand() *cobra.Command {
	return &cobra.Command{
		Use:   "pull REFERENCE",
		Short: "Get an image from its registry",
		Long: "pull gets an image from a registry and prints its digest. A reference is [HOST[:PORT]/]REPOSITORY[:TAG][@DIGEST].\n" +
			"Credentials are those of the docker configuration, with its helpers. Mirrors, certificates, and registries\n" +
			"without TLS are named in registries.json in the state directory. With --json it prints a line of JSON for\n" +
			"everything that happens, the last of which has the image.",
		Example: "  vmsan image pull registry.example/team/app:1.2",
		Args:    arguments(cobra.ExactArgs(1)),
		RunE:    func(cmd *cobra.Command, args []string) error { return a.runImagePull(cmd.Context(), args[0]) },
	}
}

func (a *app) runImagePull(ctx context.Context, reference string) error {
	service, err := a.service()
	if err != nil {
		return err
	}
	bars := a.newPullBars()
	watch := bars.watch()
	if a.json {
		watch = a.pullEvents()
	}
	img, err := service.PullImage(ctx, reference, watch)
	bars.clear()
	if err != nil {
		return err
	}
	if a.json {
		ref, err := registry.ParseReference(reference)
		a.printEvent(api.PullEvent{Event: "pulled", Name: ref.Name(), Digest: img.Digest})
		return err
	}
	fmt.Fprintln(a.stdout, "sha256:"+img.Digest)
	return nil
}

// pullEvents prints what happens as lines of JSON.
func (a *app) pullEvents() sandbox.PullWatch {
	var last registry.Progress
	return sandbox.PullWatch{
		Resolved: func(img *registry.Image) {
			a.printEvent(api.PullEvent{Event: "resolved", Name: img.Reference.Name(), Manifest: img.Digest, Layers: len(img.Layers)})
		},
		Layer: func(p registry.Progress) {
			// A line for each step in a hundredth is enough.
			if p.Layer == last.Layer && p.State == last.State && p.Have-last.Have < p.Size/100 {
				return
			}
			last = p
			a.printEvent(api.PullEvent{
				Event: "layer", Layer: p.Layer + 1, Digest: p.Digest, State: string(p.State), Bytes: p.Have, Size: p.Size,
			})
		},
	}
}

// printEvent prints one line. That stdout is closed cannot be told to anybody.
func (a *app) printEvent(e api.PullEvent) {
	json.NewEncoder(a.stdout).Encode(e)
}

// bringImage has the image of a new sandbox here, importing or pulling it if
// need be.
func (a *app) bringImage(ctx context.Context, service *sandbox.Service, f *createFlags) error {
	switch {
	case f.options.Snapshot != "":
		return nil
	case f.rootfs != "":
		return a.importRootfs(ctx, service, f)
	}
	if f.runtime != "" {
		var err error
		if f.options.Image, err = service.RuntimeImage(f.runtime); err != nil {
			return err
		}
	}
	bars := a.newPullBars()
	name, err := service.BringImage(ctx, f.options.Image, sandbox.PullPolicy(f.pull), bars.watch())
	bars.clear()
	if err != nil {
		return f.hint(err)
	}
	f.options.Image = name
	return nil
}

// hint is for an image that cannot be had, where a command may have been meant.
func (f *createFlags) hint(err error) error {
	failure := api.AsError(err)
	if len(f.meant) == 0 || failure.Hint != "" || errors.Is(err, context.Canceled) {
		return err
	}
	return failure.WithHint("vmsan run -- %s, if that is the command", strings.Join(f.meant, " "))
}

func (a *app) completeRuntime(cmd *cobra.Command, _ []string, _ string) ([]string, cobra.ShellCompDirective) {
	layout, err := a.layout(cmd)
	if err != nil {
		return nil, cobra.ShellCompDirectiveError
	}
	names, err := sandbox.RuntimeNames(layout)
	if err != nil {
		return nil, cobra.ShellCompDirectiveError
	}
	return names, cobra.ShellCompDirectiveNoFileComp
}
