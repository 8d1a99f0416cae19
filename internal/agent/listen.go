package agent

import (
	"context"
	"errors"
	"io"
	"io/fs"
	"net"
	"net/http"
	"os"
	"sync"
	"time"

	"golang.org/x/sys/unix"
)

// addressHeader names where the agent listens for the host.
const addressHeader = "Vmsan-Address"

// maxKey bounds the name that the host gives a door, in bytes.
const maxKey = 64

// door is where the guest's programs connect to be led to the host. It is there for as long as the stream
// that asked for it.
type door struct {
	listener net.Listener
	accepted chan net.Conn
	closed   chan struct{}

	mu    sync.Mutex
	conns map[net.Conn]struct{} // what came through; nil when it is closed
}

// doors are those that are open, by the names that the host gave them.
type doors struct {
	mu   sync.Mutex
	open map[string]*door
}

func (d *doors) find(key string) *door {
	d.mu.Lock()
	defer d.mu.Unlock()
	return d.open[key]
}

// add puts a door where find finds it.
func (d *doors) add(key string, new *door) error {
	d.mu.Lock()
	defer d.mu.Unlock()
	switch {
	case d.open[key] != nil:
		return httpErrorf(http.StatusConflict, "the key is in use")
	case len(d.open) >= maxDoors:
		return httpErrorf(http.StatusTooManyRequests, "the host listens on %d ports and sockets already", maxDoors)
	}
	if d.open == nil {
		d.open = map[string]*door{}
	}
	d.open[key] = new
	return nil
}

func (d *doors) remove(key string) {
	d.mu.Lock()
	defer d.mu.Unlock()
	delete(d.open, key)
}

// serveListen listens in the guest for the host:
//
//	GET /vmsan/listen?network=tcp&address=127.0.0.1:80&key=KEY
//	Connection: Upgrade
//	Upgrade: vmsan-stream
//
// It answers 101 and where it listens, and goes on until the host ends that stream, which carries nothing. What
// connects is had by /vmsan/accept, and cut at the end. It answers 409 where something listens already.
func (a *Agent) serveListen(w http.ResponseWriter, r *http.Request) {
	if !asksForStream(w, r) {
		return
	}
	key := r.URL.Query().Get("key")
	d, err := a.openDoor(r.Context(), key, r)
	if err != nil {
		writeHTTPError(w, err)
		return
	}
	defer a.doors.remove(key)
	defer d.close()
	host, early, err := takeStream(w, d.listener.Addr().String())
	if err != nil {
		return
	}
	defer host.Close()
	go d.accept(a)
	// Whatever ends it, the host is gone.
	_, _ = io.Copy(io.Discard, early)
}

func (a *Agent) openDoor(ctx context.Context, key string, r *http.Request) (*door, error) {
	network, address, err := endpoint(r)
	if err != nil {
		return nil, err
	}
	if key == "" || len(key) > maxKey {
		return nil, httpErrorf(http.StatusBadRequest, "the key has %d bytes; there may be 1 to %d", len(key), maxKey)
	}
	listener, err := listenGuest(ctx, network, address)
	if err != nil {
		return nil, err
	}
	d := &door{listener: listener, accepted: make(chan net.Conn), closed: make(chan struct{}), conns: map[net.Conn]struct{}{}}
	if err := a.doors.add(key, d); err != nil {
		listener.Close()
		return nil, err
	}
	return d, nil
}

func listenGuest(ctx context.Context, network, address string) (net.Listener, error) {
	var config net.ListenConfig
	listener, err := config.Listen(ctx, network, address)
	switch {
	case errors.Is(err, unix.EADDRINUSE):
		return nil, httpErrorf(http.StatusConflict, "%v", err)
	case err != nil:
		return nil, httpErrorf(http.StatusBadGateway, "%v", err)
	}
	if network == "unix" {
		// Like a port, it is for all users of the guest.
		if err := os.Chmod(address, 0o666); err != nil && !errors.Is(err, fs.ErrNotExist) {
			listener.Close()
			return nil, httpErrorf(http.StatusBadGateway, "%v", err)
		}
	}
	return listener, nil
}

// accept hands connections to who asks for them, and holds no more than one for whom nobody has asked: others wait
// in the kernel.
func (d *door) accept(a *Agent) {
	for {
		conn, err := d.listener.Accept()
		if errors.Is(err, net.ErrClosed) {
			return
		}
		if err != nil {
			a.config.Logger.Warn("accept a connection for the host", "at", d.listener.Addr(), "error", err)
			select {
			case <-d.closed:
				return
			case <-time.After(acceptPause):
			}
			continue
		}
		select {
		case d.accepted <- conn:
		case <-d.closed:
			cut(conn)
			return
		}
	}
}

// hold has conn cut when the door is closed, and tells whether it is open.
func (d *door) hold(conn net.Conn) bool {
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.conns == nil {
		cut(conn)
		return false
	}
	d.conns[conn] = struct{}{}
	return true
}

func (d *door) release(conn net.Conn) {
	d.mu.Lock()
	defer d.mu.Unlock()
	delete(d.conns, conn)
}

func (d *door) close() {
	close(d.closed)
	d.listener.Close()
	d.mu.Lock()
	defer d.mu.Unlock()
	for conn := range d.conns {
		cut(conn)
	}
	d.conns = nil
}

// cut closes a connection so that its other end does not take it for a proper end.
func cut(conn net.Conn) {
	if tcp, ok := conn.(*net.TCPConn); ok {
		tcp.SetLinger(0)
	}
	conn.Close()
}

// serveAccept waits for a connection to a door and joins it to the host:
//
//	GET /vmsan/accept?key=KEY
//	Connection: Upgrade
//	Upgrade: vmsan-stream
//
// It answers 101 when there is one, and 410 when the door is closed.
func (a *Agent) serveAccept(w http.ResponseWriter, r *http.Request) {
	if !asksForStream(w, r) {
		return
	}
	d := a.doors.find(r.URL.Query().Get("key"))
	if d == nil {
		writeHTTPError(w, httpErrorf(http.StatusGone, "nothing listens"))
		return
	}
	var guest net.Conn
	select {
	case guest = <-d.accepted:
	case <-r.Context().Done():
		return
	case <-d.closed:
		writeHTTPError(w, httpErrorf(http.StatusGone, "nothing listens any more"))
		return
	}
	defer guest.Close()
	if !d.hold(guest) {
		writeHTTPError(w, httpErrorf(http.StatusGone, "nothing listens any more"))
		return
	}
	defer d.release(guest)
	host, early, err := takeStream(w, "")
	if err != nil {
		cut(guest)
		return
	}
	defer host.Close()
	splice(host, early, guest)
}
