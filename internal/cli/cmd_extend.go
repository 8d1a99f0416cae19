package cli

import (
	"context"
	"fmt"
	"time"

	"github.com/spf13/cobra"

	"github.com/vmsan/vmsan/api"
	"github.com/vmsan/vmsan/internal/sandbox"
	"github.com/vmsan/vmsan/internal/store"
)

// limitFlags are the flags of limits on a sandbox's time, as typed.
type limitFlags struct{ timeout, idle, action string }

func (f *limitFlags) register(cmd *cobra.Command) {
	flags := cmd.Flags()
	flags.StringVar(&f.timeout, "timeout", "", "how long it may run from each start: a `TIME` like 1h30m or 90s, or minutes (default: no limit)")
	flags.StringVar(&f.idle, "idle-timeout", "", "how long it may be idle: a `TIME` like --timeout's (default: no limit)")
	flags.StringVar(&f.action, "on-timeout", store.OnTimeoutStop, "what is done then, an `ACTION`: stop, pause, snapshot (saved and stopped) or remove")
	completeChoice(cmd, "on-timeout", store.OnTimeoutStop, store.OnTimeoutPause, store.OnTimeoutSnapshot, store.OnTimeoutRemove)
}

// complete parses what was typed; the verb checks it.
func (f *limitFlags) complete(cmd *cobra.Command, o *sandbox.CreateOptions) (err error) {
	if f.timeout != "" || cmd.Flags().Changed("timeout") {
		if o.Timeout, err = sandbox.ParseLimit("--timeout", f.timeout); err != nil {
			return err
		}
	}
	if f.idle != "" || cmd.Flags().Changed("idle-timeout") {
		if o.IdleTimeout, err = sandbox.ParseLimit("--idle-timeout", f.idle); err != nil {
			return err
		}
	}
	if cmd.Flags().Changed("on-timeout") && f.action == "" {
		return api.Errorf(emptyCode("on-timeout"), "Invalid --on-timeout: it is empty.").WithFlag("--on-timeout")
	}
	if o.Timeout != 0 || o.IdleTimeout != 0 || f.action != store.OnTimeoutStop || cmd.Flags().Changed("on-timeout") {
		o.OnTimeout = f.action
	}
	return nil
}

func (a *app) extendCommand() *cobra.Command {
	return &cobra.Command{
		Use:   "extend VM TIME",
		Short: "Change how long a sandbox may still run",
		Long: "extend lets a sandbox run for TIME from now on, like 1h30m or 90s, or minutes, whatever limit it had; none or 0 lifts\n" +
			"the limit. One that is paused has TIME from when it is resumed. The next boot has the limit of create --timeout.",
		Example:           "  vmsan extend web 1h\n  vmsan extend web none",
		Args:              arguments(cobra.ExactArgs(2)),
		ValidArgsFunction: a.completeVM,
		RunE: func(cmd *cobra.Command, args []string) error {
			return a.runExtend(cmd.Context(), args[0], args[1])
		},
	}
}

func (a *app) runExtend(ctx context.Context, ref, text string) error {
	if text == "none" {
		text = "0"
	}
	d, err := sandbox.ParseLimit("TIME", text)
	if err != nil {
		return err
	}
	service, err := a.service()
	if err != nil {
		return err
	}
	record, err := service.Extend(ctx, ref, d)
	if err != nil {
		return err
	}
	if a.json {
		a.printJSON(record.Show())
		return nil
	}
	fmt.Fprintln(a.stdout, record.ID)
	if at := record.TimeoutAt; !at.IsZero() {
		a.say("VM %s may run until %s", record.ID, at.Local().Format(time.DateTime))
	}
	return nil
}
