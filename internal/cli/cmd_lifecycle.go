package cli

import (
	"context"
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

		ValidArgsFunction: a.completeVMs,
		RunE: func(cmd *cobra.Command, args []string) error {
			return a.each(args, func(s *sandbox.Service, id string) (api.Result, error) {
				record, err := s.Start(cmd.Context(), id)
				if trace && err == nil && !a.json {
					a.printTrace(record.Trace)
				}
				return started(record), err
			})
		},
	}
	cmd.Flags().BoolVar(&trace, "trace", false, "print how long each stage of the start took")
	return cmd
}

// started is what a start made of a sandbox.
func started(r *store.Record) api.Result {
	result := ended(r)
	if r != nil {
		result.Trace = r.Trace
	}
	return result
}

// ended is what became of a sandbox whose record is r.
func ended(r *store.Record) api.Result {
	if r == nil {
		return api.Result{}
	}
	return api.Result{VM: r.ID, Status: r.Status}
}

func (a *app) stopCommand() *cobra.Command {
	var timeout string
	cmd := &cobra.Command{
		Use:   "stop VM...",
		Short: "Shut sandboxes down; their disks stay",
		Long: "stop asks the guest to shut down, which ends its programs and writes its disk, and ends the machine when it\n" +
			"has, or when --timeout has passed. It is no error if a sandbox does not run.",
		Args: arguments(cobra.MinimumNArgs(1)),

		ValidArgsFunction: a.completeVMs,
		RunE: func(cmd *cobra.Command, args []string) error {
			grace, err := parseGrace(timeout)
			if err != nil {
				return err
			}
			return a.each(args, func(s *sandbox.Service, id string) (api.Result, error) {
				return a.stopOne(cmd.Context(), s, id, grace)
			})
		},
	}
	registerGrace(cmd, &timeout)
	return cmd
}

func (a *app) stopOne(ctx context.Context, s *sandbox.Service, id string, grace time.Duration) (api.Result, error) {
	before, err := s.Stop(ctx, id, grace)
	if err != nil {
		return api.Result{}, err
	}
	if !before.Running() {
		a.say("VM %s is not running (current status: %s)", before.ID, before.Status)
		return ended(before), nil
	}
	return api.Result{VM: id, Status: api.StatusStopped}, nil
}

func (a *app) restartCommand() *cobra.Command {
	var timeout string
	cmd := &cobra.Command{
		Use:   "restart VM...",
		Short: "Stop sandboxes and start them again",
		Args:  arguments(cobra.MinimumNArgs(1)),

		ValidArgsFunction: a.completeVMs,
		RunE: func(cmd *cobra.Command, args []string) error {
			grace, err := parseGrace(timeout)
			if err != nil {
				return err
			}
			return a.each(args, func(s *sandbox.Service, id string) (api.Result, error) {
				record, err := s.Restart(cmd.Context(), id, grace)
				return started(record), err
			})
		},
	}
	registerGrace(cmd, &timeout)
	return cmd
}

func registerGrace(cmd *cobra.Command, timeout *string) {
	cmd.Flags().StringVarP(timeout, "timeout", "t", monitor.DefaultGrace.String(),
		"how long the guest may take to shut down: a `TIME` like 1m30s, or seconds; 0: it is not asked")
}

// maxGrace bounds how long a guest may be waited for.
const maxGrace = 24 * time.Hour

func parseGrace(text string) (time.Duration, error) {
	grace, err := sandbox.ParseDuration("--timeout", text)
	if err == nil && grace > maxGrace {
		err = api.Errorf(api.ErrValidationDuration, "Invalid --timeout: %.80q. Must be between 0 and 24h.", text).
			WithFlag("--timeout")
	}
	return grace, err
}

func (a *app) removeCommand() *cobra.Command {
	var force bool
	cmd := &cobra.Command{
		Use:     "remove VM...",
		Aliases: []string{"rm"},
		Short:   "Remove sandboxes with their disks",
		Args:    arguments(cobra.MinimumNArgs(1)),

		ValidArgsFunction: a.completeVMs,
		RunE: func(cmd *cobra.Command, args []string) error {
			return a.each(args, func(s *sandbox.Service, id string) (api.Result, error) {
				_, err := s.Remove(cmd.Context(), id, force)
				return api.Result{VM: id}, err
			})
		},
	}
	cmd.Flags().BoolVarP(&force, "force", "f", false, "also if they run")
	return cmd
}

func (a *app) renameCommand() *cobra.Command {
	return &cobra.Command{
		Use:     "rename VM NAME",
		Short:   "Give a sandbox another name",
		Long:    "rename gives a sandbox another name. An empty NAME takes its name away.",
		Example: "  vmsan rename web www",
		Args:    arguments(cobra.ExactArgs(2)),

		ValidArgsFunction: a.completeVM,
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
				a.printJSON(record.Show())
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

		ValidArgsFunction: a.completeVMs,
		RunE: func(cmd *cobra.Command, args []string) error {
			return a.each(args, func(s *sandbox.Service, id string) (api.Result, error) {
				record, err := s.Wait(cmd.Context(), id)
				if api.HasCode(err, api.ErrVMNotFound) {
					// It was there when we began: removed is stopped, too.
					return api.Result{VM: id}, nil
				}
				return ended(record), err
			})
		},
	}
}

// atOnce is how many sandboxes are worked on at a time.
const atOnce = 8

// each does something with several sandboxes side by side. Unless all of them
// exist nothing is done. It prints the ids of those that it went well with,
// in their order, and fails as the first failure when it has tried all.
func (a *app) each(refs []string, do func(s *sandbox.Service, id string) (api.Result, error)) error {
	service, err := a.service()
	if err != nil {
		return err
	}
	ids, err := findAll(service, refs)
	if err != nil {
		return err
	}
	results := make([]api.Result, len(ids))
	errs := make([]error, len(ids))
	places := make(chan struct{}, atOnce)
	var all sync.WaitGroup
	for i, id := range ids {
		all.Go(func() {
			places <- struct{}{}
			defer func() { <-places }()
			results[i], errs[i] = do(service, id)
			results[i].VM = id
		})
	}
	all.Wait()
	return a.printResults(results, errs)
}

// findAll returns the ids of the sandboxes that refs name, each once.
func findAll(service *sandbox.Service, refs []string) ([]string, error) {
	var ids []string
	for _, ref := range refs {
		id, err := service.Find(ref)
		if err != nil {
			return nil, err
		}
		if !slices.Contains(ids, id) {
			ids = append(ids, id)
		}
	}
	return ids, nil
}

// printResults prints what became of each sandbox. A single failure is
// printed like any other command's.
func (a *app) printResults(results []api.Result, errs []error) error {
	if len(errs) == 1 && errs[0] != nil {
		return errs[0]
	}
	var status error
	for i, err := range errs {
		switch {
		case err == nil && !a.json:
			fmt.Fprintln(a.stdout, results[i].VM)
		case err != nil:
			failure := failureOf(err)
			results[i].Error = failure
			if status == nil {
				status = exitStatus(api.Codes[failure.Code].Kind)
			}
			if !a.json {
				a.printError(failure)
			}
		}
	}
	if a.json {
		a.printJSON(api.Results{Results: results})
	}
	return status
}
