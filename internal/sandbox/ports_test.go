package sandbox

import (
	"net/netip"
	"testing"

	"github.com/vmsan/vmsan/internal/guest"
	"github.com/vmsan/vmsan/internal/policy"
)

func TestLeadsTo(t *testing.T) {
	for _, c := range []struct {
		publication, protocol, at string
		want                      bool
	}{
		{"8080:80", "tcp", "0.0.0.0:80", true},
		{"8080:80", "tcp", "[::]:80", true},
		{"8080:80", "tcp", "192.0.0.2:80", true},
		{"8080:80", "tcp", "[::ffff:192.0.0.2]:80", true},
		{"8080:80", "tcp", "127.0.0.1:80", false},
		{"8080:80", "tcp", "[::1]:80", false},
		{"8080:80", "udp", "0.0.0.0:80", false},
		{"8080:80", "tcp", "0.0.0.0:8080", false},
		{"8080:80/udp", "udp", "0.0.0.0:80", true},
		{"8080:80:lo", "tcp", "127.0.0.1:80", true},
		{"8080:80:lo", "tcp", "0.0.0.0:80", true},
		{"8080:80:lo", "tcp", "192.0.0.2:80", false},
	} {
		p, err := policy.ParsePublication(c.publication)
		if err != nil {
			t.Fatal(err)
		}
		if got := leadsTo(p, guest.Listening{Protocol: c.protocol, At: netip.MustParseAddrPort(c.at)}); got != c.want {
			t.Errorf("%s leads to %s %s: %t", c.publication, c.protocol, c.at, got)
		}
	}
}
