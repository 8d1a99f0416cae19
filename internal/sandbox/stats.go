package sandbox

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"slices"
	"syscall"
	"time"

	"golang.org/x/sync/errgroup"

	"github.com/vmsan/vmsan/api"
	"github.com/vmsan/vmsan/internal/guest"
	"github.com/vmsan/vmsan/internal/network"
	"github.com/vmsan/vmsan/internal/store"
	"github.com/vmsan/vmsan/internal/usage"
)

const (
	// statsTime is how long a guest may take to say something of itself.
	statsTime = 2 * time.Second
	// statsAtOnce is how many sandboxes are measured side by side.
	statsAtOnce = 128
)

// Meter measures sandboxes again and again. Close it. Its methods are called
// from one goroutine.
type Meter struct {
	service *Service
	// named are the sandboxes that were asked for, less those that are gone;
	// nil: all that run.
	named []string
	all   bool
	seen  map[string]*metered
}

// metered is what is kept of a sandbox from one time to the next.
type metered struct {
	vmm    store.Process // whose figures they are
	last   api.Stats
	client *guest.Client
}

// Meter returns a meter of the sandboxes that refs name; none: of all that
// run, whichever they are at the time.
func (s *Service) Meter(refs []string) (*Meter, error) {
	m := &Meter{service: s, all: len(refs) == 0, seen: map[string]*metered{}}
	for _, ref := range refs {
		id, err := s.Find(ref)
		if err != nil {
			return nil, err
		}
		if !slices.Contains(m.named, id) {
			m.named = append(m.named, id)
		}
	}
	return m, nil
}

// Close ends what is open to guests.
func (m *Meter) Close() {
	for _, k := range m.seen {
		k.forget()
	}
}

// Ended tells whether all sandboxes that were named are gone.
func (m *Meter) Ended() bool { return !m.all && len(m.named) == 0 }

// Measure measures once. What one sandbox does costs the others no more than
// statsTime. One that has stopped, or is gone, is told as such; if all are
// measured, once.
func (m *Meter) Measure(ctx context.Context) ([]api.Stats, error) {
	records, err := m.records(ctx)
	if err != nil {
		return nil, err
	}
	list := make([]api.Stats, len(records))
	var measuring errgroup.Group
	measuring.SetLimit(statsAtOnce)
	for i, r := range records {
		known := m.seen[r.ID]
		if known == nil {
			known = &metered{}
			m.seen[r.ID] = known
		}
		measuring.Go(func() error {
			list[i] = m.service.measureVM(ctx, r, known)
			return nil
		})
	}
	measuring.Wait()
	for _, s := range list {
		gone := s.Status == ""
		if gone {
			m.named = slices.DeleteFunc(m.named, func(id string) bool { return id == s.VM })
		}
		// One whose processes have gone will say that it has stopped next time.
		if gone || m.all && (s.Status == api.StatusStopped || s.Status == api.StatusError) {
			m.seen[s.VM].forget()
			delete(m.seen, s.VM)
		}
	}
	return list, ctx.Err()
}

// records are those to be measured. One without a status is gone.
func (m *Meter) records(ctx context.Context) (records []*store.Record, err error) {
	if !m.all {
		for _, id := range m.named {
			r, err := m.service.repaired(ctx, id)
			if err != nil {
				if !api.HasCode(err, api.ErrVMNotFound) {
					m.service.log.Warn("measure", "vm", id, "error", err)
				}
				r = m.gone(id)
			}
			records = append(records, r)
		}
		return records, nil
	}
	if records, err = m.service.List(ctx, Filter{}); err != nil {
		return nil, err
	}
	left := map[string]bool{}
	records = slices.DeleteFunc(records, func(r *store.Record) bool {
		left[r.ID] = true
		return m.seen[r.ID] == nil && !r.Running() && r.Status != api.StatusPaused
	})
	for id := range m.seen {
		if !left[id] {
			records = append(records, m.gone(id))
		}
	}
	return records, nil
}

// gone is a record of a sandbox that has none any more.
func (m *Meter) gone(id string) *store.Record {
	r := &store.Record{ID: id}
	if known := m.seen[id]; known != nil {
		r.Name = known.last.Name
	}
	return r
}

func (k *metered) forget() {
	if k.client != nil {
		k.client.Close()
		k.client = nil
	}
}

// measureVM measures one sandbox. What cannot be had is left out: it may be
// ending.
func (s *Service) measureVM(ctx context.Context, r *store.Record, known *metered) api.Stats {
	now := api.Stats{VM: r.ID, Name: r.Name, Status: r.Status, Time: time.Now().UTC()}
	if info, err := os.Stat(s.layout.Overlay(r.ID)); err == nil {
		now.OverlayBytes = info.Sys().(*syscall.Stat_t).Blocks * 512
	}
	if r.Status != "" && r.Running() {
		var err error
		if now.Host, err = hostStats(r); err != nil && !errors.Is(err, fs.ErrNotExist) {
			s.log.Debug("measure", "vm", r.ID, "error", err)
		}
	}
	if known.vmm != r.Host.VMM {
		known.forget()
		*known = metered{vmm: r.Host.VMM}
	}
	if known.last.Host != nil && now.Host != nil {
		now.Rates = rates(known.last, now)
	}
	if r.Status == api.StatusRunning {
		now.Guest = s.guestStats(ctx, r, known)
	}
	known.last = now
	return now
}

// hostStats measures the processes of a sandbox and its network device.
func hostStats(r *store.Record) (*api.HostStats, error) {
	var sum usage.Process
	var disk *api.DiskStats
	for _, p := range []store.Process{r.Host.VMM, r.Host.Monitor, r.Host.Gate} {
		if p.PID == 0 || store.ProcessOf(p.PID) != p {
			return nil, fs.ErrNotExist
		}
		one, err := usage.OfProcess(p.PID)
		if err != nil {
			return nil, err
		}
		if p == r.Host.VMM && !one.Private {
			disk = &api.DiskStats{ReadBytes: one.Read, WrittenBytes: one.Written}
		}
		sum.Add(one)
	}
	stats := &api.HostStats{CPUSeconds: sum.CPU.Seconds(), RSSBytes: sum.RSS, Disk: disk}
	if !sum.Private {
		stats.PSSBytes = sum.PSS
	}
	if r.Spec.Networked() {
		traffic, err := network.TrafficOf(r.Host.Gate.PID)
		if err != nil {
			return nil, fmt.Errorf("measure network: %w", err)
		}
		stats.Network = &api.NetworkStats{ReceivedBytes: traffic.Received, SentBytes: traffic.Sent}
	}
	return stats, nil
}

// rates are what happened between two times that a sandbox was measured.
func rates(before, now api.Stats) *api.StatsRates {
	seconds := now.Time.Sub(before.Time).Seconds()
	if seconds <= 0 {
		return nil
	}
	// Counters of a gate that was replaced begin anew.
	rate := func(before, now float64) float64 { return max(now-before, 0) / seconds }
	r := &api.StatsRates{Seconds: seconds, CPUPercent: 100 * rate(before.Host.CPUSeconds, now.Host.CPUSeconds)}
	if a, b := before.Host.Disk, now.Host.Disk; a != nil && b != nil {
		r.ReadBytes, r.WrittenBytes = rate(float64(a.ReadBytes), float64(b.ReadBytes)), rate(float64(a.WrittenBytes), float64(b.WrittenBytes))
	}
	if a, b := before.Host.Network, now.Host.Network; a != nil && b != nil {
		r.ReceivedBytes, r.SentBytes = rate(float64(a.ReceivedBytes), float64(b.ReceivedBytes)), rate(float64(a.SentBytes), float64(b.SentBytes))
	}
	return r
}

// guestStats asks the guest, which may not answer, or lie.
func (s *Service) guestStats(ctx context.Context, r *store.Record, known *metered) *api.GuestStats {
	if known.client == nil {
		known.client = guest.New(guest.DialSocket(s.layout.GuestSocket(r.ID)))
	}
	ctx, cancel := context.WithTimeout(ctx, statsTime)
	defer cancel()
	stats, err := known.client.Stats(ctx, guest.Machine{Memory: int64(r.Spec.MemoryMiB) << 20, Disk: r.Spec.DiskBytes})
	if err != nil {
		s.log.Debug("ask the guest for its own figures", "vm", r.ID, "error", err)
		return nil
	}
	return &api.GuestStats{
		MemoryBytes: stats.MemoryTotal, MemoryUsedBytes: stats.MemoryUsed,
		DiskBytes: stats.DiskTotal, DiskUsedBytes: stats.DiskUsed, Processes: stats.Processes,
	}
}
