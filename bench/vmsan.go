package main

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"time"

	"github.com/vmsan/vmsan/api"
	"github.com/vmsan/vmsan/bench/floor/request"
	"github.com/vmsan/vmsan/internal/guest"
	"github.com/vmsan/vmsan/internal/setup"
	"github.com/vmsan/vmsan/internal/store"
	"github.com/vmsan/vmsan/internal/testenv/lab"
	"github.com/vmsan/vmsan/internal/timing"
)

// bench runs the measurements.
type bench struct {
	vmsan, state string
	rounds       int
	only         string // one measurement's name, or all
	floor        *floor
	world        *lab.Lab
	crowdTime    time.Duration // what the floor's crowd took
	rows         []row
}

// row is one line of the result.
type row struct {
	what   string
	vmsan  string
	floor  string
	ratio  string
	target string
}

// command runs the binary; its output is thrown away unless out is given.
func (b *bench) command(ctx context.Context, dir string, out io.Writer, args ...string) (time.Duration, error) {
	return timing.Vmsan{Binary: b.vmsan, Dir: dir}.Run(ctx, out, args...)
}

func (b *bench) all(ctx context.Context) error {
	if b.wants("cold") {
		if err := b.coldRun(ctx); err != nil {
			return err
		}
	}
	if err := b.running(ctx); err != nil {
		return err
	}
	if b.wants("restore") {
		if err := b.restore(ctx); err != nil {
			return err
		}
	}
	if b.wants("network") && os.Geteuid() == 0 {
		if err := b.network(ctx); err != nil {
			return err
		}
	}
	if b.wants("firecracker") && os.Geteuid() == 0 {
		if err := b.firecracker(ctx); err != nil {
			return fmt.Errorf("measure Firecracker's start: %w", err)
		}
	}
	if b.wants("gate") && os.Geteuid() == 0 {
		if err := b.gate(ctx); err != nil {
			return err
		}
	}
	if b.wants("image") && os.Geteuid() == 0 {
		if err := b.image(ctx); err != nil {
			return err
		}
	}
	if b.wants("size") {
		if err := b.size(ctx); err != nil {
			return err
		}
	}
	if b.wants("pull") && os.Geteuid() == 0 {
		if err := b.pull(ctx); err != nil {
			return err
		}
	}
	if b.wants("list") {
		if err := b.list(ctx); err != nil {
			return err
		}
	}
	return b.print()
}

func (b *bench) wants(name string) bool { return b.only == "" || b.only == name }

// coldRun is measured without a network, as the floor has none, and with the
// one that sandboxes get unless told otherwise.
func (b *bench) coldRun(ctx context.Context) error {
	var ours, networked, theirs []time.Duration
	for range b.rounds {
		m, boot, err := b.floor.start(ctx)
		if err != nil {
			return err
		}
		if err := m.stop(ctx); err != nil {
			return err
		}
		took, err := b.command(ctx, b.state, nil, "run", "--cold", "--network", "none", "--", "/bin/true")
		if err != nil {
			return err
		}
		tookNetworked, err := b.command(ctx, b.state, nil, "run", "--cold", "--", "/bin/true")
		if err != nil {
			return err
		}
		theirs, ours, networked = append(theirs, boot), append(ours, took), append(networked, tookNetworked)
	}
	v, n, f := timing.Median(ours), timing.Median(networked), timing.Median(theirs)
	b.add("cold run of /bin/true, no network", ms(v), ms(f), ratio(v, f), "<= 1.25 x")
	b.add("cold run of /bin/true with its network", ms(n), ms(f), ratio(n, f), "")
	return nil
}

// running measures what is done with a sandbox that runs.
func (b *bench) running(ctx context.Context) error {
	type part struct {
		name    string
		measure func(context.Context, string, *machine) error
	}
	parts := []part{
		{"memory", b.memory}, {"exec", b.exec}, {"unary", b.unary}, {"stdout", b.stdout},
		{"forward", b.forward}, {"echo", b.echo}, {"copy", b.copies}, {"small", b.small},
	}
	parts = slices.DeleteFunc(parts, func(p part) bool { return !b.wants(p.name) })
	if len(parts) == 0 {
		return nil
	}
	var id bytes.Buffer
	if _, err := b.command(ctx, b.state, &id, "create"); err != nil {
		return err
	}
	vm := strings.TrimSpace(id.String())
	defer b.command(ctx, b.state, nil, "rm", "-f", vm)
	m, _, err := b.floor.start(ctx)
	if err != nil {
		return err
	}
	defer m.stop(ctx)
	for _, p := range parts {
		if err := p.measure(ctx, vm, m); err != nil {
			return err
		}
	}
	return nil
}

// quick is how often what takes milliseconds is measured.
const quick = 31

func (b *bench) exec(ctx context.Context, vm string, m *machine) error {
	var ours, theirs []time.Duration
	for range quick {
		took, err := timing.Timed(func() error { return m.ask(request.Spawn) })
		if err != nil {
			return err
		}
		theirs = append(theirs, took)
		if took, err = b.command(ctx, b.state, nil, "exec", vm, "/bin/true"); err != nil {
			return err
		}
		ours = append(ours, took)
	}
	v, f := timing.Median(ours), timing.Median(theirs)
	b.add("exec of /bin/true", ms(v), ms(f), ratio(v, f)+", "+ms(v-f)+" more", "<= 30 ms more")
	return nil
}

// unary is a call on a connection that is kept, beside an echo on the port.
func (b *bench) unary(ctx context.Context, vm string, m *machine) error {
	layout, err := store.NewLayout(b.state)
	if err != nil {
		return err
	}
	client := guest.New(guest.DialSocket(layout.GuestSocket(vm)))
	defer client.Close()
	var ours, theirs []time.Duration
	for i := range quick + 3 {
		echo, err := timing.Timed(func() error { return m.ask(request.Echo) })
		if err != nil {
			return err
		}
		call, err := timing.Timed(func() error { _, err := client.Processes(ctx); return err })
		if err != nil {
			return err
		}
		if i >= 3 { // the first calls open the connection
			theirs, ours = append(theirs, echo), append(ours, call)
		}
	}
	v, f := timing.Median(ours), timing.Median(theirs)
	b.add("unary call, connection kept", ms(v), ms(f), ratio(v, f), "<= 12 ms")
	return nil
}

// stdout is bulk output, beside what the same program gets when its output is
// the port itself, and beside plain writes to the port that nothing produces.
func (b *bench) stdout(ctx context.Context, vm string, m *machine) error {
	var ours, direct, raw []time.Duration
	for range b.rounds {
		plain, err := m.produce(request.Dump)
		if err != nil {
			return err
		}
		produced, err := m.produce(request.Produce)
		if err != nil {
			return err
		}
		var count timing.Counter
		took, err := b.command(ctx, b.state, &count, append([]string{"exec", vm}, request.Producer...)...)
		if err != nil {
			return err
		}
		if count != request.DumpBytes {
			return fmt.Errorf("exec carried %d bytes, want %d", count, request.DumpBytes)
		}
		raw, direct, ours = append(raw, plain), append(direct, produced), append(ours, took)
	}
	v := timing.Median(ours)
	for what, f := range map[string]time.Duration{"the same program on the port": timing.Median(direct), "plain writes to the port": timing.Median(raw)} {
		share := 100 * f.Seconds() / v.Seconds()
		b.add("stdout of 200 MB; floor: "+what, rate(request.DumpBytes, v), rate(request.DumpBytes, f), fmt.Sprintf("%.0f %%", share), ">= 50 %")
	}
	return nil
}

func rate(bytes float64, d time.Duration) string {
	return fmt.Sprintf("%.0f MB/s", bytes/1e6/d.Seconds())
}

// memory is what monitor and gate have for themselves, shared pages counted
// by their share.
func (b *bench) memory(ctx context.Context, vm string, _ *machine) error {
	var out bytes.Buffer
	if _, err := b.command(ctx, b.state, &out, "inspect", vm); err != nil {
		return err
	}
	var shown api.VM
	if err := json.Unmarshal(out.Bytes(), &shown); err != nil {
		return err
	}
	total := 0
	for _, pid := range []int{shown.PIDs.Monitor, shown.PIDs.Gate} {
		kib, err := pss(pid)
		if err != nil {
			return err
		}
		total += kib
	}
	b.add("memory of monitor and gate (PSS)", fmt.Sprintf("%.1f MiB", float64(total)/1024), "-", "-", "<= 30 MiB")
	return nil
}

func pss(pid int) (kib int, err error) {
	text, err := os.ReadFile(fmt.Sprintf("/proc/%d/smaps_rollup", pid))
	if err != nil {
		return 0, err
	}
	_, after, _ := strings.Cut(string(text), "\nPss:")
	_, err = fmt.Sscan(after, &kib)
	return kib, err
}

// records is how many sandboxes list is measured with.
const records = 1000

func (b *bench) list(ctx context.Context) error {
	dir, err := os.MkdirTemp("", "vmsan-bench-")
	if err != nil {
		return err
	}
	defer os.RemoveAll(dir)
	layout, err := store.NewLayout(dir)
	if err != nil {
		return err
	}
	defer os.RemoveAll(layout.Run)
	for i := range records {
		id := fmt.Sprintf("vm%010d", i)
		if err := os.MkdirAll(layout.Sandbox(id), 0o700); err != nil {
			return err
		}
		record := store.Record{
			Version: 1, ID: id, Name: fmt.Sprint("name-", i), Slot: i, Status: api.StatusStopped,
			Labels: map[string]string{"team": "a"}, CreatedAt: time.Now(), Spec: store.Spec{ImageName: "debian", VCPUs: 1, MemoryMiB: 256},
		}
		raw, err := json.MarshalIndent(record, "", "  ")
		if err != nil {
			return err
		}
		if err := os.WriteFile(layout.Record(id), raw, 0o600); err != nil {
			return err
		}
	}
	var ours []time.Duration
	for range quick {
		took, err := b.command(ctx, dir, nil, "list")
		if err != nil {
			return err
		}
		ours = append(ours, took)
	}
	b.add("list of 1,000 sandboxes", ms(timing.Median(ours)), "-", "-", "< 100 ms")
	return nil
}

func (b *bench) add(what, vmsan, floor, ratio, target string) {
	b.rows = append(b.rows, row{what, vmsan, floor, ratio, target})
	fmt.Fprintf(os.Stderr, "%s: %s, floor %s\n", what, vmsan, floor)
}

func (b *bench) print() error {
	layout, err := store.NewLayout(b.state)
	if err != nil {
		return err
	}
	record, err := setup.Load(layout)
	if err != nil {
		return err
	}
	for _, v := range record.Verdicts {
		if v.Accel == record.Accel {
			fmt.Printf("Host: %s, %d CPUs, Linux %s. Guest: Linux %s, %s with %s, %d vCPU, %d MiB. Medians.\n\n",
				v.CPU, runtime.NumCPU(), v.Host, record.KernelVersion, v.VMM, v.Accel, vcpus, memoryMiB)
		}
	}
	fmt.Println("| what | vmsan | floor | ratio | target |\n| --- | --- | --- | --- | --- |")
	for _, r := range b.rows {
		fmt.Printf("| %s | %s | %s | %s | %s |\n", r.what, r.vmsan, r.floor, r.ratio, r.target)
	}
	return b.sizes()
}

func (b *bench) sizes() error {
	for _, path := range []string{b.vmsan, filepath.Join("internal", "agent", "binary", "dist", "vmsan-agent")} {
		info, err := os.Stat(path)
		if err != nil {
			return err
		}
		fmt.Printf("| size of %s | %.1f MiB | - | - | |\n", filepath.Base(path), float64(info.Size())/(1<<20))
	}
	return nil
}

func ms(d time.Duration) string { return fmt.Sprintf("%.1f ms", float64(d.Microseconds())/1000) }

func us(d time.Duration) string { return fmt.Sprintf("%.1f us", float64(d.Nanoseconds())/1000) }

func ratio(a, b time.Duration) string { return fmt.Sprintf("%.2f x", a.Seconds()/b.Seconds()) }
