package api

import (
	"net/netip"
	"time"
)

// Verdict is what became of something that a sandbox did on the network.
type Verdict string

// The verdicts.
const (
	VerdictDenied  Verdict = "denied"
	VerdictAllowed Verdict = "allowed"
)

// EventKind is which part of a sandbox's network an event is from.
type EventKind string

// The kinds of events.
const (
	EventFlow EventKind = "flow" // the firewall, of a flow's first packet
	EventDNS  EventKind = "dns"  // the resolver, of a question or an answer
	EventTLS  EventKind = "tls"  // the proxy, of a connection by TLS
	EventHTTP EventKind = "http" // the proxy, of a request by HTTP
	EventPort EventKind = "port" // a published port
)

// EventKinds are all of them.
var EventKinds = []EventKind{EventFlow, EventDNS, EventTLS, EventHTTP, EventPort}

// NetworkEvent is something that a sandbox did on the network, or that was
// kept from it: a line of its network log.
type NetworkEvent struct {
	Time    time.Time `json:"time"`
	Verdict Verdict   `json:"verdict"`
	Kind    EventKind `json:"kind"`
	// Protocol is "tcp", "udp", "icmp", or the number of another.
	Protocol    string     `json:"protocol,omitempty"`
	Destination netip.Addr `json:"destination,omitzero"`
	Port        uint16     `json:"port,omitempty"`
	// Name is what was asked for, or a name of the destination.
	Name string `json:"name,omitempty"`
	// Rule is why, in a word or two.
	Rule string `json:"rule,omitempty"`
	// Count is how often it happened since the last such line.
	Count int `json:"count"`
	// Hint is the flag that would allow it.
	Hint string `json:"hint,omitempty"`
}
