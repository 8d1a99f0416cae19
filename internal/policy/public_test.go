package policy

import (
	"net/netip"
	"testing"
)

func TestIsPublic(t *testing.T) {
	for text, want := range map[string]bool{
		"1.1.1.1": true, "203.0.113.9": true, "198.51.100.1": true, "100.128.0.0": true, "172.32.0.1": true,
		"198.20.0.1": true, "223.255.255.255": true,
		"0.0.0.0": false, "10.1.2.3": false, "100.64.0.1": false, "127.0.0.53": false, "169.254.169.254": false,
		"172.31.255.255": false, "192.0.0.2": false, "192.168.1.1": false, "198.19.255.255": false,
		"224.0.0.251": false, "255.255.255.255": false,
		"::1": false, "2001:db8::1": false, "::ffff:1.1.1.1": false,
	} {
		if got := IsPublic(netip.MustParseAddr(text)); got != want {
			t.Errorf("%s: got %t, want %t", text, got, want)
		}
	}
}

func TestCIDRMatches(t *testing.T) {
	for _, c := range []struct {
		cidr, addr string
		port       uint16
		protocol   Protocol
		want       bool
	}{
		{"203.0.113.0/24", "203.0.113.255", 1, TCP, true},
		{"203.0.113.0/24", "203.0.114.0", 1, TCP, false},
		{"203.0.113.7/32:443", "203.0.113.7", 443, UDP, true},
		{"203.0.113.7/32:443", "203.0.113.7", 444, TCP, false},
		{"203.0.113.7/32:8000-8999/tcp", "203.0.113.7", 8999, TCP, true},
		{"203.0.113.7/32:8000-8999/tcp", "203.0.113.7", 8999, UDP, false},
		{"203.0.113.7/32/udp", "203.0.113.7", 5, UDP, true},
	} {
		cidr, err := ParseCIDR(c.cidr)
		if err != nil {
			t.Fatal(err)
		}
		if got := cidr.Matches(netip.MustParseAddr(c.addr), c.port, c.protocol); got != c.want {
			t.Errorf("%s matches %s port %d/%s: got %t", c.cidr, c.addr, c.port, c.protocol, got)
		}
	}
}
