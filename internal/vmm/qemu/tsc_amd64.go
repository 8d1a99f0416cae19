package qemu

import (
	"fmt"
	"math"
	"time"

	"golang.org/x/sys/unix"
)

// rdtsc reads the CPU's time stamp counter.
func rdtsc() uint64

// tscWindow is how far apart the two readings of the counter have to be. One
// reading is off by less than a microsecond, so the rate is right to a few
// hundred parts in a million, which is what the guest's kernel wants of it;
// the guest's clock is set from the host's and refined later.
const tscWindow = 4 * time.Millisecond

// reading is the counter and the clock at one moment.
type reading struct {
	ticks uint64
	clock time.Duration
}

// started is the first reading, taken with the process, so that the second
// seldom has to wait.
var started = read()

// read is right to what passes between two readings of the counter: the
// shortest of a few tries is one during which nothing else had the CPU.
func read() (r reading) {
	shortest := uint64(math.MaxUint64)
	for range 8 {
		var now unix.Timespec
		before := rdtsc()
		unix.ClockGettime(unix.CLOCK_MONOTONIC_RAW, &now)
		if took := rdtsc() - before; took < shortest {
			shortest = took
			r = reading{ticks: before + took/2, clock: time.Duration(now.Nano())}
		}
	}
	return r
}

// tscKHz measures the rate of the time stamp counter.
func tscKHz() uint64 {
	if wait := started.clock + tscWindow - read().clock; wait > 0 {
		time.Sleep(wait)
	}
	now := read()
	return uint64(float64(now.ticks-started.ticks) / float64(now.clock-started.clock) * 1e6)
}

// tscParameter tells the guest's kernel the rate of its time stamp counter,
// which under emulation is the host's. It would otherwise calibrate it
// against a timer that a busy host does not serve in time, and then hang.
func tscParameter() []string { return []string{fmt.Sprintf("tsc_early_khz=%d", tscKHz())} }
