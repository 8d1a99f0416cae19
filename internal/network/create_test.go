package network

import (
	"context"
	"errors"
	"net/netip"
	"testing"

	"github.com/vmsan/vmsan/internal/policy"
)

// endsAfter is a context that is cancelled when it was asked so often.
type endsAfter struct {
	context.Context
	asked *int
}

func (c endsAfter) Err() error {
	if *c.asked--; *c.asked < 0 {
		return context.Canceled
	}
	return nil
}

// TestCreateCancelled ends Create at each of the places where it asks.
func TestCreateCancelled(t *testing.T) {
	inLab(t)
	admits := policy.Policy{Mode: policy.Custom, AllowedCIDRs: []policy.CIDR{{Prefix: netip.MustParsePrefix("203.0.113.2/32")}}}
	for left := 0; ; left++ {
		n, err := Create(endsAfter{t.Context(), new(left)}, Config{ID: testID(1), Slot: 1, Pool: testPool, Policy: admits})
		if err == nil {
			if left == 0 {
				t.Fatal("Create does not ask")
			}
			if err := n.Close(); err != nil {
				t.Fatal(err)
			}
			return
		}
		if !errors.Is(err, context.Canceled) || n != nil {
			t.Fatalf("got %v, %v", n, err)
		}
		if left := leftOnHost(t); left != "" {
			t.Fatalf("left: %s", left)
		}
	}
}

// TestCreateNameTaken has a device of the name there already, which is not
// Create's to remove.
func TestCreateNameTaken(t *testing.T) {
	inLab(t)
	name := Device(testID(1))
	run(t, "ip", "link", "add", name, "type", "veth", "peer", "name", "other")
	defer run(t, "ip", "link", "del", name)
	if _, err := Create(t.Context(), Config{ID: testID(1), Pool: testPool}); err == nil {
		t.Fatal("made a network with a name that is taken")
	}
	run(t, "ip", "link", "show", name)
}

func TestCreateRefuses(t *testing.T) {
	for _, c := range []Config{
		{ID: "vm", Pool: testPool},
		{ID: "vm/../../abcd", Pool: testPool},
		{ID: "vmABCDEFGHIJ", Pool: testPool},
		{ID: "xxaaaaaaaaaa", Pool: testPool},
		{ID: testID(1), Pool: testPool, Slot: -1},
		{ID: testID(1), Pool: testPool, Slot: Slots(testPool)},
		{ID: testID(1)},
	} {
		if _, err := Create(t.Context(), c); err == nil {
			t.Errorf("made a network of %+v", c)
		}
	}
}
