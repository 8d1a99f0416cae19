package api

// Forwarding is a port or socket of the host that leads to one in a sandbox, or
// the other way round.
type Forwarding struct {
	// Local is an address with a port, or the path of a socket, on the host.
	Local string `json:"local"`
	// Remote is the same in the sandbox.
	Remote string `json:"remote"`
	// Reverse is true if Remote leads to Local.
	Reverse bool `json:"reverse,omitempty"`
}
