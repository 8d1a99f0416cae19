package qemu

import (
	"fmt"
	"runtime"

	"github.com/vmsan/vmsan/internal/vmm"
)

// CPU says what the CPUs of a guest on this host are. The emulator's are the
// same everywhere, but for the time stamp counter, which is the host's.
func (Driver) CPU(accelerator vmm.Accelerator) (vmm.CPU, error) {
	if accelerator == vmm.TCG {
		return vmm.CPU{Model: runtime.GOARCH + " " + tcgCPU, TSCkHz: tscKHz()}, nil
	}
	model, err := vmm.HostCPU()
	if err != nil {
		return vmm.CPU{}, fmt.Errorf("identify CPU: %w", err)
	}
	return vmm.CPU{Model: model, TSCkHz: tscKHz()}, nil
}
