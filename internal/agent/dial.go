package agent

import (
	"bufio"
	"context"
	"fmt"
	"io"
	"net"
	"net/http"
	"strings"
	"sync"
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
	if !asksForStream(w, r) {
		return
	}
	guest, err := dialGuest(r)
	if err != nil {
		writeHTTPError(w, err)
		return
	}
	defer guest.Close()
	host, early, err := takeStream(w, "")
	if err != nil {
		return
	}
	defer host.Close()
	splice(host, early, guest)
}

// asksForStream tells whether r asks to upgrade, and answers it if it does not.
func asksForStream(w http.ResponseWriter, r *http.Request) bool {
	if strings.EqualFold(r.Header.Get("Upgrade"), streamProtocol) {
		return true
	}
	w.Header().Set("Upgrade", streamProtocol)
	writeHTTPError(w, httpErrorf(http.StatusUpgradeRequired, "ask to upgrade to %s", streamProtocol))
	return false
}

// takeStream answers a request with 101 and takes its connection over, of which a part may be in early
// already. address is told as that of what listens, unless it is empty. If it fails, nobody can be told.
func takeStream(w http.ResponseWriter, address string) (host net.Conn, early *bufio.Reader, err error) {
	host, buffered, err := http.NewResponseController(w).Hijack()
	if err != nil {
		writeHTTPError(w, httpErrorf(http.StatusHTTPVersionNotSupported, "take over the connection: %v", err))
		return nil, nil, err
	}
	if err := acceptUpgrade(host, address); err != nil {
		host.Close()
		return nil, nil, err
	}
	return host, buffered.Reader, nil
}

// endpoint is the network and the address that a request names.
func endpoint(r *http.Request) (network, address string, err error) {
	network, address = r.URL.Query().Get("network"), r.URL.Query().Get("address")
	switch network {
	case "tcp", "tcp4", "tcp6", "unix":
	default:
		return "", "", httpErrorf(http.StatusBadRequest, "network '%s' is neither tcp nor unix", network)
	}
	if address == "" || len(address) > maxPath {
		return "", "", httpErrorf(http.StatusBadRequest, "address '%s' is not one", address)
	}
	return network, address, nil
}

func dialGuest(r *http.Request) (net.Conn, error) {
	network, address, err := endpoint(r)
	if err != nil {
		return nil, err
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

func acceptUpgrade(host net.Conn, address string) error {
	// The server may have left a deadline on it.
	if err := host.SetDeadline(time.Time{}); err != nil {
		return err
	}
	if address != "" {
		address = addressHeader + ": " + printableHeader(address) + "\r\n"
	}
	_, err := fmt.Fprintf(host, "HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: %s\r\n%s\r\n", streamProtocol, address)
	return err
}

// splice carries bytes both ways until both have ended, or one fails.
func splice(host net.Conn, early *bufio.Reader, guest net.Conn) {
	done := make(chan struct{})
	go func() {
		defer close(done)
		carry(host, guest, copyToHost)
	}()
	// What the host sent together with its request is in the reader of the server.
	first := io.LimitReader(early, int64(early.Buffered()))
	if _, err := io.Copy(guest, first); err == nil {
		carry(guest, host, copyToGuest)
	} else {
		guest.Close()
	}
	<-done
}

// carry copies until from ends and then closes to for writing. On an error it closes both: the other
// direction must not wait for ever.
func carry(to, from net.Conn, copy func(to, from net.Conn) error) {
	if err := copy(to, from); err != nil {
		to.Close()
		from.Close()
		return
	}
	closeWrite(to)
}

// copyToHost copies in pieces as large as those of a command's output, for what is written to the port in each
// write costs an exit to the VMM.
func copyToHost(host, guest net.Conn) error {
	buffer := spliceBuffers.Get().(*[chunkSize]byte)
	defer spliceBuffers.Put(buffer)
	_, err := io.CopyBuffer(struct{ io.Writer }{host}, struct{ io.Reader }{guest}, buffer[:])
	return err
}

var spliceBuffers = sync.Pool{New: func() any { return new([chunkSize]byte) }}

// copyToGuest has a stream write what it holds by itself, without a buffer between.
func copyToGuest(guest, host net.Conn) error {
	c, ok := host.(*call)
	if !ok {
		_, err := io.Copy(guest, host)
		return err
	}
	_, err := c.reader.WriteTo(guest)
	return err
}

// closeWrite ends one direction, of a connection that can do that.
func closeWrite(conn net.Conn) {
	if half, ok := conn.(interface{ CloseWrite() error }); ok {
		half.CloseWrite()
		return
	}
	conn.Close()
}
