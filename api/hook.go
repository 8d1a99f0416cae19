package api

import "strings"

// Hook names a moment in the life of a sandbox, snapshot or image at which
// code of the user's runs; see docs/hooks.md.
type Hook string

// The hooks. Those before something happens can stop it.
const (
	HookBeforeCreate Hook = "vm:beforeCreate"
	HookAfterCreate  Hook = "vm:afterCreate"
	HookBeforeStart  Hook = "vm:beforeStart"
	HookAfterStart   Hook = "vm:afterStart"
	HookBeforeStop   Hook = "vm:beforeStop"
	HookAfterStop    Hook = "vm:afterStop"
	HookBeforeRemove Hook = "vm:beforeRemove"
	HookAfterRemove  Hook = "vm:afterRemove"
	HookError        Hook = "vm:error"

	HookNetworkAfterSetup    Hook = "network:afterSetup"
	HookNetworkAfterTeardown Hook = "network:afterTeardown"
	HookNetworkPolicyChange  Hook = "network:policyChange"

	HookStateChange Hook = "state:change"

	HookSnapshotAfterCreate Hook = "snapshot:afterCreate"
	HookImageAfterPull      Hook = "image:afterPull"
)

// Hooks are all hooks.
var Hooks = []Hook{
	HookBeforeCreate, HookAfterCreate, HookBeforeStart, HookAfterStart, HookBeforeStop, HookAfterStop,
	HookBeforeRemove, HookAfterRemove, HookError,
	HookNetworkAfterSetup, HookNetworkAfterTeardown, HookNetworkPolicyChange, HookStateChange,
	HookSnapshotAfterCreate, HookImageAfterPull,
}

// Before tells whether the hook comes before what it is named after, and so
// can stop that.
func (h Hook) Before() bool {
	_, moment, _ := strings.Cut(string(h), ":")
	return strings.HasPrefix(moment, "before")
}

// HookEvent is what a hook is told.
type HookEvent struct {
	Hook Hook `json:"hook"`
	// VM is the sandbox's id. Empty for hooks of images.
	VM string `json:"vmId,omitempty"`
	// State is the sandbox as it is, or was last, or is to be.
	State *VM `json:"state,omitempty"`

	// PreviousStatus is what it did before. Of vm:afterStop.
	PreviousStatus Status `json:"previousStatus,omitempty"`
	// Force is true if it is removed although it runs. Of vm:beforeRemove.
	Force bool `json:"force,omitempty"`
	// Error is what went wrong while it was created, started, stopped or
	// removed, which Phase says. Of vm:error.
	Error *Error `json:"error,omitempty"`
	Phase string `json:"phase,omitempty"`
	// Network is what it has on the host. Of the hooks of networks but for
	// network:policyChange, which has the policies.
	Network        *HookNetwork   `json:"network,omitempty"`
	PreviousPolicy *NetworkPolicy `json:"previousPolicy,omitempty"`
	NewPolicy      *NetworkPolicy `json:"newPolicy,omitempty"`
	// Field is "status" or "name". Of state:change.
	Field    string `json:"field,omitempty"`
	OldValue string `json:"oldValue,omitempty"`
	NewValue string `json:"newValue,omitempty"`
	// Snapshot is what was saved. Of snapshot:afterCreate.
	Snapshot *Snapshot `json:"snapshot,omitempty"`
	// Image is what was pulled. Of image:afterPull.
	Image *Image `json:"image,omitempty"`
}

// HookNetwork is a sandbox's network on the host.
type HookNetwork struct {
	// Device is the network device that leads to it.
	Device string `json:"device"`
	// Slot is its number, which its addresses are of in Pool.
	Slot int    `json:"slot"`
	Pool string `json:"pool"`
}
