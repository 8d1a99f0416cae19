package cli

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"slices"
	"time"

	"github.com/spf13/cobra"
	"golang.org/x/term"

	"github.com/vmsan/vmsan/api"
	"github.com/vmsan/vmsan/internal/outfile"
	"github.com/vmsan/vmsan/internal/sandbox"
	"github.com/vmsan/vmsan/internal/snapshot"
	"github.com/vmsan/vmsan/internal/store"
)

func (a *app) snapshotCommand() *cobra.Command {
	cmd := &cobra.Command{
		Use:   "snapshot COMMAND",
		Short: "Save sandboxes with their memory, and keep what was saved",
		Args:  arguments(cobra.NoArgs),
		RunE:  func(cmd *cobra.Command, _ []string) error { return cmd.Help() },
	}
	cmd.AddCommand(a.snapshotCreateCommand(), a.snapshotListCommand(), a.snapshotInspectCommand(), a.snapshotRemoveCommand(),
		a.snapshotExportCommand(), a.snapshotImportCommand())
	return cmd
}

func (a *app) snapshotCreateCommand() *cobra.Command {
	var name string
	var stop bool
	cmd := &cobra.Command{
		Use:   "create VM",
		Short: "Save a sandbox: memory, commands and disk",
		Long: "create saves a sandbox while it runs, and prints the snapshot's id. create --snapshot, run --snapshot and restore\n" +
			"go on from it, as often as one likes.",
		Args:              arguments(cobra.ExactArgs(1)),
		ValidArgsFunction: a.completeVM,
		RunE: func(cmd *cobra.Command, args []string) error {
			if name == "" && cmd.Flags().Changed("name") {
				return api.Errorf(api.ErrValidationName, "Invalid --name: it is empty.").WithFlag("--name")
			}
			return a.runSnapshotCreate(cmd.Context(), args[0], name, stop)
		},
	}
	cmd.Flags().StringVar(&name, "name", "", "unique `NAME` of the snapshot")
	cmd.Flags().BoolVar(&stop, "stop", false, "end the sandbox as it was saved")
	return cmd
}

func (a *app) runSnapshotCreate(ctx context.Context, ref, name string, stop bool) error {
	service, err := a.service()
	if err != nil {
		return err
	}
	m, pause, err := service.CreateSnapshot(ctx, ref, name, stop)
	if err != nil {
		return err
	}
	if a.json {
		shown := m.Show()
		shown.PausedMS = milliseconds(pause)
		a.printJSON(shown)
		return nil
	}
	fmt.Fprintln(a.stdout, m.ID)
	if !stop {
		a.say("%s stood still for %.0f ms", m.SourceID, milliseconds(pause))
	}
	return nil
}

func (a *app) snapshotListCommand() *cobra.Command {
	return &cobra.Command{
		Use:     "list",
		Aliases: []string{"ls"},
		Short:   "List snapshots",
		Args:    arguments(cobra.NoArgs),
		RunE: func(*cobra.Command, []string) error {
			return a.listManifests((*sandbox.Service).Snapshots)
		},
	}
}

// listManifests prints snapshots or templates.
func (a *app) listManifests(list func(*sandbox.Service) ([]snapshot.Manifest, error)) error {
	service, err := a.service()
	if err != nil {
		return err
	}
	manifests, err := list(service)
	if err != nil {
		return err
	}
	shown := []api.Snapshot{}
	for _, m := range manifests {
		shown = append(shown, m.Show())
	}
	switch {
	case a.json:
		a.printJSON(shown)
	case a.quiet:
		for _, m := range shown {
			fmt.Fprintln(a.stdout, m.ID)
		}
	default:
		var rows [][]string
		for _, m := range shown {
			rows = append(rows, []string{m.ID, orDash(m.Name), orDash(m.SourceName), m.Image, fmt.Sprint(m.VCPUs),
				mebibytes(int64(m.MemoryMiB)), mebibytes(m.StoredBytes >> 20), ago(m.CreatedAt)})
		}
		table(a.stdout, "ID\tNAME\tSOURCE\tIMAGE\tVCPUS\tMEMORY\tSIZE\tCREATED", rows)
	}
	return nil
}

func (a *app) snapshotInspectCommand() *cobra.Command {
	var verify bool
	cmd := &cobra.Command{
		Use:               "inspect SNAPSHOT",
		Short:             "Print everything about a snapshot, as JSON",
		Args:              arguments(cobra.ExactArgs(1)),
		ValidArgsFunction: a.completeSnapshot,
		RunE: func(cmd *cobra.Command, args []string) error {
			service, err := a.service()
			if err != nil {
				return err
			}
			m, err := service.Snapshot(cmd.Context(), args[0], verify)
			if err != nil {
				return err
			}
			a.printJSON(m.Show())
			return nil
		},
	}
	cmd.Flags().BoolVar(&verify, "verify", false, "read all files and compare their digests")
	return cmd
}

func (a *app) snapshotRemoveCommand() *cobra.Command {
	return &cobra.Command{
		Use:               "remove SNAPSHOT...",
		Aliases:           []string{"rm", "delete"},
		Short:             "Remove snapshots",
		Args:              arguments(cobra.MinimumNArgs(1)),
		ValidArgsFunction: a.completeSnapshots,
		RunE: func(cmd *cobra.Command, args []string) error {
			return a.removeEach(cmd.Context(), args, (*sandbox.Service).DeleteSnapshot)
		},
	}
}

// removeEach removes snapshots, templates or volumes, one after the other.
func (a *app) removeEach(ctx context.Context, refs []string, remove func(*sandbox.Service, context.Context, string) (string, error)) error {
	service, err := a.service()
	if err != nil {
		return err
	}
	removed := api.Removed{IDs: []string{}}
	for _, ref := range refs {
		id, err := remove(service, ctx, ref)
		if err != nil {
			return err
		}
		removed.IDs = append(removed.IDs, id)
		if !a.json {
			fmt.Fprintln(a.stdout, id)
		}
	}
	if a.json {
		a.printJSON(removed)
	}
	return nil
}

func (a *app) snapshotExportCommand() *cobra.Command {
	return &cobra.Command{
		Use:               "export SNAPSHOT FILE",
		Short:             "Write a snapshot to one file, or to standard output with -",
		Args:              arguments(cobra.ExactArgs(2)),
		ValidArgsFunction: a.completeSnapshot,
		RunE: func(cmd *cobra.Command, args []string) error {
			return a.runSnapshotExport(cmd.Context(), args[0], args[1])
		},
	}
}

func (a *app) runSnapshotExport(ctx context.Context, ref, path string) error {
	service, err := a.service()
	if err != nil {
		return err
	}
	if path == "-" {
		if file, ok := a.stdout.(*os.File); ok && term.IsTerminal(int(file.Fd())) || a.json {
			return api.Errorf(api.ErrUsage, "an archive cannot be printed here").WithHint("vmsan snapshot export %s FILE", ref)
		}
		_, err := service.ExportSnapshot(ctx, ref, a.stdout)
		return err
	}
	file, err := outfile.Create(path, 0o600)
	if err != nil {
		return err
	}
	defer file.Cleanup()
	id, err := service.ExportSnapshot(ctx, ref, file)
	if err == nil {
		err = file.Commit()
	}
	if err != nil {
		return fmt.Errorf("write archive %s: %w", path, err)
	}
	if a.json {
		a.printJSON(api.Archive{Snapshot: id, Path: path})
	}
	return nil
}

func (a *app) snapshotImportCommand() *cobra.Command {
	var name string
	cmd := &cobra.Command{
		Use:   "import FILE",
		Short: "Make a snapshot of an archive, or of standard input with -",
		Args:  arguments(cobra.ExactArgs(1)),
		RunE: func(cmd *cobra.Command, args []string) error {
			return a.runSnapshotImport(cmd.Context(), args[0], name)
		},
	}
	cmd.Flags().StringVar(&name, "name", "", "unique `NAME` of the snapshot (default: the archive's)")
	return cmd
}

func (a *app) runSnapshotImport(ctx context.Context, path, name string) error {
	service, err := a.service()
	if err != nil {
		return err
	}
	archive := a.stdin
	if path != "-" {
		file, err := os.Open(path)
		if errors.Is(err, os.ErrNotExist) {
			return api.Errorf(api.ErrValidationPath, "read archive: %w", err)
		}
		if err != nil {
			return fmt.Errorf("read archive: %w", err)
		}
		defer file.Close()
		archive = io.Reader(file)
	}
	m, err := service.ImportSnapshot(ctx, archive, name)
	if err != nil {
		return err
	}
	a.printManifest(m)
	return nil
}

// printManifest prints what was made: a snapshot or a template.
func (a *app) printManifest(m snapshot.Manifest) {
	if a.json {
		a.printJSON(m.Show())
		return
	}
	fmt.Fprintln(a.stdout, m.ID)
}

// completeSnapshots completes arguments that name snapshots.
func (a *app) completeSnapshots(cmd *cobra.Command, args []string, _ string) ([]string, cobra.ShellCompDirective) {
	return a.completeManifests(cmd, args, (*sandbox.Service).Snapshots)
}

// completeManifests completes snapshots or templates. It makes nothing, as a
// key press must not.
func (a *app) completeManifests(cmd *cobra.Command, args []string, list func(*sandbox.Service) ([]snapshot.Manifest, error)) (
	[]string, cobra.ShellCompDirective) {
	layout, err := a.layout(cmd)
	if err != nil {
		return nil, cobra.ShellCompDirectiveError
	}
	manifests, err := list(sandbox.At(layout, a.log))
	if err != nil {
		return nil, cobra.ShellCompDirectiveError
	}
	var words []string
	for _, m := range manifests {
		for _, word := range []string{m.Name, m.ID} {
			if word != "" && !slices.Contains(args, word) {
				words = append(words, word+"\t"+ago(m.CreatedAt))
			}
		}
	}
	return words, cobra.ShellCompDirectiveNoFileComp
}

func (a *app) completeVMThenSnapshot(cmd *cobra.Command, args []string, toComplete string) ([]string, cobra.ShellCompDirective) {
	if len(args) == 0 {
		return a.completeVM(cmd, args, toComplete)
	}
	return a.completeSnapshot(cmd, args[1:], toComplete)
}

// completeSnapshot completes a first argument that names a snapshot.
func (a *app) completeSnapshot(cmd *cobra.Command, args []string, toComplete string) ([]string, cobra.ShellCompDirective) {
	if len(args) > 0 {
		return nil, cobra.ShellCompDirectiveDefault
	}
	return a.completeSnapshots(cmd, args, toComplete)
}

func showForks(records []*store.Record, pause time.Duration) api.Forks {
	forks := api.Forks{PausedMS: milliseconds(pause)}
	for _, r := range records {
		forks.VMs = append(forks.VMs, r.Show())
	}
	return forks
}

func milliseconds(d time.Duration) float64 { return float64(d.Microseconds()) / 1000 }
