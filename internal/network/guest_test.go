package network

import (
	"encoding/binary"
	"errors"
	"net"
	"net/netip"
	"os"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/vmsan/vmsan/internal/testenv/lab"
	"github.com/vmsan/vmsan/internal/testenv/probe"
)

// fakeGuest is at the tap of a network, in the place of a machine.
type fakeGuest struct {
	t      testing.TB
	tap    *os.File
	frames chan []byte // what comes, but for questions that it answers
}

// vnetHeader goes before each frame: struct virtio_net_hdr, and all of it 0.
const vnetHeader = 10

func newGuest(t testing.TB, n *Network) *fakeGuest {
	t.Helper()
	fd, err := unix.FcntlInt(n.Tap().Fd(), unix.F_DUPFD_CLOEXEC, 0)
	if err == nil {
		err = unix.SetNonblock(fd, true)
	}
	if err != nil {
		t.Fatal(err)
	}
	g := &fakeGuest{t: t, tap: os.NewFile(uintptr(fd), "tap"), frames: make(chan []byte, 256)}
	go g.read()
	t.Cleanup(func() {
		g.tap.Close()
		for range g.frames { // until read has ended
		}
	})
	return g
}

// read answers ARP as a guest does. It ends with the tap's file.
func (g *fakeGuest) read() {
	defer close(g.frames)
	buffer := make([]byte, 1<<16)
	for {
		n, err := g.tap.Read(buffer)
		if err != nil {
			return
		}
		frame := append([]byte(nil), buffer[vnetHeader:n]...)
		if len(frame) >= 42 && isARP(frame, 1) && netip.AddrFrom4([4]byte(frame[38:])) == Guest.Addr() {
			g.send(arp(2, GuestMAC, Guest.Addr(), Gateway.Addr()))
			continue
		}
		select {
		case g.frames <- frame:
		default: // nobody listens
		}
	}
}

func (g *fakeGuest) send(frame []byte) {
	if _, err := g.tap.Write(append(make([]byte, vnetHeader), frame...)); err != nil && !errors.Is(err, os.ErrClosed) {
		g.t.Errorf("send frame: %v", err)
	}
}

// await waits for a frame.
func (g *fakeGuest) await(what string, wanted func(frame []byte) bool) {
	g.t.Helper()
	for deadline := time.After(5 * time.Second); ; {
		select {
		case frame := <-g.frames:
			if wanted(frame) {
				return
			}
		case <-deadline:
			g.t.Fatalf("the guest waited in vain for %s", what)
		}
	}
}

// echo sends a datagram and waits for its echo. When that comes, what was sent
// before has been dealt with.
func (g *fakeGuest) echo(to netip.Addr) {
	g.t.Helper()
	g.send(packet(Guest.Addr(), to, unix.IPPROTO_UDP, udp(lab.EchoPort)))
	g.await("an echo from "+to.String(), from(to, unix.IPPROTO_UDP))
}

func from(source netip.Addr, protocol byte) func([]byte) bool {
	return func(frame []byte) bool {
		return len(frame) >= 34 && binary.BigEndian.Uint16(frame[12:]) == unix.ETH_P_IP &&
			frame[23] == protocol && netip.AddrFrom4([4]byte(frame[26:])) == source
	}
}

func isARP(frame []byte, operation uint16) bool {
	return binary.BigEndian.Uint16(frame[12:]) == unix.ETH_P_ARP && binary.BigEndian.Uint16(frame[20:]) == operation
}

func ethernet(source net.HardwareAddr, kind uint16, payload []byte) []byte {
	frame := append(append([]byte(nil), GatewayMAC...), source...)
	return append(binary.BigEndian.AppendUint16(frame, kind), payload...)
}

// arp is a request (1) or an answer (2).
func arp(operation byte, mac net.HardwareAddr, sender, target netip.Addr) []byte {
	message := append([]byte{0, 1, 8, 0, 6, 4, 0, operation}, mac...)
	message = append(append(message, sender.AsSlice()...), GatewayMAC...)
	return ethernet(mac, unix.ETH_P_ARP, append(message, target.AsSlice()...))
}

// packet is one of IPv4 in a frame from the guest's hardware address.
func packet(source, to netip.Addr, protocol byte, payload []byte) []byte {
	header := []byte{0x45, 0, 0, byte(20 + len(payload)), 0, 0, 0, 0, 64, protocol, 0, 0}
	header = append(append(header, source.AsSlice()...), to.AsSlice()...)
	binary.BigEndian.PutUint16(header[10:], probe.Checksum(header))
	return ethernet(GuestMAC, unix.ETH_P_IP, append(header, payload...))
}

// guestPort is where the guest's datagrams come from.
const guestPort = 40000

func udp(port uint16) []byte {
	datagram := binary.BigEndian.AppendUint16(nil, guestPort)
	datagram = binary.BigEndian.AppendUint16(datagram, port)
	return append(datagram, 0, 12, 0, 0, 'e', 'c', 'h', 'o') // length, no checksum, data
}

func ping() []byte {
	message := []byte{8, 0, 0, 0, 0, 1, 0, 1}
	binary.BigEndian.PutUint16(message[2:], probe.Checksum(message))
	return message
}
