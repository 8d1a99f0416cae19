package policy

import (
	"fmt"
	"strconv"
	"strings"
)

// Bandwidth is how fast a sandbox may receive and send, in bits a second; 0
// is as fast as it goes.
type Bandwidth struct {
	Down uint64 `json:"down,omitempty"`
	Up   uint64 `json:"up,omitempty"`
}

// maxMegabits bounds a bandwidth.
const maxMegabits = 100_000

// ParseBandwidth reads "10mbit" for both ways or "10mbit:20mbit" for down and
// up. The unit is megabits a second and may be left out, or written "m".
func ParseBandwidth(text string) (Bandwidth, error) {
	down, up, both := strings.Cut(strings.ToLower(text), ":")
	if !both {
		up = down
	}
	var b Bandwidth
	for _, way := range []struct {
		text string
		bits *uint64
	}{{down, &b.Down}, {up, &b.Up}} {
		digits := strings.TrimSuffix(strings.TrimSuffix(way.text, "bit"), "m")
		n, err := strconv.ParseUint(digits, 10, 32)
		if err != nil || n < 1 || n > maxMegabits || strings.HasSuffix(way.text, "bit") && !strings.HasSuffix(way.text, "mbit") {
			return Bandwidth{}, fmt.Errorf("expected megabits like 10mbit, or 10mbit:20mbit, between 1 and %d", maxMegabits)
		}
		*way.bits = n * 1_000_000
	}
	return b, nil
}

// String is how ParseBandwidth reads it, and "" for no limit.
func (b Bandwidth) String() string {
	if b == (Bandwidth{}) {
		return ""
	}
	if b.Down == b.Up {
		return fmt.Sprintf("%dmbit", b.Down/1_000_000)
	}
	return fmt.Sprintf("%dmbit:%dmbit", b.Down/1_000_000, b.Up/1_000_000)
}
