package proxy

import (
	"bufio"
	"bytes"
	"context"
	"fmt"
	"io"
	"net"
	"net/http"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/vmsan/vmsan/api"
)

// client is net/http's, whose connections all go to w.
func (w *world) client(t testing.TB) *http.Client {
	transport := &http.Transport{DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
		var d net.Dialer
		return d.DialContext(ctx, "tcp4", w.addr)
	}, MaxConnsPerHost: 1}
	t.Cleanup(transport.CloseIdleConnections)
	return &http.Client{Transport: transport}
}

func TestHTTPClientKeepsItsConnection(t *testing.T) {
	s := newServer(t)
	w := newWorld(t, "*.example", "203.0.113.1:80", s.addr)
	client := w.client(t)
	large := strings.Repeat("x", 500_000)
	for _, c := range []struct{ method, path, body, want string }{
		{"GET", "/", "", "GET a.example "},
		{"HEAD", "/", "", ""},
		{"GET", "/none", "", ""},
		{"POST", "/", "short", "POST a.example short"},
		{"PUT", "/", large, "PUT a.example " + large},
		{"GET", "/chunked", "", "012" + strings.Repeat("x", 100_000)},
		{"DELETE", "/", "", "DELETE a.example "},
		{"GET", "/close", "", "bye"},
		{"GET", "/", "", "GET a.example "},
	} {
		for _, chunked := range []bool{false, true} {
			request, err := http.NewRequest(c.method, "http://a.example"+c.path, strings.NewReader(c.body))
			if err != nil {
				t.Fatal(err)
			}
			if chunked && c.body != "" {
				request.ContentLength = -1
				request.Header.Set("Expect", "100-continue")
			}
			response, err := client.Do(request)
			if err != nil {
				t.Fatalf("%s %s: %v", c.method, c.path, err)
			}
			got, err := io.ReadAll(response.Body)
			response.Body.Close()
			if string(got) != c.want || err != nil {
				t.Errorf("%s %s chunked %t: got %.40q and %d bytes, %v", c.method, c.path, chunked, got, len(got), err)
			}
		}
	}
	if e := w.logged(t, api.VerdictAllowed); e.Name != "a.example" || e.Kind != api.EventHTTP || e.Port != 80 {
		t.Errorf("logged %+v", e)
	}
}

func get(name string) string { return "GET / HTTP/1.1\r\nHost: " + name + "\r\n\r\n" }

const last = "GET / HTTP/1.1\r\nHost: a.example\r\nConnection: close\r\n\r\n"

func TestEveryRequestIsChecked(t *testing.T) {
	for name, c := range map[string]struct {
		says string
		want []string // hosts that the server is asked for
		rule refusal  // "" if all is well
	}{
		"two names of the address":     {get("a.example") + get("b.example") + last, []string{"a.example", "b.example", "a.example"}, ""},
		"letter case, port and dot":    {get("A.Example.:80") + last, []string{"A.Example.:80", "a.example"}, ""},
		"an absolute target":           {"GET http://A.example:80/x HTTP/1.1\r\nHost: a.example\r\n\r\n" + last, []string{"A.example:80", "a.example"}, ""},
		"any resource":                 {"OPTIONS * HTTP/1.1\r\nHost: a.example\r\n\r\n" + last, []string{"a.example"}, ""},
		"a body":                       {"POST / HTTP/1.1\r\nHost: a.example\r\nContent-Length: 5\r\n\r\nhello" + last, []string{"a.example", "a.example"}, ""},
		"a body in chunks":             {"POST / HTTP/1.1\r\nHost: a.example\r\nTransfer-Encoding: chunked\r\n\r\n5;x=y\r\nhello\r\n0\r\nA: b\r\n\r\n" + last, []string{"a.example", "a.example"}, ""},
		"a body with a request in it":  {"POST / HTTP/1.1\r\nHost: a.example\r\nContent-Length: 40\r\n\r\n" + fmt.Sprintf("%-40s", get("evil.example")) + last, []string{"a.example", "a.example"}, ""},
		"HTTP/1.0":                     {"GET / HTTP/1.0\r\nHost: a.example\r\n\r\n", []string{"a.example"}, ""},
		"another name":                 {get("evil.example"), nil, errPolicy},
		"another name on a kept line":  {get("a.example") + get("evil.example"), []string{"a.example"}, errPolicy},
		"a name of another address":    {get("a.example") + get("c.example"), []string{"a.example"}, errAddress},
		"another name after a body":    {"POST / HTTP/1.1\r\nHost: a.example\r\nContent-Length: 5\r\n\r\nhello" + get("evil.example"), []string{"a.example"}, errPolicy},
		"another name after chunks":    {"POST / HTTP/1.1\r\nHost: a.example\r\nTransfer-Encoding: chunked\r\n\r\n1\r\nx\r\n0\r\n\r\n" + get("evil.example"), []string{"a.example"}, errPolicy},
		"an absolute target of others": {"GET http://evil.example/ HTTP/1.1\r\nHost: a.example\r\n\r\n", nil, errHTTP},
		"a user in the target":         {"GET http://a.example@evil.example/ HTTP/1.1\r\nHost: a.example\r\n\r\n", nil, errHTTP},
		"another scheme":               {"GET https://a.example/ HTTP/1.1\r\nHost: a.example\r\n\r\n", nil, errHTTP},
		"an address":                   {get("203.0.113.1"), nil, errPolicy},
		"an IPv6 address":              {get("[::1]"), nil, errHTTP},
		"a host with a path":           {get("a.example/evil.example"), nil, errHTTP},
		"two hosts in one":             {get("a.example,evil.example"), nil, errHTTP},
		"no host":                      {"GET / HTTP/1.1\r\n\r\n", nil, errNoHost},
		"an empty host":                {"GET / HTTP/1.1\r\nHost: \r\n\r\n", nil, errNoHost},
		"two hosts":                    {"GET / HTTP/1.1\r\nHost: a.example\r\nHost: a.example\r\n\r\n", nil, errHTTP},
		"two hosts, one hidden":        {"GET / HTTP/1.1\r\nHost: a.example\r\nhOST : evil.example\r\n\r\n", nil, errHTTP},
		"CONNECT":                      {"CONNECT a.example:443 HTTP/1.1\r\nHost: a.example\r\n\r\n", nil, errConnect},
		"HTTP/2":                       {"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", nil, errHTTP2},
		"HTTP/3":                       {"GET / HTTP/3.0\r\nHost: a.example\r\n\r\n", nil, errHTTP},
		"HTTP/0.9":                     {"GET /\r\n\r\n", nil, errHTTP},
		"two spaces":                   {"GET  / HTTP/1.1\r\nHost: a.example\r\n\r\n", nil, errHTTP},
		"a length and chunks":          {"POST / HTTP/1.1\r\nHost: a.example\r\nContent-Length: 5\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n", nil, errSmuggling},
		"two lengths":                  {"POST / HTTP/1.1\r\nHost: a.example\r\nContent-Length: 5\r\nContent-Length: 5\r\n\r\nhello", nil, errSmuggling},
		"a list of lengths":            {"POST / HTTP/1.1\r\nHost: a.example\r\nContent-Length: 5, 5\r\n\r\nhello", nil, errSmuggling},
		"a length with a sign":         {"POST / HTTP/1.1\r\nHost: a.example\r\nContent-Length: +5\r\n\r\nhello", nil, errSmuggling},
		"an endless length":            {"POST / HTTP/1.1\r\nHost: a.example\r\nContent-Length: 9999999999999999999\r\n\r\nhello", nil, errSmuggling},
		"an empty length":              {"POST / HTTP/1.1\r\nHost: a.example\r\nContent-Length: \r\n\r\nhello", nil, errSmuggling},
		"another encoding":             {"POST / HTTP/1.1\r\nHost: a.example\r\nTransfer-Encoding: gzip, chunked\r\n\r\n0\r\n\r\n", nil, errSmuggling},
		"an encoding and HTTP/1.0":     {"POST / HTTP/1.0\r\nHost: a.example\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n", nil, errSmuggling},
		"a space before the colon":     {"POST / HTTP/1.1\r\nHost: a.example\r\nTransfer-Encoding : chunked\r\n\r\n0\r\n\r\n", nil, errHTTP},
		"a folded line":                {"GET / HTTP/1.1\r\nHost: a.example\r\nX: y\r\n z\r\n\r\n", nil, errHTTP},
		"a bare LF":                    {"GET / HTTP/1.1\r\nHost: a.example\nX: y\r\n\r\n", nil, errLineEnds},
		"nothing but LF":               {"GET / HTTP/1.1\nHost: a.example\n\n", nil, errLineEnds},
		"a bare CR":                    {"GET / HTTP/1.1\r\nHost: a.example\rX: y\r\n\r\n", nil, errLineEnds},
		"NUL":                          {"GET / HTTP/1.1\r\nHost: a.example\r\nX: \x00\r\n\r\n", nil, errHTTP},
		"a line without a colon":       {"GET / HTTP/1.1\r\nHost: a.example\r\nX\r\n\r\n", nil, errHTTP},
		"a long head":                  {"GET / HTTP/1.1\r\nHost: a.example\r\nX: " + strings.Repeat("x", maxHead) + "\r\n\r\n", nil, errLong},
		"many fields":                  {"GET / HTTP/1.1\r\nHost: a.example\r\n" + strings.Repeat("X: y\r\n", maxFields) + "\r\n", nil, errHTTP},
		"a chunk that is too long":     {"POST / HTTP/1.1\r\nHost: a.example\r\nTransfer-Encoding: chunked\r\n\r\n1\r\nxx\r\n0\r\n\r\n", []string{"a.example"}, errSmuggling},
		"a chunk of unknown size":      {"POST / HTTP/1.1\r\nHost: a.example\r\nTransfer-Encoding: chunked\r\n\r\n0x1\r\nx\r\n0\r\n\r\n", []string{"a.example"}, errSmuggling},
		"a huge chunk":                 {"POST / HTTP/1.1\r\nHost: a.example\r\nTransfer-Encoding: chunked\r\n\r\n8000000000000000\r\nx\r\n0\r\n\r\n", []string{"a.example"}, errSmuggling},
		"a chunk with a bare LF":       {"POST / HTTP/1.1\r\nHost: a.example\r\nTransfer-Encoding: chunked\r\n\r\n1;\nx\r\nx\r\n0\r\n\r\n", []string{"a.example"}, errLineEnds},
		"a trailer that is no field":   {"POST / HTTP/1.1\r\nHost: a.example\r\nTransfer-Encoding: chunked\r\n\r\n0\r\nGET / HTTP/1.1\r\n\r\n", []string{"a.example"}, errHTTP},
	} {
		t.Run(name, func(t *testing.T) {
			s := newServer(t)
			w := newWorld(t, "a.example b.example c.example", "203.0.113.1:80", s.addr)
			answer, err := w.say(t, c.says)
			if c.rule == "" {
				if err != nil {
					t.Errorf("it ended with %v after %q", err, answer)
				}
				if diff := cmp.Diff(c.want, s.asked()); diff != "" {
					t.Error(diff)
				}
				return
			}
			w.wantRefused(t, err, c.rule)
			for _, host := range s.asked() {
				if !slices.Contains(c.want, host) {
					t.Errorf("the server was asked for %s", host)
				}
			}
		})
	}
}

// A client that says one byte at a time says the same.
func TestHTTPInSmallPieces(t *testing.T) {
	s := newServer(t)
	w := newWorld(t, "a.example", "203.0.113.1:80", s.addr)
	conn := w.dial(t)
	conn.SetNoDelay(true)
	for _, b := range []byte("POST / HTTP/1.1\r\nHost: a.example\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nabc\r\nA\r\n0123456789\r\n0\r\n\r\n" + last) {
		conn.Write([]byte{b})
	}
	answer, err := io.ReadAll(conn)
	if !bytes.Contains(answer, []byte("POST a.example abc0123456789")) || err != nil {
		t.Errorf("got %q, %v", answer, err)
	}
}

func TestFurtherRequestsObeyANewPolicy(t *testing.T) {
	s := newServer(t)
	w := newWorld(t, "a.example b.example", "203.0.113.1:80", s.addr)
	conn := w.dial(t)
	r := bufio.NewReader(conn)
	ask := func(name string) error {
		io.WriteString(conn, get(name))
		response, err := http.ReadResponse(r, nil)
		if err == nil {
			io.Copy(io.Discard, response.Body)
		}
		return err
	}
	if err := ask("a.example"); err != nil {
		t.Fatal(err)
	}
	w.proxy.SetPolicy(rulesOf(t, "b.example"), false)
	if err := ask("b.example"); err != nil {
		t.Errorf("what is allowed: %v", err)
	}
	w.wantRefused(t, ask("a.example"), errPolicy)
}

// upgradeServer answers ordinary requests, and agrees to speak another
// protocol with those who ask at /agree, in which it repeats what is said.
func upgradeServer(t *testing.T, protocol string) string {
	return newRawServer(t, func(conn net.Conn) {
		r := bufio.NewReader(conn)
		for {
			request, err := http.ReadRequest(r)
			if err != nil {
				return
			}
			if request.URL.Path != "/agree" {
				fmt.Fprintf(conn, "HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n%s", len(request.Host), request.Host)
				continue
			}
			fmt.Fprintf(conn, "HTTP/1.1 103 Early Hints\r\n\r\nHTTP/1.1 101 Switching Protocols\r\nConnection: upgrade\r\nUpgrade: %s\r\n\r\n", protocol)
			io.Copy(conn, r)
			return
		}
	})
}

func upgrade(path, protocol string) string {
	return "GET " + path + " HTTP/1.1\r\nHost: a.example\r\nConnection: Upgrade\r\nUpgrade: " + protocol + "\r\n\r\n"
}

func TestUpgradeToAnotherProtocol(t *testing.T) {
	w := newWorld(t, "a.example", "203.0.113.1:80", upgradeServer(t, "websocket"))
	frames := "\x81\x85\x00\x00\x00\x00hello" + get("evil.example")
	answer, err := w.say(t, get("a.example")+upgrade("/agree", "websocket")+frames)
	if !strings.HasSuffix(answer, "Upgrade: websocket\r\n\r\n"+frames) || err != nil {
		t.Errorf("got %q, %v", answer, err)
	}
}

func TestUpgradeThatTheServerDoesNotTake(t *testing.T) {
	w := newWorld(t, "a.example", "203.0.113.1:80", upgradeServer(t, "websocket"))
	answer, err := w.say(t, upgrade("/", "h2c")+get("a.example"))
	if strings.Count(answer, "200 OK") != 2 || err != nil {
		t.Errorf("got %q, %v", answer, err)
	}
	_, err = w.say(t, upgrade("/", "websocket")+get("evil.example"))
	w.wantRefused(t, err, errPolicy)
}

func TestUpgradeToAProtocolWithNames(t *testing.T) {
	for _, protocol := range []string{"h2c", "H2C", "TLS/1.3", "HTTP/2.0"} {
		w := newWorld(t, "a.example", "203.0.113.1:80", upgradeServer(t, protocol))
		answer, err := w.say(t, upgrade("/agree", protocol)+"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n")
		w.wantRefused(t, err, errUpgrade)
		if strings.Contains(answer, "101") {
			t.Errorf("%s: got %q", protocol, answer)
		}
	}
}

// An answer to an earlier request that looks like an agreement is none.
func TestUpgradeIsNotFooledByABody(t *testing.T) {
	fake := "HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\n\r\n"
	got := make(chan string, 1)
	server := newRawServer(t, func(conn net.Conn) {
		r := bufio.NewReader(conn)
		http.ReadRequest(r)
		http.ReadRequest(r)
		fmt.Fprintf(conn, "HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n%sHTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n", len(fake), fake)
		rest, _ := io.ReadAll(r)
		got <- string(rest)
	})
	w := newWorld(t, "a.example", "203.0.113.1:80", server)
	_, err := w.say(t, get("a.example")+upgrade("/", "websocket")+get("evil.example"))
	w.wantRefused(t, err, errPolicy)
	if rest := <-got; rest != "" {
		t.Errorf("the server got %q", rest)
	}
}

// Responses that we do not understand are the client's business, as long as
// it does not want to end HTTP.
func TestUnusualResponsesArePassedOn(t *testing.T) {
	for name, says := range map[string]string{
		"no status":            "hello\n",
		"bare LF":              "HTTP/1.1 200 OK\nX: y\n\nhello",
		"two lengths":          "HTTP/1.1 200 OK\r\nContent-Length: 5\r\nContent-Length: 5\r\n\r\nhello",
		"a body up to the end": "HTTP/1.1 200 OK\r\n\r\nhello",
		"more than was asked":  "HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\nHTTP/1.1 408 Request Timeout\r\nContent-Length: 0\r\n\r\n",
	} {
		t.Run(name, func(t *testing.T) {
			server := newRawServer(t, func(conn net.Conn) {
				r := bufio.NewReader(conn)
				http.ReadRequest(r)
				io.WriteString(conn, says)
				io.Copy(io.Discard, r)
			})
			w := newWorld(t, "a.example", "203.0.113.1:80", server)
			if answer, err := w.say(t, get("a.example")); answer != says || err != nil {
				t.Errorf("got %q, %v", answer, err)
			}
			conn := w.dial(t)
			io.WriteString(conn, get("a.example"))
			io.ReadFull(conn, make([]byte, len(says)))
			io.WriteString(conn, upgrade("/agree", "websocket"))
			_, err := io.ReadAll(conn)
			w.wantRefused(t, err, errUpgrade)
		})
	}
}
