package hooks

import (
	"github.com/vmsan/vmsan/api"
	devices "github.com/vmsan/vmsan/internal/network"
	"github.com/vmsan/vmsan/internal/store"
)

// Of is a hook's event about the sandbox of r.
func Of(hook api.Hook, r *store.Record) api.HookEvent {
	state := r.Show()
	return api.HookEvent{Hook: hook, VM: r.ID, State: &state}
}

// CameUp are the events of a sandbox that runs now, which hook says how it came
// to.
func CameUp(hook api.Hook, before api.Status, r *store.Record) []api.HookEvent {
	return append(network(api.HookNetworkAfterSetup, r), StatusChange(before, r), Of(hook, r))
}

// Ended are the events of a sandbox that ran and does not any more. before is
// its record of when it did, and r the one that it has now.
func Ended(before, r *store.Record) []api.HookEvent {
	stopped := Of(api.HookAfterStop, r)
	stopped.PreviousStatus = before.Status
	return append(append(teardown(before), StatusChange(before.Status, r)), stopped)
}

// Paused are the events of a sandbox that stands still from now on, perhaps
// without its memory, and so without a network.
func Paused(before, r *store.Record) []api.HookEvent {
	if r.Reclaimed() {
		return append(teardown(before), StatusChange(before.Status, r))
	}
	return []api.HookEvent{StatusChange(before.Status, r)}
}

// Failed are the events of something with a sandbox that went wrong. networked
// is true if it had been on the way to a network, which is gone.
func Failed(phase string, r *store.Record, networked bool, err error) []api.HookEvent {
	failed := Of(api.HookError, r)
	failed.Phase, failed.Error = phase, api.AsError(err)
	if networked {
		return append(teardown(r), failed)
	}
	return []api.HookEvent{failed}
}

// StatusChange says that a sandbox does something else than before.
func StatusChange(before api.Status, r *store.Record) api.HookEvent {
	return Changed("status", string(before), string(r.Status), r)
}

// Changed says that a field of a sandbox has changed.
func Changed(field, old, now string, r *store.Record) api.HookEvent {
	event := Of(api.HookStateChange, r)
	event.Field, event.OldValue, event.NewValue = field, old, now
	return event
}

// PolicyChange says that what a sandbox may reach has changed.
func PolicyChange(previous api.NetworkPolicy, r *store.Record) api.HookEvent {
	event := Of(api.HookNetworkPolicyChange, r)
	now := store.ShowPolicy(r.Spec.Policy)
	event.PreviousPolicy, event.NewPolicy = &previous, &now
	return event
}

func teardown(r *store.Record) []api.HookEvent {
	if r.Reclaimed() {
		return nil // it has none any more
	}
	return network(api.HookNetworkAfterTeardown, r)
}

// network is the event of a hook about a sandbox's network, if it has one.
func network(hook api.Hook, r *store.Record) []api.HookEvent {
	if !r.Spec.Networked() {
		return nil
	}
	event := Of(hook, r)
	event.Network = &api.HookNetwork{Device: devices.Device(r.ID), Slot: r.Slot, Pool: r.Spec.Pool.String()}
	return []api.HookEvent{event}
}
