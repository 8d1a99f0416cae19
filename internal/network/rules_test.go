package network

import (
	"errors"
	"flag"
	"net/netip"
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/vmsan/vmsan/internal/policy"
)

var update = flag.Bool("update", false, "write testdata")

// golden compares text with a file of testdata.
func golden(t *testing.T, name, got string) {
	t.Helper()
	path := filepath.Join("testdata", name)
	if *update {
		if err := errors.Join(os.MkdirAll("testdata", 0o755), os.WriteFile(path, []byte(got), 0o644)); err != nil {
			t.Fatal(err)
		}
	}
	want, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(got, string(want)); diff != "" {
		t.Errorf("%s (-got +want):\n%s", path, diff)
	}
}

func rulesOf(t *testing.T, n *Network) (text string) {
	t.Helper()
	if err := n.ns.Do(func() error {
		text = run(t, "nft", "--stateless", "list", "ruleset")
		return nil
	}); err != nil {
		t.Fatal(err)
	}
	return text
}

// TestRules has the rules as nft(8) shows them, the same whether a sandbox
// begins with a policy or is given it.
func TestRules(t *testing.T) {
	inLab(t)
	changed := create(t, Config{Slot: 1})
	defer closeNetwork(t, changed)
	denied := only(t, "203.0.113.64/26", "198.51.100.7/32:25/tcp")
	denied.DeniedCIDRs, denied.AllowedCIDRs = denied.AllowedCIDRs, nil
	everything := everyRule
	everything.AllowedCIDRs = append(only(t, "0.0.0.0/0/udp", "10.20.0.0/16:53").AllowedCIDRs, everyRule.AllowedCIDRs...)
	for name, p := range map[string]policy.Policy{
		"allow-all.nft":  {Mode: policy.AllowAll},
		"deny-all.nft":   {Mode: policy.DenyAll},
		"denied.nft":     denied,
		"domain.nft":     {Mode: policy.Custom, AllowedDomains: []policy.Domain{{Name: "example.com"}}},
		"everything.nft": everything,
	} {
		if err := changed.SetPolicy(p); err != nil {
			t.Fatal(err)
		}
		golden(t, name, rulesOf(t, changed))
		fresh := create(t, Config{Slot: 2, Policy: p})
		if diff := cmp.Diff(rulesOf(t, fresh), rulesOf(t, changed)); diff != "" {
			t.Errorf("%s when made and when changed to (-made +changed):\n%s", name, diff)
		}
		closeNetwork(t, fresh)
		awaitGone(t, 2)
	}
	if err := changed.SetPolicy(everything); err != nil {
		t.Fatal(err)
	}
	golden(t, "host.nft", run(t, "nft", "--stateless", "list", "table", "inet", "vmsan"))
}

// TestLongLists has as many rules as a policy can.
func TestLongLists(t *testing.T) {
	inLab(t)
	p := policy.Policy{Mode: policy.Custom, AllowedDomains: []policy.Domain{{Name: "example.com"}}}
	for i := range policy.MaxRules {
		prefix := netip.PrefixFrom(netip.AddrFrom4([4]byte{203, 0, byte(i >> 8), byte(i)}), 32)
		p.AllowedCIDRs = append(p.AllowedCIDRs, policy.CIDR{Prefix: prefix, FirstPort: 80, LastPort: 90})
		p.DeniedCIDRs = append(p.DeniedCIDRs, policy.CIDR{Prefix: prefix, FirstPort: 85, LastPort: 85})
	}
	n := create(t, Config{Slot: 1, Policy: p})
	defer closeNetwork(t, n)
	if err := n.SetPolicy(p); err != nil {
		t.Fatal(err)
	}
}

// TestOpen has addresses come and go, each as long as was said last.
func TestOpen(t *testing.T) {
	inLab(t)
	n := create(t, Config{Slot: 1, Policy: policy.Policy{Mode: policy.Custom, AllowedDomains: []policy.Domain{{Name: "example.com"}}}})
	defer closeNetwork(t, n)
	open := func() string { return grep(rulesOf(t, n), `elements = \{ 203|^\s+203\.`) }
	for _, ttl := range []time.Duration{time.Minute, time.Hour} {
		if err := n.Open([]netip.Addr{one, other, one}, ttl); err != nil {
			t.Fatal(err)
		}
	}
	if got := open(); grep(got, `203\.0\.113\.10 timeout 1h`) == "" || grep(got, `203\.0\.113\.20 timeout 1h`) == "" {
		t.Errorf("open is %q", got)
	}
	if err := n.SetPolicy(policy.Policy{Mode: policy.Custom, AllowedDomains: []policy.Domain{{Name: "example.org"}}}); err != nil {
		t.Fatal(err)
	}
	for range 2 {
		if err := n.Shut([]netip.Addr{one}); err != nil {
			t.Fatal(err)
		}
	}
	if got := open(); grep(got, `203\.0\.113\.10\b`) != "" || grep(got, `203\.0\.113\.20\b`) == "" {
		t.Errorf("open is %q", got)
	}
	if err := n.Open([]netip.Addr{netip.MustParseAddr("2001:db8::1")}, time.Minute); err == nil {
		t.Error("opened an IPv6 address")
	}
}
