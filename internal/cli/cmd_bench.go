package cli

import (
	"context"
	"fmt"
	"os"
	"time"

	"github.com/spf13/cobra"

	"github.com/vmsan/vmsan/api"
)

func (a *app) benchCommand() *cobra.Command {
	var rounds int
	cmd := &cobra.Command{
		Use:   "bench",
		Short: "Measure how quick sandboxes are on this host",
		Long: "bench makes sandboxes without a network, measures what is done with them, and removes them. Beside each figure is a\n" +
			"floor, what the same takes without vmsan in between, for figures of a busy host mean little alone. Three rounds take a minute.",
		Args: arguments(cobra.NoArgs),
		RunE: func(cmd *cobra.Command, _ []string) error { return a.runBench(cmd.Context(), rounds) },
	}
	cmd.Flags().IntVar(&rounds, "rounds", 3, "`NUMBER` of rounds, from 1 to 1000, of which each figure is the median")
	return cmd
}

func (a *app) runBench(ctx context.Context, rounds int) error {
	service, err := a.service()
	if err != nil {
		return err
	}
	self, err := os.Executable()
	if err != nil {
		return fmt.Errorf("find own binary: %w", err)
	}
	measured, err := service.Bench(ctx, self, rounds, func(f api.BenchFigure) { a.say("%s: %s", f.Name, figureText(f.Unit, f.Value)) })
	if err != nil {
		return err
	}
	if a.json {
		a.printJSON(measured)
		return nil
	}
	var rows [][]string
	for _, f := range measured.Figures {
		rows = append(rows, []string{f.Name, figureText(f.Unit, f.Value), figureText(f.Unit, f.Floor), shareText(f), f.FloorIs})
	}
	table(a.stdout, "WHAT\tVMSAN\tFLOOR\tRATIO\tTHE FLOOR IS", rows)
	a.say("%s, %d CPUs, Linux %s; %s with %s; guest: Linux %s.", measured.CPU, measured.CPUs, measured.Host, measured.VMM,
		measured.Accelerator, measured.Kernel)
	return nil
}

func figureText(unit string, value float64) string {
	if unit == "s" {
		d := time.Duration(value * float64(time.Second))
		if d < time.Second {
			return fmt.Sprintf("%.1f ms", d.Seconds()*1000)
		}
		return fmt.Sprintf("%.2f s", d.Seconds())
	}
	return bytesText(int64(value)) + "/s"
}

// shareText is how a figure compares with its floor: times as long, or how much
// of its speed.
func shareText(f api.BenchFigure) string {
	switch {
	case f.Floor <= 0:
		return "-"
	case f.Unit == "s":
		return fmt.Sprintf("%.1f x", f.Value/f.Floor)
	}
	return fmt.Sprintf("%.0f %%", 100*f.Value/f.Floor)
}
