package doctor

import (
	"encoding/hex"
	"net/netip"
	"os"
	"slices"
	"strconv"
	"strings"
)

// listens tells whether a socket of UDP is bound to a port of an address of
// this host, or of all its addresses, by the kernel's list: proc_net(5).
func listens(address netip.Addr, port uint16) bool {
	for _, name := range []string{"udp", "udp6"} {
		list, err := os.ReadFile("/proc/thread-self/net/" + name)
		if err != nil {
			continue
		}
		for line := range strings.Lines(string(list)) {
			bound, ok := parseSocket(line)
			if ok && bound.Port() == port && (bound.Addr().Unmap() == address || bound.Addr().IsUnspecified()) {
				return true
			}
		}
	}
	return false
}

// parseSocket reads the local address of a line. The kernel writes each four
// bytes of it as a number of the machine's, whose bytes both architectures of
// ours have in reverse.
func parseSocket(line string) (netip.AddrPort, bool) {
	fields := strings.Fields(line)
	if len(fields) < 2 {
		return netip.AddrPort{}, false
	}
	text, number, _ := strings.Cut(fields[1], ":")
	raw, err := hex.DecodeString(text)
	port, portErr := strconv.ParseUint(number, 16, 16)
	if err != nil || portErr != nil || len(raw)%4 != 0 {
		return netip.AddrPort{}, false
	}
	for word := range slices.Chunk(raw, 4) {
		slices.Reverse(word)
	}
	address, ok := netip.AddrFromSlice(raw)
	return netip.AddrPortFrom(address, uint16(port)), ok
}
