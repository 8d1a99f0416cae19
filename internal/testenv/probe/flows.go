package probe

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"os"
	"strconv"
	"sync"
	"time"
)

// beat is how often a connection that is held is used.
const beat = 50 * time.Millisecond

// hold fails if the connection does before the time has passed, or if nothing
// came back at its end.
func hold(ctx context.Context, conn net.Conn) (string, error) {
	last := time.Now()
	for n := 0; ; n++ {
		_, err := echo(conn, []byte("still"))
		over := ctx.Err() != nil || errors.Is(err, os.ErrDeadlineExceeded)
		switch {
		case over && time.Since(last) < 2*patience:
			return fmt.Sprintf("%d echoes", n), nil
		case over:
			return "", fmt.Errorf("after %d echoes there was silence", n)
		case err != nil:
			return "", fmt.Errorf("after %d echoes: %w", n, err)
		}
		last = time.Now()
		time.Sleep(beat)
	}
}

// floods is how many are at it at once.
const floods = 4

// flood begins one flow after the other, each at another port.
func flood(ctx context.Context, to netip.AddrPort) (string, error) {
	var flooding sync.WaitGroup
	var counts [floods]int
	for i := range floods {
		flooding.Go(func() {
			for port := int(to.Port()) + i; ctx.Err() == nil; port += floods {
				begin(ctx, netip.AddrPortFrom(to.Addr(), uint16(port)))
				counts[i]++
			}
		})
	}
	flooding.Wait()
	sum := 0
	for _, n := range counts {
		sum += n
	}
	return fmt.Sprintf("%d flows begun", sum), nil
}

func begin(ctx context.Context, to netip.AddrPort) {
	short := &net.Dialer{Timeout: beat}
	for _, network := range []string{"udp4", "tcp4"} {
		if conn, err := short.DialContext(ctx, network, to.String()); err == nil {
			conn.Write([]byte("hello"))
			conn.Close()
		}
	}
}

// warmUp is left out of a measurement: what buffers take, and a shaper lets
// through at once.
const warmUp = 2 * time.Second

// rate counts what copy moves, until the connection's deadline.
func rate(ctx context.Context, copy func([]byte) (int, error)) (string, error) {
	buffer := make([]byte, 64<<10)
	warm := time.Now().Add(warmUp)
	var began, last time.Time
	moved := 0
	for ctx.Err() == nil {
		n, err := copy(buffer)
		now := time.Now()
		if began.IsZero() && now.After(warm) {
			began, n = now, 0
		}
		if !began.IsZero() {
			moved, last = moved+n, now
		}
		if errors.Is(err, os.ErrDeadlineExceeded) {
			break
		}
		if err != nil {
			return "", err
		}
	}
	if moved == 0 {
		return "", errors.New("nothing was moved")
	}
	return strconv.FormatInt(int64(float64(moved*8)/last.Sub(began).Seconds()), 10), nil
}

// endless is longer than any measurement.
const endless = 1 << 40

func download(ctx context.Context, conn net.Conn) (string, error) {
	if _, err := fmt.Fprintf(conn, "GET /bytes/%d HTTP/1.1\r\nHost: lab\r\n\r\n", endless); err != nil {
		return "", err
	}
	if _, err := io.ReadFull(conn, make([]byte, 512)); err != nil {
		return "", err
	}
	return rate(ctx, conn.Read)
}

func upload(ctx context.Context, conn net.Conn) (string, error) {
	if _, err := fmt.Fprintf(conn, "POST /sink HTTP/1.1\r\nHost: lab\r\nContent-Length: %d\r\n\r\n", endless); err != nil {
		return "", err
	}
	// What waits in a large buffer would count as sent.
	if err := conn.(*net.TCPConn).SetWriteBuffer(64 << 10); err != nil {
		return "", err
	}
	return rate(ctx, conn.Write)
}
