package cli

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"

	"github.com/fsnotify/fsnotify"
	"github.com/spf13/cobra"
	"golang.org/x/term"

	"github.com/vmsan/vmsan/api"
	"github.com/vmsan/vmsan/internal/sandbox"
)

func (a *app) logsCommand() *cobra.Command {
	var follow, monitorLog bool
	cmd := &cobra.Command{
		Use:               "logs VM",
		Short:             "Print what a sandbox wrote to its console",
		ValidArgsFunction: a.completeVM,
		Args:              arguments(cobra.ExactArgs(1)),
		RunE: func(cmd *cobra.Command, args []string) error {
			return a.runLogs(cmd.Context(), args[0], follow, monitorLog)
		},
	}
	cmd.Flags().BoolVarP(&follow, "follow", "f", false, "go on until the sandbox has stopped")
	cmd.Flags().BoolVar(&monitorLog, "monitor", false, "print what vmsan and the VMM had to say instead")
	return cmd
}

func (a *app) runLogs(ctx context.Context, ref string, follow, monitorLog bool) error {
	service, err := a.service()
	if err != nil {
		return err
	}
	record, err := service.Get(ctx, ref)
	if err != nil {
		return err
	}
	path := service.ConsolePath(record.ID)
	if monitorLog {
		path = service.MonitorLogPath(record.ID)
	}
	if a.json && follow {
		// One document holds what there will be.
		if _, err := service.Wait(ctx, record.ID); err != nil {
			return err
		}
	}
	if a.json {
		return a.logsJSON(record.ID, path)
	}
	file, err := os.Open(path)
	if errors.Is(err, os.ErrNotExist) {
		return nil
	}
	if err != nil {
		return fmt.Errorf("open log of %s: %w", record.ID, err)
	}
	defer file.Close()
	if !follow {
		_, err := io.Copy(a.shown(), file)
		return err
	}
	return a.follow(ctx, service, record.ID, file, a.shown())
}

// shown is standard output for what a guest wrote: on a terminal, without
// what could move the cursor or do worse.
func (a *app) shown() io.Writer {
	if file, ok := a.stdout.(*os.File); ok && term.IsTerminal(int(file.Fd())) {
		return plain{file}
	}
	return a.stdout
}

// plain passes on text, line breaks and tabs. It works byte by byte, since a
// write may end within a character: what is not ASCII is passed on, but for
// the control characters of 8-bit terminals, which UTF-8 begins with C2.
type plain struct{ w io.Writer }

func (p plain) Write(b []byte) (int, error) {
	text := make([]byte, len(b))
	for i, c := range b {
		if c < ' ' && c != '\n' && c != '\t' && c != '\r' || c == 0x7f || c == 0xc2 {
			c = '?'
		}
		text[i] = c
	}
	_, err := p.w.Write(text)
	return len(b), err
}

// maxLog is more than a log can hold.
const maxLog = 4 << 20

func (a *app) logsJSON(id, path string) error {
	file, err := os.Open(path)
	if err != nil && !errors.Is(err, os.ErrNotExist) {
		return fmt.Errorf("open log of %s: %w", id, err)
	}
	var text []byte
	if err == nil {
		defer file.Close()
		if text, err = io.ReadAll(io.LimitReader(file, maxLog)); err != nil {
			return fmt.Errorf("read log of %s: %w", id, err)
		}
	}
	a.printJSON(api.Log{VM: id, Log: api.NewOutput(text)})
	return nil
}

// follow writes to out what is in file and what is added to it until the
// sandbox has stopped. A log that was cut is shorter than what was written;
// it goes on at its new end.
func (a *app) follow(ctx context.Context, service *sandbox.Service, id string, file *os.File, out io.Writer) error {
	watcher, err := fsnotify.NewWatcher()
	if err != nil {
		return fmt.Errorf("watch log of %s: %w", id, err)
	}
	defer watcher.Close()
	if err := watcher.Add(file.Name()); err != nil {
		return fmt.Errorf("watch log of %s: %w", id, err)
	}
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	stopped := make(chan struct{})
	go func() {
		defer close(stopped)
		service.Wait(ctx, id)
	}()
	for {
		if err := copyRest(out, file); err != nil {
			return err
		}
		select {
		case <-watcher.Events:
		case err := <-watcher.Errors:
			return fmt.Errorf("watch log of %s: %w", id, err)
		case <-stopped:
			return copyRest(out, file)
		}
	}
}

func copyRest(out io.Writer, file *os.File) error {
	info, err := file.Stat()
	if err != nil {
		return err
	}
	if at, err := file.Seek(0, io.SeekCurrent); err != nil || at > info.Size() {
		if _, err := file.Seek(0, io.SeekEnd); err != nil {
			return err
		}
	}
	_, err = io.Copy(out, file)
	return err
}
