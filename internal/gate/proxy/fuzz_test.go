package proxy

import (
	"bufio"
	"bytes"
	"context"
	"crypto/tls"
	"errors"
	"io"
	"net"
	"net/http"
	"net/netip"
	"sync"
	"testing"
	"time"

	"github.com/vmsan/vmsan/api"
)

// tape is a connection on which all is said already, in pieces.
type tape struct {
	net.Conn
	says  []byte
	piece int

	mu   sync.Mutex
	said bytes.Buffer
}

func (t *tape) Read(b []byte) (int, error) {
	if len(t.says) == 0 {
		return 0, io.EOF
	}
	n := copy(b[:min(len(b), t.piece)], t.says)
	t.says = t.says[n:]
	return n, nil
}

func (t *tape) Write(b []byte) (int, error) {
	t.mu.Lock()
	defer t.mu.Unlock()
	return t.said.Write(b)
}

func (t *tape) Close() error                    { return nil }
func (t *tape) CloseWrite() error               { return nil }
func (t *tape) SetReadDeadline(time.Time) error { return nil }

// FuzzHello reads a name only where crypto/tls reads the same.
func FuzzHello(f *testing.F) {
	f.Add(helloOf(&tls.Config{ServerName: "a.example"}))
	f.Add(helloOf(&tls.Config{ServerName: "a.example", MaxVersion: tls.VersionTLS12}))
	f.Add(helloOf(&tls.Config{}))
	f.Add(fragmented(helloOf(&tls.Config{ServerName: "a.example"}), 50))
	f.Add(handshake(nameExtension("a.example"), extension(extensionECH, "\x00")))
	f.Add(handshake(nameExtension("a.example"), nameExtension("b.example")))
	f.Fuzz(func(t *testing.T, says []byte) {
		a := ahead{Conn: &tape{says: says, piece: 100}}
		name, err := a.helloName()
		if err != nil {
			return
		}
		var got *tls.ClientHelloInfo
		enough := errors.New("enough")
		config := &tls.Config{GetConfigForClient: func(hello *tls.ClientHelloInfo) (*tls.Config, error) {
			got = hello
			return nil, enough
		}}
		tls.Server(readOnly{&recorder{}, bytes.NewReader(says)}, config).Handshake()
		if got != nil && normal(got.ServerName) != name {
			t.Errorf("we read %q, crypto/tls %q", name, got.ServerName)
		}
	})
}

type readOnly struct {
	*recorder
	r io.Reader
}

func (r readOnly) Read(b []byte) (int, error) { return r.r.Read(b) }

// FuzzRequests lets no request through whose host is not allowed, as
// net/http reads what reaches the server, and says nothing that the client
// did not.
func FuzzRequests(f *testing.F) {
	const answer = "HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n"
	for _, says := range []string{
		get("a.example") + get("b.example"), get("a.example") + get("evil.example"),
		"POST / HTTP/1.1\r\nHost: a.example\r\nContent-Length: 5\r\n\r\nhello" + get("a.example"),
		"POST / HTTP/1.1\r\nHost: a.example\r\nTransfer-Encoding: chunked\r\n\r\n5;x\r\nhello\r\n0\r\nA: b\r\n\r\n" + get("evil.example"),
		"POST / HTTP/1.1\r\nHost: a.example\r\nTransfer-Encoding: chunked\r\nContent-Length: 5\r\n\r\n0\r\n\r\n" + get("evil.example"),
		"GET http://a.example/ HTTP/1.1\r\nHost: a.example:80\r\n\r\n",
		upgrade("/", "websocket") + get("evil.example"), "PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", "\x16\x03\x01",
	} {
		f.Add([]byte(says), []byte(answer+answer), 7)
	}
	f.Add([]byte(upgrade("/", "websocket")+"frames"), []byte("HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\n\r\nframes"), 1000)
	rules := rulesOf(f, "a.example b.example c.example")
	f.Fuzz(func(t *testing.T, says, answers []byte, piece int) {
		if piece < 1 || len(says) == 0 {
			return
		}
		client, server := &tape{says: says, piece: piece}, &tape{says: answers, piece: piece}
		p := New(Config{
			Policy: rules,
			Names:  func(addr netip.Addr) []string { return names[addr.String()] },
			Log:    quiet{},
			Dial:   func(context.Context, netip.AddrPort) (net.Conn, error) { return server, nil },
		})
		defer p.Close()
		flow := &flow{proxy: p, to: netip.MustParseAddrPort("203.0.113.1:80"), client: ahead{Conn: client}, names: names["203.0.113.1"]}
		flow.serve()
		passed := server.said.Bytes()
		if !bytes.HasPrefix(says, passed) {
			t.Fatalf("%q was passed on, which is not what was said", passed)
		}
		if says[0] == recordHandshake || bytes.Contains(bytes.ToLower(answers), []byte("upgrade")) {
			return // what is not HTTP any more may be anything
		}
		for r := bufio.NewReader(bytes.NewReader(passed)); ; {
			request, err := http.ReadRequest(r)
			if err != nil {
				return
			}
			if name, err := hostName(request.Host); err != nil || name != "a.example" && name != "b.example" {
				t.Fatalf("%q was passed on, with a request for %q", passed, request.Host)
			}
			if _, err := io.Copy(io.Discard, request.Body); err != nil {
				return
			}
		}
	})
}

type quiet struct{}

func (quiet) Log(api.NetworkEvent) {}
