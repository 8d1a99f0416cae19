package api

import (
	"encoding/json"
	"time"
)

// Status is what a sandbox is doing.
type Status string

// The statuses.
const (
	StatusCreating Status = "creating"
	StatusRunning  Status = "running"
	StatusPaused   Status = "paused"
	StatusStopped  Status = "stopped"
	StatusError    Status = "error"
)

// Valid tells whether s is one of the statuses.
func (s Status) Valid() bool {
	switch s {
	case StatusCreating, StatusRunning, StatusPaused, StatusStopped, StatusError:
		return true
	}
	return false
}

// VM is a sandbox as list, inspect, create and start print it.
type VM struct {
	ID        string            `json:"id"`
	Name      string            `json:"name,omitempty"`
	Project   string            `json:"project,omitempty"`
	Labels    map[string]string `json:"labels,omitempty"`
	Status    Status            `json:"status"`
	Reason    string            `json:"reason,omitempty"`
	CreatedAt time.Time         `json:"createdAt"`
	StartedAt *time.Time        `json:"startedAt,omitempty"`
	StoppedAt *time.Time        `json:"stoppedAt,omitempty"`

	Image       string `json:"image"`
	ImageDigest string `json:"imageDigest"`
	Kernel      string `json:"kernel"`
	Driver      string `json:"driver"`
	Accelerator string `json:"accelerator"`
	VCPUs       int    `json:"vcpus"`
	MemoryMiB   int    `json:"memoryMiB"`
	// MemoryLeftMiB is how much of it resize has left. Absent: all.
	MemoryLeftMiB int   `json:"memoryLeftMiB,omitempty"`
	DiskBytes     int64 `json:"diskBytes"`
	// DiskBytesPerSecond and DiskIOPS are what it may read and write of each of
	// its disks; absent without a limit.
	DiskBytesPerSecond int64             `json:"diskBytesPerSecond,omitempty"`
	DiskIOPS           int64             `json:"diskIOPS,omitempty"`
	Network            string            `json:"network"`
	Init               string            `json:"init,omitempty"`
	User               string            `json:"user,omitempty"`
	Workdir            string            `json:"workdir,omitempty"`
	Main               []string          `json:"main,omitempty"`    // the main process
	Restart            string            `json:"restart,omitempty"` // when it is started again
	Env                map[string]string `json:"env,omitempty"`
	Volumes            []string          `json:"volumes,omitempty"` // like "data:/srv/data:ro"

	// TimeoutMs and IdleTimeoutMs are how long it may run from each start, and be
	// idle; absent without a limit. OnTimeout is what is done then, and TimeoutAt
	// when that is. TimeoutLeftMs is what it has left while it is paused.
	TimeoutMs     int64      `json:"timeoutMs,omitempty"`
	IdleTimeoutMs int64      `json:"idleTimeoutMs,omitempty"`
	OnTimeout     string     `json:"onTimeout,omitempty"`
	TimeoutAt     *time.Time `json:"timeoutAt,omitempty"`
	TimeoutLeftMs int64      `json:"timeoutLeftMs,omitempty"`

	// NetworkPolicy is what it may reach. Nil without a network.
	NetworkPolicy *NetworkPolicy `json:"networkPolicy,omitempty"`
	// Ports are those of the host that lead to it, like "127.0.0.1:8080:80".
	Ports []string `json:"ports,omitempty"`
	// Bandwidth is "10mbit:20mbit" down and up; absent without a limit.
	Bandwidth string `json:"bandwidth,omitempty"`
	// Resolvers answer its names; absent: those of the host.
	Resolvers []string `json:"resolvers,omitempty"`

	// Isolation is what shuts its VMM in, while it runs.
	Isolation *Isolation `json:"isolation,omitempty"`
	// PIDs are those of the host's processes, while it runs.
	PIDs *PIDs `json:"pids,omitempty"`
	// Trace is how long the stages of the last start took.
	Trace []Stage `json:"trace,omitempty"`
	// Metrics are what its VMM counts, in that one's own form, if asked for.
	Metrics json.RawMessage `json:"metrics,omitempty"`
	// Security is what holds it, as the kernel tells, if asked for.
	Security *Security `json:"security,omitempty"`
	// Warnings are what a user should know about how it runs.
	Warnings []string `json:"warnings,omitempty"`
}

// NetworkPolicy is what a sandbox may reach, as the flags of create have it.
type NetworkPolicy struct {
	Policy         string   `json:"policy"` // allow-all, deny-all or custom
	AllowedDomains []string `json:"allowedDomains,omitempty"`
	AllowedCIDRs   []string `json:"allowedCidrs,omitempty"`
	DeniedCIDRs    []string `json:"deniedCidrs,omitempty"`
}

// NetworkChange is what network prints.
type NetworkChange struct {
	VM       string        `json:"vm"`
	Previous NetworkPolicy `json:"previous"`
	Current  NetworkPolicy `json:"current"`
	// Killed is how many open flows were cut, with --kill.
	Killed int `json:"killed"`
}

// Isolation is what shuts a sandbox's VMM in.
type Isolation struct {
	// Boundary is "hardware" or "emulation". QEMU's makers do not call the
	// latter a security boundary.
	Boundary string `json:"boundary"`
	Seccomp  bool   `json:"seccomp"`
	// SeccompFilter is the digest of the user's own filters, "sha256:...".
	SeccompFilter string `json:"seccompFilter,omitempty"`
	Cgroup        bool   `json:"cgroup"`
	UID           uint32 `json:"uid"`
	Namespaces    bool   `json:"namespaces"`
	PIDNamespace  bool   `json:"pidNamespace"`
}

// PIDs are the processes of a running sandbox on the host.
type PIDs struct {
	Monitor int `json:"monitor"`
	VMM     int `json:"vmm"`
	Gate    int `json:"gate"`
}

// Stage is one step of a start.
type Stage struct {
	Name string `json:"name"`
	// Milliseconds it took.
	Milliseconds float64 `json:"ms"`
	// Detail says how it was done, where there is more than one way.
	Detail string `json:"detail,omitempty"`
}
