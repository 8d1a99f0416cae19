package sandbox

import (
	"testing"

	"github.com/vmsan/vmsan/api"
)

func TestParseForwarding(t *testing.T) {
	tcp := func(address string) Endpoint { return Endpoint{"tcp", address} }
	for text, want := range map[string]Forwarding{
		"80":              {tcp("127.0.0.1:80"), tcp("127.0.0.1:80")},
		"8080:80":         {tcp("127.0.0.1:8080"), tcp("127.0.0.1:80")},
		"0:80":            {tcp("127.0.0.1:0"), tcp("127.0.0.1:80")},
		"0.0.0.0:8080:80": {tcp("0.0.0.0:8080"), tcp("127.0.0.1:80")},
		"[::1]:8080:80":   {tcp("[::1]:8080"), tcp("127.0.0.1:80")},
		"8080:/run/s":     {tcp("127.0.0.1:8080"), Endpoint{"unix", "/run/s"}},
		"/tmp/s:/run/s":   {Endpoint{"unix", "/tmp/s"}, Endpoint{"unix", "/run/s"}},
		"/tmp/s:80":       {Endpoint{"unix", "/tmp/s"}, tcp("127.0.0.1:80")},
	} {
		if got, err := ParseForwarding(text); err != nil || got != want {
			t.Errorf("%s: %+v, %v; want %+v", text, got, err, want)
		}
	}
	for _, bad := range []string{"", ":", "x", "80:", ":80", "0", "80:0", "65536", "80:65536", "-1:80", "host:80:80", "/run/s", "s:/run/s", "1:2:3:4", "80:127.0.0.1:80"} {
		if got, err := ParseForwarding(bad); !api.HasCode(err, api.ErrValidationPort) {
			t.Errorf("%q: %+v, %v", bad, got, err)
		}
	}
}
