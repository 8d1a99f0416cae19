package vmmtest

import (
	"context"
	"testing"

	"github.com/vmsan/vmsan/internal/vmm"
)

// bootAnew begins a boot anew. Where a guest is up before anybody can look,
// nothing is done, which is as good.
func (s suite) bootAnew(t *testing.T) {
	ctx, vm := s.start(t)
	rebooter, ok := vm.(vmm.Rebooter)
	if !ok {
		return
	}
	booted, stood, err := rebooter.Reboot(ctx)
	if err != nil || !booted && stood == "" {
		t.Fatalf("booted: %v, stood at %q, %v", booted, stood, err)
	}
	guestAnswers(t, ctx, vm)
}

// noReboot wants a guest to be left alone whose agent is up.
func noReboot(t *testing.T, ctx context.Context, vm vmm.VM) {
	rebooter, ok := vm.(vmm.Rebooter)
	if !ok {
		return
	}
	if booted, _, err := rebooter.Reboot(ctx); !booted || err != nil {
		t.Fatalf("booted: %v, %v", booted, err)
	}
	guestAnswers(t, ctx, vm)
}
