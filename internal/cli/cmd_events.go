package cli

import (
	"context"
	"encoding/json"
	"fmt"
	"strconv"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/vmsan/vmsan/api"
	"github.com/vmsan/vmsan/internal/sandbox"
)

func (a *app) eventsCommand() *cobra.Command {
	var filter sandbox.EventFilter
	var since string
	var follow bool
	cmd := &cobra.Command{
		Use:   "events",
		Short: "Print what happened to sandboxes, snapshots, images and volumes",
		Long: "events prints what happened, the oldest first, as far back as the journal goes, which is bounded. --vm also takes\n" +
			"sandboxes that are gone. With --json it prints a document for each line.",
		Example: "  vmsan events --since 1h --vm web\n  vmsan events -f --type network --json",
		Args:    arguments(cobra.NoArgs),
		RunE: func(cmd *cobra.Command, _ []string) error {
			if cmd.Flags().Changed("since") {
				age, err := sandbox.ParseDuration("--since", since)
				if err != nil {
					return err
				}
				filter.Since = time.Now().Add(-age)
			}
			for flag, value := range map[string]string{"vm": filter.VM, "type": filter.Type} {
				if cmd.Flags().Changed(flag) && value == "" {
					return api.Errorf(emptyCode(flag), "Invalid --%s: it is empty.", flag).WithFlag("--" + flag)
				}
			}
			if err := filter.Check(); err != nil {
				return err
			}
			return a.runEvents(cmd.Context(), filter, follow)
		},
	}
	cmd.Flags().BoolVarP(&follow, "follow", "f", false, "go on with what happens, until interrupted")
	cmd.Flags().StringVar(&since, "since", "", "only those of the last so long, a `TIME` like 1h30m, or seconds")
	cmd.Flags().StringVar(&filter.VM, "vm", "", "only those of this `VM`")
	cmd.Flags().StringVar(&filter.Type, "type", "", "only those of this `TYPE`: one like vm.stop, or what is before the dot")
	cmd.RegisterFlagCompletionFunc("vm", a.completeVMs)
	var types []string
	for _, t := range api.EventTypes {
		types = append(types, string(t))
	}
	completeChoice(cmd, "type", types...)
	return cmd
}

func (a *app) runEvents(ctx context.Context, filter sandbox.EventFilter, follow bool) error {
	service, err := a.service()
	if err != nil {
		return err
	}
	out := a.eventPrinter()
	if follow {
		return service.FollowEvents(ctx, filter, out)
	}
	events, err := service.Events(ctx, filter)
	if err != nil {
		return err
	}
	for _, e := range events {
		if err := out(e); err != nil {
			return err
		}
	}
	return nil
}

// eventColumns are wide enough for most events: those that follow are not
// known when the first is printed.
const eventColumns = "%-19s  %-15s  %-12s  %-12s  %s\n"

// eventPrinter prints one event after the other. Nobody is there to read more
// if that fails.
func (a *app) eventPrinter() func(api.Event) error {
	if a.json {
		lines := json.NewEncoder(a.stdout)
		lines.SetEscapeHTML(false)
		return func(e api.Event) error { return lines.Encode(e) }
	}
	header := !a.quiet
	return func(e api.Event) error {
		if header {
			fmt.Fprintf(a.stdout, eventColumns, "TIME", "TYPE", "VM", "NAME", "DETAIL")
		}
		header = false
		_, err := fmt.Fprintf(a.stdout, eventColumns, e.Time.Local().Format(time.DateTime), printable(string(e.Type)),
			printable(orDash(e.VM)), printable(orDash(e.Name)), printable(eventDetail(e)))
		return err
	}
}

// eventDetail is what an event says beyond its type and its sandbox.
func eventDetail(e api.Event) string {
	var words []string
	add := func(what, value string) {
		if value != "" {
			words = append(words, what+value)
		}
	}
	add("", e.Reason)
	add("from ", e.From)
	add("was ", e.PreviousName)
	if e.DiskBytes != 0 {
		add("disk ", mebibytes(e.DiskBytes>>20))
	}
	if e.MemoryMiB != 0 {
		add("memory ", mebibytes(int64(e.MemoryMiB)))
	}
	add("", e.Policy)
	if !e.TimeoutAt.IsZero() {
		add("until ", e.TimeoutAt.Local().Format(time.DateTime))
	}
	add("", strings.Join(e.Copies, " "))
	add("", e.Snapshot)
	add("", e.Template)
	add("", e.Volume)
	add("", e.Image)
	if e.Image == "" && e.ImageDigest != "" {
		add("sha256:", fmt.Sprintf("%.12s", e.ImageDigest))
	}
	if e.Network != nil {
		add("", networkEventDetail(*e.Network))
	}
	if e.Unwritten > 0 {
		add("", "and "+strconv.Itoa(e.Unwritten)+" more before it")
	}
	return strings.Join(words, " ")
}
