package doctor

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"strings"
	"time"

	"github.com/miekg/dns"

	"github.com/vmsan/vmsan/internal/cgroup"
	"github.com/vmsan/vmsan/internal/network"
)

// groupName is of a group that is made and removed at once.
func groupName() string { return fmt.Sprintf("vmsan-doctor-%d", os.Getpid()) }

func checkCgroup(context.Context, *Options) verdict {
	if !isRoot() {
		return forRoot("limits on CPU, memory and processes")
	}
	missing, err := cgroup.Missing()
	switch {
	case err != nil:
		return fail("mount | grep cgroup", "cgroups cannot be used: %v", err)
	case len(missing) > 0:
		return fail(controllerRemedy(missing), "%s lacks the controllers %s; vmsan create --no-cgroup does without limits",
			cgroup.Mode(), strings.Join(missing, ", "))
	}
	g, err := cgroup.Create(groupName(), cgroup.Limits{CPUs: 1, Memory: 64 << 20, PIDs: 16})
	if err == nil {
		err = cgroup.RemoveEmpty(g.Name())
	}
	if err != nil {
		return fail("cat /proc/self/cgroup; mount | grep cgroup", "a group with limits cannot be made: %v", err)
	}
	return pass("%s has cpu, memory and pids", cgroup.Mode())
}

func controllerRemedy(missing []string) string {
	var on []string
	for _, c := range missing {
		on = append(on, "+"+c)
	}
	return fmt.Sprintf("echo '%s' > /sys/fs/cgroup/cgroup.subtree_control, in the parent of a container; or on the kernel's command line: cgroup_enable=%s",
		strings.Join(on, " "), strings.Join(missing, ","))
}

// ofHost turns an error of package network into a failure.
func ofHost(err error, otherwise string) verdict {
	var host *network.HostError
	if errors.As(err, &host) {
		otherwise = host.Hint
	}
	return fail(otherwise, "%v", err)
}

func checkTun(context.Context, *Options) verdict {
	if !isRoot() {
		return forRoot("network devices")
	}
	tap, err := network.BareTap()
	if err == nil {
		err = tap.Close()
	}
	if err != nil {
		return ofHost(err, "ls -l /dev/net/tun")
	}
	return pass("/dev/net/tun makes a tap")
}

func checkNetwork(ctx context.Context, _ *Options) verdict {
	if !isRoot() {
		return forRoot("networks")
	}
	if err := network.CheckHost(ctx); err != nil {
		return ofHost(err, "dmesg | tail")
	}
	return pass("the kernel has all that networks are made of")
}

func checkRoute(context.Context, *Options) verdict {
	device, err := network.DefaultRoute()
	switch {
	case errors.Is(err, network.ErrNoRoute):
		return warn("ip route add default via GATEWAY", "the host has no default route, so that sandboxes reach nothing")
	case err != nil:
		return fail("ip route", "%v", err)
	}
	return pass("through %s", device)
}

func checkPool(_ context.Context, o *Options) verdict {
	if !isRoot() {
		return forRoot("networks")
	}
	r, v, ok := o.ready()
	if !ok {
		return v
	}
	if err := network.CheckPool(r.Pool); err != nil {
		return fail("vmsan setup --network-pool 10.213.0.0/16, or another range that nothing on this host uses", "%v", err)
	}
	return pass("%s, room for %d sandboxes, overlaps nothing on this host", r.Pool, network.Slots(r.Pool))
}

func checkFirewall(_ context.Context, o *Options) verdict {
	if !isRoot() {
		return forRoot("networks")
	}
	r, v, ok := o.ready()
	if !ok {
		return v
	}
	if err := network.CheckForwarding(r.Pool); err != nil {
		return ofHost(err, "nft list ruleset")
	}
	accepted, passed, err := network.Forwarded()
	switch {
	case err != nil:
		return ofHost(err, "nft list ruleset")
	case accepted > 0 && passed == 0:
		return fail("nft list ruleset; iptables-legacy -S FORWARD",
			"of %d packets of sandboxes none came out behind the host's rules: something here drops them", accepted)
	case network.HasLegacyRules():
		return warn("iptables-legacy -S FORWARD shows them",
			"no rule set of nf_tables drops what sandboxes send, but iptables-legacy filters here, too, whose rules are not looked at")
	}
	return pass("no rule set drops what sandboxes send")
}

// resolverFile says which servers the host asks: resolv.conf(5).
const resolverFile = "/etc/resolv.conf"

func checkResolvers(ctx context.Context, o *Options) verdict {
	const edit = "write `nameserver ADDRESS` into " + resolverFile + ", or give sandboxes one: vmsan create --dns ADDRESS"
	conf, err := dns.ClientConfigFromFile(resolverFile)
	if err != nil {
		return fail(edit, "the host's resolvers cannot be read: %v", err)
	}
	var usable, useless []string
	for _, text := range conf.Servers {
		if err := checkResolver(ctx, text, o.AskResolvers); err != nil {
			useless = append(useless, err.Error())
		} else {
			usable = append(usable, text)
		}
	}
	switch {
	case len(usable) == 0 && len(useless) == 0:
		return fail(edit, "%s names no server", resolverFile)
	case len(usable) == 0:
		return fail(edit, "none of the host's resolvers can be used: %s", strings.Join(useless, "; "))
	case len(useless) > 0:
		return warn(edit, "%s; in use: %s", strings.Join(useless, "; "), strings.Join(usable, ", "))
	case o.AskResolvers:
		return pass("%s, which answer", strings.Join(usable, ", "))
	}
	return pass("%s; vmsan doctor resolvers --probe asks them", strings.Join(usable, ", "))
}

// checkResolver asks nobody, unless it is told to: it looks for a server on
// this host, or for a route to another.
func checkResolver(ctx context.Context, text string, ask bool) error {
	address, err := netip.ParseAddr(text)
	if err != nil {
		return fmt.Errorf("%.80q is no address", text)
	}
	if address.IsLoopback() && !listens(address, dnsPort) {
		return fmt.Errorf("nothing on this host listens on %s, port %d", address, dnsPort)
	}
	if err := network.Reaches(address); err != nil {
		return err
	}
	if !ask {
		return nil
	}
	ctx, cancel := context.WithTimeout(ctx, askTime)
	defer cancel()
	question := new(dns.Msg).SetQuestion(".", dns.TypeNS)
	if _, _, err = new(dns.Client).ExchangeContext(ctx, question, netip.AddrPortFrom(address, dnsPort).String()); err != nil {
		return fmt.Errorf("%s does not answer: %w", address, err)
	}
	return nil
}

const dnsPort = 53

// askTime is how long a resolver may take for an answer.
const askTime = 3 * time.Second
