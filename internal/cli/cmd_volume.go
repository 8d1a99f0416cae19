package cli

import (
	"context"
	"fmt"
	"slices"
	"strings"

	"github.com/spf13/cobra"

	"github.com/vmsan/vmsan/api"
	"github.com/vmsan/vmsan/internal/sandbox"
	"github.com/vmsan/vmsan/internal/store"
	"github.com/vmsan/vmsan/internal/volume"
)

func (a *app) volumeCommand() *cobra.Command {
	cmd := &cobra.Command{
		Use:   "volume COMMAND",
		Short: "Make, list and remove disks that outlive sandboxes",
		Long: "Volumes are named disks. create --volume NAME:/PATH and run --volume mount them in a sandbox, and make those that are\n" +
			"not there. One sandbox writes to a volume, or any number read it (:ro).",
		Args: arguments(cobra.NoArgs),
		RunE: func(cmd *cobra.Command, _ []string) error { return cmd.Help() },
	}
	cmd.AddCommand(a.volumeCreateCommand(),
		&cobra.Command{
			Use: "list", Aliases: []string{"ls"}, Short: "List volumes", Args: arguments(cobra.NoArgs),
			Long: "list prints the volumes, by their names. With --quiet it prints the names alone.",
			RunE: func(*cobra.Command, []string) error { return a.runVolumeList() },
		},
		&cobra.Command{
			Use: "inspect VOLUME", Short: "Print everything about a volume, as JSON", Args: arguments(cobra.ExactArgs(1)),
			ValidArgsFunction: a.completeVolume,
			RunE:              func(_ *cobra.Command, args []string) error { return a.runVolumeInspect(args[0]) },
		},
		&cobra.Command{
			Use: "remove VOLUME...", Aliases: []string{"rm"}, Short: "Remove volumes, with all that is in them",
			Long:              "remove removes volumes that no sandbox was made with.",
			Args:              arguments(cobra.MinimumNArgs(1)),
			ValidArgsFunction: a.completeVolumes,
			RunE: func(cmd *cobra.Command, args []string) error {
				return a.removeEach(cmd.Context(), args, (*sandbox.Service).RemoveVolume)
			},
		},
	)
	return cmd
}

func (a *app) volumeCreateCommand() *cobra.Command {
	var size string
	cmd := &cobra.Command{
		Use:     "create NAME",
		Short:   "Make an empty volume",
		Example: "  vmsan volume create models --size 50g",
		Args:    arguments(cobra.ExactArgs(1)),
		RunE:    func(cmd *cobra.Command, args []string) error { return a.runVolumeCreate(cmd.Context(), args[0], size) },
	}
	cmd.Flags().StringVar(&size, "size", "10g", "a `SIZE` like 512m or 20g, or GiB; it takes space as it fills")
	return cmd
}

func (a *app) runVolumeCreate(ctx context.Context, name, size string) error {
	bytes, err := sandbox.ParseDisk("--size", size)
	if err != nil {
		return err
	}
	service, err := a.service()
	if err != nil {
		return err
	}
	v, err := service.CreateVolume(ctx, name, bytes)
	if err != nil {
		return err
	}
	if a.json {
		a.printJSON(showVolume(v, nil))
		return nil
	}
	fmt.Fprintln(a.stdout, v.Name)
	return nil
}

func showVolume(v volume.Volume, users []*store.Record) api.Volume {
	shown := api.Volume{Name: v.Name, CreatedAt: v.CreatedAt, SizeBytes: v.Size, UsedBytes: v.Used}
	for _, r := range users {
		m, _ := r.Spec.Mount(v.Name)
		shown.VMs = append(shown.VMs, api.VolumeUser{VM: r.ID, Path: m.Path, ReadOnly: m.ReadOnly})
	}
	return shown
}

func (a *app) runVolumeList() error {
	service, err := a.service()
	if err != nil {
		return err
	}
	volumes, err := service.Volumes()
	if err != nil {
		return err
	}
	users, err := service.VolumeUsers()
	if err != nil {
		return err
	}
	shown := []api.Volume{}
	for _, v := range volumes {
		shown = append(shown, showVolume(v, users[v.Name]))
	}
	switch {
	case a.json:
		a.printJSON(shown)
	case a.quiet:
		for _, v := range shown {
			fmt.Fprintln(a.stdout, v.Name)
		}
	default:
		a.printVolumes(shown)
	}
	return nil
}

func (a *app) printVolumes(volumes []api.Volume) {
	var rows [][]string
	for _, v := range volumes {
		var vms []string
		for _, user := range v.VMs {
			vms = append(vms, user.VM)
		}
		rows = append(rows, []string{v.Name, mebibytes(v.SizeBytes >> 20), bytesText(v.UsedBytes), ago(v.CreatedAt), orDash(strings.Join(vms, ","))})
	}
	table(a.stdout, "NAME\tSIZE\tUSED\tCREATED\tVMS", rows)
}

func (a *app) runVolumeInspect(name string) error {
	service, err := a.service()
	if err != nil {
		return err
	}
	v, err := service.Volume(name)
	if err != nil {
		return err
	}
	users, err := service.VolumeUsers()
	if err != nil {
		return err
	}
	a.printJSON(showVolume(v, users[name]))
	return nil
}

func (a *app) completeVolumes(cmd *cobra.Command, args []string, _ string) ([]string, cobra.ShellCompDirective) {
	layout, err := a.layout(cmd)
	if err != nil {
		return nil, cobra.ShellCompDirectiveError
	}
	volumes, _, err := volume.Store{Layout: layout}.List()
	if err != nil {
		return nil, cobra.ShellCompDirectiveError
	}
	var names []string
	for _, v := range volumes {
		if !slices.Contains(args, v.Name) {
			names = append(names, v.Name)
		}
	}
	return names, cobra.ShellCompDirectiveNoFileComp
}

// completeVolume completes a first argument that names a volume.
func (a *app) completeVolume(cmd *cobra.Command, args []string, toComplete string) ([]string, cobra.ShellCompDirective) {
	if len(args) > 0 {
		return nil, cobra.ShellCompDirectiveNoFileComp
	}
	return a.completeVolumes(cmd, args, toComplete)
}

// completeMount completes the volume of --volume; where it is to be in the guest
// nobody knows.
func (a *app) completeMount(cmd *cobra.Command, _ []string, toComplete string) ([]string, cobra.ShellCompDirective) {
	if strings.Contains(toComplete, ":") {
		return nil, cobra.ShellCompDirectiveNoFileComp
	}
	names, directive := a.completeVolumes(cmd, nil, toComplete)
	for i := range names {
		names[i] += ":/"
	}
	return names, directive | cobra.ShellCompDirectiveNoSpace
}
