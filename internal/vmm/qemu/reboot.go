package qemu

import (
	"context"
	"strings"

	"github.com/vmsan/vmsan/internal/vmm"
)

// Reboot implements vmm.Rebooter.
func (vm *virtualMachine) Reboot(ctx context.Context) (booted bool, stood string, err error) {
	ctx, cancel := commandContext(ctx)
	defer cancel()
	if booted, err = vm.agentIsUp(ctx); booted || err != nil {
		return booted, "", err
	}
	var registers string
	if err := vm.monitor.run(ctx, "human-monitor-command", map[string]any{"command-line": "info registers"}, &registers); err != nil {
		return false, "", err
	}
	// The machine was started with -no-reboot, for what its guest asks for. It
	// counts when a reset is asked for (system/runstate.c,
	// qemu_system_reset_request).
	for _, command := range []struct {
		name      string
		arguments any
	}{
		{"set-action", map[string]any{"reboot": "reset"}},
		{"system_reset", nil},
		{"set-action", map[string]any{"reboot": "shutdown"}},
	} {
		if err := vm.monitor.run(ctx, command.name, command.arguments, nil); err != nil {
			return false, "", err
		}
	}
	return false, instructionPointer(registers), nil
}

// agentIsUp tells whether the guest has opened the control port.
func (vm *virtualMachine) agentIsUp(ctx context.Context) (bool, error) {
	var devices []struct {
		Label string `json:"label"`
		Open  bool   `json:"frontend-open"`
	}
	if err := vm.monitor.run(ctx, "query-chardev", nil, &devices); err != nil {
		return false, err
	}
	for _, d := range devices {
		if d.Label == controlID {
			return d.Open, nil
		}
	}
	return false, nil
}

// instructionPointer has of a CPU's registers the line that says where it is,
// and on x86 whether it waits for an interrupt.
func instructionPointer(registers string) string {
	for line := range strings.Lines(registers) {
		line = strings.TrimSpace(line)
		if strings.HasPrefix(line, "RIP=") || strings.HasPrefix(line, "EIP=") || strings.HasPrefix(line, "PC=") {
			return vmm.Printable(line)
		}
	}
	return ""
}
