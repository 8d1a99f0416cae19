package network

import (
	"net/netip"
	"os/exec"
	"strings"
	"sync"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/vmsan/vmsan/internal/policy"
	"github.com/vmsan/vmsan/internal/testenv/lab"
)

// TestKeepRules: what a host's own rules flush is put back by those that are
// concerned, each its own part, and what was begun meanwhile is begun anew.
func TestKeepRules(t *testing.T) {
	world := inLab(t)
	if err := world.Host.Sysctl("ipv4/conf/all/forwarding", "0"); err != nil {
		t.Fatal(err)
	}
	toHost := policy.Policy{Mode: policy.Custom, AllowedCIDRs: []policy.CIDR{{Prefix: netip.PrefixFrom(lab.Uplink, 32)}}}
	told := make(chan error, 100)
	var keeping sync.WaitGroup
	var networks []*Network
	for i, p := range []policy.Policy{{Mode: policy.AllowAll}, toHost} {
		n := create(t, Config{ID: testID(i + 1), Slot: i + 1, Policy: p})
		keeping.Go(func() { n.KeepRules(func(err error) { told <- err }) })
		noted := func() bool {
			n.mu.Lock()
			defer n.mu.Unlock()
			return len(n.opened) > 0
		}
		await(t, "what the rules know is noted", noted, func() string { return "nothing is" })
		networks = append(networks, n)
	}
	// Counters of packets are none of the rules.
	rules := func() string {
		list, err := exec.Command("nft", "list", "table", "inet", "vmsan").Output()
		if err != nil {
			return "none"
		}
		return grep(string(list), `^\s*(chain|type|elements|iif|oif|ip|ct|meta|fib|jump|drop|accept|.*vmsan)`)
	}
	before := rules()
	if !strings.Contains(before, Device(testID(2))) || !strings.Contains(before, lab.UplinkName) {
		t.Fatalf("the host's rules are:\n%s", before)
	}
	for _, command := range []string{"flush ruleset", "delete table inet vmsan"} {
		run(t, append([]string{"nft"}, strings.Fields(command)...)...)
		for range networks {
			if err := <-told; err != nil {
				t.Errorf("%s: %v", command, err)
			}
		}
		await(t, "the rules are what they were", func() bool { return rules() == before }, rules)
	}
	newGuest(t, networks[0]).echo(one)
	newGuest(t, networks[1]).echo(lab.Uplink)
	// Somebody else's table is nobody's loss.
	run(t, "nft", "add", "table", "inet", "other")
	run(t, "nft", "delete", "table", "inet", "other")
	for _, n := range networks {
		closeNetwork(t, n)
	}
	keeping.Wait()
	if len(told) > 0 {
		t.Errorf("%d losses more than there were", len(told))
	}
}

// What a guest begins while the host has no rules does not go on when it has
// some again, or does so by them.
func TestFlowsBegunWithoutRules(t *testing.T) {
	inLab(t)
	n := create(t, Config{Slot: 1})
	defer closeNetwork(t, n)
	if err := n.begin(); err != nil {
		t.Fatal(err)
	}
	g := newGuest(t, n)
	// The host's own rules, for which the kernel takes note of flows.
	run(t, "nft", "flush ruleset; table inet own { chain input { type filter hook input priority 0; ct state established accept; }; }")
	defer run(t, "nft", "delete", "table", "inet", "own")
	g.send(packet(Guest.Addr(), one, unix.IPPROTO_UDP, udp(lab.EchoPort)))
	g.echo(lab.Uplink) // the host's own address
	if lost, err := n.restoreRules(); err != nil || !lost {
		t.Fatalf("lost: %v, %v", lost, err)
	}
	g.send(packet(Guest.Addr(), lab.Uplink, unix.IPPROTO_UDP, udp(lab.EchoPort)))
	g.send(packet(Guest.Addr(), one, unix.IPPROTO_UDP, udp(lab.EchoPort)))
	g.await("an echo of the internet", func(frame []byte) bool {
		if from(lab.Uplink, unix.IPPROTO_UDP)(frame) {
			t.Error("the host answers still")
		}
		return from(one, unix.IPPROTO_UDP)(frame)
	})
}
