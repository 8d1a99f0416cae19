package main

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	"golang.org/x/sync/errgroup"

	"github.com/vmsan/vmsan/api"
	"github.com/vmsan/vmsan/bench/floor/request"
	"github.com/vmsan/vmsan/internal/timing"
)

// warm measures starts from templates, snapshots and forks, beside a bare
// machine that is restored: until it answers, and until it has run /bin/true,
// which is a lot of code for an emulated guest to translate.
func (b *bench) warm(ctx context.Context, r *rested) error {
	if _, err := b.command(ctx, b.state, nil, "setup"); err != nil {
		return err
	}
	var runs, creates, colds, floors, spawns []time.Duration
	for i := range b.rounds {
		floor, spawned, err := r.wakeAndSpawn(ctx, fmt.Sprint("warm-", i))
		if err != nil {
			return err
		}
		run, err := b.command(ctx, b.state, nil, "run", "--", "/bin/true")
		if err != nil {
			return err
		}
		create, err := b.create(ctx)
		if err != nil {
			return err
		}
		floors, spawns, runs, creates = append(floors, floor), append(spawns, spawned), append(runs, run), append(creates, create)
		if i > b.rounds/2 {
			continue // a cold run takes long and differs little
		}
		cold, err := b.command(ctx, b.state, nil, "run", "--cold", "--", "/bin/true")
		if err != nil {
			return err
		}
		colds = append(colds, cold)
	}
	run, create, cold, floor, spawned := timing.Median(runs), timing.Median(creates), timing.Median(colds), timing.Median(floors), timing.Median(spawns)
	b.add("run of /bin/true from a template", ms(run), ms(floor), ratio(run, floor), "<= 2.0 x")
	b.add("the same; floor: /bin/true has run", ms(run), ms(spawned), ratio(run, spawned), "")
	b.add("the same; floor: our own cold run", ms(run), ms(cold), fmt.Sprintf("%.1f x faster", cold.Seconds()/run.Seconds()), ">= 8 x")
	b.add("create from a template", ms(create), ms(floor), ms(create-floor)+" more", "<= 80 ms more")
	return b.forks(ctx, floor, spawned)
}

// wakeAndSpawn is how long a floor takes to answer, and to have run a command.
func (r *rested) wakeAndSpawn(ctx context.Context, name string) (answered, spawned time.Duration, err error) {
	if err := r.cloneFor(name); err != nil {
		return 0, 0, err
	}
	began := time.Now()
	m, err := r.wake(ctx, name, false)
	if err != nil {
		return 0, 0, err
	}
	answered = time.Since(began)
	err = m.ask(request.Spawn)
	spawned = time.Since(began)
	return answered, spawned, errors.Join(err, m.stop(ctx))
}

// create makes a sandbox and removes it.
func (b *bench) create(ctx context.Context) (took time.Duration, err error) {
	var id bytes.Buffer
	if took, err = b.command(ctx, b.state, &id, "create"); err != nil {
		return 0, err
	}
	_, err = b.command(ctx, b.state, nil, "rm", "-f", strings.TrimSpace(id.String()))
	return took, err
}

// forks measures copies of a sandbox that runs. Their time counts from when
// what they are made of was sealed.
func (b *bench) forks(ctx context.Context, floor, spawned time.Duration) error {
	var id bytes.Buffer
	if _, err := b.command(ctx, b.state, &id, "create", "--name", "bench-source"); err != nil {
		return err
	}
	defer b.command(ctx, b.state, nil, "rm", "-f", "bench-source")
	if _, err := b.command(ctx, b.state, nil, "exec", "bench-source", "/bin/true"); err != nil {
		return err
	}
	var pauses, firsts []time.Duration
	for range b.rounds {
		forks, pause, err := b.fork(ctx, 1)
		if err != nil {
			return err
		}
		exec, err := b.command(ctx, b.state, nil, "exec", forks[0].ID, "/bin/true")
		if err != nil {
			return err
		}
		if err := b.remove(ctx, forks); err != nil {
			return err
		}
		pauses, firsts = append(pauses, pause), append(firsts, forks[0].StartedAt.Sub(forks[0].CreatedAt)+exec)
	}
	b.add("fork: the source's pause", ms(timing.Median(pauses)), "-", "-", "<= 150 ms + 1 ms/MiB over 100")
	first := timing.Median(firsts)
	b.add("fork: first exec, after sealing", ms(first), ms(floor), ratio(first, floor), "<= 1.5 x")
	b.add("the same; floor: /bin/true has run", ms(first), ms(spawned), ratio(first, spawned), "")
	return b.manyForks(ctx)
}

// manyForks is what many copies at once take, and each when it has nothing to
// do.
func (b *bench) manyForks(ctx context.Context) error {
	forks, _, err := b.fork(ctx, crowd)
	if err != nil {
		return err
	}
	first := slices.MinFunc(forks, func(x, y api.VM) int { return x.CreatedAt.Compare(y.CreatedAt) }).CreatedAt
	last := slices.MaxFunc(forks, func(x, y api.VM) int { return x.StartedAt.Compare(*y.StartedAt) }).StartedAt
	b.add(fmt.Sprintf("%d forks at once, all have answered", crowd), ms(last.Sub(first)), ms(b.crowdTime),
		ratio(last.Sub(first), b.crowdTime), "<= 1.6 x")
	var sizes []time.Duration
	for _, f := range forks {
		kib, err := private(f.PIDs.VMM)
		if err != nil {
			return err
		}
		sizes = append(sizes, time.Duration(kib))
	}
	b.add("memory of an idle fork that is its own", fmt.Sprintf("%.1f MiB", float64(timing.Median(sizes))/1024), "-", "-", "<= 28 MiB")
	return b.remove(ctx, forks)
}

// fork makes copies of the source, with all that inspect tells of them.
func (b *bench) fork(ctx context.Context, count int) (forks []api.VM, pause time.Duration, err error) {
	var out bytes.Buffer
	if _, err := b.command(ctx, b.state, &out, "--json", "fork", "bench-source", "--count", fmt.Sprint(count)); err != nil {
		return nil, 0, err
	}
	var made api.Forks
	if err := json.Unmarshal(out.Bytes(), &made); err != nil {
		return nil, 0, err
	}
	return made.VMs, time.Duration(made.PausedMS * float64(time.Millisecond)), nil
}

func (b *bench) remove(ctx context.Context, forks []api.VM) error {
	var all errgroup.Group
	all.SetLimit(2)
	for _, f := range forks {
		all.Go(func() error {
			_, err := b.command(ctx, b.state, nil, "rm", "-f", f.ID)
			return err
		})
	}
	return all.Wait()
}
