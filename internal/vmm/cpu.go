package vmm

import (
	"bufio"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"os"
	"strings"
)

// HostCPU is the name of the first CPU and a digest of what it can do.
func HostCPU() (string, error) {
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
			return fmt.Sprintf("%s, features %s", Printable(model), hex.EncodeToString(sum[:6])), nil
		}
	}
	return "", errors.Join(errors.New("/proc/cpuinfo has no name for it"), lines.Err())
}
