package cli

import (
	"context"
	"fmt"
	"strconv"
	"strings"

	"github.com/spf13/cobra"
	"golang.org/x/sys/unix"

	"github.com/vmsan/vmsan/api"
	"github.com/vmsan/vmsan/internal/guest"
	"github.com/vmsan/vmsan/internal/sandbox"
	"github.com/vmsan/vmsan/internal/store"
)

func (a *app) psCommand() *cobra.Command {
	return &cobra.Command{
		Use:               "ps VM",
		Short:             "List the commands that were started in a sandbox",
		ValidArgsFunction: a.completeVM,
		Args:              arguments(cobra.ExactArgs(1)),
		RunE: func(cmd *cobra.Command, args []string) error {
			return a.withGuest(cmd.Context(), args[0], func(_ *sandbox.Service, _ *store.Record, client *guest.Client) error {
				return a.runPs(cmd.Context(), client)
			})
		},
	}
}

func (a *app) runPs(ctx context.Context, client *guest.Client) error {
	return a.printProcesses(ctx, client, "PID\tSTATE\tSTARTED\tUSER\tCOMMAND", func(p guest.Process) []string {
		return []string{strconv.Itoa(p.PID), processState(p), ago(p.StartedAt), orDash(printable(p.User)), commandLine(p)}
	})
}

// printProcesses lists the guest's commands that row has a row for.
func (a *app) printProcesses(ctx context.Context, client *guest.Client, header string, row func(guest.Process) []string) error {
	list, err := client.Processes(ctx)
	if err != nil {
		return err
	}
	processes := []api.Process{}
	var rows [][]string
	for _, p := range list {
		if r := row(p); r != nil {
			processes = append(processes, showProcess(p))
			rows = append(rows, r)
		}
	}
	if a.json {
		a.printJSON(processes)
		return nil
	}
	table(a.stdout, header, rows)
	return nil
}

func commandLine(p guest.Process) string { return printable(strings.Join(p.Args, " ")) }

func showProcess(p guest.Process) api.Process {
	shown := api.Process{
		PID: p.PID, Args: p.Args, User: p.User, Workdir: p.Dir, Running: p.Running, StartedAt: p.StartedAt, Kept: p.Kept, Terminal: p.Terminal,
	}
	if !p.Running {
		code := guestExit{p.Exit}.code()
		shown.ExitCode = &code
	}
	return shown
}

func processState(p guest.Process) string {
	if p.Running {
		return "running"
	}
	return fmt.Sprintf("exited %d", guestExit{p.Exit}.code())
}

func (a *app) attachCommand() *cobra.Command {
	return &cobra.Command{
		Use:               "attach VM PID",
		Annotations:       passesExit,
		ValidArgsFunction: a.completeVM,
		Short:             "Print what a detached command has put out, and go on until it ends",
		Args:              arguments(cobra.ExactArgs(2)),
		RunE: func(cmd *cobra.Command, args []string) error {
			pid, err := parsePID(args[1])
			if err != nil {
				return err
			}
			return a.withGuest(cmd.Context(), args[0], func(s *sandbox.Service, r *store.Record, client *guest.Client) error {
				return a.runAttach(cmd.Context(), s, r, client, pid)
			})
		},
	}
}

func (a *app) runAttach(ctx context.Context, s *sandbox.Service, r *store.Record, client *guest.Client, pid int) error {
	if !a.json {
		exit, err := client.Attach(ctx, pid, a.stdout, a.stderr)
		if err != nil {
			return s.Explain(ctx, r, err)
		}
		return exitOrNil(exit)
	}
	stdout, stderr := capture{limit: maxCaptured}, capture{limit: maxCaptured}
	exit, err := client.Attach(ctx, pid, &stdout, &stderr)
	if err != nil {
		return s.Explain(ctx, r, err)
	}
	a.printExecution(r, exit, stdout, stderr)
	return exitOrNil(exit)
}

func (a *app) killCommand() *cobra.Command {
	var signal string
	cmd := &cobra.Command{
		Use:               "kill VM PID",
		ValidArgsFunction: a.completeVM,
		Short:             "Send a signal to a command in a sandbox, and to all it started",
		Args:              arguments(cobra.ExactArgs(2)),
		RunE: func(cmd *cobra.Command, args []string) error {
			number, err := parseSignal(signal)
			if err != nil {
				return err
			}
			pid, err := parsePID(args[1])
			if err != nil {
				return err
			}
			return a.withGuest(cmd.Context(), args[0], func(_ *sandbox.Service, r *store.Record, client *guest.Client) error {
				if err := client.Signal(cmd.Context(), pid, number); err != nil {
					return err
				}
				if a.json {
					a.printJSON(api.Signalled{VM: r.ID, PID: pid, Signal: number})
				}
				return nil
			})
		},
	}
	cmd.Flags().StringVarP(&signal, "signal", "s", "KILL", "`SIGNAL`, by name or number")
	completeChoice(cmd, "signal", "TERM", "KILL", "INT", "HUP", "STOP", "CONT", "USR1", "USR2")
	return cmd
}

// maxSignal is the last real-time signal (signal(7)).
const maxSignal = 64

func parseSignal(text string) (int, error) {
	if n, err := strconv.Atoi(text); err == nil && n >= 1 && n <= maxSignal {
		return n, nil
	}
	name := "SIG" + strings.TrimPrefix(strings.ToUpper(text), "SIG")
	if n := unix.SignalNum(name); n != 0 {
		return int(n), nil
	}
	return 0, api.Errorf(api.ErrValidationChoice, "Invalid --signal: %.80q. Must be a name like TERM or a number from 1 to %d.",
		text, maxSignal).WithFlag("--signal")
}

func parsePID(text string) (int, error) {
	pid, err := strconv.ParseInt(text, 10, 32)
	if err != nil || pid <= 0 {
		return 0, api.Errorf(api.ErrValidationInteger, "Invalid PID: %.80q. Must be a positive number.", text).
			WithHint("vmsan ps VM")
	}
	return int(pid), nil
}

// withGuest calls do with the guest of a running sandbox.
func (a *app) withGuest(ctx context.Context, ref string, do func(*sandbox.Service, *store.Record, *guest.Client) error) error {
	service, err := a.service()
	if err != nil {
		return err
	}
	record, err := service.Get(ctx, ref)
	if err != nil {
		return err
	}
	client, err := service.Guest(record)
	if err != nil {
		return err
	}
	defer client.Close()
	return do(service, record, client)
}
