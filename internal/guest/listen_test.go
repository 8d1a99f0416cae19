package guest

import (
	"bufio"
	"context"
	"errors"
	"io"
	"net"
	"net/http"
	"strings"
	"testing"
	"time"

	"github.com/vmsan/vmsan/api"
)

// scripted is a client of a guest that answers each stream with what says
// returns for its request, and closes it then unless it holds it.
func scripted(t *testing.T, says func(verb string) (answer string, hold bool)) *Client {
	t.Helper()
	return New(func(context.Context) (net.Conn, error) {
		ours, theirs := net.Pipe()
		t.Cleanup(func() { ours.Close(); theirs.Close() })
		go func() {
			request, err := http.ReadRequest(bufio.NewReader(theirs))
			if err != nil {
				return
			}
			answer, hold := says(strings.TrimPrefix(request.URL.Path, "/vmsan/"))
			io.WriteString(theirs, answer)
			if !hold {
				theirs.Close()
			}
		}()
		return ours, nil
	})
}

const switching = "HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: vmsan-stream\r\n"

// What a guest answers to a listen cannot be more than yes or no, and one port.
func TestListenLies(t *testing.T) {
	for told, want := range map[string]string{
		"127.0.0.1:4711":    "127.0.0.1:4711",
		"10.0.0.1:4711":     "127.0.0.1:4711",
		"":                  "127.0.0.1:0",
		"127.0.0.1:0":       "127.0.0.1:0",
		"127.0.0.1:99999":   "127.0.0.1:0",
		"127.0.0.1:http":    "127.0.0.1:0",
		"127.0.0.1:+80":     "127.0.0.1:0",
		"\x1b[2J:4711:4711": "127.0.0.1:0",
	} {
		c := scripted(t, func(string) (string, bool) { return switching + "Vmsan-Address: " + told + "\r\n\r\n", true })
		l, err := c.Listen(t.Context(), "tcp", "127.0.0.1:0")
		if err != nil {
			if !api.HasCode(err, api.ErrGuestLink) { // no header of HTTP
				t.Errorf("%q: %v", told, err)
			}
			continue
		}
		if got := l.Addr().String(); got != want {
			t.Errorf("%q: listens on %s, want %s", told, got, want)
		}
		l.Close()
	}
	c := scripted(t, func(string) (string, bool) { return switching + "Vmsan-Address: 127.0.0.1:81\r\n\r\n", true })
	if l, err := c.Listen(t.Context(), "tcp", "127.0.0.1:80"); err != nil || l.Addr().String() != "127.0.0.1:80" {
		t.Errorf("another port than was asked for: %v, %v", l.Addr(), err)
	}
	c = scripted(t, func(string) (string, bool) { return "HTTP/1.1 409 Conflict\r\n\r\n{}", false })
	if _, err := c.Listen(t.Context(), "tcp", "127.0.0.1:80"); !errors.Is(err, ErrAddressInUse) {
		t.Errorf("in use: %v", err)
	}
}

// TestAcceptEnds: whatever a guest does, Accept ends with the listener.
func TestAcceptEnds(t *testing.T) {
	for name, test := range map[string]struct {
		listen, accept string
		held           bool
		want           api.Code
	}{
		"the door is closed":         {"", "HTTP/1.1 410 Gone\r\n\r\nno\x1b[2J", false, api.ErrGuest},
		"no HTTP":                    {"", "\x00\x01\x02\r\n\r\n", true, api.ErrGuestLink},
		"an endless head":            {"", "HTTP/1.1 101 " + strings.Repeat("x", 1<<20), true, api.ErrGuestLink},
		"it talks where it must not": {"hello", "", true, api.ErrGuest},
	} {
		c := scripted(t, func(verb string) (string, bool) {
			if verb == "listen" {
				return switching + "\r\n" + test.listen, true
			}
			return test.accept, test.held
		})
		l, err := c.Listen(t.Context(), "unix", "/run/s")
		if err != nil {
			t.Fatalf("%s: %v", name, err)
		}
		if _, err := l.Accept(); !errors.Is(err, net.ErrClosed) {
			t.Errorf("%s: %v", name, err)
		}
		if err := l.Err(); !api.HasCode(err, test.want) || strings.Contains(err.Error(), "\x1b") {
			t.Errorf("%s: ended with %v", name, err)
		}
	}
	// By us, while it waits.
	c := scripted(t, func(verb string) (string, bool) {
		if verb == "listen" {
			return switching + "\r\n", true
		}
		return "", true
	})
	l, err := c.Listen(t.Context(), "unix", "/run/s")
	if err != nil {
		t.Fatal(err)
	}
	time.AfterFunc(10*time.Millisecond, func() { l.Close() })
	if _, err := l.Accept(); !errors.Is(err, net.ErrClosed) || !errors.Is(l.Err(), net.ErrClosed) {
		t.Errorf("closed by us: %v, %v", err, l.Err())
	}
}

// FuzzUpgrade has a guest say anything to a request for a stream.
func FuzzUpgrade(f *testing.F) {
	f.Add([]byte(switching + "Vmsan-Address: 127.0.0.1:80\r\n\r\nearly"))
	f.Add([]byte("HTTP/1.1 409 Conflict\r\nContent-Length: 5\r\n\r\ntaken"))
	f.Add([]byte("HTTP/1.1 502 Bad Gateway\r\nTransfer-Encoding: chunked\r\n\r\nffffffffffffffff\r\n"))
	f.Fuzz(func(t *testing.T, says []byte) {
		ours, theirs := net.Pipe()
		defer ours.Close()
		go io.Copy(io.Discard, theirs)
		go func() {
			theirs.Write(says)
			theirs.Close()
		}()
		conn, header, err := upgrade(ours, "listen", nil, 0)
		if err != nil {
			if len(err.Error()) > 16<<10 || strings.ContainsAny(err.Error(), "\x1b\n") {
				t.Errorf("says %q", err)
			}
			return
		}
		if at := chosenPort("127.0.0.1:0", header.Get("Vmsan-Address")); !strings.HasPrefix(at, "127.0.0.1:") || len(at) > len("127.0.0.1:65535") {
			t.Errorf("listens on %q", at)
		}
		if early, err := io.ReadAll(conn); err != nil || len(early) > len(says) {
			t.Errorf("read %d bytes of %d: %v", len(early), len(says), err)
		}
	})
}

func TestReasonOf(t *testing.T) {
	for body, want := range map[string]string{
		`{"code":502,"message":"dial tcp 127.0.0.1:8000: connection refused"}` + "\n": "dial tcp 127.0.0.1:8000: connection refused",
		`{"message":"a\u001b[31m"}`: "a?[31m",
		`{"message":""}`:            `502 Bad Gateway: {"message":""}`,
		"not JSON":                  "502 Bad Gateway: not JSON",
	} {
		if got := reasonOf("502 Bad Gateway", []byte(body)); got != want {
			t.Errorf("%q gives %q, want %q", body, got, want)
		}
	}
}
