package resolver

import (
	"encoding/binary"
	"strings"
	"time"

	"github.com/miekg/dns"

	"github.com/vmsan/vmsan/api"
	"github.com/vmsan/vmsan/internal/policy"
)

// Sizes of messages, in bytes. udpSize does not get fragmented on the way
// (the DNS flag day of 2020).
const (
	headerSize = 12
	minUDPSize = 512
	udpSize    = 1232
	maxQuery   = 4096
)

// query is a question of the guest's.
type query struct {
	dns.Question
	msg     *dns.Msg
	name    string // in lower case, without a dot at its end
	network string // by which it came
	edns    bool
	size    int // the most that the guest takes
}

// parse reads a packet. Without a query there is a reply, or there is to be
// none at all.
func parse(packet []byte, network string) (*query, *dns.Msg) {
	if len(packet) < headerSize {
		return nil, nil
	}
	bits := binary.BigEndian.Uint16(packet[2:])
	const response = 1 << 15
	if bits&response != 0 {
		return nil, nil
	}
	bare := new(dns.Msg)
	bare.Id = binary.BigEndian.Uint16(packet)
	bare.Response = true
	bare.Opcode = int(bits >> 11 & 0xf)
	if bare.Opcode != dns.OpcodeQuery {
		bare.Rcode = dns.RcodeNotImplemented
		return nil, bare
	}
	msg := new(dns.Msg)
	// The count first: Unpack would go on for as long as there are bytes.
	if binary.BigEndian.Uint16(packet[4:]) != 1 || msg.Unpack(packet) != nil || len(msg.Question) != 1 {
		bare.Rcode = dns.RcodeFormatError
		return nil, bare
	}
	return newQuery(msg, network)
}

func newQuery(msg *dns.Msg, network string) (*query, *dns.Msg) {
	q := &query{msg: msg, Question: msg.Question[0], network: network, size: minUDPSize}
	q.name = strings.ToLower(strings.TrimSuffix(q.Name, "."))
	if opt := msg.IsEdns0(); opt != nil {
		q.edns = true
		q.size = min(max(int(opt.UDPSize()), minUDPSize), udpSize)
		if opt.Version() != 0 {
			return nil, q.reply(dns.RcodeBadVers)
		}
	}
	if network == "tcp" {
		q.size = dns.MaxMsgSize
	}
	return q, nil
}

// reply is an answer without records.
func (q *query) reply(rcode int) *dns.Msg {
	m := new(dns.Msg)
	m.SetRcode(q.msg, rcode)
	m.RecursionAvailable = true
	m.Compress = true
	if q.edns {
		m.SetEdns0(udpSize, false)
	}
	return m
}

// refuse tells those who listen (RFC 8914) that it is the policy.
func (q *query) refuse() *dns.Msg {
	m := q.reply(dns.RcodeRefused)
	if opt := m.IsEdns0(); opt != nil {
		opt.Option = append(opt.Option, &dns.EDNS0_EDE{
			InfoCode:  dns.ExtendedErrorCodeProhibited,
			ExtraText: "not allowed by the sandbox's network policy",
		})
	}
	return m
}

// aged is a record of what was found, as it is now, and in the letter case
// that the guest has asked in.
func (q *query) aged(rr dns.RR, ttl time.Duration) dns.RR {
	rr = dns.Copy(rr)
	h := rr.Header()
	h.Ttl = uint32(ttl / time.Second)
	if strings.EqualFold(h.Name, q.Name) {
		h.Name = q.Name
	}
	return rr
}

// event is what is logged of q.
func (q *query) event(v api.Verdict, rule string) api.NetworkEvent {
	e := api.NetworkEvent{Verdict: v, Kind: api.EventDNS, Protocol: q.network, Name: q.name, Rule: rule}
	if d, err := policy.ParseDomain(q.name); rule == "policy" && err == nil {
		e.Hint = "--allowed-domain " + d.Name
	}
	return e
}
