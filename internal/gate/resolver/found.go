package resolver

import (
	"container/list"
	"strings"
	"sync"
	"time"

	"github.com/miekg/dns"
)

// found is what an upstream knows about a question, reduced to what a guest
// may be told. It is shared, and not changed.
type found struct {
	rcode   int
	records []dns.RR // CNAMEs in their order, then records of the type
	soa     *dns.SOA // of a name or records that do not exist
	ttl     time.Duration
	until   time.Time
}

// Bounds of an answer.
const (
	maxChain   = 16
	maxRecords = 128
)

// How long an answer may be kept.
const (
	maxTTL      = MaxOpen - grace
	maxNegative = 5 * time.Minute
	failureTTL  = time.Second // RFC 9520, section 3.2
)

// distill follows the CNAMEs in an answer from the name that was asked for,
// and takes what it finds there. Everything else that an upstream adds is
// dropped.
func distill(m *dns.Msg, q dns.Question) *found {
	f := &found{rcode: m.Rcode, ttl: maxTTL}
	name := q.Name
	for range maxChain {
		records, alias := at(m.Answer, name, q.Qtype)
		f.take(records...)
		if len(records) > 0 || alias == nil {
			break
		}
		f.take(alias)
		name = alias.Target
	}
	if len(f.records) == 0 || f.records[len(f.records)-1].Header().Rrtype != q.Qtype {
		f.negate(m.Ns, name)
	}
	return f
}

// at returns the records of a name and type, or what the name is an alias
// of.
func at(answer []dns.RR, name string, qtype uint16) (records []dns.RR, alias *dns.CNAME) {
	for _, rr := range answer {
		h := rr.Header()
		if !sound(rr) || !strings.EqualFold(h.Name, name) {
			continue
		}
		if h.Rrtype == qtype {
			records = append(records, rr)
		} else if cname, ok := rr.(*dns.CNAME); ok && alias == nil {
			alias = cname
		}
	}
	return records[:min(len(records), maxRecords)], alias
}

// sound tells whether a record that was read is one that can be written, and
// read again: what is missing at the end of a message is taken for empty.
func sound(rr dns.RR) bool {
	h := rr.Header()
	if h.Class != dns.ClassINET || h.Rdlength == 0 {
		return false
	}
	wire := make([]byte, dns.Len(rr)+1)
	end, err := dns.PackRR(rr, wire, 0, nil, false)
	if err != nil {
		return false
	}
	_, _, err = dns.UnpackRR(wire[:end], 0)
	return err == nil
}

func (f *found) take(records ...dns.RR) {
	for _, rr := range records {
		f.records = append(f.records, rr)
		f.ttl = min(f.ttl, seconds(rr.Header().Ttl))
	}
}

// negate keeps that there is nothing for as long as the zone says (RFC 2308,
// section 5).
func (f *found) negate(authority []dns.RR, name string) {
	for _, rr := range authority {
		soa, ok := rr.(*dns.SOA)
		if ok && sound(soa) && dns.IsSubDomain(soa.Hdr.Name, name) {
			f.soa = soa
			f.ttl = min(f.ttl, maxNegative, seconds(soa.Hdr.Ttl), seconds(soa.Minttl))
			return
		}
	}
	f.ttl = 0
}

// seconds reads a TTL; one with its highest bit set is 0 (RFC 2181,
// section 8).
func seconds(ttl uint32) time.Duration {
	if ttl > 1<<31-1 {
		return 0
	}
	return time.Duration(ttl) * time.Second
}

// size is about what f takes in memory, in bytes.
func (f *found) size() int {
	const overhead = 200 // of a record and of an entry
	size := overhead
	for _, rr := range f.records {
		size += overhead + dns.Len(rr)
	}
	if f.soa != nil {
		size += overhead + dns.Len(f.soa)
	}
	return size
}

// Bounds of the cache.
const (
	maxEntries = 4096
	maxBytes   = 4 << 20
)

type key struct {
	name  string
	qtype uint16
}

type entry struct {
	key
	*found
	size int
}

// cache keeps what was found, and forgets first what was not asked for the
// longest.
type cache struct {
	mu      sync.Mutex
	entries map[key]*list.Element
	recent  list.List // of *entry, the most recent first
	bytes   int
}

func (c *cache) get(k key, now time.Time) *found {
	c.mu.Lock()
	defer c.mu.Unlock()
	element := c.entries[k]
	if element == nil {
		return nil
	}
	e := element.Value.(*entry)
	if !now.Before(e.until) {
		c.drop(element)
		return nil
	}
	c.recent.MoveToFront(element)
	return e.found
}

func (c *cache) put(k key, f *found) {
	if f.ttl <= 0 {
		return
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	if old := c.entries[k]; old != nil {
		c.drop(old)
	}
	if c.entries == nil {
		c.entries = map[key]*list.Element{}
	}
	e := &entry{k, f, f.size()}
	c.entries[k] = c.recent.PushFront(e)
	c.bytes += e.size
	for len(c.entries) > maxEntries || c.bytes > maxBytes {
		c.drop(c.recent.Back())
	}
}

func (c *cache) drop(element *list.Element) {
	e := c.recent.Remove(element).(*entry)
	delete(c.entries, e.key)
	c.bytes -= e.size
}
