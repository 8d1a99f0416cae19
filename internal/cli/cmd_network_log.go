package cli

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"strconv"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/vmsan/vmsan/api"
)

func (a *app) networkLogCommand() *cobra.Command {
	var follow bool
	cmd := &cobra.Command{
		Use:   "log VM",
		Short: "Print what a sandbox asked of its network, and what was refused",
		Long: "log prints the names that a sandbox asked for and what its network refused, with the rule that did it and the flag\n" +
			"that would allow it. With --json it prints an array, and with -f as well a document for each line.",
		Args:              arguments(cobra.ExactArgs(1)),
		ValidArgsFunction: a.completeVM,
		RunE: func(cmd *cobra.Command, args []string) error {
			return a.runNetworkLog(cmd.Context(), args[0], follow)
		},
	}
	cmd.Flags().BoolVarP(&follow, "follow", "f", false, "go on until the sandbox has stopped")
	return cmd
}

func (a *app) runNetworkLog(ctx context.Context, ref string, follow bool) error {
	service, err := a.service()
	if err != nil {
		return err
	}
	record, err := service.Get(ctx, ref)
	if err != nil {
		return err
	}
	file, err := os.Open(service.NetworkLogPath(record.ID))
	if errors.Is(err, os.ErrNotExist) {
		if a.json && !follow {
			a.printJSON([]api.NetworkEvent{})
		}
		return nil
	}
	if err != nil {
		return fmt.Errorf("open network log of %s: %w", record.ID, err)
	}
	defer file.Close()
	switch {
	case follow:
		out := &eventWriter{show: a.showEvent}
		return a.follow(ctx, service, record.ID, file, out)
	case a.json:
		events, err := readEvents(file)
		if err != nil {
			return fmt.Errorf("read network log of %s: %w", record.ID, err)
		}
		a.printJSON(events)
		return nil
	}
	_, err = io.Copy(&eventWriter{show: a.showEvent}, file)
	return err
}

// showEvent prints one line: text for people, or a document.
func (a *app) showEvent(e api.NetworkEvent) {
	if a.json {
		json.NewEncoder(a.stdout).Encode(e)
		return
	}
	fmt.Fprintln(a.stdout, describeEvent(e))
}

// describeEvent is an event as a line of text. The gate has written it, which
// the guest may have taken over.
func describeEvent(e api.NetworkEvent) string {
	return printable(e.Time.Local().Format(time.DateTime) + " " + string(e.Verdict) + " " + networkEventDetail(e))
}

// networkEventDetail is what was denied or allowed.
func networkEventDetail(e api.NetworkEvent) string {
	words := []string{string(e.Kind)}
	if e.Protocol != "" {
		words = append(words, e.Protocol)
	}
	target := ""
	if e.Destination.IsValid() {
		target = e.Destination.String()
	}
	if e.Port != 0 {
		target += ":" + strconv.Itoa(int(e.Port))
	}
	for _, word := range []string{target, e.Name} {
		if word != "" {
			words = append(words, word)
		}
	}
	if e.Rule != "" {
		words = append(words, "("+e.Rule+")")
	}
	if e.Count > 1 {
		words = append(words, fmt.Sprintf("%d times", e.Count))
	}
	if e.Hint != "" {
		words = append(words, " allow with: "+e.Hint)
	}
	return strings.Join(words, " ")
}

// maxEvent bounds a line of the log, in bytes.
const maxEvent = 64 << 10

// readEvents reads whole lines; one that is no event, as the first may be of
// a log that was cut, is passed over.
func readEvents(r io.Reader) ([]api.NetworkEvent, error) {
	events := []api.NetworkEvent{}
	lines := bufio.NewScanner(io.LimitReader(r, maxLog))
	lines.Buffer(make([]byte, 0, 4096), maxEvent)
	for lines.Scan() {
		if e, ok := parseEvent(lines.Bytes()); ok {
			events = append(events, e)
		}
	}
	return events, lines.Err()
}

func parseEvent(line []byte) (e api.NetworkEvent, ok bool) {
	return e, json.Unmarshal(line, &e) == nil
}

// eventWriter shows each event whose line was written to it.
type eventWriter struct {
	show func(api.NetworkEvent)
	rest []byte
}

func (w *eventWriter) Write(b []byte) (int, error) {
	w.rest = append(w.rest, b...)
	for {
		line, rest, whole := strings.Cut(string(w.rest), "\n")
		if !whole {
			break
		}
		w.rest = []byte(rest)
		if e, ok := parseEvent([]byte(line)); ok {
			w.show(e)
		}
	}
	if len(w.rest) > maxEvent {
		w.rest = nil // no line of ours
	}
	return len(b), nil
}
