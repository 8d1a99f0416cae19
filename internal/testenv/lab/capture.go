package lab

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"maps"
	"net"
	"net/netip"
	"os"
	"sync"
	"sync/atomic"
	"time"

	"golang.org/x/net/bpf"
	"golang.org/x/sys/unix"
)

// Flow is packets of one kind that left the host by its uplink.
type Flow struct {
	From, To netip.Addr
	Protocol string // tcp, udp, icmp, icmp6 or a number
	Port     uint16 // at To; 0 if there is none to be seen
	Fragment bool
}

func (f Flow) String() string {
	text := fmt.Sprintf("%s to %s, %s", f.From, f.To, f.Protocol)
	if f.Port != 0 {
		text += fmt.Sprintf(" port %d", f.Port)
	}
	if f.Fragment {
		text += ", fragment"
	}
	return text
}

// Capture counts the packets that leave the host by its uplink.
type Capture struct {
	lab    *Lab
	socket *os.File
	done   sync.WaitGroup

	mu     sync.Mutex
	counts map[Flow]int
	marks  map[uint64]chan struct{}
	missed uint32
}

// snap is how much of a packet is looked at: all headers of interest.
const snap = 128

// discardPort is where a capture's own marks go.
const discardPort = 9

var lastMark atomic.Uint64

// Watch starts a capture. It is to be closed.
func (l *Lab) Watch() (*Capture, error) {
	c := &Capture{lab: l, counts: map[Flow]int{}, marks: map[uint64]chan struct{}{}}
	err := l.Host.Do(func() (err error) {
		c.socket, err = packetSocket(UplinkName)
		return err
	})
	if err != nil {
		return nil, fmt.Errorf("capture on %s: %w", UplinkName, err)
	}
	c.done.Go(c.read)
	return c, nil
}

// Close ends the capture.
func (c *Capture) Close() error {
	err := c.socket.Close()
	c.done.Wait()
	return err
}

// packetSocket receives the network layer of packets that leave by a link.
func packetSocket(name string) (*os.File, error) {
	link, err := net.InterfaceByName(name)
	if err != nil {
		return nil, err
	}
	fd, err := unix.Socket(unix.AF_PACKET, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC|unix.SOCK_NONBLOCK, 0)
	if err != nil {
		return nil, err
	}
	socket := os.NewFile(uintptr(fd), "capture on "+name)
	if err := prepare(fd, link.Index); err != nil {
		socket.Close()
		return nil, err
	}
	return socket, nil
}

func prepare(fd, link int) error {
	program, err := bpf.Assemble([]bpf.Instruction{
		bpf.LoadExtension{Num: bpf.ExtType},
		bpf.JumpIf{Cond: bpf.JumpNotEqual, Val: unix.PACKET_OUTGOING, SkipTrue: 1},
		bpf.RetConstant{Val: snap},
		bpf.RetConstant{Val: 0},
	})
	if err != nil {
		return err
	}
	filter := make([]unix.SockFilter, len(program))
	for i, in := range program {
		filter[i] = unix.SockFilter{Code: in.Op, Jt: in.Jt, Jf: in.Jf, K: in.K}
	}
	if err := unix.SetsockoptSockFprog(fd, unix.SOL_SOCKET, unix.SO_ATTACH_FILTER,
		&unix.SockFprog{Len: uint16(len(filter)), Filter: &filter[0]}); err != nil {
		return fmt.Errorf("attach filter: %w", err)
	}
	if err := unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_RCVBUFFORCE, 64<<20); err != nil {
		return fmt.Errorf("enlarge buffer: %w", err)
	}
	// Only now do packets come.
	return unix.Bind(fd, &unix.SockaddrLinklayer{Protocol: bigEndian(unix.ETH_P_ALL), Ifindex: link})
}

func bigEndian(n uint16) uint16 {
	return binary.NativeEndian.Uint16(binary.BigEndian.AppendUint16(nil, n))
}

func (c *Capture) read() {
	raw, err := c.socket.SyscallConn()
	if err != nil {
		return
	}
	packet := make([]byte, snap)
	for {
		var n int
		var from unix.Sockaddr
		var failure error
		err := raw.Read(func(fd uintptr) bool {
			n, from, failure = unix.Recvfrom(int(fd), packet, 0)
			return !errors.Is(failure, unix.EAGAIN)
		})
		if err != nil {
			return // closed
		}
		if link, ok := from.(*unix.SockaddrLinklayer); ok && failure == nil {
			c.note(link.Protocol, packet[:n])
		}
	}
}

func (c *Capture) note(protocol uint16, packet []byte) {
	var flow Flow
	var payload []byte
	var ok bool
	switch protocol {
	case bigEndian(unix.ETH_P_IP):
		flow, payload, ok = parse4(packet)
	case bigEndian(unix.ETH_P_IPV6):
		flow, payload, ok = parse6(packet)
		if ok && ownChatter(flow, payload) {
			return
		}
	case bigEndian(unix.ETH_P_ARP):
		return
	}
	if !ok {
		flow = Flow{Protocol: fmt.Sprintf("of type %#04x, with %d bytes", bigEndian(protocol), len(packet))}
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	if flow.To == Gateway && flow.Protocol == "udp" && flow.Port == discardPort && len(payload) >= 16 {
		mark := binary.BigEndian.Uint64(payload[8:])
		if seen := c.marks[mark]; seen != nil {
			close(seen)
			delete(c.marks, mark)
		}
		return
	}
	c.counts[flow]++
}

// parse4 reads an IPv4 packet and returns what is behind its header.
func parse4(packet []byte) (flow Flow, payload []byte, ok bool) {
	if len(packet) < 20 {
		return flow, nil, false
	}
	length := int(packet[0]&15) * 4
	if length < 20 || len(packet) < length {
		return flow, nil, false
	}
	const more, offset = 0x2000, 0x1fff
	fragment := binary.BigEndian.Uint16(packet[6:])
	flow = Flow{
		From: netip.AddrFrom4([4]byte(packet[12:])), To: netip.AddrFrom4([4]byte(packet[16:])),
		Protocol: protocolName(packet[9]), Fragment: fragment&(more|offset) != 0,
	}
	if fragment&offset == 0 {
		flow.Port = port(flow.Protocol, packet[length:])
	}
	return flow, packet[length:], true
}

// parse6 reads an IPv6 packet without the headers that may extend its first.
func parse6(packet []byte) (flow Flow, payload []byte, ok bool) {
	if len(packet) < 40 {
		return flow, nil, false
	}
	flow = Flow{
		From: netip.AddrFrom16([16]byte(packet[8:])), To: netip.AddrFrom16([16]byte(packet[24:])),
		Protocol: protocolName(packet[6]),
	}
	flow.Port = port(flow.Protocol, packet[40:])
	return flow, packet[40:], true
}

// ownChatter tells what a host says for itself as soon as a link is up:
// listener reports, behind the option for routers that they have, and
// neighbour discovery.
func ownChatter(flow Flow, payload []byte) bool {
	const hopByHop, firstDiscovery, lastDiscovery = "0", 133, 136
	if flow.Protocol == hopByHop && flow.To.IsMulticast() {
		return true
	}
	return flow.Protocol == "icmp6" && len(payload) > 0 && payload[0] >= firstDiscovery && payload[0] <= lastDiscovery
}

func protocolName(number byte) string {
	switch number {
	case unix.IPPROTO_TCP:
		return "tcp"
	case unix.IPPROTO_UDP:
		return "udp"
	case unix.IPPROTO_ICMP:
		return "icmp"
	case unix.IPPROTO_ICMPV6:
		return "icmp6"
	}
	return fmt.Sprint(number)
}

func port(protocol string, header []byte) uint16 {
	if protocol != "tcp" && protocol != "udp" || len(header) < 4 {
		return 0
	}
	return binary.BigEndian.Uint16(header[2:])
}

// settle bounds how long a packet takes from one end of the host to the
// other.
const settle = 10 * time.Second

// Flows returns how many packets of each kind have left so far, all that was
// sent before this call included.
func (c *Capture) Flows() (map[Flow]int, error) {
	if err := c.mark(); err != nil {
		return nil, err
	}
	statistics, err := c.statistics()
	if err != nil {
		return nil, err
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.missed += statistics.Drops; c.missed > 0 {
		return nil, fmt.Errorf("the capture missed %d packets", c.missed)
	}
	return maps.Clone(c.counts), nil
}

// statistics are those since they were asked for last.
func (c *Capture) statistics() (statistics *unix.TpacketStats, err error) {
	raw, err := c.socket.SyscallConn()
	if err != nil {
		return nil, err
	}
	if failure := raw.Control(func(fd uintptr) {
		statistics, err = unix.GetsockoptTpacketStats(int(fd), unix.SOL_PACKET, unix.PACKET_STATISTICS)
	}); failure != nil {
		return nil, failure
	}
	return statistics, err
}

// mark sends a packet and waits until the capture has come to it.
func (c *Capture) mark() error {
	mark, seen := lastMark.Add(1), make(chan struct{})
	c.mu.Lock()
	c.marks[mark] = seen
	c.mu.Unlock()
	ctx, cancel := context.WithTimeout(context.Background(), settle)
	defer cancel()
	conn, err := c.lab.Host.Dial(ctx, "udp4", netip.AddrPortFrom(Gateway, discardPort))
	if err != nil {
		return err
	}
	defer conn.Close()
	if _, err := conn.Write(binary.BigEndian.AppendUint64(nil, mark)); err != nil {
		return err
	}
	select {
	case <-seen:
		return nil
	case <-ctx.Done():
		return errors.New("the capture does not see what leaves")
	}
}
