package main

import (
	"context"
	"fmt"
	"os"
	"slices"
	"time"

	"github.com/vmsan/vmsan/internal/timing"
)

// soak boots one sandbox after the other while another processor is kept
// busy, which is when emulated machines like to hang.
func (b *bench) soak(ctx context.Context, times int) error {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	go burn(ctx)
	var took []time.Duration
	for i := range times {
		d, err := b.command(ctx, b.state, nil, "run", "--cold", "--", "/bin/true")
		if err != nil {
			return fmt.Errorf("boot %d of %d: %w", i+1, times, err)
		}
		took = append(took, d)
		fmt.Fprintf(os.Stderr, "%d/%d %s\n", i+1, times, d.Round(time.Millisecond))
	}
	fmt.Printf("%d of %d cold boots came up beside a busy processor: median %s, slowest %s\n",
		len(took), times, ms(timing.Median(took)), ms(slices.Max(took)))
	return nil
}

// burn uses one processor until ctx ends.
func burn(ctx context.Context) {
	for x := uint64(1); ctx.Err() == nil; {
		for range 1 << 20 {
			x ^= x << 13
			x ^= x >> 7
			x ^= x << 17
		}
	}
}
