package registry

import (
	"fmt"
	"net"
	"net/http"
	"net/netip"
	"strings"
	"testing"
)

func TestCheckRedirect(t *testing.T) {
	for _, test := range []struct {
		from, to string
		allowed  bool
	}{
		{"https://registry.example/v2/", "https://store.example/x", true},
		{"https://registry.example/v2/", "https://registry.example/x", true},
		{"https://registry.example/v2/", "https://198.51.100.1/x", true},
		{"https://198.51.100.1/v2/", "https://store.example/x", true},
		{"https://registry.example/v2/", "https://127.0.0.1/x", false},
		{"https://registry.example/v2/", "http://localhost:8080/x", false},
		{"https://registry.example/v2/", "https://a.localhost/x", false},
		{"https://registry.example/v2/", "https://10.0.0.1/x", false},
		{"https://registry.example/v2/", "https://172.16.0.1/x", false},
		{"https://registry.example/v2/", "https://192.168.0.1/x", false},
		{"https://registry.example/v2/", "https://169.254.169.254/x", false},
		{"https://registry.example/v2/", "https://0.0.0.0/x", false},
		{"https://registry.example/v2/", "https://[::1]/x", false},
		{"https://registry.example/v2/", "https://[::ffff:10.0.0.1]/x", false},
		{"https://registry.example/v2/", "https://[fd00::1]/x", false},
		{"https://registry.example/v2/", "https://[fe80::1]/x", false},
		{"https://198.51.100.1/v2/", "https://10.0.0.1/x", false},
		{"https://10.0.0.1/v2/", "https://10.0.0.2/x", true},
		{"http://localhost:5000/v2/", "http://127.0.0.1:9000/x", true},
		{"https://10.0.0.1/v2/", "https://store.example/x", true},
	} {
		// Where the way went in between does not matter.
		via := []*http.Request{request(t, test.from), request(t, "https://10.0.0.3/y")}
		if err := checkRedirect(request(t, test.to), via); (err == nil) != test.allowed {
			t.Errorf("from %s to %s: %v", test.from, test.to, err)
		}
	}
	here := request(t, "https://registry.example/")
	for n, allowed := range map[int]bool{maxRedirects: true, maxRedirects + 1: false} {
		via := make([]*http.Request, n)
		for i := range via {
			via[i] = here
		}
		if err := checkRedirect(here, via); (err == nil) != allowed {
			t.Errorf("after %d requests: %v", n, err)
		}
	}
}

func request(t *testing.T, url string) *http.Request {
	t.Helper()
	req, err := http.NewRequest(http.MethodGet, url, nil)
	if err != nil {
		t.Fatal(err)
	}
	return req
}

// A public registry is kept from what this host alone can reach, whatever name
// that has; an inner one is not. No address but those of loopback is sent to;
// LOCALHOST has one, and is not a name that is known to.
func TestReach(t *testing.T) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	port := l.Addr().(*net.TCPAddr).AddrPort().Port()
	for name, test := range map[string]struct {
		registry string
		had      []string // addresses of the registry
		to       string
		says     string
	}{
		"public by name":                    {"registry.example", nil, "127.0.0.1", "private address"},
		"public by name, and to a name":     {"registry.example", nil, "localhost", "private address"},
		"public by address":                 {"198.51.100.1", []string{"198.51.100.1"}, "localhost", "private address"},
		"mapped":                            {"registry.example", nil, "::ffff:127.0.0.1", "private address"},
		"inner by name":                     {"localhost", nil, "127.0.0.1", ""},
		"inner by address":                  {"10.0.0.1", nil, "localhost", ""},
		"a name of an inner address":        {"registry.example", []string{"10.0.0.1"}, "localhost", ""},
		"a name of addresses of both kinds": {"registry.example", []string{"10.0.0.1", "198.51.100.1"}, "localhost", "private address"},
		"itself":                            {"LOCALHOST", nil, "LOCALHOST", ""},
		"a cloud's secrets":                 {"10.0.0.1", nil, "169.254.169.254", "link-local"},
		"a cloud's secrets, mapped":         {"10.0.0.1", nil, "::ffff:169.254.169.254", "link-local"},
	} {
		r := &reach{registry: test.registry}
		for _, ip := range test.had {
			r.connected(netip.MustParseAddr(ip))
		}
		checkDial(t, name, r, test.to, port, test.says)
	}
	// Where a registry is, is seen when it is connected to.
	r := &reach{registry: "127.0.0.1"}
	checkDial(t, "the first connection", r, "127.0.0.1", port, "")
	if !r.inner.Load() || r.public.Load() {
		t.Error("a registry on loopback was not seen to be there")
	}
}

func checkDial(t *testing.T, name string, r *reach, host string, port uint16, says string) {
	t.Helper()
	conn, err := r.dial(t.Context(), "tcp", net.JoinHostPort(host, fmt.Sprint(port)))
	if err == nil {
		conn.Close()
	}
	if (err == nil) != (says == "") || err != nil && !strings.Contains(err.Error(), says) {
		t.Errorf("%s, to %s: %v, want %q", name, host, err, says)
	}
}
