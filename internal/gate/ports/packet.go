package ports

import (
	"container/list"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"sync"
	"time"

	"golang.org/x/net/ipv4"
	"golang.org/x/sys/unix"

	"github.com/vmsan/vmsan/internal/policy"
)

// A UDP port has maxClients at once, of which each has a socket of its own to
// the guest: when there are more, the one that was idle the longest is
// forgotten. All that are idle for clientIdle are.
const (
	maxClients = 512
	clientIdle = time.Minute
)

// readPause is how long nothing is read after that has failed.
const readPause = 100 * time.Millisecond

// maxDatagram is the longest of UDP.
const maxDatagram = 64 << 10

var datagrams = sync.Pool{New: func() any { return new([maxDatagram]byte) }}

// path is where a client's datagrams come from, and which of the host's
// addresses they were sent to, from which it expects the answer.
type path struct {
	client netip.AddrPort
	host   netip.Addr
}

// packetPort is a published UDP port.
type packetPort struct {
	ports *Ports
	conn  *net.UDPConn
	to    policy.Publication

	mu      sync.Mutex
	clients map[path]*list.Element
	recent  list.List // of *client, the most recent first
}

// client is the guest's side of one.
type client struct {
	path
	guest *net.UDPConn
}

// ServePacket carries datagrams between conn's clients and where to leads,
// until it is closed.
func (p *Ports) ServePacket(conn *net.UDPConn, to policy.Publication) error {
	if !p.server.Hold(conn) {
		return nil
	}
	defer p.server.Release(conn)
	if err := ipv4.NewPacketConn(conn).SetControlMessage(ipv4.FlagDst, true); err != nil {
		return fmt.Errorf("learn addresses of %s: %w", to, err)
	}
	port := &packetPort{ports: p, conn: conn, to: to, clients: map[path]*list.Element{}}
	defer port.forgetAll()
	return port.serve()
}

func (p *packetPort) serve() error {
	buffer, control := make([]byte, maxDatagram), ipv4.NewControlMessage(ipv4.FlagDst)
	for {
		n, size, _, from, err := p.conn.ReadMsgUDPAddrPort(buffer, control)
		switch {
		case errors.Is(err, net.ErrClosed):
			return nil
		case err != nil:
			time.Sleep(readPause)
			continue
		}
		c, err := p.client(path{from, sentTo(control[:size])})
		if err != nil {
			p.ports.Log.Debug("published port", "port", p.to, "error", err)
			continue
		}
		// A guest that does not listen is not there: UDP has no other word.
		c.guest.Write(buffer[:n])
	}
}

func sentTo(control []byte) netip.Addr {
	var cm ipv4.ControlMessage
	if cm.Parse(control) != nil {
		return netip.Addr{}
	}
	addr, _ := netip.AddrFromSlice(cm.Dst.To4())
	return addr
}

// client returns the one on that path, and notes that it is not idle.
func (p *packetPort) client(at path) (*client, error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if element := p.clients[at]; element != nil {
		c := element.Value.(*client)
		p.touch(element)
		return c, nil
	}
	conn, err := p.ports.dial(p.to)
	if err != nil {
		return nil, err
	}
	guest, ok := conn.(*net.UDPConn)
	if !ok {
		conn.Close()
		return nil, fmt.Errorf("%T is no socket of UDP", conn)
	}
	if !p.ports.server.Hold(guest) {
		return nil, net.ErrClosed
	}
	if len(p.clients) >= maxClients {
		p.drop(p.recent.Back())
	}
	element := p.recent.PushFront(&client{at, guest})
	p.clients[at] = element
	p.touch(element)
	go p.answer(element)
	return element.Value.(*client), nil
}

func (p *packetPort) touch(element *list.Element) {
	p.recent.MoveToFront(element)
	element.Value.(*client).guest.SetReadDeadline(time.Now().Add(clientIdle))
}

// drop forgets a client, whose answer then ends.
func (p *packetPort) drop(element *list.Element) {
	c := element.Value.(*client)
	if p.clients[c.path] == element {
		p.recent.Remove(element)
		delete(p.clients, c.path)
	}
	c.guest.Close()
}

func (p *packetPort) forgetAll() {
	p.mu.Lock()
	defer p.mu.Unlock()
	for _, element := range p.clients {
		p.drop(element)
	}
}

// answer carries the guest's answers until the client was idle for too long.
func (p *packetPort) answer(element *list.Element) {
	c := element.Value.(*client)
	defer p.ports.server.Release(c.guest)
	for {
		err := p.answerOne(c)
		p.mu.Lock()
		if err == nil || errors.Is(err, unix.ECONNREFUSED) {
			// A guest that does not listen yet may do so later.
			if err == nil && p.clients[c.path] == element {
				p.touch(element)
			}
			p.mu.Unlock()
			continue
		}
		p.drop(element)
		p.mu.Unlock()
		return
	}
}

// answerOne waits without a buffer, since there are many who wait.
func (p *packetPort) answerOne(c *client) error {
	raw, err := c.guest.SyscallConn()
	if err != nil {
		return err
	}
	var failed error
	err = raw.Read(func(fd uintptr) bool {
		buffer := datagrams.Get().(*[maxDatagram]byte)
		defer datagrams.Put(buffer)
		n, err := unix.Read(int(fd), buffer[:])
		switch {
		case errors.Is(err, unix.EAGAIN), errors.Is(err, unix.EINTR):
			return false
		case err != nil:
			failed = err
			return true
		}
		p.conn.WriteMsgUDPAddrPort(buffer[:n], sentFrom(c.host), c.path.client)
		return true
	})
	return errors.Join(failed, err)
}

// sentFrom has a datagram sent from one of the host's addresses.
func sentFrom(host netip.Addr) []byte {
	if !host.Is4() {
		return nil
	}
	return (&ipv4.ControlMessage{Src: host.AsSlice()}).Marshal()
}
