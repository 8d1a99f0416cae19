// Package resolver is the only DNS that a sandbox has. It asks the host's
// resolvers for the names that the policy allows, and sees to it that the
// firewall knows an address before the guest does.
//
// System calls beyond read, write, epoll and accept: those of the sockets it
// is given (recvfrom, sendto, setsockopt, getsockname) and getrandom. It
// makes no socket.
package resolver

import (
	"context"
	"fmt"
	"net"
	"net/netip"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/miekg/dns"
	"golang.org/x/sync/singleflight"
	"golang.org/x/time/rate"

	"github.com/vmsan/vmsan/api"
	"github.com/vmsan/vmsan/internal/gate/sockets"
	"github.com/vmsan/vmsan/internal/policy"
)

// Dialer hands over sockets to the host's resolvers.
type Dialer interface {
	// Dial returns a socket connected to the resolver of that index. The
	// network is "udp" or "tcp". Each question has a socket, and so a source
	// port, of its own.
	Dial(ctx context.Context, resolver int, network string) (net.Conn, error)
}

// Opener lets a sandbox through to addresses.
type Opener interface {
	// Open returns when the firewall lets the sandbox's TCP connections to
	// addrs through to the proxy, for at least ttl from now. It is called
	// from many goroutines, and again for an address that has to stay open
	// for longer.
	Open(ctx context.Context, addrs []netip.Addr, ttl time.Duration) error
}

// Log takes events. It does not block.
type Log interface {
	Log(api.NetworkEvent)
}

// Config is what a Resolver needs.
type Config struct {
	Policy policy.Policy
	// Resolvers is how many Dial knows: 0 to Resolvers-1.
	Resolvers int
	Dialer    Dialer
	Opener    Opener
	Log       Log
	// Pool is where sandboxes have their addresses: none of it is public.
	Pool netip.Prefix
}

// What a sandbox may ask of the host's resolvers, in questions a second and
// at once. What is in the cache or refused does not count.
const (
	askRate  = 200
	askBurst = 500
)

// openTime is how long the firewall may take.
const openTime = 2 * time.Second

// Resolver answers a sandbox's questions.
type Resolver struct {
	Config
	ctx       context.Context
	cancel    context.CancelFunc
	server    sockets.Server
	answering sync.WaitGroup
	places    chan struct{}
	large     chan struct{}
	cache     cache
	flights   singleflight.Group
	asking    *rate.Limiter
	best      atomic.Int64 // the resolver that answered last
	opened    addresses

	changing sync.RWMutex // held for reading while addresses are opened
	current  policy.Policy
}

// New makes a Resolver, which answers once it is given sockets.
func New(c Config) *Resolver {
	ctx, cancel := context.WithCancel(context.Background())
	return &Resolver{
		Config:  c,
		ctx:     ctx,
		cancel:  cancel,
		asking:  rate.NewLimiter(askRate, askBurst),
		places:  make(chan struct{}, maxQuestions),
		large:   make(chan struct{}, maxLarge),
		current: c.Policy,
	}
}

// SetPolicy replaces the policy. When it returns, nothing is opened any more
// that only the old one allowed; closed are the addresses that were opened
// for names which p does not allow, for the caller to close. An Open that is
// under way is waited for.
func (r *Resolver) SetPolicy(p policy.Policy) (closed []netip.Addr) {
	r.changing.Lock()
	defer r.changing.Unlock()
	r.current = p
	return r.opened.keep(func(name string) bool { return allows(p, name) }, time.Now())
}

func (r *Resolver) policy() policy.Policy {
	r.changing.RLock()
	defer r.changing.RUnlock()
	return r.current
}

// Names returns the allowed names that have resolved to addr and still do,
// in lower case and without a dot at the end. The policy has not been asked
// about ports.
func (r *Resolver) Names(addr netip.Addr) []string {
	return r.opened.names(addr, time.Now())
}

// allows tells whether name may be asked for. A name that has to be escaped,
// such as one with a dot within a label, is no name of a host, and what comes
// after such a dot would be taken for a parent.
func allows(p policy.Policy, name string) bool {
	return p.Public() || !strings.Contains(name, `\`) && p.AllowsLookup(name)
}

// answer is what the guest hears.
func (r *Resolver) answer(q *query) *dns.Msg {
	p := r.policy()
	switch {
	case q.Qclass != dns.ClassINET || isMeta(q.Qtype):
		return q.reply(dns.RcodeRefused)
	case !allows(p, q.name):
		r.Log.Log(q.event(api.VerdictDenied, "policy"))
		return q.refuse()
	case r.hidesReverse(p, q.name):
		r.Log.Log(q.event(api.VerdictDenied, "private"))
		return q.reply(dns.RcodeNameError)
	}
	r.Log.Log(q.event(api.VerdictAllowed, ""))
	if closedTypes[q.Qtype] {
		return q.reply(dns.RcodeSuccess)
	}
	return r.tell(q, r.find(q))
}

// closedTypes are those that there is nothing of: IPv6 is closed, and what
// HTTPS records offer (QUIC, encrypted names) does not get through the proxy.
var closedTypes = map[uint16]bool{dns.TypeAAAA: true, dns.TypeHTTPS: true, dns.TypeSVCB: true}

// isMeta tells whether a type is no type of records, but a way to ask for
// several or to transfer a zone (RFC 6895, section 3.1).
func isMeta(qtype uint16) bool {
	return qtype == dns.TypeNone || qtype == dns.TypeOPT || qtype >= 128 && qtype <= 255
}

// hidesReverse tells whether name is the reverse of an address that p does
// not let the sandbox know: the host's resolvers may know names of its LAN.
func (r *Resolver) hidesReverse(p policy.Policy, name string) bool {
	reverse, ok := strings.CutSuffix(name, ".in-addr.arpa")
	if !ok {
		return false
	}
	octets := strings.Split(reverse, ".")
	slices.Reverse(octets)
	addr, err := netip.ParseAddr(strings.Join(octets, "."))
	return err == nil && !r.shows(p, addr)
}

// shows tells whether a sandbox may hear of addr: it is public or the policy
// names it. Else a name that anybody can have would lead it into the LAN.
func (r *Resolver) shows(p policy.Policy, addr netip.Addr) bool {
	return r.isPublic(addr) ||
		slices.ContainsFunc(p.AllowedCIDRs, func(c policy.CIDR) bool { return c.Prefix.Contains(addr) })
}

func (r *Resolver) isPublic(addr netip.Addr) bool {
	return policy.IsPublic(addr) && !r.Pool.Contains(addr)
}

// find looks a question up in the cache and with the host's resolvers, once
// for all who ask at a time.
func (r *Resolver) find(q *query) *found {
	k := key{q.name, q.Qtype}
	if f := r.cache.get(k, time.Now()); f != nil {
		return f
	}
	f, _, _ := r.flights.Do(fmt.Sprintf("%d %s", k.qtype, k.name), func() (any, error) {
		f := r.ask(r.ctx, k)
		r.cache.put(k, f)
		return f, nil
	})
	return f.(*found)
}

// tell makes a reply of f, after it has opened the way to the addresses.
func (r *Resolver) tell(q *query, f *found) *dns.Msg {
	ttl := max(0, time.Until(f.until))
	records := f.records
	if q.Qtype == dns.TypeA {
		var err error
		if records, err = r.admit(q, records, ttl); err != nil {
			return q.reply(dns.RcodeServerFailure)
		}
	}
	reply := q.reply(f.rcode)
	for _, rr := range records {
		reply.Answer = append(reply.Answer, q.aged(rr, ttl))
	}
	if f.soa != nil {
		reply.Ns = []dns.RR{q.aged(f.soa, ttl)}
	}
	return reply
}

// admit returns those of the records that the guest may know, once the
// firewall knows them too.
func (r *Resolver) admit(q *query, records []dns.RR, ttl time.Duration) ([]dns.RR, error) {
	r.changing.RLock()
	defer r.changing.RUnlock()
	if !allows(r.current, q.name) {
		return nil, fmt.Errorf("%s is no longer allowed", q.name)
	}
	kept, addrs := r.filter(q, records)
	missing, err := r.opened.add(q.name, addrs, ttl, time.Now())
	if r.current.Public() {
		return kept, nil // who knows what is only for the log
	}
	if err != nil {
		r.Log.Log(q.event(api.VerdictDenied, err.Error()))
		return nil, err
	}
	missing = slices.DeleteFunc(missing, func(a netip.Addr) bool { return !r.isPublic(a) })
	if len(missing) == 0 {
		return kept, nil
	}
	ctx, cancel := context.WithTimeout(r.ctx, openTime)
	defer cancel()
	lasting := openFor(ttl)
	r.opened.opening(missing, time.Now().Add(lasting))
	if err := r.Opener.Open(ctx, missing, lasting); err != nil {
		r.Log.Log(q.event(api.VerdictDenied, "open the firewall"))
		return nil, err
	}
	r.opened.isOpen(missing, time.Now().Add(lasting))
	return kept, nil
}

// filter takes the addresses out that the sandbox may not know.
func (r *Resolver) filter(q *query, records []dns.RR) (kept []dns.RR, addrs []netip.Addr) {
	for _, rr := range records {
		a, ok := rr.(*dns.A)
		if !ok {
			kept = append(kept, rr)
			continue
		}
		addr, _ := netip.AddrFromSlice(a.A)
		addr = addr.Unmap()
		if !r.shows(r.current, addr) {
			e := q.event(api.VerdictDenied, "private")
			e.Destination, e.Hint = addr, "--allowed-cidr "+addr.String()+"/32"
			r.Log.Log(e)
			continue
		}
		kept, addrs = append(kept, rr), append(addrs, addr)
	}
	return kept, addrs
}
