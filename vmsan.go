// Package vmsan runs code nobody has to trust, each piece in a microVM of its
// own, from a Go program. It is the library behind the command of that name:
// both do the same things to the same sandboxes, in any order.
//
//	service, err := vmsan.Open(vmsan.Options{})
//	vm, err := service.Create(ctx, vmsan.CreateOptions{Ephemeral: true})
//	out, err := vmsan.NewCmd(ctx, service, vm.ID, "uname", "-r").Output()
//
// Errors carry an [api.Error], whose code tells what went wrong; see
// [api.HasCode] and docs/errors.md. A host is set up once with `vmsan setup`.
//
// Every sandbox that runs has a process of the vmsan program that owns it, so
// that sandboxes outlive the program that started them. [Options] say where
// that program is found; [Main] has a program be it itself.
package vmsan

import (
	"context"
	"log/slog"
	"os"
	"time"

	"github.com/vmsan/vmsan/api"
	"github.com/vmsan/vmsan/internal/hooks"
	"github.com/vmsan/vmsan/internal/sandbox"
	"github.com/vmsan/vmsan/internal/store"
)

// Options say which sandboxes a service is for. The zero value is what the
// vmsan command does without flags.
type Options struct {
	// Dir is the state directory. Default: $VMSAN_DIR, else /var/lib/vmsan for
	// root and ~/.local/state/vmsan for others.
	Dir string
	// Logger is told what goes wrong without anything failing. Default: nobody
	// is.
	Logger *slog.Logger
	// Hooks run at what this service does, before those in the state
	// directory's hooks.
	Hooks []Hook
	// Binary is the vmsan program, of the same release as this library.
	// Default: this program, if it has called Main; else vmsan in the search
	// path. What cannot be found fails as api.ErrSetupMissingBinary when a
	// sandbox is to be started, and not before.
	Binary string
}

// Hook is code that runs at what happens to sandboxes. A hook before something
// keeps it from happening with an error; that of any other is only logged.
type Hook interface {
	// Name is for errors and logs.
	Name() string
	// Run is called for every event; event.Hook says which it is. It returns
	// soon after ctx has ended, which is after 30 seconds. It may be called
	// from several goroutines at a time.
	Run(ctx context.Context, event api.HookEvent) error
}

// On is a Hook for one kind of event alone.
func On(hook api.Hook, name string, run func(ctx context.Context, event api.HookEvent) error) Hook {
	return on{hook, name, run}
}

type on struct {
	hook api.Hook
	name string
	run  func(context.Context, api.HookEvent) error
}

func (o on) Name() string { return o.name }

func (o on) Run(ctx context.Context, event api.HookEvent) error {
	if event.Hook != o.hook {
		return nil
	}
	return o.run(ctx, event)
}

// Service does things with the sandboxes of one state directory. Its methods
// may be called from any goroutine. A sandbox is named by its id, the beginning
// of that, or its name.
//
// Open returns the one on this host; package vmsantest has one in memory, for
// tests. Later releases may add methods.
type Service interface {
	// List returns the sandboxes that filter chooses, the oldest first.
	List(ctx context.Context, filter Filter) ([]api.VM, error)
	Get(ctx context.Context, vm string) (api.VM, error)
	// Create makes a sandbox, starts it, and returns when its guest answers.
	// If that fails nothing is left.
	Create(ctx context.Context, o CreateOptions) (api.VM, error)
	// Start boots a sandbox that is stopped.
	Start(ctx context.Context, vm string) (api.VM, error)
	// Stop shuts a sandbox down, whose guest has grace to end in order. One
	// that does not run is left as it is.
	Stop(ctx context.Context, vm string, grace time.Duration) (api.VM, error)
	// Pause stops a sandbox's CPUs until Resume.
	Pause(ctx context.Context, vm string) (api.VM, error)
	Resume(ctx context.Context, vm string) (api.VM, error)
	// Extend lets a sandbox run for d from now on, whatever limit it had; 0 lifts
	// that. Its next boot has the limit that it was created with.
	Extend(ctx context.Context, vm string, d time.Duration) (api.VM, error)
	// Wait returns when a sandbox does not run.
	Wait(ctx context.Context, vm string) (api.VM, error)
	// Remove deletes a sandbox with its disk; one that runs, only with force.
	Remove(ctx context.Context, vm string, force bool) error

	// Snapshot saves memory, commands and disk under a name, which may be
	// empty. CreateOptions.Snapshot goes on from it.
	Snapshot(ctx context.Context, vm, name string) (api.Snapshot, error)
	Snapshots(ctx context.Context) ([]api.Snapshot, error)
	DeleteSnapshot(ctx context.Context, snapshot string) error
	// Fork makes count running copies, called name-1 and so on unless name is
	// empty.
	Fork(ctx context.Context, vm string, count int, name string) ([]api.VM, error)

	// Exec runs a command to its end. An error means that it did not run, or
	// that its end is not known. NewCmd is like package os/exec.
	Exec(ctx context.Context, vm string, command Command) (Exit, error)
	// Files are those of a sandbox that runs, for as long as ctx lasts.
	Files(ctx context.Context, vm string) (Files, error)
	// Copy copies a file or tree between the host and sandboxes, whose paths
	// are VM:PATH, as vmsan cp does.
	Copy(ctx context.Context, source, destination string) (api.Copied, error)

	// Events returns what happened, of what the journal still has, the oldest
	// first.
	Events(ctx context.Context, filter EventFilter) ([]api.Event, error)
	// FollowEvents calls show for the same events, and for those that come. It
	// returns nil when ctx ends, and the error of a show that fails.
	FollowEvents(ctx context.Context, filter EventFilter, show func(api.Event) error) error

	// SetNetworkPolicy changes what a sandbox may reach, at once. With kill,
	// open flows that are no longer allowed are cut.
	SetNetworkPolicy(ctx context.Context, vm string, policy api.NetworkPolicy, kill bool) (api.NetworkChange, error)
}

// Filter chooses sandboxes. Zero fields choose all.
type Filter struct {
	Name    string
	Project string
	Labels  map[string]string // all of them
	Status  api.Status
}

// EventFilter chooses events. Zero fields choose all.
type EventFilter struct {
	Since time.Time
	VM    string // also of a sandbox that is gone
	Type  string // like "vm.stop", or what is before the dot
}

// Open returns the service of a state directory, and makes the directory if
// need be.
func Open(o Options) (Service, error) {
	dir := o.Dir
	if dir == "" {
		dir = os.Getenv("VMSAN_DIR")
	}
	layout, err := store.NewLayout(dir)
	if err != nil {
		return nil, api.Errorf(api.ErrValidationStateDir, "%w", err)
	}
	log := o.Logger
	if log == nil {
		log = slog.New(slog.DiscardHandler)
	}
	inner, err := sandbox.Open(layout, log)
	if err != nil {
		return nil, err
	}
	inner.Binary = func() (string, error) { return findBinary(o.Binary) }
	for _, hook := range o.Hooks {
		inner.Hooks = append(inner.Hooks, hooks.Hook(hook))
	}
	return &service{inner}, nil
}
