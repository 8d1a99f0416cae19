// Package doctor looks at a host for what keeps sandboxes from working there,
// or makes them work worse than they could. Each check is for itself: it looks,
// says what it found in a sentence, and names a command against it.
package doctor

import (
	"context"
	"fmt"
	"os"
	"slices"
	"time"

	"github.com/vmsan/vmsan/api"
	"github.com/vmsan/vmsan/internal/setup"
	"github.com/vmsan/vmsan/internal/store"
)

// Options say what to look at.
type Options struct {
	Layout store.Layout // required
	// Agent is the digest of the agent that guests are to have. Required.
	Agent string
	// VMMs are the programs that can run sandboxes. Required.
	VMMs []VMM
	// Checks are the names of those to make. Default: all.
	Checks []string
	// Boot boots the kernel once under an accelerator. Optional: without it,
	// what setup found out is believed.
	Boot func(ctx context.Context, accel string) error
	// AskResolvers sends a question to each resolver.
	AskResolvers bool
	// Collect removes what dead sandboxes have left, or with dryRun says what it
	// would remove. Required.
	Collect func(ctx context.Context, dryRun bool) (api.Collection, error)
	// Fix has checks mend what they can.
	Fix bool
	// Found gets each finding as soon as there is one. Optional.
	Found func(api.Finding)
}

// VMM is a program that runs sandboxes.
type VMM struct {
	Name    string // as setup records it
	Version func(context.Context) (string, error)
	Oldest  string // the oldest version that works: "7.2"
	Install string // the command that installs it
}

// Check is one thing that can be looked at.
type Check struct {
	Name string
	// About is what it looks at.
	About string
	// limit is how long it may take. Default: defaultLimit.
	limit time.Duration
	look  func(context.Context, *Options) verdict
}

// defaultLimit is for reading a few hundred megabytes from a slow disk.
const defaultLimit = 30 * time.Second

// verdict is what a check comes to.
type verdict struct {
	status api.Health
	detail string
	remedy string
	fixed  []string
}

func pass(format string, args ...any) verdict {
	return verdict{status: api.HealthPass, detail: fmt.Sprintf(format, args...)}
}

func warn(remedy, format string, args ...any) verdict {
	return verdict{status: api.HealthWarn, detail: fmt.Sprintf(format, args...), remedy: remedy}
}

func fail(remedy, format string, args ...any) verdict {
	return verdict{status: api.HealthFail, detail: fmt.Sprintf(format, args...), remedy: remedy}
}

// Checks are all there are, in the order in which they are made.
func Checks() []Check {
	return []Check{
		{Name: "permission", About: "who runs vmsan, and the rights that sandboxes need", look: checkPermission},
		{Name: "kvm", About: "/dev/kvm, and whether an accelerator really boots a guest", look: checkKVM, limit: 2 * time.Minute},
		{Name: "vmm", About: "the programs that run sandboxes, and their versions", look: checkVMMs},
		{Name: "programs", About: "other programs that vmsan runs", look: checkPrograms},
		{Name: "kernel", About: "the guest's kernel and initramfs, byte by byte, and the agent in them", look: checkKernel},
		{Name: "images", About: "the root file systems of images, byte by byte", look: checkImages},
		{Name: "records", About: "the records of sandboxes", look: checkRecords},
		{Name: "state", About: "the state directory: owner, mount flags", look: checkState},
		{Name: "space", About: "room on the disk", look: checkSpace},
		{Name: "clones", About: "whether the file system keeps holes, and shares blocks of clones", look: checkClones},
		{Name: "cgroup", About: "the controllers that limit sandboxes, on v1, v2 and hybrid hosts", look: checkCgroup},
		{Name: "tun", About: "/dev/net/tun, which guests' network devices are made with", look: checkTun},
		{Name: "network", About: "namespaces, veth, nf_tables and shaping: one of each is made and removed", look: checkNetwork},
		{Name: "route", About: "the host's way to the internet", look: checkRoute},
		{Name: "pool", About: "sandboxes' addresses against the host's addresses and routes", look: checkPool},
		{Name: "firewall", About: "the host's rule sets, for one that drops what sandboxes send", look: checkFirewall},
		{Name: "resolvers", About: "the servers that answer sandboxes' names", look: checkResolvers},
		{Name: "leftovers", About: "processes, cgroups, networks, mounts, files and numbers of dead sandboxes", look: checkLeftovers},
		{Name: "clock", About: "the host's clock, which guests get theirs from", look: checkClock},
	}
}

// Names are those of all checks.
func Names() (names []string) {
	for _, c := range Checks() {
		names = append(names, c.Name)
	}
	return names
}

// Run makes the checks. One that fails, or takes too long, does not keep the
// others from being made.
func Run(ctx context.Context, o Options) ([]api.Finding, error) {
	findings := []api.Finding{}
	for _, c := range Checks() {
		if len(o.Checks) > 0 && !slices.Contains(o.Checks, c.Name) {
			continue
		}
		v := c.run(ctx, &o)
		if ctx.Err() != nil {
			return findings, context.Cause(ctx)
		}
		f := api.Finding{Check: c.Name, Status: v.status, Detail: v.detail, Remedy: v.remedy, Fixed: v.fixed}
		findings = append(findings, f)
		if o.Found != nil {
			o.Found(f)
		}
	}
	return findings, nil
}

// run does not wait for a check that is stuck in the kernel, as on a file
// system whose server is gone.
func (c Check) run(ctx context.Context, o *Options) verdict {
	limit := c.limit
	if limit == 0 {
		limit = defaultLimit
	}
	ctx, cancel := context.WithTimeout(ctx, limit)
	defer cancel()
	done := make(chan verdict, 1)
	go func() { done <- c.look(ctx, o) }()
	select {
	case v := <-done:
		return v
	case <-ctx.Done():
	}
	select {
	case v := <-done: // it noticed, and may say more
		return v
	case <-time.After(100 * time.Millisecond):
		return fail("vmsan doctor "+c.Name, "this took longer than %s: the host is too busy, or a disk or server does not answer", limit)
	}
}

// remedySetup is against most of what is wrong with files of our own.
const remedySetup = "vmsan setup"

// ready is what setup has recorded; or else why checks that need it fail.
func (o *Options) ready() (r setup.Record, v verdict, ok bool) {
	r, err := setup.Load(o.Layout)
	if err == nil {
		return r, v, true
	}
	remedy := remedySetup
	if e := api.AsError(err); e.Code != api.ErrSetupRequired {
		remedy = "sudo vmsan doctor"
	}
	return r, fail(remedy, "%v", err), false
}

func isRoot() bool { return os.Geteuid() == 0 }

// forRoot is what checks say that only root can make, of things that only root
// has.
func forRoot(what string) verdict {
	return warn("sudo vmsan doctor", "not looked at: only root's sandboxes have %s", what)
}
