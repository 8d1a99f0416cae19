package e2e

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"math"
	"net/netip"
	"os"
	"strconv"
	"strings"
	"testing"
	"time"

	"golang.org/x/sync/errgroup"

	"github.com/vmsan/vmsan/internal/monitor/control"
	"github.com/vmsan/vmsan/internal/policy"
	"github.com/vmsan/vmsan/internal/testenv"
	"github.com/vmsan/vmsan/internal/testenv/lab"
	"github.com/vmsan/vmsan/internal/testenv/probe"
)

// flips is how often the policy changes under load.
const flips = 1000

// TestPolicyFlips changes a policy over and over while the guest begins flows
// to what each of them forbids. There is no moment in which one gets out, and
// what all of them allow goes on.
func TestPolicyFlips(t *testing.T) {
	h := newHost(t)
	world := testenv.Lab(t)
	good, bad := netip.MustParseAddr("198.51.100.10"), netip.MustParseAddr("203.0.113.99")
	private := netip.MustParseAddr("10.77.1.1")
	h.createNetworked(readBuilt(t, "../internal/testenv/probe/vmsan-probe"), []string{"--name", "flips", "--denied-cidr", bad.String()})
	monitor := control.Dial(h.layout.ControlSocket(h.idOf("flips")))

	capture, err := world.Watch()
	if err != nil {
		t.Fatal(err)
	}
	defer capture.Close()
	left := func() map[lab.Flow]int {
		flows, err := capture.Flows()
		if err != nil {
			t.Fatal(err)
		}
		maps.DeleteFunc(flows, func(flow lab.Flow, _ int) bool { return flow.To != bad && flow.To != private })
		return flows
	}

	load, ctx := errgroup.WithContext(t.Context())
	enough := make(chan struct{})
	load.Go(func() error { return h.load(ctx, enough, "flips", good, bad, private) })
	began := time.Now()
	between := []policy.Policy{
		flipTo(t, policy.AllowAll, "", "", bad.String()),
		flipTo(t, "", "", good.String()+"/32", ""),
		flipTo(t, "", "", "192.0.0.0/2", bad.String()),
		flipTo(t, "", "allowed.example", good.String()+"/32:7/tcp", ""),
	}
	for i := range flips {
		if _, err := monitor.SetPolicy(ctx, between[i%len(between)], i%10 == 0); err != nil {
			t.Fatalf("change %d: %v; the guest: %v", i, err, context.Cause(ctx))
		}
	}
	took := time.Since(began)
	for flow, n := range left() {
		t.Errorf("%d forbidden packets left the host during %d changes: %s", n, flips, flow)
	}
	// The guest is still at it, as is seen once it may.
	if _, err := monitor.SetPolicy(t.Context(), flipTo(t, policy.AllowAll, "", "", ""), false); err != nil {
		t.Fatal(err)
	}
	for len(left()) == 0 && ctx.Err() == nil {
		time.Sleep(10 * time.Millisecond)
	}
	close(enough)
	if err := load.Wait(); err != nil {
		t.Errorf("the guest: %v", err)
	}
	t.Logf("%d changes in %s", flips, took.Round(time.Millisecond))
}

// load has a guest begin flows to the bad and keep one to the good, until it
// is enough.
func (h *host) load(ctx context.Context, enough chan struct{}, name string, good netip.Addr, bad ...netip.Addr) error {
	const round = 10 * time.Second
	task := probe.Task{Probes: []probe.Probe{{Kind: probe.Hold, To: to(good, lab.EchoPort), Wait: round}}}
	for _, addr := range bad {
		task.Probes = append(task.Probes, probe.Probe{Kind: probe.Flood, To: to(addr, 1000), Wait: round})
	}
	for {
		select {
		case <-enough:
			return nil
		default:
		}
		results, err := h.tryProbe(ctx, name, task)
		if err != nil {
			return err
		}
		for _, r := range results {
			if !r.Answered {
				return errors.New(r.Error)
			}
		}
	}
}

// flipTo is a policy of one rule in each list.
func flipTo(t *testing.T, mode policy.Mode, domain, allowed, denied string) policy.Policy {
	t.Helper()
	var domains []policy.Domain
	var cidrs [2][]policy.CIDR
	if domain != "" {
		d, err := policy.ParseDomain(domain)
		if err != nil {
			t.Fatal(err)
		}
		domains = append(domains, d)
	}
	for i, text := range []string{allowed, denied} {
		if text == "" {
			continue
		}
		c, err := policy.ParseCIDR(text)
		if err != nil {
			t.Fatal(err)
		}
		cidrs[i] = append(cidrs[i], c)
	}
	p, err := policy.New(mode, domains, cidrs[0], cidrs[1])
	if err != nil {
		t.Fatal(err)
	}
	return p
}

// TestOpenFlows is about what is under way when a policy changes: it goes on,
// unless --kill is given.
func TestOpenFlows(t *testing.T) {
	t.Parallel()
	h := newHost(t)
	world := testenv.Lab(t)
	const domain, ranged = "by-domain", "by-range"
	kept := netip.MustParseAddr("198.51.100.21")
	h.createNetworked(readBuilt(t, "../internal/testenv/probe/vmsan-probe"),
		[]string{"--name", domain, "--allowed-domain", "flow.example:22"},
		[]string{"--name", ranged, "--allowed-cidr", kept.String() + "/32," + kept.Next().String() + "/32"})
	named := netip.MustParseAddr("198.51.100.23")
	if err := world.Zone.Set("flow.example. 60 A " + named.String()); err != nil {
		t.Fatal(err)
	}
	for _, c := range []struct {
		name, to string
		change   []string
		cut      bool
	}{
		{ranged, to(kept, 22), []string{"--network-policy", "deny-all"}, false},
		{ranged, to(kept, 22), []string{"--allowed-cidr", kept.String() + "/32", "--kill"}, false},
		{ranged, to(kept.Next(), 22), []string{"--allowed-cidr", kept.String() + "/32", "--kill"}, true},
		{ranged, to(kept, 22), []string{"--network-policy", "deny-all", "--kill"}, true},
		{domain, "flow.example:22", []string{"--add-allowed-domain", "other.example", "--kill"}, false},
		{domain, "flow.example:22", []string{"--network-policy", "deny-all"}, false},
		{domain, "flow.example:22", []string{"--network-policy", "deny-all", "--kill"}, true},
	} {
		before := []string{"network", c.name, "--allowed-cidr", kept.String() + "/32," + kept.Next().String() + "/32"}
		if c.name == domain {
			before = []string{"network", c.name, "--allowed-domain", "flow.example:22"}
		}
		h.must(before...)
		connections := func() int {
			return world.Hits.Count(func(h lab.Hit) bool { return h.Service == "tcp" && (h.At.String() == c.to || h.At.Addr() == named) })
		}
		earlier := connections()
		var results []probe.Result
		var holding errgroup.Group
		holding.Go(func() (err error) {
			results, err = h.tryProbe(t.Context(), c.name, probe.Task{Probes: []probe.Probe{
				{Kind: probe.Hold, To: c.to, Wait: 6 * time.Second},
			}})
			return err
		})
		for deadline := time.Now().Add(patience); connections() == earlier; time.Sleep(10 * time.Millisecond) {
			if time.Now().After(deadline) {
				t.Fatalf("%s did not connect", c.name)
			}
		}
		h.must(append([]string{"network", c.name}, c.change...)...)
		if err := holding.Wait(); err != nil {
			t.Fatal(err)
		}
		if got := !results[0].Answered; got != c.cut {
			t.Errorf("%s to %s, then %v: cut is %v, want %v (%s %s)", c.name, c.to, c.change, got, c.cut, results[0].Answer, results[0].Error)
		}
	}
}

// TestBandwidth has both directions at their limits within a tenth: N13.
func TestBandwidth(t *testing.T) {
	h := newHost(t)
	testenv.Lab(t)
	const down, up = 12, 6
	h.createNetworked(readBuilt(t, "../internal/testenv/probe/vmsan-probe"), []string{"--name", "shaped", "--bandwidth", fmt.Sprintf("%dmbit:%dmbit", down, up)})
	for _, c := range []struct {
		kind    probe.Kind
		megabit float64
	}{{probe.Download, down}, {probe.Upload, up}} {
		got := h.probeOne("shaped", probe.Probe{Kind: c.kind, To: "198.51.100.10:80", Wait: 8 * time.Second})
		bits, err := strconv.ParseFloat(got.Answer, 64)
		if err != nil {
			t.Fatalf("%s: %s", c.kind, got.Error)
		}
		if off := bits/(c.megabit*1e6) - 1; math.Abs(off) > 0.1 {
			t.Errorf("%s: %.2f Mbit/s at a limit of %.0f (%+.0f %%)", c.kind, bits/1e6, c.megabit, off*100)
		}
		t.Logf("%s: %.2f Mbit/s at a limit of %.0f", c.kind, bits/1e6, c.megabit)
	}
}

// TestOthersTraffic is about what has nothing to do with sandboxes: it is
// forwarded if it was before, and not if it was not. N5.
func TestOthersTraffic(t *testing.T) {
	h := newHost(t)
	world := testenv.Lab(t)
	host, inside := netip.MustParsePrefix("10.88.0.1/24"), netip.MustParsePrefix("10.88.0.2/24")
	container, remove, err := world.Attach("container0", host, inside)
	if err != nil {
		t.Fatal(err)
	}
	defer func() {
		if err := remove(); err != nil {
			t.Error(err)
		}
	}()
	listener, err := container.Listen("tcp", ":"+strconv.Itoa(lab.EchoPort))
	if err != nil {
		t.Fatal(err)
	}
	defer listener.Close()
	fromInternet := func() bool { return dials(t, world.Internet, inside.Addr()) }
	toLAN := func() bool { return dials(t, container, lab.Neighbour) }
	look := func(when string, want bool) {
		t.Helper()
		if got := fromInternet(); got != want {
			t.Errorf("%s: from the uplink to a container is %v, want %v", when, got, want)
		}
		if got := toLAN(); got != want {
			t.Errorf("%s: from a container to the LAN is %v, want %v", when, got, want)
		}
	}
	if err := world.Internet.Route(inside.Masked(), lab.Uplink, "host0"); err != nil {
		t.Fatal(err)
	}
	for _, forwards := range []bool{true, false} {
		setForwarding(t, world, forwards)
		// Whether the host forwards is looked at when a sandbox starts: one
		// of another test may have found that it did not.
		h.must("run", "--no-setup", "--memory", "128", "--", "true")
		look("before a sandbox", forwards)
		id := h.must("create", "--no-setup", "--memory", "128", "--quiet")
		look("beside a sandbox", forwards)
		h.must("exec", "--no-stdin", id, "curl", "-sS", "-m", "20", "http://198.51.100.10/")
		look("beside a sandbox that is at it", forwards)
		h.must("rm", "-f", id)
		look("after a sandbox", forwards)
	}
	setForwarding(t, world, false)
}

func setForwarding(t *testing.T, world *lab.Lab, on bool) {
	t.Helper()
	value := "0"
	if on {
		value = "1"
	}
	if err := world.Host.Sysctl("ipv4/conf/all/forwarding", value); err != nil {
		t.Fatal(err)
	}
}

// dials tells whether a connection can be made.
func dials(t *testing.T, from *lab.Namespace, addr netip.Addr) bool {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 2*time.Second)
	defer cancel()
	conn, err := from.Dial(ctx, "tcp", netip.AddrPortFrom(addr, lab.EchoPort))
	if err != nil {
		return false
	}
	conn.Close()
	return true
}

// TestNoDefaultRoute is about hosts whose way to the internet comes and goes:
// N18.
func TestNoDefaultRoute(t *testing.T) {
	h := newHost(t)
	world := testenv.Lab(t)
	fetch := []string{"exec", "--no-stdin", "web", "curl", "-sS", "-m", "20", "http://198.51.100.10/"}
	h.must("create", "--no-setup", "--memory", "128", "--name", "web")
	h.must(fetch...)
	reconnect, err := world.Disconnect()
	if err != nil {
		t.Fatal(err)
	}
	reconnected := false
	t.Cleanup(func() {
		if !reconnected {
			reconnect()
		}
	})
	if _, err := h.vmsan(fetch...); err == nil {
		t.Error("the internet is reached without a route")
	}
	h.must("create", "--no-setup", "--memory", "128", "--name", "alone", "--network-policy", "deny-all")
	h.must("exec", "--no-stdin", "alone", "true")
	_, err = h.vmsan("create", "--no-setup", "--memory", "128", "--name", "more")
	if err == nil || !strings.Contains(err.Error(), "default route") || !strings.Contains(err.Error(), "Hint: ") {
		t.Errorf("a sandbox for the internet, without a route: %v", err)
	}
	h.must("stop", "alone")
	if err := reconnect(); err != nil {
		t.Fatal(err)
	}
	reconnected = true
	h.must(fetch...)
	h.must("network", "alone", "--network-policy", "allow-all")
	h.must("start", "alone")
	fetch[2] = "alone"
	h.must(fetch...)
	forward, err := os.ReadFile("/proc/sys/net/ipv4/ip_forward")
	if err != nil || string(forward) != "0\n" {
		t.Errorf("ip_forward is %q, %v", forward, err)
	}
}

// Thirty-two sandboxes with networks come up at once: each has addresses of its
// own, reaches what it may and nothing else, and leaves nothing (S2, L7).
func TestThirtyTwoNetworks(t *testing.T) {
	h := newHost(t)
	const count = 32
	var all errgroup.Group
	all.SetLimit(count)
	for i := range count {
		all.Go(func() error {
			name := fmt.Sprintf("n%d", i)
			if _, err := h.vmsan("create", "--name", name, "--allowed-domain", "allowed.example"); err != nil {
				return err
			}
			_, err := h.vmsan("exec", name, "sh", "-c",
				"curl -sS -m 30 http://allowed.example/ && ! curl -sS -m 30 http://other.example/ && ! curl -sS -m 30 http://198.51.100.20/")
			return err
		})
	}
	if err := all.Wait(); err != nil {
		t.Fatal(err)
	}
	uplinks := map[string]bool{}
	for i := range count {
		uplinks[h.linksOf(fmt.Sprintf("n%d", i))[1]] = true
	}
	if len(uplinks) != count {
		t.Errorf("%d sandboxes have %d addresses", count, len(uplinks))
	}
}
