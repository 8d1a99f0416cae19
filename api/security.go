package api

// Security is what holds a sandbox, as the kernel tells just now: of its record
// there is nothing in it but the numbers of its processes.
type Security struct {
	// Boundary is "hardware" or "emulation". QEMU's makers do not call the
	// latter a security boundary.
	Boundary string `json:"boundary"`
	// VMM runs the guest, and Gate reads what it says.
	VMM  Walls `json:"vmm"`
	Gate Walls `json:"gate"`
	// Firewall is what packets of the guest come to; empty without a network.
	Firewall []FirewallChain `json:"firewall"`
	// Weaknesses are what could be stronger, each in a sentence.
	Weaknesses []string `json:"weaknesses"`
}

// Walls are what holds a process.
type Walls struct {
	PID int    `json:"pid"`
	UID uint32 `json:"uid"`
	GID uint32 `json:"gid"`
	// Groups are how many groups it is in beside its own, and Capabilities how
	// many it has or could get.
	Groups          int  `json:"groups"`
	Capabilities    int  `json:"capabilities"`
	NoNewPrivileges bool `json:"noNewPrivileges"`
	// SeccompFilters are how many filters of system calls it runs under.
	SeccompFilters int `json:"seccompFilters"`
	// Namespaces are the kinds of which it has one apart from the host's, as in
	// /proc/PID/ns.
	Namespaces []string `json:"namespaces"`
	// WritableMounts are file systems that it sees and could write to.
	WritableMounts []string `json:"writableMounts"`
	// Limits are what its control group holds it to; none without one.
	Limits *Limits `json:"limits,omitempty"`
}

// Limits bound what a control group may use. 0 is no limit.
type Limits struct {
	CPUs        float64 `json:"cpus"`
	MemoryBytes int64   `json:"memoryBytes"`
	PIDs        int64   `json:"pids"`
}

// FirewallChain is a place that packets come to.
type FirewallChain struct {
	Name string `json:"name"`
	// Drops tells that it drops what no rule is about.
	Drops bool `json:"drops"`
	Rules int  `json:"rules"`
}
