// Package attack is what a hostile guest tries against its host. The program
// vmsan-attack does it in a real one.
package attack

import (
	"context"
	"errors"
	"fmt"
	"os"
	"slices"
	"time"
)

// attack is one thing that root does in a guest for as long as ctx lasts. It
// returns how often it has done it, and an error if it could not, or if what
// must be refused was not.
type attack struct {
	name string
	do   func(ctx context.Context, args []string) (int, error)
}

// all are the attacks that are commands in a guest.
var all = slices.Concat(onPorts, onMachine, onNetwork, ends, []attack{
	{ServeFloods, serveFloods},
	{BeginWord, func(context.Context, []string) (int, error) { return 1, os.WriteFile(BeginFile, []byte("now"), 0o600) }},
	{ReachWord, reach},
})

// BeginWord has a liar begin.
const BeginWord = "begin"

// ReachWord is what an honest guest does.
const ReachWord = "reach"

// ServeFloods is what published ports of a hostile guest lead to.
const ServeFloods = "serve-floods"

// Names are those of all attacks that are commands.
func Names() []string { return names(all) }

// OnPorts, OnMachine, OnNetwork and Ends name the attacks of each kind. The
// last end the guest, or its agent.
func OnPorts() []string   { return names(onPorts) }
func OnMachine() []string { return names(onMachine) }
func OnNetwork() []string { return names(onNetwork) }
func Ends() []string      { return names(ends) }

func names(attacks []attack) (names []string) {
	for _, a := range attacks {
		names = append(names, a.name)
	}
	return names
}

// Run runs an attack for a time and returns how often it did what it does.
func Run(limit time.Duration, name string, args []string) (int, error) {
	i := slices.IndexFunc(all, func(a attack) bool { return a.name == name })
	if i < 0 {
		return 0, fmt.Errorf("there is no attack %q", name)
	}
	ctx, cancel := context.WithTimeout(context.Background(), limit)
	defer cancel()
	n, err := all[i].do(ctx, args)
	if err == nil && n == 0 {
		err = errors.New("nothing was done")
	}
	return n, err
}

// repeat does something at least once, until ctx ends, or it fails.
func repeat(ctx context.Context, do func(i int) error) (n int, err error) {
	for {
		if err := do(n); err != nil {
			return n, err
		}
		n++
		if ctx.Err() != nil {
			return n, nil
		}
	}
}
