package vmsan

import (
	"time"

	"github.com/vmsan/vmsan/api"
	"github.com/vmsan/vmsan/internal/policy"
	"github.com/vmsan/vmsan/internal/sandbox"
)

// CreateOptions say what a new sandbox is to be. Zero values mean the defaults
// of vmsan create, whose flags are called the same.
type CreateOptions struct {
	Image   string            // a name or digest; default: the one that setup made
	Name    string            // unique; default: none
	Project string            // a label
	Labels  map[string]string // the caller's own

	VCPUs     int   // default 1
	MemoryMiB int   // default 256
	DiskBytes int64 // default 10 GiB, which it takes as it fills
	DiskRate  int64 // bytes a second that each disk may read and write; 0: no limit
	DiskIOPS  int64 // reads and writes a second of each disk; 0: no limit

	Volumes []string // "NAME:/PATH" or "NAME:/PATH:ro"; made if they are not there

	Env     map[string]string // of every command
	Workdir string            // of every command; absolute
	User    string            // of every command; default: the image's, or root

	Entrypoint bool   // run what the image says as the main process, with which the sandbox ends
	Restart    string // of the main process: no, always, on-failure or on-failure:N

	Init        bool   // the image's own init becomes PID 1
	Driver      string // auto, firecracker or qemu
	Accelerator string // auto, kvm or tcg
	RequireKVM  bool
	Overcommit  bool // start whether or not the host has memory and disk left

	Network       string            // nat or none; default: nat for root, none for others
	NetworkPolicy api.NetworkPolicy // what it may reach; default: the public internet
	Publish       []string          // ports of the host: "[IP:]HOST:GUEST[/udp]"
	Resolvers     []string          // "ADDRESS[:PORT]"; default: the host's
	Bandwidth     string            // "10mbit", or "10mbit:20mbit" down and up

	// Snapshot is what the sandbox goes on from; what the machine is made of
	// is then the snapshot's.
	Snapshot string
	// Cold sandboxes boot, instead of starting from a template.
	Cold bool
	// BootTimeout is how long the guest may take to come up. Default: 2 minutes.
	BootTimeout time.Duration
	// Timeout is how long it may run from each start, and IdleTimeout how long it
	// may do nothing. Then comes OnTimeout: stop, the default, pause, snapshot or
	// remove. 0: no limit.
	Timeout, IdleTimeout time.Duration
	OnTimeout            string
	// Ephemeral sandboxes are removed when they stop, and stop when this
	// program ends, however it does.
	Ephemeral bool
}

// parse makes of o what the verbs take.
func (o CreateOptions) parse() (parsed sandbox.CreateOptions, err error) {
	parsed = sandbox.CreateOptions{
		Image: o.Image, Name: o.Name, Project: o.Project, Labels: o.Labels,
		VCPUs: o.VCPUs, MemoryMiB: o.MemoryMiB, DiskBytes: o.DiskBytes,
		DiskRate: o.DiskRate, DiskIOPS: o.DiskIOPS,
		Env: o.Env, Workdir: o.Workdir, User: o.User, Entrypoint: o.Entrypoint, Restart: o.Restart,
		Init: o.Init, Driver: o.Driver, Accelerator: o.Accelerator, RequireKVM: o.RequireKVM, Overcommit: o.Overcommit,
		Timeout: o.Timeout, IdleTimeout: o.IdleTimeout, OnTimeout: o.OnTimeout,
		Network: o.Network, Snapshot: o.Snapshot, Cold: o.Cold, BootTimeout: o.BootTimeout, Ephemeral: o.Ephemeral,
	}
	for _, text := range o.Volumes {
		mount, err := sandbox.ParseVolume(text)
		if err != nil {
			return parsed, err
		}
		parsed.Volumes = append(parsed.Volumes, mount)
	}
	if parsed.Policy, err = parsePolicy(o.NetworkPolicy); err != nil {
		return parsed, err
	}
	if parsed.Publications, err = sandbox.ParsePublications(o.Publish); err != nil {
		return parsed, err
	}
	if parsed.Resolvers, err = sandbox.ParseResolvers(o.Resolvers); err != nil {
		return parsed, err
	}
	if o.Bandwidth != "" {
		parsed.Bandwidth, err = sandbox.ParseBandwidth(o.Bandwidth)
	}
	return parsed, err
}

func parsePolicy(p api.NetworkPolicy) (policy.Policy, error) {
	lists := sandbox.PolicyLists{AllowedDomains: p.AllowedDomains, AllowedCIDRs: p.AllowedCIDRs, DeniedCIDRs: p.DeniedCIDRs}
	return lists.Parse(p.Policy)
}
