package monitor

import (
	"testing"
	"testing/synctest"
	"time"
)

// A flood of denials is a few events, which say how many they stand for, and
// nothing is lost count of.
func TestDenialsAreBounded(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		d := newDenials()
		const flood = 10_000
		written, counted := 0, 0
		for range flood {
			if unwritten, ok := d.take(); ok {
				written++
				counted += 1 + unwritten
			}
			time.Sleep(time.Millisecond)
		}
		if written < denialBurst || written > denialBurst+2 {
			t.Errorf("%d events were written", written)
		}
		time.Sleep(time.Hour)
		unwritten, ok := d.take()
		if counted += 1 + unwritten; !ok || counted != flood+1 {
			t.Errorf("%d denials were counted of %d, %v", counted, flood+1, ok)
		}
	})
}
