package agent

import (
	"bufio"
	"context"
	"fmt"
	"io"
	"net"
	"net/http"
	"strings"
	"time"
)

// streamProtocol is what a dial request asks to upgrade to: bytes as they are, both ways.
const streamProtocol = "vmsan-stream"

// serveDial connects the host to a port or socket in the guest:
//
//	GET /vmsan/dial?network=tcp&address=127.0.0.1:80
//	Connection: Upgrade
//	Upgrade: vmsan-stream
//
// It answers 101 once connected, 502 if nothing listens. The end of one direction is passed on as such.
func (a *Agent) serveDial(w http.ResponseWriter, r *http.Request) {
	if !strings.EqualFold(r.Header.Get("Upgrade"), streamProtocol) {
		w.Header().Set("Upgrade", streamProtocol)
		writeHTTPError(w, httpErrorf(http.StatusUpgradeRequired, "ask to upgrade to %s", streamProtocol))
		return
	}
	guest, err := dialGuest(r)
	if err != nil {
		writeHTTPError(w, err)
		return
	}
	defer guest.Close()
	host, buffered, err := http.NewResponseController(w).Hijack()
	if err != nil {
		writeHTTPError(w, httpErrorf(http.StatusHTTPVersionNotSupported, "take over the connection: %v", err))
		return
	}
	defer host.Close()
	if err := acceptUpgrade(host); err != nil {
		return
	}
	splice(host, buffered.Reader, guest)
}

func dialGuest(r *http.Request) (net.Conn, error) {
	network, address := r.URL.Query().Get("network"), r.URL.Query().Get("address")
	switch network {
	case "tcp", "tcp4", "tcp6", "unix":
	default:
		return nil, httpErrorf(http.StatusBadRequest, "network '%s' is neither tcp nor unix", network)
	}
	if address == "" || len(address) > maxPath {
		return nil, httpErrorf(http.StatusBadRequest, "address '%s' is not one", address)
	}
	ctx, cancel := context.WithTimeout(r.Context(), dialTimeout)
	defer cancel()
	var dialer net.Dialer
	conn, err := dialer.DialContext(ctx, network, address)
	if err != nil {
		return nil, httpErrorf(http.StatusBadGateway, "%v", err)
	}
	return conn, nil
}

func acceptUpgrade(host net.Conn) error {
	// The server may have left a deadline on it.
	if err := host.SetDeadline(time.Time{}); err != nil {
		return err
	}
	_, err := fmt.Fprintf(host, "HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: %s\r\n\r\n", streamProtocol)
	return err
}

// splice carries bytes both ways until both have ended, or one fails.
func splice(host net.Conn, early *bufio.Reader, guest net.Conn) {
	done := make(chan struct{})
	go func() {
		defer close(done)
		carry(host, guest)
	}()
	// What the host sent together with its request is in the reader of the server.
	first := io.LimitReader(early, int64(early.Buffered()))
	if _, err := io.Copy(guest, first); err == nil {
		carry(guest, host)
	} else {
		guest.Close()
	}
	<-done
}

// carry copies until from ends and then closes to for writing. On an error it closes both: the other
// direction must not wait for ever.
func carry(to, from net.Conn) {
	if _, err := io.Copy(to, from); err != nil {
		to.Close()
		from.Close()
		return
	}
	closeWrite(to)
}

// closeWrite ends one direction, of a connection that can do that.
func closeWrite(conn net.Conn) {
	if half, ok := conn.(interface{ CloseWrite() error }); ok {
		half.CloseWrite()
		return
	}
	conn.Close()
}
