package timing

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"strings"
	"time"

	"github.com/vmsan/vmsan/api"
)

// Host measures what vmsan does on this host, each figure beside its floor:
// what the same would take without vmsan. bare boots a machine that has nothing
// but a kernel and our agent. Figures are medians of so many rounds, or more of
// what is quick; report is told each when it is known. Three rounds take about
// a minute where machines are emulated.
func Host(ctx context.Context, v Vmsan, bare func(context.Context) (time.Duration, error), rounds int, report func(api.BenchFigure)) (err error) {
	h := host{Vmsan: v, bare: bare, rounds: rounds, report: report}
	if err := h.boot(ctx); err != nil {
		return err
	}
	var id bytes.Buffer
	if _, err := h.Run(ctx, &id, "create", "--network", "none"); err != nil {
		return err
	}
	h.vm = strings.TrimSpace(id.String())
	defer func() {
		_, removed := h.Run(context.WithoutCancel(ctx), nil, "rm", "-f", h.vm)
		err = errors.Join(err, removed)
	}()
	for _, step := range []func(context.Context) error{h.exec, h.warm, h.stdout, h.disk} {
		if err := step(ctx); err != nil {
			return err
		}
	}
	return nil
}

type host struct {
	Vmsan
	bare   func(context.Context) (time.Duration, error)
	rounds int // of what takes seconds
	report func(api.BenchFigure)
	vm     string
	execs  time.Duration // what exec takes
}

// quick is how often what does not take seconds is measured in a round.
const quick = 5

// repeat is the median of several times.
func repeat(n int, measure func() (time.Duration, error)) (time.Duration, error) {
	var all []time.Duration
	for range n {
		took, err := measure()
		if err != nil {
			return 0, err
		}
		all = append(all, took)
	}
	return Median(all), nil
}

// seconds reports a time, of which less is better.
func (h *host) seconds(what string, took, floor time.Duration, floorIs string) {
	h.report(api.BenchFigure{Name: what, Unit: "s", Value: took.Seconds(), Floor: floor.Seconds(), FloorIs: floorIs})
}

// rate reports bytes for a time.
func (h *host) rate(what string, took, floor time.Duration, floorIs string) {
	h.report(api.BenchFigure{
		Name: what, Unit: "B/s", Value: bulk / took.Seconds(), Floor: bulk / floor.Seconds(), FloorIs: floorIs,
	})
}

// bulk is how much is written, in bytes.
const bulk = 64 << 20

func (h *host) boot(ctx context.Context) error {
	floor, err := repeat(h.rounds, func() (time.Duration, error) { return h.bare(ctx) })
	if err != nil {
		return fmt.Errorf("boot a bare machine: %w", err)
	}
	took, err := repeat(h.rounds, func() (time.Duration, error) {
		return h.Run(ctx, nil, "run", "--cold", "--network", "none", "--", "/bin/true")
	})
	if err == nil {
		h.seconds("run of /bin/true that boots", took, floor, "a machine with kernel and agent alone")
	}
	return err
}

// inGuest is how long a script takes in the sandbox, without starting it.
func (h *host) inGuest(ctx context.Context, script string) (time.Duration, error) {
	took, err := h.Run(ctx, nil, "exec", "--no-stdin", h.vm, "--", "sh", "-c", script)
	return max(took-h.execs, time.Microsecond), err
}

func (h *host) exec(ctx context.Context) (err error) {
	h.execs, err = repeat(quick*h.rounds, func() (time.Duration, error) { return h.Run(ctx, nil, "exec", "--no-stdin", h.vm, "--", "/bin/true") })
	if err != nil {
		return err
	}
	const times = 50
	all, err := h.inGuest(ctx, fmt.Sprintf("i=0; while [ $i -lt %d ]; do /bin/true; i=$((i+1)); done", times))
	if err == nil {
		h.seconds("exec of /bin/true", h.execs, all/times, "starting it in the guest, from a shell there")
	}
	return err
}

func (h *host) warm(ctx context.Context) error {
	took, err := repeat(h.rounds, func() (time.Duration, error) {
		return h.Run(ctx, nil, "run", "--network", "none", "--", "/bin/true")
	})
	if err == nil {
		h.seconds("run of /bin/true from a template", took, h.execs, "exec of it in a sandbox that runs")
	}
	return err
}

func (h *host) stdout(ctx context.Context) error {
	produce := fmt.Sprintf("head -c %d /dev/zero", bulk)
	floor, err := repeat(h.rounds, func() (time.Duration, error) { return h.inGuest(ctx, produce+" >/dev/null") })
	if err != nil {
		return err
	}
	took, err := repeat(h.rounds, func() (time.Duration, error) {
		var count Counter
		took, err := h.Run(ctx, &count, "exec", "--no-stdin", h.vm, "--", "sh", "-c", produce)
		if err == nil && count != bulk {
			err = fmt.Errorf("exec carried %d bytes, not %d", count, bulk)
		}
		return took, err
	})
	if err == nil {
		h.rate("standard output of a command", took, floor, "the same into /dev/null of the guest")
	}
	return err
}

func (h *host) disk(ctx context.Context) error {
	floor, err := repeat(h.rounds, h.writeHere)
	if err != nil {
		return err
	}
	took, err := repeat(h.rounds, func() (time.Duration, error) {
		return h.inGuest(ctx, fmt.Sprintf("head -c %d /dev/zero >/root/bench && sync /root/bench && rm /root/bench", bulk))
	})
	if err == nil {
		h.rate("writing to the disk of a sandbox", took, floor, "the same to the state directory")
	}
	return err
}

// writeHere writes to the file system that sandboxes' disks are on.
func (h *host) writeHere() (took time.Duration, err error) {
	f, err := os.CreateTemp(h.Dir, "bench-")
	if err != nil {
		return 0, err
	}
	defer f.Close()
	if err := os.Remove(f.Name()); err != nil { // it goes with us, however we end
		return 0, err
	}
	block := make([]byte, 1<<20)
	return Timed(func() error {
		for range bulk / len(block) {
			if _, err := f.Write(block); err != nil {
				return err
			}
		}
		return f.Sync()
	})
}
