package cli

import (
	"context"
	"strconv"

	"github.com/spf13/cobra"

	"github.com/vmsan/vmsan/api"
	"github.com/vmsan/vmsan/internal/guest"
	"github.com/vmsan/vmsan/internal/sandbox"
	"github.com/vmsan/vmsan/internal/store"
)

func (a *app) connectCommand() *cobra.Command {
	var f execFlags
	var session string
	cmd := &cobra.Command{
		Use:     "connect [flags] VM [COMMAND [ARG...]]",
		Aliases: []string{"shell"},
		Short:   "Open a terminal in a sandbox",
		Long: "connect runs a login shell, or a command, on a terminal in a sandbox. What runs there is a session: it goes\n" +
			"on when you detach, or when the connection, the window or vmsan itself is lost, and --session comes back to\n" +
			"it, with what it has shown meanwhile. Any number of clients may share a session.\n\n" +
			"The exit code is the shell's.",
		Example: "  vmsan connect web\n" +
			"  vmsan sessions web\n" +
			"  vmsan connect --session 412 web",
		Args:              arguments(cobra.MinimumNArgs(1)),
		Annotations:       passesExit,
		ValidArgsFunction: a.completeVM,
		RunE: func(cmd *cobra.Command, args []string) error {
			if session != "" {
				return a.rejoin(cmd.Context(), f, args, session)
			}
			f.tty = true
			command := args[1:]
			if len(command) > 0 && command[0] == "--" {
				command = command[1:]
			}
			return a.runConnect(cmd.Context(), f, args[0], command)
		},
	}
	cmd.Flags().SetInterspersed(false)
	f.registerWhere(cmd)
	f.registerSession(cmd)
	cmd.Flags().BoolVar(&f.resume, "resume", false, "resume the sandbox first if it is paused")
	cmd.Flags().StringVarP(&session, "session", "s", "", "come back to this `SESSION`")
	return cmd
}

// loginShells are what connect runs, the first that there is.
var loginShells = [][]string{{"/bin/bash", "-l"}, {"/bin/sh", "-l"}}

func (a *app) runConnect(ctx context.Context, f execFlags, ref string, args []string) error {
	candidates := loginShells
	if len(args) > 0 {
		candidates = [][]string{args}
	}
	service, record, err := a.running(ctx, f, ref)
	if err != nil {
		return err
	}
	for i, args := range candidates {
		command, err := f.command(args)
		if err != nil {
			return err
		}
		err = a.executeOnTerminal(ctx, service, record, command, f)
		if i < len(candidates)-1 && api.HasCode(err, api.ErrExecNotFound) {
			continue
		}
		return err
	}
	return nil
}

func (a *app) rejoin(ctx context.Context, f execFlags, args []string, session string) error {
	if len(args) > 1 {
		return api.Errorf(api.ErrUsage, "a session runs its command already").WithHint("vmsan connect --session %s %s", session, args[0])
	}
	keys, err := a.terminalKeys(f)
	if err != nil {
		return err
	}
	pid, err := parsePID(session)
	if err != nil {
		return api.Errorf(api.ErrValidationInteger, "Invalid --session: %.80q. Must be a session's number.", session).
			WithFlag("--session").WithHint("vmsan sessions %s", args[0])
	}
	service, record, err := a.running(ctx, f, args[0])
	if err != nil {
		return err
	}
	client, err := service.Guest(record)
	if err != nil {
		return err
	}
	defer client.Close()
	if err := a.checkSession(ctx, client, args[0], pid); err != nil {
		return service.Explain(ctx, record, err)
	}
	defer f.keepAlive(ctx, service, record)()
	t, err := client.JoinTerminal(ctx, pid)
	if err != nil {
		return service.Explain(ctx, record, err)
	}
	return a.conclude(ctx, service, record, t, keys)
}

// checkSession tells sessions from other commands, and from what has ended.
func (a *app) checkSession(ctx context.Context, client *guest.Client, ref string, pid int) error {
	list, err := client.Processes(ctx)
	if err != nil {
		return err
	}
	for _, p := range list {
		if p.PID == pid && isSession(p) {
			return nil
		}
	}
	return api.Errorf(api.ErrProcessNotFound, "%s has no session %d", ref, pid).WithHint("vmsan sessions %s", ref)
}

// terminalKeys are the detach keys, of which a terminal is the precondition.
func (a *app) terminalKeys(f execFlags) ([]byte, error) {
	if a.json {
		return nil, api.Errorf(api.ErrValidationFlags, "Cannot use --json with a terminal").WithFlag("--json").
			WithHint("vmsan exec without -t")
	}
	return parseDetachKeys(f.detachKeys)
}

// keepAlive keeps the time limit of a sandbox from passing until release is
// called or we die, unless that was not wanted.
func (f *execFlags) keepAlive(ctx context.Context, service *sandbox.Service, record *store.Record) (release func()) {
	if f.noExtend || record.Ephemeral {
		return func() {}
	}
	ctx, release = context.WithCancel(ctx)
	go service.Stay(ctx, record)
	return release
}

// executeOnTerminal is execute on a terminal.
func (a *app) executeOnTerminal(ctx context.Context, service *sandbox.Service, record *store.Record, command guest.Command, f execFlags) error {
	keys, err := a.terminalKeys(f)
	if err != nil {
		return err
	}
	client, err := service.Guest(record)
	if err != nil {
		return err
	}
	defer client.Close()
	defer f.keepAlive(ctx, service, record)()
	command.Env = terminalEnv(command.Env, record.Spec.Env)
	t, err := client.OpenTerminal(ctx, command, a.terminalSize())
	if err != nil {
		return service.Explain(ctx, record, err)
	}
	return a.conclude(ctx, service, record, t, keys)
}

// conclude sees a session to its end, or to ours.
func (a *app) conclude(ctx context.Context, service *sandbox.Service, record *store.Record, t *guest.Terminal, keys []byte) error {
	exit, detached, err := a.converse(t, keys)
	if err != nil {
		return service.Explain(ctx, record, err)
	}
	if detached {
		name := record.Name
		if name == "" {
			name = record.ID
		}
		a.say("\nDetached. To come back: vmsan connect --session %d %s", t.PID, name)
		return nil
	}
	return exitOrNil(exit)
}

func (a *app) sessionsCommand() *cobra.Command {
	return &cobra.Command{
		Use:               "sessions VM",
		Short:             "List the terminals that are open in a sandbox",
		ValidArgsFunction: a.completeVM,
		Args:              arguments(cobra.ExactArgs(1)),
		RunE: func(cmd *cobra.Command, args []string) error {
			return a.withGuest(cmd.Context(), args[0], func(_ *sandbox.Service, _ *store.Record, client *guest.Client) error {
				return a.runSessions(cmd.Context(), client)
			})
		},
	}
}

func (a *app) runSessions(ctx context.Context, client *guest.Client) error {
	return a.printProcesses(ctx, client, "SESSION\tSTARTED\tUSER\tCOMMAND", func(p guest.Process) []string {
		if !isSession(p) {
			return nil
		}
		return []string{strconv.Itoa(p.PID), ago(p.StartedAt), orDash(printable(p.User)), commandLine(p)}
	})
}

// isSession tells what can be come back to from other commands.
func isSession(p guest.Process) bool { return p.Terminal && p.Running && p.Kept }
