package lab

import (
	"fmt"
	"strings"
	"sync"

	"github.com/miekg/dns"
)

// names is what the zone has from the start.
const names = `
allowed.example.         60 A     198.51.100.10
allowed.example.         60 AAAA  2001:db8:100::10
allowed.example.         60 HTTPS 1 . alpn="h2,http/1.1" ipv4hint="198.51.100.10" ech="AEX+DQBBAAAgACAg"
www.allowed.example.     60 CNAME allowed.example.
_web._tcp.allowed.example. 60 SRV 0 5 443 allowed.example.
cohosted.example.        60 A     198.51.100.10
other.example.           60 A     198.51.100.20
*.wild.example.          60 A     198.51.100.30
many.example.            60 A     198.51.100.41
many.example.            60 A     198.51.100.42
many.example.            60 A     198.51.100.43
chain.example.           60 CNAME one.chain.example.
one.chain.example.       60 CNAME two.chain.example.
two.chain.example.       60 CNAME end.elsewhere.example.
end.elsewhere.example.   60 A     198.51.100.44
loop.example.            60 CNAME loop.example.
brief.example.            1 A     198.51.100.45
ages.example.     604800000 A     198.51.100.46
six.example.             60 AAAA  2001:db8:100::10
lan.example.             60 A     10.20.0.9
loopback.example.        60 A     127.0.0.1
metadata.example.        60 A     169.254.169.254
mixed.example.           60 A     198.51.100.47
mixed.example.           60 A     10.20.0.9
hidden.example.          60 CNAME lan.example.
*.tunnel.example.         0 TXT   "an answer that carries something in"
`

// maxChain bounds the CNAMEs that an answer follows.
const maxChain = 8

// Zone is what the internet's resolvers know, for all names there are.
type Zone struct {
	mu      sync.Mutex
	records map[string][]dns.RR // by name, in lower case
	special map[string]dns.HandlerFunc
}

func newZone() (*Zone, error) {
	z := &Zone{records: map[string][]dns.RR{}, special: map[string]dns.HandlerFunc{}}
	if err := z.Set(names); err != nil {
		return nil, err
	}
	// Longer than any datagram.
	long := strings.Repeat("big.example. 60 TXT "+strings.Repeat("x", 200)+"\n", 50)
	for i := range 50 {
		long = strings.Replace(long, " x", fmt.Sprintf(" %02d", i), 1)
	}
	return z, z.Set(long)
}

// Set replaces all that the zone has of the names in text, which is in the
// form of zone files.
func (z *Zone) Set(text string) error {
	records := map[string][]dns.RR{}
	parser := dns.NewZoneParser(strings.NewReader(text), ".", "")
	for rr, ok := parser.Next(); ok; rr, ok = parser.Next() {
		name := dns.CanonicalName(rr.Header().Name)
		records[name] = append(records[name], rr)
	}
	if err := parser.Err(); err != nil {
		return fmt.Errorf("read zone: %w", err)
	}
	z.mu.Lock()
	defer z.mu.Unlock()
	for name, list := range records {
		z.records[name] = list
	}
	return nil
}

// Handle has a name answered by f, whatever the zone has of it: what only a
// hostile resolver says. A nil f ends that.
func (z *Zone) Handle(name string, f dns.HandlerFunc) {
	z.mu.Lock()
	defer z.mu.Unlock()
	z.special[dns.CanonicalName(name)] = f
}

func (z *Zone) handler(name string) dns.HandlerFunc {
	z.mu.Lock()
	defer z.mu.Unlock()
	return z.special[dns.CanonicalName(name)]
}

// find returns what the zone has of a name, if need be by a wildcard.
func (z *Zone) find(name string) (found []dns.RR) {
	z.mu.Lock()
	defer z.mu.Unlock()
	name = dns.CanonicalName(name)
	if list, ok := z.records[name]; ok {
		return list
	}
	for off, end := dns.NextLabel(name, 0); !end; off, end = dns.NextLabel(name, off) {
		for _, rr := range z.records["*."+name[off:]] {
			rr = dns.Copy(rr)
			rr.Header().Name = name
			found = append(found, rr)
		}
		if found != nil {
			return found
		}
	}
	return nil
}

// answer is what a resolver says.
func (z *Zone) answer(request *dns.Msg) *dns.Msg {
	reply := new(dns.Msg).SetReply(request)
	reply.RecursionAvailable = true
	if len(request.Question) != 1 {
		return reply.SetRcode(request, dns.RcodeFormatError)
	}
	question := request.Question[0]
	for name := question.Name; len(reply.Answer) < maxChain; {
		records := z.find(name)
		if records == nil {
			reply.Rcode = dns.RcodeNameError
		}
		next := ""
		for _, rr := range records {
			if cname, ok := rr.(*dns.CNAME); ok {
				next = cname.Target
			}
			if kind := rr.Header().Rrtype; kind == question.Qtype || kind == dns.TypeCNAME {
				reply.Answer = append(reply.Answer, rr)
			}
		}
		if next == "" || question.Qtype == dns.TypeCNAME {
			break
		}
		name = next
	}
	if len(reply.Answer) == 0 {
		reply.Ns = []dns.RR{&dns.SOA{
			Hdr: dns.RR_Header{Name: "example.", Rrtype: dns.TypeSOA, Class: dns.ClassINET, Ttl: 60},
			Ns:  "ns.example.", Mbox: "admin.example.", Serial: 1, Refresh: 60, Retry: 60, Expire: 60, Minttl: 60,
		}}
	}
	if option := request.IsEdns0(); option != nil {
		reply.SetEdns0(dns.DefaultMsgSize, option.Do())
	}
	return reply
}
