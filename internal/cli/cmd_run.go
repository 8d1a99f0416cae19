package cli

import (
	"context"
	"slices"
	"time"

	"github.com/spf13/cobra"

	"github.com/vmsan/vmsan/api"
	"github.com/vmsan/vmsan/internal/guest"
	"github.com/vmsan/vmsan/internal/sandbox"
	"github.com/vmsan/vmsan/internal/store"
)

func (a *app) runCommand() *cobra.Command {
	var f createFlags
	var e execFlags
	var entrypoint bool
	cmd := &cobra.Command{
		Use:   "run [flags] [IMAGE] [--] [COMMAND [ARG...]]",
		Short: "Run a command in a new sandbox and remove it",
		Long: "run creates a sandbox, runs a command in it, exits as the command does and leaves nothing behind, also\n" +
			"if vmsan itself is killed. Without --, the first argument is the image. Without a command, what the image\n" +
			"says is run: its entrypoint and command. Exit codes: see exec.",
		Example:           "  vmsan run -- uname -a\n  vmsan run debian -- python3 -c 'print(6*7)'",
		Args:              arguments(cobra.ArbitraryArgs),
		Annotations:       passesExit,
		ValidArgsFunction: a.completeImage,
		RunE: func(cmd *cobra.Command, args []string) error {
			if err := f.complete(cmd); err != nil {
				return err
			}
			command, err := splitImage(&f, args, cmd.ArgsLenAtDash())
			if err != nil {
				return err
			}
			return a.runRun(cmd.Context(), f, e, command, entrypoint)
		},
	}
	cmd.Flags().SetInterspersed(false)
	f.register(a, cmd)
	e.registerCommon(cmd)
	cmd.Flags().BoolVar(&entrypoint, "entrypoint", false, "put the image's entrypoint in front of COMMAND")
	return cmd
}

// splitImage takes the image off the arguments, if there is one: what stands
// before --, or else the first.
func splitImage(f *createFlags, args []string, dash int) (command []string, err error) {
	if dash < 0 && len(args) > 1 && args[1] == "--" {
		// Flags end at the image, so that cobra has not looked further.
		args, dash = slices.Delete(args, 1, 2), 1
	}
	images := dash
	if dash < 0 {
		images = min(1, len(args))
	}
	if images > 1 {
		return nil, api.Errorf(api.ErrUsage, "more than one image before --").WithHint("vmsan run IMAGE -- COMMAND")
	}
	if images == 1 && !f.imageTyped {
		// What was only set gives way.
		f.options.Image, f.runtime, f.rootfs = args[0], "", ""
	}
	if images == 1 && f.imageTyped {
		if f.runtime != "" {
			return nil, api.Errorf(api.ErrValidationFlags, "Cannot use --runtime and the image %.80q together", args[0]).
				WithFlag("--runtime").WithHint("vmsan run --runtime NAME -- COMMAND")
		}
		if f.options.Image != "" {
			return nil, api.Errorf(api.ErrValidationFlags, "Cannot use --image and the image %.80q together", args[0]).
				WithFlag("--image").WithHint("vmsan run --image IMAGE -- COMMAND")
		}
		if f.rootfs != "" {
			return nil, api.Errorf(api.ErrValidationFlags, "Cannot use --rootfs and the image %.80q together", args[0]).
				WithFlag("--rootfs").WithHint("vmsan run --rootfs FILE -- COMMAND")
		}
	}
	if images == 1 && dash < 0 {
		f.meant = args
	}
	command = args[images:]
	if len(command) == 0 && f.options.Image == "" && f.rootfs == "" && f.runtime == "" {
		return nil, noCommand()
	}
	return command, nil
}

func noCommand() error {
	return api.Errorf(api.ErrUsage, "there is no command to run").WithHint("vmsan run -- COMMAND")
}

// withImage is what is to be run: the command that was given, alone or behind
// the image's entrypoint, or else all that the image says.
func withImage(service *sandbox.Service, f createFlags, command []string, entrypoint bool) ([]string, error) {
	if len(command) > 0 && !entrypoint || f.options.Snapshot != "" {
		return command, nil
	}
	img, err := service.Image(f.options.Image)
	if err != nil {
		return nil, err
	}
	if len(command) == 0 {
		command = img.Config.Command()
	} else {
		command = slices.Concat(img.Config.Entrypoint, command)
	}
	if len(command) == 0 {
		return nil, noCommand()
	}
	return command, nil
}

func (a *app) runRun(ctx context.Context, f createFlags, e execFlags, args []string, entrypoint bool) error {
	if err := e.checkTerminal(); err != nil {
		return err
	}
	service, err := a.readyFor(ctx, &f)
	if err != nil {
		return err
	}
	if args, err = withImage(service, f, args, entrypoint); err != nil {
		return err
	}
	command, err := e.command(args)
	if err != nil {
		return err
	}
	f.options.Ephemeral = true
	if command.Timeout > 0 {
		f.options.Timeout = command.Timeout + obedience
	}
	if e.tty {
		return a.runOnTerminal(ctx, service, f, e, command)
	}
	client, first, err := sandbox.FirstClient()
	if err != nil {
		return err
	}
	f.options.First = first
	commandCtx, cancel := context.WithCancel(ctx)
	defer cancel()
	performed := make(chan *performance, 1)
	go func() { performed <- a.perform(commandCtx, client, command, e.noStdin) }()
	record, err := service.Create(ctx, f.options)
	// From here on it is the gate's alone, whose end has to be seen.
	first.Close()
	if err != nil {
		cancel()
		<-performed
		return err
	}
	if f.trace && !a.json {
		a.printTrace(record.Trace)
	}
	return removed(ctx, service, record, (<-performed).report(ctx, a, service, record))
}

// obedience is how long a guest has to end a command whose --timeout has passed,
// before the sandbox is ended without it.
const obedience = 30 * time.Second

// runOnTerminal waits for the guest before it opens one: a terminal takes more
// streams than the first. Nobody can come back to a sandbox that is removed
// when we leave, and so no keys leave it.
func (a *app) runOnTerminal(ctx context.Context, service *sandbox.Service, f createFlags, e execFlags, command guest.Command) error {
	e.detachKeys = ""
	if _, err := a.terminalKeys(e); err != nil {
		return err
	}
	record, err := service.Create(ctx, f.options)
	if err != nil {
		return err
	}
	if f.trace {
		a.printTrace(record.Trace)
	}
	return removed(ctx, service, record, a.executeOnTerminal(ctx, service, record, command, e))
}

// removed removes a sandbox after what it was there for, whose error comes
// first.
func removed(ctx context.Context, service *sandbox.Service, record *store.Record, err error) error {
	_, removeErr := service.Remove(context.WithoutCancel(ctx), record.ID, true)
	if err == nil {
		return removeErr
	}
	return err
}
