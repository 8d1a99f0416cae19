package network

import (
	"errors"
	"fmt"
	"os"
	"strconv"
	"strings"
)

// Traffic is what a guest has received and sent since it was started, in
// bytes, with the headers of its packets.
type Traffic struct{ Received, Sent uint64 }

// TrafficOf reads the counters of the tap in whose namespace the process pid
// is. The veth would not do: what comes through published ports does not pass
// it.
func TrafficOf(pid int) (Traffic, error) {
	path := fmt.Sprintf("/proc/%d/net/dev", pid)
	text, err := os.ReadFile(path)
	if err != nil {
		return Traffic{}, err
	}
	t, err := parseTraffic(string(text))
	if err != nil {
		return t, fmt.Errorf("read %s: %w", path, err)
	}
	return t, nil
}

// parseTraffic finds a line like
//
//	tap0: 1234 (received bytes) and seven more, 5678 (transmitted bytes) and seven more
//
// What the host has received through the tap is what the guest has sent.
func parseTraffic(text string) (t Traffic, err error) {
	for line := range strings.Lines(text) {
		name, counters, _ := strings.Cut(strings.TrimSpace(line), ":")
		if name != tapName {
			continue
		}
		fields := strings.Fields(counters)
		if len(fields) < 9 {
			return t, fmt.Errorf("%s has %d counters", name, len(fields))
		}
		if t.Sent, err = strconv.ParseUint(fields[0], 10, 64); err == nil {
			t.Received, err = strconv.ParseUint(fields[8], 10, 64)
		}
		return t, err
	}
	return t, errors.New("there is no " + tapName)
}
