package cli

import (
	"context"
	"fmt"

	"github.com/spf13/cobra"

	"github.com/vmsan/vmsan/api"
	"github.com/vmsan/vmsan/internal/sandbox"
	"github.com/vmsan/vmsan/internal/usage"
)

func (a *app) dfCommand() *cobra.Command {
	return &cobra.Command{
		Use:   "df",
		Short: "Print what vmsan takes on the host's disk",
		Long: "df prints what images, snapshots, sandboxes and all else take on the host's disk, what of that they share with others,\n" +
			"and what could be removed without loss: images that nothing uses (image prune --all), templates (template rm) and\n" +
			"layers of images (image prune). With --verbose it prints each of them. The total has what is shared once.",
		Args: arguments(cobra.NoArgs),
		RunE: func(cmd *cobra.Command, _ []string) error { return a.runDF(cmd.Context()) },
	}
}

func (a *app) runDF(ctx context.Context) error {
	service, err := a.service()
	if err != nil {
		return err
	}
	d, err := service.DiskUsage(ctx)
	if err != nil {
		return err
	}
	shown := showUsage(d)
	if a.json {
		a.printJSON(shown)
		return nil
	}
	a.printUsage(shown)
	return nil
}

func showUsage(d sandbox.DiskUsage) api.DiskUsage {
	shown := api.DiskUsage{UsedBytes: d.Used, FreeBytes: d.Free, CapacityBytes: d.Capacity}
	for _, k := range d.Kinds {
		sum, reclaimable := k.Sum()
		kind := api.DiskUsageKind{Kind: k.Kind, DiskUse: showUse(sum), ReclaimableBytes: reclaimable, Items: []api.DiskUsageItem{}}
		for _, item := range k.Items {
			kind.Items = append(kind.Items, api.DiskUsageItem{
				ID: item.ID, Name: item.Name, DiskUse: showUse(item.Use), Reclaimable: item.Reclaimable,
			})
		}
		shown.Kinds = append(shown.Kinds, kind)
		shown.ReclaimableBytes += reclaimable
	}
	return shown
}

func showUse(u usage.Use) api.DiskUse {
	return api.DiskUse{ApparentBytes: u.Apparent, UsedBytes: u.Used, SharedBytes: u.Shared, UniqueBytes: u.Unique()}
}

func (a *app) printUsage(d api.DiskUsage) {
	var rows [][]string
	for _, k := range d.Kinds {
		rows = append(rows, append([]string{k.Kind, fmt.Sprint(len(k.Items))}, append(useTexts(k.DiskUse), bytesText(k.ReclaimableBytes))...))
	}
	rows = append(rows, []string{"total", "", "", bytesText(d.UsedBytes), "", "", bytesText(d.ReclaimableBytes)})
	table(a.stdout, "KIND\tCOUNT\tSIZE\tUSED\tSHARED\tUNIQUE\tRECLAIMABLE", rows)
	if a.verbose {
		a.printUsageItems(d)
	}
	a.say("%s of %s are free on the host's disk.", bytesText(d.FreeBytes), bytesText(d.CapacityBytes))
}

func (a *app) printUsageItems(d api.DiskUsage) {
	var rows [][]string
	for _, k := range d.Kinds {
		for _, item := range k.Items {
			row := append([]string{k.Kind, printable(item.ID[:min(len(item.ID), 32)]), orDash(printable(item.Name))}, useTexts(item.DiskUse)...)
			rows = append(rows, append(row, map[bool]string{true: "yes", false: "-"}[item.Reclaimable]))
		}
	}
	fmt.Fprintln(a.stdout)
	table(a.stdout, "KIND\tID\tNAME\tSIZE\tUSED\tSHARED\tUNIQUE\tRECLAIMABLE", rows)
}

func useTexts(u api.DiskUse) []string {
	return []string{bytesText(u.ApparentBytes), bytesText(u.UsedBytes), bytesText(u.SharedBytes), bytesText(u.UniqueBytes)}
}
