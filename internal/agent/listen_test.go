package agent

import (
	"bufio"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"testing"
)

// upgrade makes a request on a stream of its own; its answer can be read later.
func (g *guest) upgrade(t *testing.T, verb, query string) (*net.UnixConn, *bufio.Reader) {
	t.Helper()
	conn, err := net.Dial("unix", g.socket)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { conn.Close() })
	fmt.Fprintf(conn, "GET /vmsan/%s?%s HTTP/1.1\r\nHost: guest\r\nConnection: Upgrade\r\nUpgrade: vmsan-stream\r\n\r\n", verb, query)
	return conn.(*net.UnixConn), bufio.NewReader(conn)
}

func answered(t *testing.T, reader *bufio.Reader) *http.Response {
	t.Helper()
	response, err := http.ReadResponse(reader, nil)
	if err != nil {
		t.Fatal(err)
	}
	return response
}

func TestListen(t *testing.T) {
	g := newGuest(t)
	socket := filepath.Join(t.TempDir(), "s")
	for network, address := range map[string]string{"tcp": "127.0.0.1:0", "unix": socket} {
		query := "network=" + network + "&address=" + address + "&key=" + network
		control, answer := g.upgrade(t, "listen", query)
		response := answered(t, answer)
		at := response.Header.Get(addressHeader)
		if response.StatusCode != http.StatusSwitchingProtocols || at == "" {
			t.Fatalf("%s: status %d, at %q", network, response.StatusCode, at)
		}
		if _, again := g.upgrade(t, "listen", "network="+network+"&address="+at+"&key=other"); answered(t, again).StatusCode != http.StatusConflict {
			t.Errorf("%s: listens twice", network)
		}
		if _, again := g.upgrade(t, "listen", "network=tcp&address=127.0.0.1:0&key="+network); answered(t, again).StatusCode != http.StatusConflict {
			t.Errorf("%s: a key twice", network)
		}
		host, answer := g.upgrade(t, "accept", "key="+network)
		client, err := net.Dial(network, at)
		if err != nil {
			t.Fatal(err)
		}
		defer client.Close()
		if response := answered(t, answer); response.StatusCode != http.StatusSwitchingProtocols {
			t.Fatalf("%s: accept: status %d", network, response.StatusCode)
		}
		// The guest's end comes first, and the answer after it.
		io.WriteString(client, "question")
		client.(interface{ CloseWrite() error }).CloseWrite()
		if got, err := io.ReadAll(answer); err != nil || string(got) != "question" {
			t.Errorf("%s: the host got %q, %v", network, got, err)
		}
		io.WriteString(host, "answer")
		host.CloseWrite()
		if got, err := io.ReadAll(client); err != nil || string(got) != "answer" {
			t.Errorf("%s: the guest got %q, %v", network, got, err)
		}

		// With the stream everything ends: what is open, what waits, the door.
		_, answer = g.upgrade(t, "accept", "key="+network)
		open, err := net.Dial(network, at)
		if err != nil {
			t.Fatal(err)
		}
		defer open.Close()
		answered(t, answer)
		_, waits := g.upgrade(t, "accept", "key="+network)
		control.Close()
		if response := answered(t, waits); response.StatusCode != http.StatusGone {
			t.Errorf("%s: accept after the end: status %d", network, response.StatusCode)
		}
		if n, err := open.Read(make([]byte, 1)); err == nil {
			t.Errorf("%s: read %d bytes after the end", network, n)
		}
		if late, err := net.Dial(network, at); err == nil {
			late.Close()
			t.Errorf("%s: something listens after the end", network)
		}
	}
	if _, err := os.Stat(socket); err == nil {
		t.Error("the socket is left")
	}
}

func TestListenErrors(t *testing.T) {
	g := newGuest(t)
	for query, status := range map[string]int{
		"network=udp&address=127.0.0.1:0&key=a":             400,
		"network=tcp&key=a":                                 400,
		"network=tcp&address=127.0.0.1:0":                   400,
		"network=unix&address=" + g.path("no/s") + "&key=a": 502,
	} {
		if _, answer := g.upgrade(t, "listen", query); answered(t, answer).StatusCode != status {
			t.Errorf("%s: not status %d", query, status)
		}
	}
	if _, answer := g.upgrade(t, "accept", "key=none"); answered(t, answer).StatusCode != http.StatusGone {
		t.Error("accept where nothing listens")
	}
	for i := range maxDoors {
		_, answer := g.upgrade(t, "listen", fmt.Sprintf("network=tcp&address=127.0.0.1:0&key=%d", i))
		if response := answered(t, answer); response.StatusCode != http.StatusSwitchingProtocols {
			t.Fatalf("listener %d: status %d", i, response.StatusCode)
		}
	}
	if _, answer := g.upgrade(t, "listen", "network=tcp&address=127.0.0.1:0&key=more"); answered(t, answer).StatusCode != http.StatusTooManyRequests {
		t.Error("there may be any number")
	}
	// It is the host's alone.
	response, _ := get(t, g.public.Client(), http.MethodGet, g.public.URL+"/vmsan/listen?network=tcp&address=127.0.0.1:0&key=b", nil)
	if response.StatusCode != http.StatusNotFound {
		t.Errorf("from within the guest: status %d", response.StatusCode)
	}
}
