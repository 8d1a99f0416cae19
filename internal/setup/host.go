package setup

import (
	"os"
	"runtime"
	"strings"

	"golang.org/x/sys/unix"
)

// cpuModel returns what the host calls its CPU: proc_cpuinfo(5).
func cpuModel() string {
	data, err := os.ReadFile("/proc/cpuinfo")
	if err != nil {
		return runtime.GOARCH
	}
	return modelOf(string(data))
}

// modelOf takes x86's name, or arm64's numbers: that has no name to give.
func modelOf(cpuinfo string) string {
	var numbers []string
	for line := range strings.Lines(cpuinfo) {
		key, value, _ := strings.Cut(line, ":")
		value = strings.TrimSpace(value)
		switch strings.TrimSpace(key) {
		case "model name":
			return value
		case "CPU implementer", "CPU variant", "CPU part", "CPU revision":
			numbers = append(numbers, value)
		case "":
			if len(numbers) > 0 {
				return strings.Join(numbers, " ")
			}
		}
	}
	if len(numbers) > 0 {
		return strings.Join(numbers, " ")
	}
	return runtime.GOARCH
}

// hostRelease returns what uname -r says.
func hostRelease() string {
	var u unix.Utsname
	if err := unix.Uname(&u); err != nil {
		return ""
	}
	return unix.ByteSliceToString(u.Release[:])
}
