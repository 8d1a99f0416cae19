package network

import (
	"net/netip"
	"strings"
	"testing"
)

func TestCheckPoolForm(t *testing.T) {
	for text, want := range map[string]string{
		"2001:db8::/32":   "IPv4",
		"198.18.0.1/15":   "198.18.0.0/15 does",
		"198.18.0.0/31":   "between /8 and /30",
		"198.18.0.0/32":   "between /8 and /30",
		"44.0.0.0/7":      "between /8 and /30",
		"127.0.0.0/8":     "127.0.0.0/8",
		"192.0.0.0/24":    "192.0.0.0/30",
		"224.0.0.0/8":     "224.0.0.0/3",
		"255.255.255.0/8": "255.0.0.0/8 does",
		"0.0.0.0/8":       "0.0.0.0/8",
	} {
		if err := CheckPool(netip.MustParsePrefix(text)); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%s: got %v, want %q", text, err, want)
		}
	}
	if err := CheckPool(netip.Prefix{}); err == nil {
		t.Error("took no pool at all")
	}
}

// TestCheckPoolOverlap has routes of all kinds on the host, the default one
// and a sandbox's among them.
func TestCheckPoolOverlap(t *testing.T) {
	inLab(t)
	defer closeNetwork(t, create(t, Config{Slot: 1}))
	for _, args := range []string{
		"route add 44.7.0.0/16 via 203.0.113.1 dev uplink0",
		"route add 44.8.0.0/16 via 10.20.0.9 dev lan0 table 205", // as a VPN does
		"route add blackhole 44.9.0.0/16",
		"route add 44.10.0.0/16 nexthop via 203.0.113.1 dev uplink0 nexthop via 10.20.0.9 dev lan0",
		"route add 0.0.0.0/1 via 203.0.113.1 dev uplink0",
		"route add 128.0.0.0/1 via 203.0.113.1 dev uplink0",
	} {
		run(t, append([]string{"ip"}, strings.Fields(args)...)...)
		undo := append([]string{"ip"}, strings.Fields(strings.Replace(args, "add", "del", 1))...)
		defer run(t, undo...)
	}
	run(t, "ip", "link", "add", "quiet", "type", "veth", "peer", "name", "quieter") // down, so it has no route
	defer run(t, "ip", "link", "del", "quiet")
	run(t, "ip", "address", "add", "44.11.0.1/24", "dev", "quiet")
	for pool, want := range map[string]string{
		"44.7.1.0/24":   "44.7.1.0/24 overlaps the route to 44.7.0.0/16 through device uplink0",
		"44.0.0.0/13":   "the route to 44.7.0.0/16 through device uplink0",
		"44.8.0.0/24":   "the route to 44.8.0.0/16 through device lan0",
		"44.9.0.0/24":   "the route to 44.9.0.0/16",
		"44.10.0.0/24":  "the route to 44.10.0.0/16 through device uplink0",
		"44.11.0.0/16":  "the address 44.11.0.1 of device quiet",
		"10.0.0.0/8":    "the address 10.20.0.1 of device lan0",
		"10.20.0.64/26": "the route to 10.20.0.0/24 through device lan0",
		"44.12.0.0/16":  "",
		"198.18.0.0/15": "", // a sandbox has an address there
	} {
		err := CheckPool(netip.MustParsePrefix(pool))
		if want == "" && err != nil || want != "" && (err == nil || !strings.Contains(err.Error(), want)) {
			t.Errorf("%s: got %v, want %q", pool, err, want)
		}
	}
}
