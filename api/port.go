package api

import "net/netip"

// Port is a socket in a sandbox that takes connections or packets, as the
// sandbox says.
type Port struct {
	Protocol string     `json:"protocol"` // "tcp" or "udp"
	Address  netip.Addr `json:"address"`
	Port     uint16     `json:"port"`
	// PID and Process are those of one process that has it, if that is known.
	PID     int    `json:"pid,omitempty"`
	Process string `json:"process,omitempty"`
	// Published are those ports of the host that lead to it, like
	// "127.0.0.1:8080".
	Published []string `json:"published,omitempty"`
}
