package sandbox

import (
	"context"
	"runtime"
	"time"

	"github.com/vmsan/vmsan/api"
	"github.com/vmsan/vmsan/internal/kernel"
	"github.com/vmsan/vmsan/internal/setup"
	"github.com/vmsan/vmsan/internal/store"
	"github.com/vmsan/vmsan/internal/timing"
)

// Bench measures what vmsan takes on this host with what new sandboxes get by
// default. binary is vmsan's own. Figures are medians of so many rounds; report
// is told each when it is known.
func (s *Service) Bench(ctx context.Context, binary string, rounds int, report func(api.BenchFigure)) (api.Bench, error) {
	if err := checkInteger("--rounds", rounds, 1, 1000, ""); err != nil {
		return api.Bench{}, err
	}
	if err := s.Ready(); err != nil {
		return api.Bench{}, err
	}
	ready, err := setup.Load(s.layout)
	if err != nil {
		return api.Bench{}, err
	}
	var b api.Bench
	if b.Driver, b.Accelerator, err = choose(ready, CreateOptions{Driver: "auto", Accelerator: "auto"}); err != nil {
		return b, err
	}
	b.CPUs, b.Kernel = runtime.NumCPU(), ready.KernelVersion
	for _, v := range ready.Verdicts {
		if v.Accel == b.Accelerator {
			b.CPU, b.VMM, b.Host = v.CPU, v.VMM, v.Host
		}
	}
	if b.Driver != "qemu" && ready.Firecracker != nil {
		b.VMM = ready.Firecracker.VMM
	}
	k, err := kernel.Load(s.layout, ready.Kernel)
	if err != nil {
		return b, err
	}
	driver, err := Driver(s.layout, store.Spec{Driver: b.Driver, Release: s.release(b.Driver)})
	if err != nil {
		return b, err
	}
	bare := func(ctx context.Context) (time.Duration, error) {
		return timing.Timed(func() error { return s.probe(ctx, driver, b.Accelerator, k) })
	}
	err = timing.Host(ctx, timing.Vmsan{Binary: binary, Dir: s.layout.Dir}, bare, rounds, func(f api.BenchFigure) {
		b.Figures = append(b.Figures, f)
		report(f)
	})
	return b, err
}
