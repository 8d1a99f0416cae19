package sandbox

import (
	"os"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/vmsan/vmsan/api"
	"github.com/vmsan/vmsan/internal/policy"
)

// A4, A5: what is malformed is refused with the flag and the rule.
func TestParsePolicyRefuses(t *testing.T) {
	for _, c := range []struct {
		mode  string
		lists PolicyLists
		code  api.Code
		flag  string
		says  string
	}{
		{"open", PolicyLists{}, api.ErrValidationNetworkPolicy, "--network-policy", "Must be one of: allow-all, deny-all, custom."},
		{"", PolicyLists{AllowedDomains: []string{"a.*.example"}}, api.ErrValidationDomain, "--allowed-domain", `leading "*." prefix`},
		{"", PolicyLists{AllowedDomains: []string{"a b"}}, api.ErrValidationDomain, "--allowed-domain", "letters, digits"},
		{"", PolicyLists{AllowedDomains: []string{"a.example\n"}}, "", "", ""}, // white space at an end is not meant
		{"", PolicyLists{AllowedDomains: []string{"a\n.example"}}, api.ErrValidationDomain, "--allowed-domain", "letters, digits"},
		{"", PolicyLists{AllowedDomains: []string{""}}, api.ErrValidationDomain, "--allowed-domain", "1 to 253"},
		{"", PolicyLists{AllowedCIDRs: []string{"10.0.0/8"}}, api.ErrValidationCIDR, "--allowed-cidr", "invalid CIDR format"},
		{"", PolicyLists{AllowedCIDRs: []string{"10.0.0.0/33"}}, api.ErrValidationCIDR, "--allowed-cidr", "prefix length 33"},
		{"", PolicyLists{DeniedCIDRs: []string{"10.0.0.256/8"}}, api.ErrValidationCIDR, "--denied-cidr", "octet 256"},
		{"", PolicyLists{DeniedCIDRs: []string{"2001:db8::/32"}}, api.ErrValidationCIDR, "--denied-cidr", "only IPv4"},
		{"", PolicyLists{AllowedCIDRs: []string{"10.0.0.0/8:0"}}, api.ErrValidationCIDR, "--allowed-cidr", "port"},
		// A7
		{"deny-all", PolicyLists{AllowedDomains: []string{"a.example"}}, api.ErrValidationPolicyConflict, "--network-policy", "deny-all"},
		{"deny-all", PolicyLists{DeniedCIDRs: []string{"203.0.113.0/24"}}, api.ErrValidationPolicyConflict, "--network-policy", "deny-all"},
	} {
		_, err := c.lists.Parse(c.mode)
		if c.code == "" {
			if err != nil {
				t.Errorf("%q %v: %v", c.mode, c.lists, err)
			}
			continue
		}
		failure := api.AsError(err)
		if failure == nil || failure.Code != c.code || failure.Flag != c.flag || !strings.Contains(failure.Message, c.says) {
			t.Errorf("%q %v: %+v", c.mode, c.lists, failure)
		}
	}
}

// A7: lists make allow-all custom, and leave custom.
func TestParsePolicy(t *testing.T) {
	lists := PolicyLists{AllowedDomains: []string{"B.example", "*.a.example:443", "b.example."}, DeniedCIDRs: []string{" 203.0.113.9 "}}
	want := policy.Policy{Mode: policy.Custom}
	for _, text := range []string{"*.a.example:443", "b.example"} {
		d, err := policy.ParseDomain(text)
		if err != nil {
			t.Fatal(err)
		}
		want.AllowedDomains = append(want.AllowedDomains, d)
	}
	denied, err := policy.ParseCIDR("203.0.113.9/32")
	if err != nil {
		t.Fatal(err)
	}
	want.DeniedCIDRs = []policy.CIDR{denied}
	for _, mode := range []string{"", "allow-all", "custom"} {
		got, err := lists.Parse(mode)
		if err != nil {
			t.Fatal(err)
		}
		if diff := cmp.Diff(got, want, cmp.Comparer(func(a, b policy.CIDR) bool { return a == b })); diff != "" {
			t.Errorf("%q: %s", mode, diff)
		}
	}
	if got, err := (PolicyLists{}).Parse(""); err != nil || got.Mode != "" {
		t.Errorf("nothing was typed: %v, %v", got, err)
	}
}

// A3, with its better part: no fractions, no other bases, no duplicates.
func TestParsePorts(t *testing.T) {
	ports, err := ParsePorts([]string{"8080", " 9090 "})
	if err != nil || len(ports) != 2 || ports[1].Guest != 9090 || ports[1].Host.String() != "127.0.0.1:9090" {
		t.Errorf("ParsePorts = %v, %v", ports, err)
	}
	for _, bad := range []string{"0", "-1", "65536", "abc", "8080.5", "0x50", "", "80:80"} {
		if _, err := ParsePorts([]string{"8080", bad}); !api.HasCode(err, api.ErrValidationPort) {
			t.Errorf("port %q: %v", bad, err)
		}
	}
	twice, err := ParsePublications([]string{"8080:80", "0.0.0.0:8080:81"})
	if err != nil {
		t.Fatal(err)
	}
	o := CreateOptions{Network: networkNAT, Publications: twice}
	if err := o.complete(); !api.HasCode(err, api.ErrValidationPortConflict) {
		t.Errorf("a port of the host twice: %v", err)
	}
}

func TestParseResolvers(t *testing.T) {
	got, err := ParseResolvers([]string{"198.51.100.53", "198.51.100.54:5353"})
	if err != nil || len(got) != 2 || got[0].String() != "198.51.100.53:53" || got[1].Port() != 5353 {
		t.Errorf("ParseResolvers = %v, %v", got, err)
	}
	for _, bad := range [][]string{{"dns.example"}, {"1.2.3.4:0"}, {"::1"}, {"1.1.1.1", "1.1.1.2", "1.1.1.3", "1.1.1.4"}} {
		if _, err := ParseResolvers(bad); !api.HasCode(err, api.ErrValidationAddress) {
			t.Errorf("%v: %v", bad, err)
		}
	}
}

// A1: bandwidth.
func TestParseBandwidth(t *testing.T) {
	for text, want := range map[string]policy.Bandwidth{
		"1": {Down: 1e6, Up: 1e6}, "1000m": {Down: 1e9, Up: 1e9}, "10Mbit": {Down: 1e7, Up: 1e7}, "10mbit:20mbit": {Down: 1e7, Up: 2e7},
	} {
		if got, err := ParseBandwidth(text); err != nil || got != want {
			t.Errorf("%q = %v, %v", text, got, err)
		}
	}
	for _, bad := range []string{"0", "", "100001", "1.5", "-1", "10kbit", "10bit", "10mbit:", "1:2:3"} {
		if _, err := ParseBandwidth(bad); !api.HasCode(err, api.ErrValidationBandwidth) {
			t.Errorf("%q: %v", bad, err)
		}
	}
}

func TestEdit(t *testing.T) {
	lists := func(domains ...string) PolicyLists { return PolicyLists{AllowedDomains: domains} }
	old, err := lists("a.example", "b.example").Parse("")
	if err != nil {
		t.Fatal(err)
	}
	got, err := Edit(lists("c.example", "a.example"), lists("b.example", "unknown.example"))(old)
	if err != nil {
		t.Fatal(err)
	}
	var names []string
	for _, d := range got.AllowedDomains {
		names = append(names, d.String())
	}
	if !slices.Equal(names, []string{"a.example", "c.example"}) || got.Mode != policy.Custom {
		t.Errorf("%s %v", got.Mode, names)
	}
	if _, err := Edit(lists("bad domain"), PolicyLists{})(old); api.AsError(err).Flag != "--add-allowed-domain" {
		t.Errorf("a bad domain: %v", err)
	}
	// With its last rule gone nothing is allowed, rather than everything.
	if got, err = Edit(PolicyLists{}, lists("a.example", "b.example"))(old); err != nil || got.Public() || got.Mode != policy.Custom {
		t.Errorf("without rules: %v, %v", got, err)
	}
}

func TestNetworkNoneWithFlags(t *testing.T) {
	o := CreateOptions{Network: networkNone, Policy: policy.Policy{Mode: policy.DenyAll}}
	if err := o.complete(); !api.HasCode(err, api.ErrValidationFlags) {
		t.Errorf("a policy without a network: %v", err)
	}
	o = CreateOptions{}
	want := networkNone
	if os.Geteuid() == 0 {
		want = networkNAT
	}
	if err := o.complete(); err != nil || o.Network != want {
		t.Errorf("by default the network is %s, %v", o.Network, err)
	}
}

func TestParsePool(t *testing.T) {
	if _, err := ParsePool("10.213.0.0/16"); err != nil {
		t.Error(err)
	}
	for _, bad := range []string{"", "10.0.0.0", "10.0.0.1/8", "x/8"} {
		if _, err := ParsePool(bad); !api.HasCode(err, api.ErrNetworkPool) {
			t.Errorf("%q: %v", bad, err)
		}
	}
}
