package probe_test

import (
	"os"
	"testing"
	"time"

	"github.com/vmsan/vmsan/internal/testenv"
	"github.com/vmsan/vmsan/internal/testenv/probe"
)

func TestMain(m *testing.M) { os.Exit(testenv.Main(m)) }

// Each probe is answered where nothing stops it, and by nobody else.
func TestProbesOnTheHost(t *testing.T) {
	testenv.RequireRoot(t)
	world := testenv.Lab(t)
	for _, c := range []struct {
		probe probe.Probe
		want  string // "" is for no answer
	}{
		{probe.Probe{Kind: probe.Lookup, Question: "allowed.example", Type: "A"}, "198.51.100.10"},
		{probe.Probe{Kind: probe.Lookup, Question: "nothing.example", Type: "A"}, ""},
		{probe.Probe{Kind: probe.DNSUDP, To: "198.51.100.54:53", Question: "a.tunnel.example", Type: "TXT"}, "an answer that carries something in"},
		{probe.Probe{Kind: probe.DNSTCP, To: "198.51.100.54:53", Question: "other.example", Type: "A"}, "198.51.100.20"},
		{probe.Probe{Kind: probe.DoT, To: "198.51.100.54:853", Question: "other.example", Type: "A"}, "198.51.100.20"},
		{probe.Probe{Kind: probe.DoH, To: "8.8.8.8:443", Question: "other.example", Type: "A"}, "198.51.100.20"},
		{probe.Probe{Kind: probe.TCP, To: "198.51.100.10:22"}, "echo"},
		{probe.Probe{Kind: probe.TCP, To: "198.51.100.10:4"}, ""},
		{probe.Probe{Kind: probe.TCP, To: "allowed.example:22"}, "echo"},
		{probe.Probe{Kind: probe.TCP, To: "[2001:db8:100::10]:22"}, "echo"},
		{probe.Probe{Kind: probe.UDP, To: "198.51.100.10:443", Payload: []byte("quick")}, "echo"},
		{probe.Probe{Kind: probe.UDP, To: "198.51.100.10:4"}, ""},
		{probe.Probe{Kind: probe.Ping, To: "198.51.100.10:0"}, "reply"},
		{probe.Probe{Kind: probe.Timestamp, To: "198.51.100.10:0"}, "reply"},
		{probe.Probe{Kind: probe.HTTP, To: "allowed.example:80", Host: "allowed.example"},
			`internet, 198.51.100.10:80 for host "allowed.example" and server ""`},
		{probe.Probe{Kind: probe.HTTP, To: "allowed.example:80", Host: "allowed.example", Then: "other.example"},
			`internet, 198.51.100.10:80 for host "other.example" and server ""`},
		{probe.Probe{Kind: probe.HTTP, To: "10.20.0.9:80"}, `lan, 10.20.0.9:80 for host "10.20.0.9:80" and server ""`},
		{probe.Probe{Kind: probe.HTTP, To: "198.51.100.10:443"}, ""},
		{probe.Probe{Kind: probe.TLS, To: "198.51.100.20:443", Server: "allowed.example", Host: "allowed.example"},
			`internet, 198.51.100.20:443 for host "allowed.example" and server "allowed.example"`},
		{probe.Probe{Kind: probe.TLS, To: "198.51.100.20:443"},
			`internet, 198.51.100.20:443 for host "198.51.100.20:443" and server ""`},
		{probe.Probe{Kind: probe.ECH, To: "198.51.100.10:443", Server: "other.example", Host: "allowed.example"},
			"no key for the encrypted hello"},
	} {
		wait := 20 * time.Second
		if c.want == "" {
			wait = 2 * time.Second
		}
		c.probe.Wait = wait
		got := probe.Task{CA: world.CA.PEM(), Probes: []probe.Probe{c.probe}}.Run(t.Context())[0]
		if got.Answered != (c.want != "") || got.Answer != c.want {
			t.Errorf("%s of %s: got %q, %s, want %q", c.probe.Kind, c.probe.To, got.Answer, got.Error, c.want)
		}
	}
}
