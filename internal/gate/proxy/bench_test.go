package proxy

import (
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"testing"
	"time"
)

// chunk is how much a server says at once, in bytes.
const chunk = 256 << 10

// BenchmarkThroughput downloads through the proxy and from the server itself,
// over loopback: what they say is of use beside each other only.
func BenchmarkThroughput(b *testing.B) {
	source := newRawServer(b, func(conn net.Conn) {
		conn.SetDeadline(time.Time{})
		conn.Read(make([]byte, 1))
		for data := make([]byte, chunk); ; {
			if _, err := conn.Write(data); err != nil {
				return
			}
		}
	})
	web := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		data := make([]byte, chunk)
		if r.URL.Path == "/length" {
			w.Header().Set("Content-Length", fmt.Sprint(int64(1)<<50))
		}
		for {
			if _, err := w.Write(data); err != nil {
				return
			}
		}
	}))
	b.Cleanup(func() { web.CloseClientConnections(); web.Close() })
	addr := web.Listener.Addr().String()
	request := func(path string) []byte { return []byte("GET " + path + " HTTP/1.1\r\nHost: a.example\r\n\r\n") }
	hello := handshake(nameExtension("a.example"))
	for _, c := range []struct {
		name, server string
		says         []byte
	}{{"tls", source, hello}, {"http-length", addr, request("/length")}, {"http-chunked", addr, request("/chunked")}} {
		w := newWorld(b, "a.example", "203.0.113.1:80", c.server)
		for path, addr := range map[string]string{"direct": c.server, "proxy": w.addr} {
			b.Run(c.name+"/"+path, func(b *testing.B) { download(b, addr, c.says) })
		}
	}
}

func download(b *testing.B, addr string, says []byte) {
	conn, err := net.Dial("tcp4", addr)
	if err != nil {
		b.Fatal(err)
	}
	defer conn.Close()
	if _, err := conn.Write(says); err != nil {
		b.Fatal(err)
	}
	buffer := make([]byte, chunk)
	b.SetBytes(chunk)
	for b.Loop() {
		if _, err := io.ReadFull(conn, buffer); err != nil {
			b.Fatal(err)
		}
	}
}

// BenchmarkConnection is a request on a connection of its own.
func BenchmarkConnection(b *testing.B) {
	s := newServer(b)
	w := newWorld(b, "a.example", "203.0.113.1:80", s.addr)
	for path, addr := range map[string]string{"direct": s.addr, "proxy": w.addr} {
		b.Run(path, func(b *testing.B) {
			for b.Loop() {
				conn, err := net.Dial("tcp4", addr)
				if err != nil {
					b.Fatal(err)
				}
				io.WriteString(conn, last)
				io.Copy(io.Discard, conn)
				conn.Close()
			}
		})
	}
}
