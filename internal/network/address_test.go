package network

import (
	"net/netip"
	"testing"
)

func TestSlots(t *testing.T) {
	for text, want := range map[string]int{
		"198.18.0.0/15": 32768, "10.0.0.0/8": 1 << 22, "10.1.2.4/30": 1, "10.1.2.4/31": 0, "2001:db8::/32": 0,
	} {
		if got := Slots(netip.MustParsePrefix(text)); got != want {
			t.Errorf("%s: got %d, want %d", text, got, want)
		}
	}
}

func TestLease(t *testing.T) {
	for _, c := range []struct {
		pool         string
		slot         int
		host, uplink string // "" for none
	}{
		{"198.18.0.0/15", 0, "198.18.0.1/30", "198.18.0.2/30"},
		{"198.18.0.0/15", 63, "198.18.0.253/30", "198.18.0.254/30"},
		{"198.18.0.0/15", 64, "198.18.1.1/30", "198.18.1.2/30"},
		{"198.18.0.0/15", 16384, "198.19.0.1/30", "198.19.0.2/30"},
		{"198.18.0.0/15", 32767, "198.19.255.253/30", "198.19.255.254/30"},
		{"198.18.0.0/15", 32768, "", ""},
		{"198.18.0.0/15", -1, "", ""},
		{"10.9.8.4/30", 0, "10.9.8.5/30", "10.9.8.6/30"},
		{"10.9.8.4/30", 1, "", ""},
		{"2001:db8::/32", 0, "", ""},
	} {
		got, err := leaseOf(netip.MustParsePrefix(c.pool), c.slot)
		if c.host == "" {
			if err == nil {
				t.Errorf("%s, slot %d: got %+v", c.pool, c.slot, got)
			}
			continue
		}
		if err != nil || got.host.String() != c.host || got.uplink.String() != c.uplink {
			t.Errorf("%s, slot %d: got %+v, %v; want %s and %s", c.pool, c.slot, got, err, c.host, c.uplink)
		}
	}
}

// TestLeasesAreApart goes through the slots of a pool.
func TestLeasesAreApart(t *testing.T) {
	pool := netip.MustParsePrefix("10.77.0.0/22")
	seen := map[netip.Addr]bool{}
	for slot := range Slots(pool) {
		l, err := leaseOf(pool, slot)
		if err != nil {
			t.Fatal(err)
		}
		for _, a := range []netip.Prefix{l.host, l.uplink} {
			if seen[a.Addr()] || !pool.Contains(a.Addr()) || a.Masked() != l.host.Masked() {
				t.Errorf("slot %d has %s", slot, a)
			}
			seen[a.Addr()] = true
		}
	}
}

func TestLinkName(t *testing.T) {
	if got := Device("vmabcdefghij"); got != "vmsanabcdefghij" || len(got) != 15 {
		t.Errorf("got %s", got)
	}
}
