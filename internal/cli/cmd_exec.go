package cli

import (
	"context"
	"fmt"
	"io"
	"os"
	"time"

	"github.com/spf13/cobra"

	"github.com/vmsan/vmsan/api"
	"github.com/vmsan/vmsan/internal/guest"
	"github.com/vmsan/vmsan/internal/sandbox"
	"github.com/vmsan/vmsan/internal/store"
)

// execFlags are the flags that say how a command runs in the guest.
type execFlags struct {
	env     []string
	workdir string
	user    string
	timeout string
	noStdin bool
	detach  bool
	resume  bool
	// tty is true for a command on a terminal.
	tty        bool
	detachKeys string
	noExtend   bool
}

func (a *app) execCommand() *cobra.Command {
	var f execFlags
	cmd := &cobra.Command{
		Use:   "exec [flags] VM COMMAND [ARG...]",
		Short: "Run a command in a sandbox",
		Long: "exec runs a command in a sandbox, without a shell, and exits as it does. What stands behind VM is the\n" +
			"command's, flags included. Standard input is passed on unless it is a terminal or /dev/null.\n\n" +
			"Exit codes: the command's own; 128+N if signal N ended it; 124 if --timeout did; 125 if vmsan failed;\n" +
			"126 if the command cannot be executed; 127 if it was not found.",
		Example:           "  vmsan exec web ls -la /tmp\n  tar -c . | vmsan exec web tar -x -C /srv",
		Args:              arguments(cobra.MinimumNArgs(2)),
		Annotations:       passesExit,
		ValidArgsFunction: a.completeVM,
		RunE: func(cmd *cobra.Command, args []string) error {
			command := args[1:]
			if command[0] == "--" {
				// Fingers used to other programs type it; no command is named so.
				command = command[1:]
			}
			return a.runExec(cmd.Context(), f, args[0], command)
		},
	}
	cmd.Flags().SetInterspersed(false)
	f.registerWhere(cmd)
	f.registerCommon(cmd)
	f.registerSession(cmd)
	cmd.Flags().BoolVar(&f.resume, "resume", false, "resume the sandbox first if it is paused")
	cmd.Flags().BoolVarP(&f.detach, "detach", "d", false, "leave it running and print its process id")
	return cmd
}

func (f *execFlags) registerWhere(cmd *cobra.Command) {
	cmd.Flags().StringArrayVarP(&f.env, "env", "e", nil, "environment variable, `KEY=VALUE` (may be repeated)")
	cmd.Flags().StringVarP(&f.workdir, "workdir", "w", "", "`DIRECTORY` to run in")
	cmd.Flags().StringVarP(&f.user, "user", "u", "", "`USER` to run as: a name or number, also with :GROUP")
}

// registerSession registers what is about terminals in sandboxes that stay.
func (f *execFlags) registerSession(cmd *cobra.Command) {
	cmd.Flags().BoolVar(&f.noExtend, "no-extend-timeout", false, "let the sandbox's time limit pass while the terminal is open")
	cmd.Flags().StringVar(&f.detachKeys, "detach-keys", defaultDetachKeys, "`KEYS` that leave the terminal and what runs on it; empty for none")
}

func (f *execFlags) registerCommon(cmd *cobra.Command) {
	cmd.Flags().BoolVarP(&f.tty, "tty", "t", false, "run it on a terminal")

	cmd.Flags().StringVar(&f.timeout, "timeout", "", "kill the command after this `TIME`: 1m30s, or seconds (default: never)")
	cmd.Flags().BoolVarP(&f.noStdin, "no-stdin", "n", false, "do not pass standard input on")
	// Accepted because fingers type it; input is passed on anyway.
	cmd.Flags().BoolP("interactive", "i", false, "pass standard input on (the default)")
}

// checkTerminal refuses what a terminal cannot go with: it is there to be
// typed into and looked at.
func (f *execFlags) checkTerminal() error {
	switch {
	case f.tty && f.detach:
		return api.Errorf(api.ErrValidationFlags, "Cannot use --tty and --detach together").WithFlag("--tty").
			WithHint("vmsan exec -t, and the detach keys")
	case f.tty && f.noStdin:
		return api.Errorf(api.ErrValidationFlags, "Cannot use --tty and --no-stdin together").WithFlag("--tty")
	}
	return nil
}

// command checks the flags and makes a guest.Command of them.
func (f *execFlags) command(args []string) (guest.Command, error) {
	env, err := parseEnv(f.env)
	if err != nil {
		return guest.Command{}, err
	}
	if err := sandbox.CheckEnv(env); err != nil {
		return guest.Command{}, err
	}
	if err := sandbox.CheckWorkdir(f.workdir); err != nil {
		return guest.Command{}, err
	}
	if err := sandbox.CheckUser(f.user); err != nil {
		return guest.Command{}, err
	}
	timeout := time.Duration(0)
	if f.timeout != "" {
		if timeout, err = sandbox.ParseDuration("--timeout", f.timeout); err != nil {
			return guest.Command{}, err
		}
	}
	if len(args) == 0 || args[0] == "" {
		return guest.Command{}, api.Errorf(api.ErrUsage, "the command is empty")
	}
	return guest.Command{Args: args, Env: env, Dir: f.workdir, User: f.user, Timeout: timeout}, nil
}

func (a *app) runExec(ctx context.Context, f execFlags, ref string, args []string) error {
	if err := f.checkTerminal(); err != nil {
		return err
	}
	command, err := f.command(args)
	if err != nil {
		return err
	}
	service, record, err := a.running(ctx, f, ref)
	switch {
	case err != nil:
		return err
	case f.detach:
		return a.startDetached(ctx, service, record, command)
	case f.tty:
		return a.executeOnTerminal(ctx, service, record, command, f)
	}
	return a.execute(ctx, service, record, command, f.noStdin)
}

// running is the sandbox that ref names, resumed if that was asked for.
func (a *app) running(ctx context.Context, f execFlags, ref string) (*sandbox.Service, *store.Record, error) {
	service, err := a.service()
	if err != nil {
		return nil, nil, err
	}
	record, err := service.Get(ctx, ref)
	if err == nil && f.resume {
		record, err = service.Resume(ctx, record.ID)
	}
	return service, record, err
}

func (a *app) startDetached(ctx context.Context, service *sandbox.Service, record *store.Record, command guest.Command) error {
	client, err := service.Guest(record)
	if err != nil {
		return err
	}
	defer client.Close()
	pid, err := client.StartDetached(ctx, command)
	if err != nil {
		return err
	}
	if a.json {
		a.printJSON(api.Started{VM: record.ID, PID: pid})
		return nil
	}
	fmt.Fprintln(a.stdout, pid)
	return nil
}

// execute runs a command with our standard streams and returns its exit as
// an error.
func (a *app) execute(ctx context.Context, service *sandbox.Service, record *store.Record, command guest.Command, noStdin bool) error {
	client, err := service.Guest(record)
	if err != nil {
		return err
	}
	return a.perform(ctx, client, command, noStdin).report(ctx, a, service, record)
}

// performance is a command that was run, or was to be.
type performance struct {
	exit           guest.Exit
	err            error
	stdout, stderr capture // with --json
}

// perform runs a command with our standard streams, or keeps its output for
// --json, and closes client.
func (a *app) perform(ctx context.Context, client *guest.Client, command guest.Command, noStdin bool) *performance {
	defer client.Close()
	if !noStdin && wanted(a.stdin) {
		command.Stdin = a.stdin
	}
	p := &performance{stdout: capture{limit: maxCaptured}, stderr: capture{limit: maxCaptured}}
	command.Stdout, command.Stderr = a.stdout, a.stderr
	if a.json {
		command.Stdout, command.Stderr = &p.stdout, &p.stderr
	}
	p.exit, p.err = client.Run(ctx, command)
	return p
}

// report returns the exit of a command in the sandbox of record as an error.
func (p *performance) report(ctx context.Context, a *app, service *sandbox.Service, record *store.Record) error {
	if p.err != nil {
		return service.Explain(ctx, record, p.err)
	}
	if a.json {
		a.printExecution(record, p.exit, p.stdout, p.stderr)
	}
	return exitOrNil(p.exit)
}

func exitOrNil(exit guest.Exit) error {
	if exit == (guest.Exit{}) {
		return nil
	}
	return guestExit{exit}
}

// maxCaptured is how much output --json can hold, each of stdout and stderr.
const maxCaptured = 32 << 20

func (a *app) printExecution(record *store.Record, exit guest.Exit, stdout, stderr capture) {
	a.printJSON(api.Execution{
		VM: record.ID, ExitCode: guestExit{exit}.code(), Signal: exit.Signal, TimedOut: exit.TimedOut,
		Stdout: api.NewOutput(stdout.data), Stderr: api.NewOutput(stderr.data),
	})
}

// capture keeps what is written to it, up to a limit.
type capture struct {
	data  []byte
	limit int
}

func (c *capture) Write(b []byte) (int, error) {
	if len(c.data)+len(b) > c.limit {
		return 0, api.Errorf(api.ErrUsage, "the output is larger than %d MiB", c.limit>>20).
			WithHint("leave out --json")
	}
	c.data = append(c.data, b...)
	return len(b), nil
}

// wanted tells whether input may hold something for the guest: a terminal is
// for people, and /dev/null is for nobody.
func wanted(input io.Reader) bool {
	file, ok := input.(*os.File)
	if !ok {
		return input != nil
	}
	info, err := file.Stat()
	return err == nil && info.Mode()&os.ModeCharDevice == 0
}
