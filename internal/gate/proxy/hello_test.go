package proxy

import (
	"bytes"
	"context"
	"crypto/ecdh"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"encoding/binary"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"slices"
	"strings"
	"testing"
	"time"

	"golang.org/x/crypto/cryptobyte"

	"github.com/vmsan/vmsan/api"
)

// newTLSServer serves HTTP, by either version, under any name.
func newTLSServer(t testing.TB) (addr string, config *tls.Config) {
	t.Helper()
	s := httptest.NewUnstartedServer(new(server))
	s.EnableHTTP2 = true
	s.Config.ErrorLog = nil
	s.StartTLS()
	t.Cleanup(s.Close)
	roots := x509.NewCertPool()
	roots.AddCert(s.Certificate())
	return s.Listener.Addr().String(), &tls.Config{RootCAs: roots, InsecureSkipVerify: true}
}

func TestTLSOfAnAllowedName(t *testing.T) {
	addr, config := newTLSServer(t)
	w := newWorld(t, "*.example:443", "203.0.113.1:443", addr)
	for _, version := range []uint16{tls.VersionTLS12, tls.VersionTLS13} {
		for _, http2 := range []bool{false, true} {
			config := config.Clone()
			config.MaxVersion = version
			transport := &http.Transport{
				TLSClientConfig: config, ForceAttemptHTTP2: http2,
				DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
					var d net.Dialer
					return d.DialContext(ctx, "tcp4", w.addr)
				},
			}
			client := &http.Client{Transport: transport}
			for _, name := range []string{"a.example", "B.Example"} {
				body := strings.Repeat("x", 200_000)
				response, err := client.Post("https://"+name+"/", "text/plain", strings.NewReader(body))
				if err != nil {
					t.Fatalf("version %x: %v", version, err)
				}
				got, err := io.ReadAll(response.Body)
				response.Body.Close()
				if len(got) < len(body) || err != nil || (response.ProtoMajor == 2) != http2 {
					t.Errorf("version %x: got %d bytes by %s, %v", version, len(got), response.Proto, err)
				}
			}
			transport.CloseIdleConnections()
		}
	}
	if e := w.logged(t, api.VerdictAllowed); e.Kind != api.EventTLS || e.Name != "a.example" || e.Port != 443 {
		t.Errorf("logged %+v", e)
	}
}

// echConfig is one that a client can encrypt the name of a server with
// (RFC 9849, section 4).
func echConfig(t testing.TB) []byte {
	t.Helper()
	private, err := ecdh.X25519().GenerateKey(rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	const x25519, sha256, aes128 = 0x20, 1, 1
	var b cryptobyte.Builder
	b.AddUint16LengthPrefixed(func(b *cryptobyte.Builder) {
		b.AddUint16(extensionECH)
		b.AddUint16LengthPrefixed(func(b *cryptobyte.Builder) {
			b.AddUint8(7)
			b.AddUint16(x25519)
			b.AddUint16LengthPrefixed(func(b *cryptobyte.Builder) { b.AddBytes(private.PublicKey().Bytes()) })
			b.AddUint16LengthPrefixed(func(b *cryptobyte.Builder) { b.AddUint16(sha256); b.AddUint16(aes128) })
			b.AddUint8(32)
			b.AddUint8LengthPrefixed(func(b *cryptobyte.Builder) { b.AddBytes([]byte("a.example")) })
			b.AddUint16(0)
		})
	})
	return b.BytesOrPanic()
}

func TestTLSThatIsRefused(t *testing.T) {
	addr, config := newTLSServer(t)
	for name, c := range map[string]struct {
		change func(*tls.Config)
		want   refusal
		hint   string
	}{
		"another name":            {func(c *tls.Config) { c.ServerName = "evil.example" }, errPolicy, "--allowed-domain evil.example"},
		"a name below":            {func(c *tls.Config) { c.ServerName = "x.a.example" }, errPolicy, "--allowed-domain x.a.example"},
		"a name of other address": {func(c *tls.Config) { c.ServerName = "c.example" }, errAddress, "--allowed-cidr 203.0.113.1/32:443/tcp"},
		"no name":                 {func(c *tls.Config) {}, errNoName, "--allowed-cidr 203.0.113.1/32:443/tcp"},
		"an address":              {func(c *tls.Config) { c.ServerName = "203.0.113.1" }, errNoName, "--allowed-cidr 203.0.113.1/32:443/tcp"},
		"a name that is encrypted": {func(c *tls.Config) {
			c.ServerName, c.EncryptedClientHelloConfigList, c.MinVersion = "inner.example", echConfig(t), tls.VersionTLS13
		}, errECH, "--allowed-cidr 203.0.113.1/32:443/tcp"},
	} {
		t.Run(name, func(t *testing.T) {
			for _, to := range []string{"203.0.113.1:443", "203.0.113.1:8443"} {
				w := newWorld(t, "a.example:443 a.example:8443 c.example:443 c.example:8443", to, addr)
				config := config.Clone()
				c.change(config)
				err := tls.Client(w.dial(t), config).Handshake()
				e := w.wantRefused(t, err, c.want)
				if e.Kind != api.EventTLS || strings.HasSuffix(to, ":443") && e.Hint != c.hint {
					t.Errorf("logged %+v", e)
				}
			}
		})
	}
}

// recorder is a connection that keeps what is said, and answers nothing.
type recorder struct {
	net.Conn
	said bytes.Buffer
}

func (r *recorder) Write(b []byte) (int, error)      { return r.said.Write(b) }
func (r *recorder) Read([]byte) (int, error)         { return 0, io.EOF }
func (r *recorder) Close() error                     { return nil }
func (r *recorder) SetDeadline(time.Time) error      { return nil }
func (r *recorder) SetReadDeadline(time.Time) error  { return nil }
func (r *recorder) SetWriteDeadline(time.Time) error { return nil }

// helloOf is what a client of TLS says first.
func helloOf(config *tls.Config) []byte {
	var r recorder
	config.InsecureSkipVerify = true
	tls.Client(&r, config).Handshake()
	return r.said.Bytes()
}

// fragmented is a record as several, of size bytes each.
func fragmented(record []byte, size int) []byte {
	var all []byte
	for piece := range slices.Chunk(record[recordHeader:], size) {
		all = append(all, record[:3]...)
		all = binary.BigEndian.AppendUint16(all, uint16(len(piece)))
		all = append(all, piece...)
	}
	return all
}

// largeHello has a list of protocols as long as a list can be.
func largeHello(name string) []byte {
	config := &tls.Config{ServerName: name}
	for i := range 90 {
		config.NextProtos = append(config.NextProtos, fmt.Sprintf("%d%s", i, strings.Repeat("x", 150)))
	}
	return helloOf(config)
}

func TestHelloInPieces(t *testing.T) {
	server := newRawServer(t, func(conn net.Conn) {
		all, _ := io.ReadAll(conn)
		conn.Write(all)
	})
	small, large := helloOf(&tls.Config{ServerName: "a.example"}), largeHello("a.example")
	if len(large) < 13_000 {
		t.Fatalf("%d bytes are not large", len(large))
	}
	for name, c := range map[string]struct {
		hello []byte
		write int // bytes at a time
	}{
		"one record":             {small, len(small)},
		"a byte at a time":       {small, 1},
		"records of 40 bytes":    {fragmented(small, 40), 1 << 20},
		"a large one":            {large, 1 << 20},
		"a large one in records": {fragmented(large, 300), 100},
	} {
		t.Run(name, func(t *testing.T) {
			w := newWorld(t, "a.example", "203.0.113.1:443", server)
			conn := w.dial(t)
			conn.SetNoDelay(true)
			said := append(slices.Clone(c.hello), "and more"...)
			for piece := range slices.Chunk(said, c.write) {
				conn.Write(piece)
			}
			conn.CloseWrite()
			got, err := io.ReadAll(conn)
			if !bytes.Equal(got, said) || err != nil {
				t.Errorf("%d bytes came through of %d, %v", len(got), len(said), err)
			}
		})
	}
}

// extension is one of TLS.
func extension(kind uint16, data string) []byte {
	b := binary.BigEndian.AppendUint16(nil, kind)
	b = binary.BigEndian.AppendUint16(b, uint16(len(data)))
	return append(b, data...)
}

func nameExtension(name string) []byte {
	entry := append([]byte{nameOfHost, 0, byte(len(name))}, name...)
	return extension(extensionName, string(append([]byte{0, byte(len(entry))}, entry...)))
}

// handshake is a ClientHello with those extensions, in a record.
func handshake(extensions ...[]byte) []byte {
	all := slices.Concat(extensions...)
	body := append([]byte{3, 3}, make([]byte, 32)...)
	body = append(body, 0, 0, 2, 0x13, 1, 1, 0)
	body = binary.BigEndian.AppendUint16(body, uint16(len(all)))
	body = append(body, all...)
	return record(append([]byte{handshakeHello, 0, byte(len(body) >> 8), byte(len(body))}, body...))
}

func record(fragment []byte) []byte {
	return append([]byte{recordHandshake, 3, 1, byte(len(fragment) >> 8), byte(len(fragment))}, fragment...)
}

func TestMalformedHello(t *testing.T) {
	good := handshake(nameExtension("a.example"))
	two := slices.Concat([]byte{0, 0, 0, 24, nameOfHost, 0, 9}, []byte("a.example"), []byte{nameOfHost, 0, 9}, []byte("b.example"))
	change := func(at int, to byte) []byte {
		b := slices.Clone(good)
		b[at] = to
		return b
	}
	for name, c := range map[string]struct {
		hello []byte
		want  refusal
	}{
		"good":                     {good, ""},
		"a name with a dot behind": {handshake(nameExtension("A.example.")), ""},
		"two names":                {handshake(extension(extensionName, string(two[2:]))), errHello},
		"the extension twice":      {handshake(nameExtension("a.example"), nameExtension("b.example")), errHello},
		"another extension twice":  {handshake(nameExtension("a.example"), extension(99, ""), extension(99, "")), errHello},
		"an empty name":            {handshake(nameExtension("")), errHello},
		"another kind of name":     {handshake(extension(extensionName, "\x00\x04\x01\x00\x01a")), errHello},
		"an empty list":            {handshake(extension(extensionName, "\x00\x00")), errHello},
		"no list":                  {handshake(extension(extensionName, "")), errHello},
		"no name":                  {handshake(extension(10, "x")), errNoName},
		"encrypted":                {handshake(nameExtension("a.example"), extension(extensionECH, "\x00")), errECH},
		"no extensions":            {handshake(), errNoName},
		"another record":           {slices.Concat(good[:3], []byte{0, 10}, good[5:15], []byte{23, 3, 3, 0, 1, 0}), errHello},
		"another message":          {change(5, 2), errHello},
		"longer than it may be":    {change(6, 1), errHello},
		"a message behind":         {record(append(slices.Clone(good[5:]), 11, 0, 0, 0)), errHello},
		"an empty record":          {[]byte{recordHandshake, 3, 1, 0, 0}, errHello},
		"a huge record":            {[]byte{recordHandshake, 3, 1, 0xff, 0xff}, errHello},
		"another version":          {[]byte{recordHandshake, 2, 0, 0, 5}, errHello},
		"endless small records":    {fragmented(good, 1), errHello},
	} {
		a := ahead{buffer: c.hello, Conn: &recorder{}}
		got, err := a.helloName()
		if c.want == "" && (got != "a.example" || err != nil) || c.want != "" && err != c.want {
			t.Errorf("%s: got %q, %v; want %v", name, got, err, c.want)
		}
	}
	for end := range len(good) {
		a := ahead{buffer: good[:end], Conn: &recorder{}}
		if got, err := a.helloName(); err == nil {
			t.Errorf("cut at %d: got %q", end, got)
		}
	}
}
