package network

import (
	"fmt"
	"slices"
	"testing"
	"time"

	"github.com/vmsan/vmsan/internal/testenv"
)

// BenchmarkCreate makes networks beside some that are there already, and
// reports medians: other programs disturb a mean.
func BenchmarkCreate(b *testing.B) {
	testenv.RequireRoot(b)
	made := 0
	for _, existing := range []int{0, 1, 500} {
		for ; made < existing; made++ {
			n, slot := create(b, Config{Slot: 1000 + made}), 1000+made
			b.Cleanup(func() {
				n.Close()
				awaitGone(b, slot)
			})
		}
		b.Run(fmt.Sprintf("beside-%d", existing), func(b *testing.B) {
			var up, down []time.Duration
			for i := range b.N {
				began := time.Now()
				n := create(b, Config{Slot: i % 1000})
				up = append(up, time.Since(began))
				began = time.Now()
				if err := n.Close(); err != nil {
					b.Fatal(err)
				}
				down = append(down, time.Since(began))
				awaitGone(b, i%1000)
			}
			b.ReportMetric(median(up).Seconds()*1e3, "ms-create")
			b.ReportMetric(median(down).Seconds()*1e3, "ms-close")
		})
	}
}

func median(d []time.Duration) time.Duration { return slices.Sorted(slices.Values(d))[len(d)/2] }

// BenchmarkCheckForwarding reads no rules, and those that Docker makes.
func BenchmarkCheckForwarding(b *testing.B) {
	testenv.RequireRoot(b)
	for _, host := range hostRules[:2] {
		b.Run(host.name, func(b *testing.B) {
			runAll(b, host.commands)
			defer runAll(b, host.undo)
			for b.Loop() {
				CheckForwarding(testPool)
			}
		})
	}
}
