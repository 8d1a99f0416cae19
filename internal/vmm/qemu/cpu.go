package qemu

import (
	"bufio"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"os"
	"runtime"
	"strings"

	"github.com/vmsan/vmsan/internal/vmm"
)

// CPU says what the CPUs of a guest on this host are. The emulator's are the
// same everywhere, but for the time stamp counter, which is the host's.
func (Driver) CPU(accelerator vmm.Accelerator) (vmm.CPU, error) {
	if accelerator == vmm.TCG {
		return vmm.CPU{Model: runtime.GOARCH + " " + tcgCPU, TSCkHz: tscKHz()}, nil
	}
	model, err := hostCPU()
	if err != nil {
		return vmm.CPU{}, fmt.Errorf("identify CPU: %w", err)
	}
	return vmm.CPU{Model: model, TSCkHz: tscKHz()}, nil
}

// hostCPU is the name of the first CPU and a digest of what it can do.
func hostCPU() (string, error) {
	f, err := os.Open("/proc/cpuinfo")
	if err != nil {
		return "", err
	}
	defer f.Close()
	fields := map[string]string{}
	lines := bufio.NewScanner(f)
	for lines.Scan() && lines.Text() != "" {
		name, value, _ := strings.Cut(lines.Text(), ":")
		fields[strings.TrimSpace(name)] = strings.TrimSpace(value)
	}
	// x86 has a name; arm64 has numbers.
	for _, names := range [][2]string{{"model name", "flags"}, {"CPU part", "Features"}} {
		if model, ok := fields[names[0]]; ok {
			sum := sha256.Sum256([]byte(fields[names[1]]))
			return fmt.Sprintf("%s, features %s", vmm.Printable(model), hex.EncodeToString(sum[:6])), nil
		}
	}
	return "", errors.Join(errors.New("/proc/cpuinfo has no name for it"), lines.Err())
}
