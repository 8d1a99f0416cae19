package cli

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"strconv"
	"strings"
	"time"

	"github.com/moby/term"
	"github.com/spf13/cobra"

	"github.com/vmsan/vmsan/api"
	"github.com/vmsan/vmsan/internal/sandbox"
)

const (
	// firstSpan is the longest that the first figures wait for.
	firstSpan = time.Second
	// leastInterval keeps stats from being what it shows.
	leastInterval = 100 * time.Millisecond
)

func (a *app) statsCommand() *cobra.Command {
	var interval string
	var once bool
	cmd := &cobra.Command{
		Use:     "stats [VM...]",
		Aliases: []string{"top"},
		Short:   "Show what sandboxes take: CPU, memory, disk and network",
		Long: "stats shows what sandboxes take, those that are named or all that run, until it is interrupted.\n\n" +
			"CPU is that of the host's processes, where 100 % is one CPU; HOST is the memory they take, less what others share\n" +
			"with them. MEMORY and PIDS are what the guest says, and - if it does not answer. READ and WRITTEN are what the\n" +
			"host's disk had to do, DISK what the sandbox's own disk takes there. With --json it prints a document a line, for\n" +
			"each sandbox and time.",
		Example: "  vmsan stats\n" +
			"  vmsan stats --no-stream --json web | jq .rates.cpuPercent",
		Args:              arguments(cobra.ArbitraryArgs),
		ValidArgsFunction: a.completeVMs,
		RunE: func(cmd *cobra.Command, args []string) error {
			span, err := sandbox.ParseDuration("--interval", interval)
			if err == nil && span < leastInterval {
				err = api.Errorf(api.ErrValidationDuration, "Invalid --interval: %.80q. Must be %s or more.", interval, leastInterval).WithFlag("--interval")
			}
			if err != nil {
				return err
			}
			return a.runStats(cmd.Context(), args, span, once)
		},
	}
	cmd.Flags().StringVar(&interval, "interval", "2s", "the `TIME` between two looks")
	cmd.Flags().BoolVar(&once, "no-stream", false, "show it once")
	return cmd
}

func (a *app) runStats(ctx context.Context, refs []string, interval time.Duration, once bool) error {
	service, err := a.service()
	if err != nil {
		return err
	}
	meter, err := service.Meter(refs)
	if err != nil {
		return err
	}
	defer meter.Close()
	out := a.newStatsWriter()
	// Rates are between two looks, of which the first is not shown.
	wait := min(interval, firstSpan)
	for looks := 0; ; looks++ {
		stats, err := meter.Measure(ctx)
		if errors.Is(err, context.Canceled) {
			return nil // it was told to stop
		}
		if err != nil {
			return err
		}
		if looks > 0 || meter.Ended() {
			out.show(stats)
			wait = interval
		}
		if looks > 0 && once || meter.Ended() {
			return nil
		}
		select {
		case <-ctx.Done():
			return nil
		case <-time.After(wait):
		}
	}
}

// statsWriter shows figures as they come.
type statsWriter struct {
	app      *app
	terminal uintptr // a descriptor
	live     bool    // there is one
	drawn    int     // lines on it that are ours
	shown    bool
}

func (a *app) newStatsWriter() *statsWriter {
	w := &statsWriter{app: a}
	w.terminal, w.live = terminalFD(a.stdout)
	return w
}

func (w *statsWriter) show(stats []api.Stats) {
	if w.app.json {
		e := json.NewEncoder(w.app.stdout)
		for _, s := range stats {
			e.Encode(s)
		}
		return
	}
	var text bytes.Buffer
	table(&text, "VM\tSTATUS\tCPU\tMEMORY\tHOST\tPIDS\tREAD\tWRITTEN\tDISK\tRECEIVED\tSENT", statsRows(stats))
	switch {
	case w.live:
		w.redraw(strings.Split(strings.TrimSuffix(text.String(), "\n"), "\n"))
	case w.shown:
		fmt.Fprintln(w.app.stdout)
		fallthrough
	default:
		w.app.stdout.Write(text.Bytes())
	}
	w.shown = true
}

// redraw puts lines in the place of those drawn last. What wraps, or does not
// fit, could not be taken off again.
func (w *statsWriter) redraw(lines []string) {
	size, err := term.GetWinsize(w.terminal)
	if err != nil || size.Width == 0 || size.Height == 0 {
		size = &term.Winsize{Width: plainWidth, Height: 24}
	}
	if most := max(int(size.Height)-1, 1); len(lines) > most {
		lines = append(lines[:most-1:most-1], fmt.Sprintf("... and %d more", len(lines)-most+1))
	}
	var picture bytes.Buffer
	if w.drawn > 0 {
		fmt.Fprintf(&picture, "\x1b[%dA", w.drawn)
	}
	for _, line := range lines {
		if runes := []rune(line); len(runes) >= int(size.Width) {
			line = string(runes[:size.Width-1])
		}
		fmt.Fprintf(&picture, "\r%s\x1b[K\n", line)
	}
	picture.WriteString("\x1b[J")
	w.drawn = len(lines)
	w.app.stdout.Write(picture.Bytes())
}

func statsRows(stats []api.Stats) (rows [][]string) {
	for _, s := range stats {
		name, status := s.Name, string(s.Status)
		if name == "" {
			name = s.VM
		}
		if status == "" {
			status = "removed"
		}
		row := []string{printable(name), status}
		row = append(row, guestAndHost(s)...)
		row = append(row, diskAndNetwork(s)...)
		rows = append(rows, row)
	}
	return rows
}

// guestAndHost are the cells of CPU, memory and processes.
func guestAndHost(s api.Stats) []string {
	cpu, memory, host, pids := "-", "-", "-", "-"
	if s.Rates != nil {
		cpu = fmt.Sprintf("%.1f%%", s.Rates.CPUPercent)
	}
	if g := s.Guest; g != nil {
		memory, pids = bytesText(g.MemoryUsedBytes)+" / "+bytesText(g.MemoryBytes), strconv.Itoa(g.Processes)
	}
	switch h := s.Host; {
	case h == nil:
	case h.PSSBytes > 0:
		host = bytesText(h.PSSBytes)
	default:
		host = bytesText(h.RSSBytes)
	}
	return []string{cpu, memory, host, pids}
}

// diskAndNetwork are the cells of disk and network.
func diskAndNetwork(s api.Stats) []string {
	read, written, received, sent, disk := "-", "-", "-", "-", "-"
	perSecond := func(n float64) string { return bytesText(int64(n)) + "/s" }
	if s.Rates != nil && s.Host.Disk != nil {
		read, written = perSecond(s.Rates.ReadBytes), perSecond(s.Rates.WrittenBytes)
	}
	if s.Rates != nil && s.Host.Network != nil {
		received, sent = perSecond(s.Rates.ReceivedBytes), perSecond(s.Rates.SentBytes)
	}
	if s.Status != "" {
		disk = bytesText(s.OverlayBytes)
	}
	return []string{read, written, disk, received, sent}
}
