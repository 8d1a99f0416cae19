package cli

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"sync"
	"time"

	"github.com/spf13/cobra"

	"github.com/vmsan/vmsan/api"
	"github.com/vmsan/vmsan/internal/monitor"
	"github.com/vmsan/vmsan/internal/sandbox"
	"github.com/vmsan/vmsan/internal/store"
)

func (a *app) startCommand() *cobra.Command {
	var trace bool
	cmd := &cobra.Command{
		Use:   "start VM...",
		Short: "Start stopped sandboxes from their own disks",
		Args:  arguments(cobra.MinimumNArgs(1)),
		RunE: func(cmd *cobra.Command, args []string) error {
			return a.each(args, func(s *sandbox.Service, ref string) (string, error) {
				record, err := s.Start(cmd.Context(), ref)
				if err != nil {
					return ref, err
				}
				if trace && !a.json {
					a.printTrace(record.Trace)
				}
				return record.ID, nil
			})
		},
	}
	cmd.Flags().BoolVar(&trace, "trace", false, "print how long each stage of the start took")
	return cmd
}

func (a *app) stopCommand() *cobra.Command {
	var grace time.Duration
	cmd := &cobra.Command{
		Use:   "stop VM...",
		Short: "Shut sandboxes down; their disks stay",
		Args:  arguments(cobra.MinimumNArgs(1)),
		RunE: func(cmd *cobra.Command, args []string) error {
			return a.each(args, func(s *sandbox.Service, ref string) (string, error) {
				return a.stopOne(cmd.Context(), s, ref, grace)
			})
		},
	}
	registerGrace(cmd, &grace)
	return cmd
}

func (a *app) stopOne(ctx context.Context, s *sandbox.Service, ref string, grace time.Duration) (string, error) {
	before, err := s.Stop(ctx, ref, grace)
	if err != nil {
		return ref, err
	}
	if !before.Running() {
		a.say("VM %s is not running (current status: %s)", before.ID, before.Status)
	}
	return before.ID, nil
}

func (a *app) restartCommand() *cobra.Command {
	var grace time.Duration
	cmd := &cobra.Command{
		Use:   "restart VM...",
		Short: "Stop sandboxes and start them again",
		Args:  arguments(cobra.MinimumNArgs(1)),
		RunE: func(cmd *cobra.Command, args []string) error {
			return a.each(args, func(s *sandbox.Service, ref string) (string, error) {
				record, err := s.Restart(cmd.Context(), ref, grace)
				return idOr(record, ref), err
			})
		},
	}
	registerGrace(cmd, &grace)
	return cmd
}

func registerGrace(cmd *cobra.Command, grace *time.Duration) {
	cmd.Flags().DurationVarP(grace, "timeout", "t", monitor.DefaultGrace, "how long the guest may take to shut down; 0: it is not asked")
	check := cmd.Args
	cmd.Args = func(cmd *cobra.Command, args []string) error {
		if *grace < 0 || *grace > 24*time.Hour {
			return api.Errorf(api.ErrValidationDuration, "Invalid --timeout: %s. Must be between 0 and 24h.", *grace).
				WithFlag("--timeout")
		}
		return check(cmd, args)
	}
}

func (a *app) removeCommand() *cobra.Command {
	var force bool
	cmd := &cobra.Command{
		Use:     "remove VM...",
		Aliases: []string{"rm"},
		Short:   "Remove sandboxes with their disks",
		Args:    arguments(cobra.MinimumNArgs(1)),
		RunE: func(cmd *cobra.Command, args []string) error {
			return a.each(args, func(s *sandbox.Service, ref string) (string, error) {
				return s.Remove(cmd.Context(), ref, force)
			})
		},
	}
	cmd.Flags().BoolVarP(&force, "force", "f", false, "also if they run")
	return cmd
}

func (a *app) renameCommand() *cobra.Command {
	return &cobra.Command{
		Use:   "rename VM NAME",
		Short: "Give a sandbox another name",
		Args:  arguments(cobra.ExactArgs(2)),
		RunE: func(cmd *cobra.Command, args []string) error {
			service, err := a.service()
			if err != nil {
				return err
			}
			record, err := service.Rename(cmd.Context(), args[0], args[1])
			if err != nil {
				return err
			}
			if a.json {
				a.printJSON(show(record))
			}
			return nil
		},
	}
}

func (a *app) waitCommand() *cobra.Command {
	return &cobra.Command{
		Use:   "wait VM...",
		Short: "Wait until sandboxes have stopped",
		Args:  arguments(cobra.MinimumNArgs(1)),
		RunE: func(cmd *cobra.Command, args []string) error {
			return a.each(args, func(s *sandbox.Service, ref string) (string, error) {
				record, err := s.Wait(cmd.Context(), ref)
				if api.HasCode(err, api.ErrVMNotFound) && store.ValidID(ref) {
					return ref, err
				}
				return idOr(record, ref), err
			})
		},
	}
}

func idOr(r *store.Record, ref string) string {
	if r == nil {
		return ref
	}
	return r.ID
}

// atOnce is how many sandboxes are worked on at a time.
const atOnce = 8

// each does something with several sandboxes side by side, each named once.
// It prints the ids of those that it went well with, in their order, and
// fails with the first failure when it has tried all.
func (a *app) each(refs []string, do func(*sandbox.Service, string) (id string, err error)) error {
	service, err := a.service()
	if err != nil {
		return err
	}
	slices.Sort(refs)
	refs = slices.Compact(refs)
	results := make([]api.Result, len(refs))
	errs := make([]error, len(refs))
	places := make(chan struct{}, atOnce)
	var all sync.WaitGroup
	for i, ref := range refs {
		all.Go(func() {
			places <- struct{}{}
			defer func() { <-places }()
			results[i].VM, errs[i] = do(service, ref)
		})
	}
	all.Wait()
	return a.printResults(results, errs)
}

func (a *app) printResults(results []api.Result, errs []error) error {
	if !a.json {
		for i, r := range results {
			if errs[i] == nil {
				fmt.Fprintln(a.stdout, r.VM)
			}
		}
		return errors.Join(errs...)
	}
	if len(errs) == 1 && errs[0] != nil {
		return errs[0]
	}
	var first error
	for i, err := range errs {
		if err != nil {
			results[i].Error = api.AsError(err)
			first = cmpOr(first, err)
		}
	}
	a.printJSON(map[string]any{"results": results})
	if first != nil {
		return exitStatus(api.Codes[api.AsError(first).Code].Kind)
	}
	return nil
}

func cmpOr(a, b error) error {
	if a != nil {
		return a
	}
	return b
}
