package qemu

import (
	"context"
	"errors"
	"fmt"
	"strings"

	"github.com/vmsan/vmsan/internal/vmm"
)

// Reboot implements vmm.Rebooter. Meanwhile the machine stands still, so that
// the agent cannot come up between the question and the reset.
func (vm *virtualMachine) Reboot(ctx context.Context) (booted bool, stood string, err error) {
	bounded, cancel := commandContext(ctx)
	defer cancel()
	if err := vm.Pause(bounded); err != nil {
		return false, "", err
	}
	defer func() { err = errors.Join(err, vm.Resume(bounded)) }()
	if booted, err = vm.agentIsUp(bounded); booted || err != nil {
		return booted, "", err
	}
	var registers string
	if err := vm.monitor.run(bounded, "human-monitor-command", map[string]any{"command-line": "info registers"}, &registers); err != nil {
		return false, "", err
	}
	if ctx.Err() != nil {
		return false, "", context.Cause(ctx)
	}
	return false, instructionPointer(registers), vm.reset(bounded)
}

// reset resets the machine, which was started with -no-reboot for what its
// guest asks for. That counts when a reset is asked for
// (qemu_system_reset_request in QEMU's softmmu/runstate.c, later system/).
func (vm *virtualMachine) reset(ctx context.Context) error {
	onReboot := func(action string) error {
		return vm.monitor.run(ctx, "set-action", map[string]any{"reboot": action}, nil)
	}
	if err := onReboot("reset"); err != nil {
		return err
	}
	return errors.Join(vm.monitor.run(ctx, "system_reset", nil, nil), onReboot("shutdown"))
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
	return false, fmt.Errorf("QEMU query-chardev: there is no %s", controlID)
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
