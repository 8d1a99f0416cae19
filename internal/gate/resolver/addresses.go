package resolver

import (
	"errors"
	"maps"
	"net/netip"
	"slices"
	"sync"
	"time"
)

// MaxOpen is the longest that an address is opened for at once.
const MaxOpen = time.Hour

// An address stays open for a while after its record has run out, since
// guests look up first and connect then, and for a while at least.
const (
	grace   = time.Minute
	minOpen = 30 * time.Second
)

// openFor is how long an address is opened whose record lasts for ttl.
func openFor(ttl time.Duration) time.Duration {
	return min(max(ttl, minOpen)+grace, MaxOpen)
}

// Bounds of what is remembered: addresses, and the names of each.
const (
	maxAddresses = 8192
	maxNames     = 64
)

// sweepPause is how long what has run out may stay, since to look for it
// takes time.
const sweepPause = 10 * time.Second

var errManyAddresses = errors.New("too many addresses")

// address is what is known about one.
type address struct {
	names map[string]time.Time // until when each resolves to it
	// tried is until when the firewall may have it open, and open until when
	// it surely has.
	tried, open time.Time
}

// addresses are those that names have resolved to.
type addresses struct {
	mu    sync.Mutex
	known map[netip.Addr]*address
	swept time.Time
}

// add notes that name resolves to addrs for ttl, and returns those of them
// that are not open for long enough.
func (a *addresses) add(name string, addrs []netip.Addr, ttl time.Duration, now time.Time) (missing []netip.Addr, err error) {
	a.mu.Lock()
	defer a.mu.Unlock()
	if a.known == nil {
		a.known = map[netip.Addr]*address{}
	}
	if len(a.known)+len(addrs) > maxAddresses && now.Sub(a.swept) > sweepPause {
		a.sweep(now)
		a.swept = now
	}
	for _, addr := range addrs {
		known := a.known[addr]
		if known == nil {
			if len(a.known) >= maxAddresses {
				return nil, errManyAddresses
			}
			known = &address{names: map[string]time.Time{}}
			a.known[addr] = known
		}
		known.note(name, now.Add(openFor(ttl)))
		// Not opened again for each of many answers in a row.
		if known.open.Before(now.Add(ttl + grace/2)) {
			missing = append(missing, addr)
		}
	}
	return missing, nil
}

// note drops the name that runs out first when there are too many.
func (a *address) note(name string, until time.Time) {
	if until.After(a.names[name]) {
		a.names[name] = until
	}
	if len(a.names) <= maxNames {
		return
	}
	first := slices.MinFunc(slices.Collect(maps.Keys(a.names)), func(x, y string) int {
		return a.names[x].Compare(a.names[y])
	})
	delete(a.names, first)
}

// sweep forgets what has run out.
func (a *addresses) sweep(now time.Time) {
	for addr, known := range a.known {
		maps.DeleteFunc(known.names, func(_ string, until time.Time) bool { return until.Before(now) })
		if len(known.names) == 0 && known.tried.Before(now) {
			delete(a.known, addr)
		}
	}
}

func (a *addresses) opening(addrs []netip.Addr, until time.Time) {
	a.each(addrs, func(known *address) { known.tried = later(known.tried, until) })
}

func (a *addresses) isOpen(addrs []netip.Addr, until time.Time) {
	a.each(addrs, func(known *address) { known.open = later(known.open, until) })
}

func later(t, u time.Time) time.Time {
	if t.After(u) {
		return t
	}
	return u
}

func (a *addresses) each(addrs []netip.Addr, do func(*address)) {
	a.mu.Lock()
	defer a.mu.Unlock()
	for _, addr := range addrs {
		if known := a.known[addr]; known != nil {
			do(known)
		}
	}
}

// keep forgets the names that are not allowed, and returns the addresses that
// are open for nothing else.
func (a *addresses) keep(allowed func(name string) bool, now time.Time) (closed []netip.Addr) {
	a.mu.Lock()
	defer a.mu.Unlock()
	for addr, known := range a.known {
		maps.DeleteFunc(known.names, func(name string, _ time.Time) bool { return !allowed(name) })
		if len(known.names) > 0 {
			continue
		}
		delete(a.known, addr)
		if known.tried.After(now) {
			closed = append(closed, addr)
		}
	}
	slices.SortFunc(closed, netip.Addr.Compare)
	return closed
}

func (a *addresses) names(addr netip.Addr, now time.Time) (names []string) {
	a.mu.Lock()
	defer a.mu.Unlock()
	known := a.known[addr]
	if known == nil {
		return nil
	}
	for name, until := range known.names {
		if until.After(now) {
			names = append(names, name)
		}
	}
	slices.Sort(names)
	return names
}
