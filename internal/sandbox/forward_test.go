package sandbox

import (
	"testing"

	"github.com/vmsan/vmsan/api"
)

func TestParseForwarding(t *testing.T) {
	tcp := func(address string) Endpoint { return Endpoint{"tcp", address} }
	for text, want := range map[string]Forwarding{
		"80":              {Local: tcp("127.0.0.1:80"), Remote: tcp("127.0.0.1:80")},
		"8080:80":         {Local: tcp("127.0.0.1:8080"), Remote: tcp("127.0.0.1:80")},
		"0:80":            {Local: tcp("127.0.0.1:0"), Remote: tcp("127.0.0.1:80")},
		"0.0.0.0:8080:80": {Local: tcp("0.0.0.0:8080"), Remote: tcp("127.0.0.1:80")},
		"[::1]:8080:80":   {Local: tcp("[::1]:8080"), Remote: tcp("127.0.0.1:80")},
		"8080:/run/s":     {Local: tcp("127.0.0.1:8080"), Remote: Endpoint{"unix", "/run/s"}},
		"/tmp/s:/run/s":   {Local: Endpoint{"unix", "/tmp/s"}, Remote: Endpoint{"unix", "/run/s"}},
		"/tmp/s:80":       {Local: Endpoint{"unix", "/tmp/s"}, Remote: tcp("127.0.0.1:80")},
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

func TestParseReverse(t *testing.T) {
	tcp := func(address string) Endpoint { return Endpoint{"tcp", address} }
	for text, want := range map[string]Forwarding{
		"80:81":                   {Remote: tcp("127.0.0.1:80"), Local: tcp("127.0.0.1:81")},
		"0:db.example.com:5432":   {Remote: tcp("127.0.0.1:0"), Local: tcp("db.example.com:5432")},
		"80:127.0.0.1:81":         {Remote: tcp("127.0.0.1:80"), Local: tcp("127.0.0.1:81")},
		"0.0.0.0:80:81":           {Remote: tcp("0.0.0.0:80"), Local: tcp("127.0.0.1:81")},
		"0.0.0.0:80:localhost:81": {Remote: tcp("0.0.0.0:80"), Local: tcp("localhost:81")},
		"[::1]:80:[::2]:81":       {Remote: tcp("[::1]:80"), Local: tcp("[::2]:81")},
		"80:/tmp/s":               {Remote: tcp("127.0.0.1:80"), Local: Endpoint{"unix", "/tmp/s"}},
		"/run/s:/tmp/s":           {Remote: Endpoint{"unix", "/run/s"}, Local: Endpoint{"unix", "/tmp/s"}},
		"/run/s:localhost:81":     {Remote: Endpoint{"unix", "/run/s"}, Local: tcp("localhost:81")},
	} {
		want.Reverse = true
		if got, err := ParseReverse(text); err != nil || got != want {
			t.Errorf("%s: %+v, %v; want %+v", text, got, err, want)
		}
	}
	for _, bad := range []string{"", ":", "80", "80:", ":80", "/run/s", "80:0", "80:65536", "65536:80", "x:80", "name:80:81", "80:host", "80:host:", "80::81", "80:s/t:81", "1:2:3:4", "80:./s"} {
		if got, err := ParseReverse(bad); !api.HasCode(err, api.ErrValidationPort) {
			t.Errorf("%q: %+v, %v", bad, got, err)
		}
	}
}
