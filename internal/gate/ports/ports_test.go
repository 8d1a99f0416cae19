package ports

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/netip"
	"os"
	"runtime"
	"strconv"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/vmsan/vmsan/internal/link"
	"github.com/vmsan/vmsan/internal/policy"
	"github.com/vmsan/vmsan/internal/testenv"
)

func TestMain(m *testing.M) { os.Exit(testenv.Main(m)) }

// newPorts lead to a guest whose address is the host's loopback.
func newPorts(t testing.TB, loopback func(context.Context, uint16) (net.Conn, error)) *Ports {
	t.Helper()
	p := New(Config{
		Dial: func(ctx context.Context, network string, port uint16) (net.Conn, error) {
			var d net.Dialer
			return d.DialContext(ctx, network+"4", "127.0.0.1:"+strconv.Itoa(int(port)))
		},
		DialLoopback: loopback,
		Log:          slog.New(slog.DiscardHandler),
	})
	t.Cleanup(func() {
		p.Close()
		for range 3 {
			runtime.GC() // closes the pipes that package net keeps for splice
		}
	})
	return p
}

// publish serves a listener that leads to the guest's port.
func publish(t testing.TB, p *Ports, guest uint16, loopback bool) string {
	t.Helper()
	listener, err := net.Listen("tcp4", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	var serving sync.WaitGroup
	serving.Go(func() {
		if err := p.ServeStream(listener, policy.Publication{Guest: guest, Protocol: policy.TCP, Loopback: loopback}); err != nil {
			t.Error(err)
		}
	})
	t.Cleanup(func() { listener.Close(); serving.Wait() })
	return listener.Addr().String()
}

// serve listens in the guest, and returns at which port.
func serve(t testing.TB, with func(*net.TCPConn)) uint16 {
	t.Helper()
	listener, err := net.ListenTCP("tcp4", &net.TCPAddr{IP: net.IPv4(127, 0, 0, 1)})
	if err != nil {
		t.Fatal(err)
	}
	var serving sync.WaitGroup
	serving.Go(func() {
		for {
			conn, err := listener.AcceptTCP()
			if err != nil {
				return
			}
			serving.Go(func() {
				defer conn.Close()
				conn.SetDeadline(time.Now().Add(20 * time.Second))
				with(conn)
			})
		}
	})
	t.Cleanup(func() { listener.Close(); serving.Wait() })
	return uint16(listener.Addr().(*net.TCPAddr).Port)
}

// count says how much it was told, after it was told all.
func count(conn io.ReadWriter) {
	n, _ := io.Copy(io.Discard, conn)
	fmt.Fprintf(conn, "%d bytes", n)
}

func dial(t testing.TB, addr string) *net.TCPConn {
	t.Helper()
	conn, err := net.Dial("tcp4", addr)
	if err != nil {
		t.Fatal(err)
	}
	conn.SetDeadline(time.Now().Add(20 * time.Second))
	t.Cleanup(func() { conn.Close() })
	return conn.(*net.TCPConn)
}

func wantCount(t *testing.T, addr string) {
	t.Helper()
	conn := dial(t, addr)
	if _, err := conn.Write(make([]byte, 300_000)); err != nil {
		t.Fatal(err)
	}
	conn.CloseWrite()
	if got, err := io.ReadAll(conn); string(got) != "300000 bytes" || err != nil {
		t.Errorf("got %q, %v", got, err)
	}
}

func TestStreamPassesHalfCloseOn(t *testing.T) {
	guest := serve(t, func(conn *net.TCPConn) { count(conn) })
	wantCount(t, publish(t, newPorts(t, nil), guest, false))
}

// Streams of the link are no connections of the kernel.
func TestLoopbackStream(t *testing.T) {
	control, theirControl := net.Pipe()
	data, theirData := net.Pipe()
	agent := link.Listen(theirControl, theirData, nil)
	host, err := link.Connect(t.Context(), control, data, nil)
	if err != nil {
		t.Fatal(err)
	}
	var serving sync.WaitGroup
	serving.Go(func() {
		for {
			stream, err := agent.Accept()
			if err != nil {
				return
			}
			serving.Go(func() { count(stream); stream.Close() })
		}
	})
	t.Cleanup(func() { host.Close(); agent.Close(); serving.Wait() })
	p := newPorts(t, func(ctx context.Context, port uint16) (net.Conn, error) {
		if port != 8080 {
			return nil, fmt.Errorf("port %d", port)
		}
		return host.Dial(ctx)
	})
	wantCount(t, publish(t, p, 8080, true))
}

func TestGuestThatDoesNotListen(t *testing.T) {
	listener, err := net.Listen("tcp4", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	guest := uint16(listener.Addr().(*net.TCPAddr).Port)
	listener.Close()
	conn, err := net.Dial("tcp4", publish(t, newPorts(t, nil), guest, false))
	if err == nil {
		defer conn.Close()
		_, err = conn.Read(make([]byte, 1))
	}
	if !errors.Is(err, syscall.ECONNRESET) {
		t.Errorf("got %v", err)
	}
}

func TestConnectionsOfAPortAreBounded(t *testing.T) {
	guest := serve(t, func(conn *net.TCPConn) { conn.Write([]byte("x")); io.Copy(io.Discard, conn) })
	addr := publish(t, newPorts(t, nil), guest, false)
	for range maxConns {
		conn := dial(t, addr)
		if _, err := conn.Read(make([]byte, 1)); err != nil {
			t.Fatal(err)
		}
	}
	conn, err := net.Dial("tcp4", addr)
	if err == nil {
		defer conn.Close()
		_, err = conn.Read(make([]byte, 1))
	}
	if !errors.Is(err, syscall.ECONNRESET) {
		t.Errorf("one too many: %v", err)
	}
}

func TestCloseCutsConnections(t *testing.T) {
	guest := serve(t, func(conn *net.TCPConn) { conn.Write([]byte("x")); io.Copy(io.Discard, conn) })
	p := newPorts(t, nil)
	conn := dial(t, publish(t, p, guest, false))
	conn.Read(make([]byte, 1))
	p.Close()
	if _, err := conn.Read(make([]byte, 1)); err == nil || errors.Is(err, os.ErrDeadlineExceeded) {
		t.Errorf("got %v", err)
	}
}

// publishPacket serves a UDP port of all the host's addresses.
func publishPacket(t testing.TB, p *Ports, guest uint16) netip.AddrPort {
	t.Helper()
	conn, err := net.ListenUDP("udp4", nil)
	if err != nil {
		t.Fatal(err)
	}
	var serving sync.WaitGroup
	serving.Go(func() {
		if err := p.ServePacket(conn, policy.Publication{Guest: guest, Protocol: policy.UDP}); err != nil {
			t.Error(err)
		}
	})
	t.Cleanup(func() { p.Close(); serving.Wait() })
	return conn.LocalAddr().(*net.UDPAddr).AddrPort()
}

// echoPacket answers each datagram, in the guest, with who has sent it.
func echoPacket(t testing.TB, port int) uint16 {
	t.Helper()
	conn, err := net.ListenUDP("udp4", &net.UDPAddr{IP: net.IPv4(127, 0, 0, 1), Port: port})
	if err != nil {
		t.Fatal(err)
	}
	var serving sync.WaitGroup
	serving.Go(func() {
		for buffer := make([]byte, maxDatagram); ; {
			n, from, err := conn.ReadFromUDPAddrPort(buffer)
			if err != nil {
				return
			}
			conn.WriteToUDPAddrPort(fmt.Appendf(nil, "%d %s", from.Port(), buffer[:n]), from)
		}
	})
	t.Cleanup(func() { conn.Close(); serving.Wait() })
	return uint16(conn.LocalAddr().(*net.UDPAddr).Port)
}

// ask sends a datagram and returns the answer and who the guest saw.
func ask(t testing.TB, conn net.Conn, text string) (answer string, source int) {
	t.Helper()
	conn.SetDeadline(time.Now().Add(5 * time.Second))
	if _, err := conn.Write([]byte(text)); err != nil {
		t.Fatal(err)
	}
	buffer := make([]byte, maxDatagram)
	n, err := conn.Read(buffer)
	if err != nil {
		t.Fatal(err)
	}
	number, rest, _ := bytes.Cut(buffer[:n], []byte(" "))
	source, _ = strconv.Atoi(string(number))
	return string(rest), source
}

func dialPacket(t testing.TB, host string, port uint16) net.Conn {
	t.Helper()
	conn, err := net.Dial("udp4", net.JoinHostPort(host, strconv.Itoa(int(port))))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { conn.Close() })
	return conn
}

// A client that is connected takes answers only from the address that it has
// asked.
func TestPacketsAreAnsweredFromWhereTheyWereSentTo(t *testing.T) {
	addr := publishPacket(t, newPorts(t, nil), echoPacket(t, 0))
	for _, host := range []string{"127.0.0.1", "127.0.0.2", "127.1.2.3"} {
		conn := dialPacket(t, host, addr.Port())
		for _, text := range []string{"one", "", string(make([]byte, 60_000))} {
			if got, _ := ask(t, conn, text); got != text {
				t.Errorf("%s: got %d bytes of %d", host, len(got), len(text))
			}
		}
	}
}

func TestEachClientHasASourceOfItsOwn(t *testing.T) {
	addr := publishPacket(t, newPorts(t, nil), echoPacket(t, 0))
	a, b := dialPacket(t, "127.0.0.1", addr.Port()), dialPacket(t, "127.0.0.1", addr.Port())
	_, first := ask(t, a, "1")
	_, second := ask(t, b, "2")
	_, again := ask(t, a, "3")
	if first == second || first != again {
		t.Errorf("the guest saw ports %d, %d and %d", first, second, again)
	}
}

func TestClientsOfAPortAreBounded(t *testing.T) {
	addr := publishPacket(t, newPorts(t, nil), echoPacket(t, 0))
	first := dialPacket(t, "127.0.0.1", addr.Port())
	_, before := ask(t, first, "x")
	for range maxClients {
		ask(t, dialPacket(t, "127.0.0.1", addr.Port()), "x")
	}
	if _, after := ask(t, first, "x"); after == before {
		t.Error("the client that was idle the longest was not forgotten")
	}
}

func TestGuestThatListensLater(t *testing.T) {
	free, err := net.ListenUDP("udp4", &net.UDPAddr{IP: net.IPv4(127, 0, 0, 1)})
	if err != nil {
		t.Fatal(err)
	}
	guest := free.LocalAddr().(*net.UDPAddr).Port
	free.Close()
	addr := publishPacket(t, newPorts(t, nil), uint16(guest))
	conn := dialPacket(t, "127.0.0.1", addr.Port())
	for range 3 {
		conn.Write([]byte("lost"))
		time.Sleep(10 * time.Millisecond)
	}
	echoPacket(t, guest)
	if got, _ := ask(t, conn, "heard"); got != "heard" {
		t.Errorf("got %q", got)
	}
}
