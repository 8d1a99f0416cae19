package network

import (
	"net/netip"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/vmsan/vmsan/internal/network/firewall"
	"github.com/vmsan/vmsan/internal/policy"
)

// TestFind has a network with rules of its own on the host, one without, and
// rules that are left of one.
func TestFind(t *testing.T) {
	inLab(t)
	admitted := policy.Policy{Mode: policy.Custom, AllowedCIDRs: []policy.CIDR{{Prefix: netip.MustParsePrefix("10.20.0.1/32")}}}
	first := create(t, Config{ID: testID(1), Slot: 1, Owner: "/run/vmsan-one", Policy: admitted})
	second := create(t, Config{ID: testID(2), Slot: 2})
	rules, err := firewall.OpenHost()
	if err != nil {
		t.Fatal(err)
	}
	defer rules.Close()
	if err := rules.Admit(Device(testID(3)), admitted); err != nil {
		t.Fatal(err)
	}
	run(t, "ip", "link", "add", "vmsan-bridge", "type", "veth", "peer", "name", "vmsanother")
	defer run(t, "ip", "link", "del", "vmsan-bridge")
	check := func(want ...Found) {
		t.Helper()
		got, err := Find()
		if err != nil {
			t.Fatal(err)
		}
		if diff := cmp.Diff(want, got); diff != "" {
			t.Errorf("(-want +got):\n%s", diff)
		}
	}
	check(Found{ID: testID(1), Link: true, Owner: "/run/vmsan-one", Rules: true}, Found{ID: testID(2), Link: true},
		Found{ID: testID(3), Rules: true})
	if err := CleanUp(testID(3)); err != nil {
		t.Fatal(err)
	}
	closeNetwork(t, first)
	closeNetwork(t, second)
	for _, slot := range []int{1, 2} {
		awaitGone(t, slot)
	}
	check()
}
