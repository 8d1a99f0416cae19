package proxy

import (
	"bufio"
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"net/netip"
	"os"
	"runtime"
	"slices"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/vmsan/vmsan/api"
	"github.com/vmsan/vmsan/internal/policy"
	"github.com/vmsan/vmsan/internal/testenv"
)

func TestMain(m *testing.M) { os.Exit(testenv.Main(m)) }

// freePipes closes the pipes that package net keeps for splice.
func freePipes() {
	for range 3 {
		runtime.GC()
	}
}

// names are those of addresses in all tests.
var names = map[string][]string{
	"203.0.113.1": {"a.example", "b.example"},
	"203.0.113.2": {"c.example"},
}

// world is a proxy between a guest, which believes that it connects to an
// address, and a server.
type world struct {
	proxy *Proxy
	addr  string

	mu     sync.Mutex
	to     netip.AddrPort
	server string
	events []api.NetworkEvent
}

// newWorld has a guest connect to the address at which server is.
func newWorld(t testing.TB, rules, to, server string) *world {
	t.Helper()
	w := &world{to: netip.MustParseAddrPort(to), server: server}
	w.proxy = New(Config{
		Policy:   rulesOf(t, rules),
		Names:    func(addr netip.Addr) []string { return names[addr.String()] },
		Log:      w,
		Original: func(net.Conn) (netip.AddrPort, error) { return w.to, nil },
		Dial: func(ctx context.Context, addr netip.AddrPort) (net.Conn, error) {
			if addr != w.to {
				return nil, fmt.Errorf("dial %s", addr)
			}
			var d net.Dialer
			return d.DialContext(ctx, "tcp4", w.server)
		},
	})
	listener, err := net.Listen("tcp4", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	w.addr = listener.Addr().String()
	var serving sync.WaitGroup
	serving.Go(func() {
		if err := w.proxy.Serve(listener); err != nil {
			t.Error(err)
		}
	})
	t.Cleanup(func() {
		w.proxy.Close()
		serving.Wait()
		freePipes()
	})
	return w
}

func rulesOf(t testing.TB, rules string) policy.Policy {
	t.Helper()
	var mode policy.Mode
	var domains []policy.Domain
	var allowed, denied []policy.CIDR
	for _, rule := range strings.Fields(rules) {
		if slices.Contains(policy.Modes, policy.Mode(rule)) {
			mode = policy.Mode(rule)
		} else if text, no := strings.CutPrefix(rule, "!"); no {
			denied = append(denied, parsed(t, policy.ParseCIDR, text))
		} else if strings.Contains(rule, "/") {
			allowed = append(allowed, parsed(t, policy.ParseCIDR, rule))
		} else {
			domains = append(domains, parsed(t, policy.ParseDomain, rule))
		}
	}
	p, err := policy.New(mode, domains, allowed, denied)
	if err != nil {
		t.Fatal(err)
	}
	return p
}

func parsed[T any](t testing.TB, parse func(string) (T, error), text string) T {
	t.Helper()
	value, err := parse(text)
	if err != nil {
		t.Fatal(err)
	}
	return value
}

func (w *world) Log(e api.NetworkEvent) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.events = append(w.events, e)
}

// logged waits for an event of that verdict and returns it.
func (w *world) logged(t *testing.T, verdict api.Verdict) api.NetworkEvent {
	t.Helper()
	for deadline := time.Now().Add(5 * time.Second); time.Now().Before(deadline); time.Sleep(time.Millisecond) {
		w.mu.Lock()
		i := slices.IndexFunc(w.events, func(e api.NetworkEvent) bool { return e.Verdict == verdict })
		if i >= 0 {
			e := w.events[i]
			w.mu.Unlock()
			return e
		}
		w.mu.Unlock()
	}
	t.Fatalf("nothing that was %s is logged: %+v", verdict, w.events)
	return api.NetworkEvent{}
}

func (w *world) dial(t testing.TB) *net.TCPConn {
	t.Helper()
	conn, err := net.Dial("tcp4", w.addr)
	if err != nil {
		t.Fatal(err)
	}
	conn.SetDeadline(time.Now().Add(20 * time.Second))
	t.Cleanup(func() { conn.Close() })
	return conn.(*net.TCPConn)
}

// say says something and returns the answer up to its end.
func (w *world) say(t *testing.T, text string) (string, error) {
	t.Helper()
	conn, err := net.Dial("tcp4", w.addr)
	if err != nil {
		return "", err
	}
	defer conn.Close()
	conn.SetDeadline(time.Now().Add(20 * time.Second))
	if _, err := io.WriteString(conn, text); err != nil {
		return "", err
	}
	conn.(*net.TCPConn).CloseWrite()
	answer, err := io.ReadAll(conn)
	return string(answer), err
}

// wantRefused is how a connection ends that is not passed on.
func (w *world) wantRefused(t *testing.T, err error, rule refusal) api.NetworkEvent {
	t.Helper()
	if !errors.Is(err, syscall.ECONNRESET) && !errors.Is(err, syscall.EPIPE) {
		t.Errorf("the connection was not reset: %v", err)
	}
	e := w.logged(t, api.VerdictDenied)
	if e.Rule != string(rule) {
		t.Errorf("refused because of %q, want %q", e.Rule, rule)
	}
	if e.Destination != w.to.Addr() || e.Port != w.to.Port() || e.Protocol != "tcp" {
		t.Errorf("logged another destination: %+v", e)
	}
	return e
}

// server is an HTTP server that says whose it is, and remembers who was asked
// for.
type server struct {
	addr string
	mu   sync.Mutex
	asks []string
}

func newServer(t testing.TB) *server {
	s := new(server)
	h := httptest.NewServer(s)
	t.Cleanup(h.Close)
	s.addr = h.Listener.Addr().String()
	return s
}

func (s *server) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	s.mu.Lock()
	s.asks = append(s.asks, r.Host)
	s.mu.Unlock()
	body, _ := io.ReadAll(r.Body)
	switch r.URL.Path {
	case "/chunked":
		for i := range 3 {
			fmt.Fprintf(w, "%d", i)
			w.(http.Flusher).Flush()
		}
		w.Write(bytes.Repeat([]byte("x"), 100_000))
	case "/none":
		w.WriteHeader(http.StatusNoContent)
	case "/close":
		w.Header().Set("Connection", "close")
		fmt.Fprint(w, "bye")
	default:
		fmt.Fprintf(w, "%s %s %s", r.Method, r.Host, body)
	}
}

func (s *server) asked() []string {
	s.mu.Lock()
	defer s.mu.Unlock()
	return slices.Clone(s.asks)
}

// line server answers each line with another, and speaks first if it has
// something to say.
func newLineServer(t testing.TB, greeting string) string {
	return newRawServer(t, func(conn net.Conn) {
		io.WriteString(conn, greeting)
		for lines := bufio.NewScanner(conn); lines.Scan(); {
			fmt.Fprintf(conn, "you said %s\n", lines.Text())
		}
		io.WriteString(conn, "bye\n")
	})
}

func newRawServer(t testing.TB, serve func(net.Conn)) string {
	t.Helper()
	listener, err := net.Listen("tcp4", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	var serving sync.WaitGroup
	serving.Go(func() {
		for {
			conn, err := listener.Accept()
			if err != nil {
				return
			}
			serving.Go(func() {
				defer conn.Close()
				conn.SetDeadline(time.Now().Add(20 * time.Second))
				serve(conn)
			})
		}
	})
	t.Cleanup(func() { listener.Close(); serving.Wait() })
	return listener.Addr().String()
}

func TestAddressesThatNoNameAllows(t *testing.T) {
	for name, c := range map[string]struct {
		rules, to string
		want      refusal
		hint      string
	}{
		"no name has resolved to it": {"a.example", "203.0.113.9:80", errUnknown, "--allowed-cidr 203.0.113.9/32:80/tcp"},
		"another port":               {"a.example:443", "203.0.113.1:8080", errPort, "--allowed-domain a.example:8080"},
		"a denied range":             {"a.example !203.0.113.0/24", "203.0.113.1:80", errDenied, ""},
		"a name that was taken back": {"c.example", "203.0.113.1:80", errPort, ""},
	} {
		t.Run(name, func(t *testing.T) {
			s := newServer(t)
			w := newWorld(t, c.rules, c.to, s.addr)
			_, err := w.say(t, "GET / HTTP/1.1\r\nHost: a.example\r\n\r\n")
			if e := w.wantRefused(t, err, c.want); e.Hint != c.hint {
				t.Errorf("got the hint %q, want %q", e.Hint, c.hint)
			}
			if len(s.asked()) > 0 {
				t.Error("the server was reached")
			}
		})
	}
}

func TestWhatNeedsNoNameIsPassedOnUnread(t *testing.T) {
	server := newLineServer(t, "")
	for _, rules := range []string{"allow-all", "!198.51.100.0/24", "other.example 203.0.113.1/32"} {
		w := newWorld(t, rules, "203.0.113.1:80", server)
		if got, err := w.say(t, "\x00\xffwhat\n"); got != "you said \x00\xffwhat\nbye\n" || err != nil {
			t.Errorf("%s: got %q, %v", rules, got, err)
		}
	}
}

func TestPortThatARuleNamesCarriesAnything(t *testing.T) {
	for name, c := range map[string]struct{ greeting, says, want string }{
		"the client speaks first": {"", "SSH-2.0-x\n", "you said SSH-2.0-x\nbye\n"},
		"a line in capitals":      {"", "HELO me\n", "you said HELO me\nbye\n"},
		"a word alone":            {"", "QUIT", "you said QUIT\nbye\n"},
		"binary":                  {"", "\x16\x01\x02\n", "you said \x16\x01\x02\nbye\n"},
		"nothing is said":         {"hello\n", "", "hello\nbye\n"},
	} {
		t.Run(name, func(t *testing.T) {
			w := newWorld(t, "a.example:22", "203.0.113.1:22", newLineServer(t, c.greeting))
			if got, err := w.say(t, c.says); got != c.want || err != nil {
				t.Errorf("got %q, %v", got, err)
			}
			if e := w.logged(t, api.VerdictAllowed); e.Name != "a.example" || e.Kind != api.EventFlow {
				t.Errorf("logged %+v", e)
			}
		})
	}
}

func TestServerSpeaksFirst(t *testing.T) {
	w := newWorld(t, "a.example:25", "203.0.113.1:25", newLineServer(t, "220 hello\n"))
	conn := w.dial(t)
	r := bufio.NewReader(conn)
	if line, err := r.ReadString('\n'); line != "220 hello\n" {
		t.Errorf("got %q, %v", line, err)
	}
	io.WriteString(conn, "EHLO me\n")
	if line, err := r.ReadString('\n'); line != "you said EHLO me\n" {
		t.Errorf("got %q, %v", line, err)
	}
}

func TestOtherProtocolsNeedARuleForThePort(t *testing.T) {
	for rules, to := range map[string]string{
		"a.example":     "203.0.113.1:22", // any port, and so by name alone
		"a.example:443": "203.0.113.1:443",
		"a.example:80":  "203.0.113.1:80",
	} {
		w := newWorld(t, rules, to, newLineServer(t, ""))
		_, err := w.say(t, "\x00\x01\x02")
		e := w.wantRefused(t, err, errProtocol)
		if rules == "a.example" && e.Hint != "--allowed-domain a.example:22" {
			t.Errorf("got the hint %q", e.Hint)
		}
	}
}

func TestHTTPIsCheckedAtAPortThatARuleNames(t *testing.T) {
	s := newServer(t)
	w := newWorld(t, "a.example:8080", "203.0.113.1:8080", s.addr)
	if got, err := w.say(t, "GET / HTTP/1.1\r\nHost: a.example:8080\r\nConnection: close\r\n\r\n"); !strings.HasSuffix(got, "GET a.example:8080 ") {
		t.Errorf("got %q, %v", got, err)
	}
	_, err := w.say(t, "GET / HTTP/1.1\r\nHost: b.example\r\nConnection: close\r\n\r\n")
	w.wantRefused(t, err, errPolicy)
}

func TestSilentClientIsLeftAlone(t *testing.T) {
	w := newWorld(t, "a.example", "203.0.113.1:443", newLineServer(t, ""))
	if got, err := w.say(t, ""); got != "" || err != nil {
		t.Errorf("got %q, %v", got, err)
	}
	w.mu.Lock()
	defer w.mu.Unlock()
	if len(w.events) > 0 {
		t.Errorf("logged %+v", w.events)
	}
}

func TestServerThatIsNotThere(t *testing.T) {
	listener, err := net.Listen("tcp4", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	listener.Close()
	w := newWorld(t, "a.example", "203.0.113.1:80", listener.Addr().String())
	if _, err := w.say(t, "GET / HTTP/1.1\r\nHost: a.example\r\n\r\n"); !errors.Is(err, syscall.ECONNRESET) {
		t.Errorf("got %v", err)
	}
}

// Either side may have said all while the other goes on.
func TestHalfClose(t *testing.T) {
	server := newRawServer(t, func(conn net.Conn) {
		all, _ := io.ReadAll(conn)
		fmt.Fprintf(conn, "%d bytes", len(all))
	})
	w := newWorld(t, "a.example:99", "203.0.113.1:99", server)
	if got, err := w.say(t, strings.Repeat("x", 300_000)); got != "300000 bytes" || err != nil {
		t.Errorf("got %q, %v", got, err)
	}
	got := make(chan string)
	server = newRawServer(t, func(conn net.Conn) {
		io.WriteString(conn, "bye")
		conn.(*net.TCPConn).CloseWrite()
		all, _ := io.ReadAll(conn)
		got <- string(all)
	})
	w = newWorld(t, "a.example:99", "203.0.113.1:99", server)
	conn := w.dial(t)
	io.WriteString(conn, "\x00\x01\x02")
	if got, err := io.ReadAll(conn); string(got) != "bye" || err != nil {
		t.Errorf("got %q, %v", got, err)
	}
	io.WriteString(conn, "and me")
	conn.Close()
	if all := <-got; all != "\x00\x01\x02and me" {
		t.Errorf("the server got %q", all)
	}
}

func TestResetIsPassedOn(t *testing.T) {
	server := newRawServer(t, func(conn net.Conn) {
		conn.Read(make([]byte, 10))
		conn.(*net.TCPConn).SetLinger(0)
	})
	w := newWorld(t, "a.example:99", "203.0.113.1:99", server)
	if _, err := w.say(t, "\x00\x01\x02"); !errors.Is(err, syscall.ECONNRESET) {
		t.Errorf("got %v", err)
	}
}

func TestNewPolicyCutsIfItIsTo(t *testing.T) {
	w := newWorld(t, "a.example:99", "203.0.113.1:99", newLineServer(t, ""))
	conn := w.dial(t)
	r := bufio.NewReader(conn)
	talk := func(text string) error {
		if _, err := io.WriteString(conn, text+"\n"); err != nil {
			return err
		}
		line, err := r.ReadString('\n')
		if err == nil && line != "you said "+text+"\n" {
			t.Errorf("got %q", line)
		}
		return err
	}
	for _, step := range []struct {
		rules string
		kill  bool
	}{{"a.example:99", true}, {"b.example:99", true}, {"allow-all", true}, {"other.example 203.0.113.1/32", true}, {"deny-all", false}} {
		w.proxy.SetPolicy(rulesOf(t, step.rules), step.kill)
		if err := talk("1 " + step.rules); err != nil {
			t.Fatalf("after %s: %v", step.rules, err)
		}
	}
	w.proxy.SetPolicy(rulesOf(t, "deny-all"), true)
	if err := talk("2"); !errors.Is(err, syscall.ECONNRESET) && !errors.Is(err, syscall.EPIPE) {
		t.Errorf("after deny-all: %v", err)
	}
	if _, err := w.say(t, "\x00"); !errors.Is(err, syscall.ECONNRESET) {
		t.Errorf("a new connection: %v", err)
	}
}

func TestCloseCutsEverything(t *testing.T) {
	w := newWorld(t, "a.example:99", "203.0.113.1:99", newLineServer(t, "hello\n"))
	conn := w.dial(t)
	if line, err := bufio.NewReader(conn).ReadString('\n'); line != "hello\n" {
		t.Fatalf("got %q, %v", line, err)
	}
	w.dial(t) // says nothing
	closed := make(chan struct{})
	go func() { w.proxy.Close(); close(closed) }()
	select {
	case <-closed:
	case <-time.After(5 * time.Second):
		t.Fatal("it does not end")
	}
	if _, err := conn.Read(make([]byte, 1)); err == nil || errors.Is(err, os.ErrDeadlineExceeded) {
		t.Errorf("got %v", err)
	}
}
