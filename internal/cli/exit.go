package cli

import (
	"context"
	"errors"
	"fmt"
	"strings"

	"github.com/vmsan/vmsan/api"
	"github.com/vmsan/vmsan/internal/guest"
)

// Exit codes of commands that run something in the guest, like those of
// env(1), timeout(1) and docker; all others are the guest's own.
const (
	exitTimeout       = 124
	exitFailed        = 125
	exitNotExecutable = 126
	exitNotFound      = 127
	exitSignal        = 128 // and the signal's number
	exitInterrupted   = 130
)

// guestExit ends the program with the exit code of a guest's command.
type guestExit struct{ guest.Exit }

func (e guestExit) Error() string { return fmt.Sprintf("the command exited with %d", e.code()) }

func (e guestExit) code() int {
	switch {
	case e.TimedOut:
		return exitTimeout
	case e.Signal > 0:
		return exitSignal + e.Signal
	}
	return e.Code
}

// exitStatus ends the program with the exit code of a kind of failure that
// was printed already.
type exitStatus api.Kind

func (e exitStatus) Error() string { return fmt.Sprintf("exit status %d", int(e)) }

// finish prints err, unless it only carries the guest's exit code, and
// returns the exit code of the program. executes is true for commands whose
// exit codes are the guest's.
func (a *app) finish(err error, executes bool) int {
	var ended guestExit
	var printed exitStatus
	switch {
	case err == nil:
		return 0
	case errors.As(err, &ended):
		return ended.code()
	case errors.As(err, &printed):
		return int(printed)
	}
	failure := failureOf(err)
	a.blame(failure)
	a.printError(failure)
	if errors.Is(err, context.Canceled) {
		return exitInterrupted
	}
	if executes {
		return execCode(failure.Code)
	}
	return int(api.Codes[failure.Code].Kind)
}

// failureOf recognizes interrupts, and what cobra says of unknown commands,
// which it does not wrap. What went wrong after an interrupt, and has a code,
// keeps it.
func failureOf(err error) *api.Error {
	failure := api.AsError(err)
	switch {
	case failure.Code != api.ErrInternal && !errors.Is(failure, context.Canceled):
	case errors.Is(err, context.Canceled):
		failure.Code, failure.Message = api.ErrInterrupted, strings.ReplaceAll(failure.Message, context.Canceled.Error(), "interrupted")
	case strings.HasPrefix(err.Error(), "unknown command"):
		failure.Code, failure.Hint = api.ErrUsage, "vmsan --help"
		failure.Message, _, _ = strings.Cut(failure.Message, "\n")
	}
	return failure
}

func execCode(code api.Code) int {
	switch code {
	case api.ErrExecNotFound:
		return exitNotFound
	case api.ErrExecNotExecutable:
		return exitNotExecutable
	}
	return exitFailed
}

// printError prints a failure: one JSON document on stdout, or lines for
// people on stderr.
func (a *app) printError(e *api.Error) {
	if a.json {
		a.printJSON(struct {
			Error *api.Error `json:"error"`
		}{e})
		return
	}
	fmt.Fprintf(a.stderr, "vmsan: %s\n", e.Message)
	for _, said := range []struct {
		what  string
		lines []string
	}{{"The console", e.Console}, {"The VMM", e.Log}} {
		if len(said.lines) > 0 {
			fmt.Fprintf(a.stderr, "%s said last:\n  %s\n", said.what, strings.Join(said.lines, "\n  "))
		}
	}
	if e.Hint != "" {
		fmt.Fprintf(a.stderr, "Hint: %s\n", e.Hint)
	}
	if a.verbose {
		fmt.Fprintf(a.stderr, "More: vmsan explain %s\n", e.Code)
	}
}
