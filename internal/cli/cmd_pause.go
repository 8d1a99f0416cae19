package cli

import (
	"context"
	"fmt"

	"github.com/spf13/cobra"

	"github.com/vmsan/vmsan/api"
	"github.com/vmsan/vmsan/internal/sandbox"
)

func (a *app) pauseCommand() *cobra.Command {
	var reclaim bool
	cmd := &cobra.Command{
		Use:   "pause VM...",
		Short: "Stop sandboxes' CPUs, and keep their memory",
		Long: "pause stops the CPUs of sandboxes: commands stand still, and go on where they were with resume. With --reclaim\n" +
			"the memory goes to the disk, and nothing of the sandbox runs until then.",
		Args:              arguments(cobra.MinimumNArgs(1)),
		ValidArgsFunction: a.completeVMs,
		RunE: func(cmd *cobra.Command, args []string) error {
			return a.each(args, func(s *sandbox.Service, id string) (api.Result, error) {
				record, err := s.Pause(cmd.Context(), id, reclaim)
				return ended(record), err
			})
		},
	}
	cmd.Flags().BoolVar(&reclaim, "reclaim", false, "give the memory back to the host until resume")
	return cmd
}

func (a *app) resumeCommand() *cobra.Command {
	return &cobra.Command{
		Use:               "resume VM...",
		Short:             "Let paused sandboxes go on",
		Args:              arguments(cobra.MinimumNArgs(1)),
		ValidArgsFunction: a.completeVMs,
		RunE: func(cmd *cobra.Command, args []string) error {
			return a.each(args, func(s *sandbox.Service, id string) (api.Result, error) {
				record, err := s.Resume(cmd.Context(), id)
				return ended(record), err
			})
		},
	}
}

func (a *app) restoreCommand() *cobra.Command {
	var trace bool
	cmd := &cobra.Command{
		Use:   "restore VM SNAPSHOT",
		Short: "Put a sandbox back to a snapshot",
		Long: "restore ends what a sandbox is doing and puts it back to a snapshot, of itself or of one like it: memory, commands\n" +
			"and disk. What was written since is lost. Its id, name, network and ports stay.",
		Args:              arguments(cobra.ExactArgs(2)),
		ValidArgsFunction: a.completeVMThenSnapshot,
		RunE: func(cmd *cobra.Command, args []string) error {
			return a.runRestore(cmd.Context(), args[0], args[1], trace)
		},
	}
	cmd.Flags().BoolVar(&trace, "trace", false, "print how long each stage of the start took")
	return cmd
}

func (a *app) runRestore(ctx context.Context, ref, snapshot string, trace bool) error {
	service, err := a.service()
	if err != nil {
		return err
	}
	record, err := service.Restore(ctx, ref, snapshot)
	if err != nil {
		return err
	}
	if a.json {
		a.printJSON(record.Show())
		return nil
	}
	fmt.Fprintln(a.stdout, record.ID)
	if trace {
		a.printTrace(record.Trace)
	}
	return nil
}

func (a *app) forkCommand() *cobra.Command {
	var count int
	var name string
	cmd := &cobra.Command{
		Use:   "fork VM",
		Short: "Make running copies of a sandbox",
		Long: "fork makes running copies of a sandbox: memory, commands, open files and disk. The source goes on. Each copy has a\n" +
			"name, machine id, clock and randomness of its own; connections to elsewhere are reset in it, and it publishes no\n" +
			"ports. Programs in it are told by a change of /run/vmsan/restored.",
		Example:           "  vmsan fork web --count 4 --name try",
		Args:              arguments(cobra.ExactArgs(1)),
		ValidArgsFunction: a.completeVM,
		RunE: func(cmd *cobra.Command, args []string) error {
			return a.runFork(cmd.Context(), args[0], count, name)
		},
	}
	cmd.Flags().IntVar(&count, "count", 1, "`NUMBER` of copies")
	cmd.Flags().StringVar(&name, "name", "", "name the copies `PREFIX`-1, PREFIX-2, ...")
	return cmd
}

func (a *app) runFork(ctx context.Context, ref string, count int, name string) error {
	service, err := a.service()
	if err != nil {
		return err
	}
	forks, pause, err := service.Fork(ctx, ref, count, name)
	if err != nil {
		return err
	}
	if a.json {
		a.printJSON(showForks(forks, pause))
		return nil
	}
	for _, r := range forks {
		fmt.Fprintln(a.stdout, r.ID)
	}
	a.say("the source stood still for %.0f ms", milliseconds(pause))
	return nil
}
