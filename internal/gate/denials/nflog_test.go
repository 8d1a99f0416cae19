package denials

import (
	"bytes"
	"encoding/binary"
	"io"
	"net/netip"
	"slices"
	"testing"
	"testing/iotest"

	"golang.org/x/sys/unix"

	"github.com/vmsan/vmsan/api"
)

// attribute is a netlink attribute, padded.
func attribute(kind uint16, value []byte) []byte {
	b := binary.NativeEndian.AppendUint16(nil, uint16(rtAttrSize+len(value)))
	b = binary.NativeEndian.AppendUint16(b, kind)
	b = append(b, value...)
	return append(b, make([]byte, align(len(b))-len(b))...)
}

// message is what the kernel sends of a packet.
func message(prefix string, payload []byte) []byte {
	const header = 1 // NFULA_PACKET_HDR
	body := slices.Concat(
		[]byte{unix.AF_INET, 0, 0, 1},
		attribute(header, []byte{8, 0, 2, 0}),
		attribute(nfulaPrefix, append([]byte(prefix), 0)),
		attribute(nfulaPayload, payload),
	)
	b := binary.NativeEndian.AppendUint32(nil, uint32(unix.SizeofNlMsghdr+len(body)))
	b = binary.NativeEndian.AppendUint16(b, unix.NFNL_SUBSYS_ULOG<<8|nfulnlMsgPacket)
	b = append(b, make([]byte, 10)...)
	return append(b, body...)
}

// ip is the beginning of an IPv4 packet.
func ip(protocol byte, to string, rest ...byte) []byte {
	b := []byte{0x45, 0, 0, 60, 0, 0, 0x40, 0, 64, protocol, 0, 0, 192, 0, 0, 2}
	return append(append(b, netip.MustParseAddr(to).AsSlice()...), rest...)
}

var (
	toTCP443 = ip(unix.IPPROTO_TCP, "203.0.113.9", 0x80, 0, 443>>8, 443&0xff, 0, 0)
	toUDP53  = ip(unix.IPPROTO_UDP, "203.0.113.9", 0x80, 0, 0, 53)
)

func TestEventOfAPacket(t *testing.T) {
	fragment := slices.Clone(toUDP53)
	fragment[7] = 1
	withOptions := slices.Concat(toUDP53[:20], make([]byte, 8), toUDP53[20:])
	withOptions[0] = 0x47
	for name, c := range map[string]struct {
		prefix  string
		payload []byte
		want    api.NetworkEvent
	}{
		"tcp": {"policy ", toTCP443, api.NetworkEvent{
			Protocol: "tcp", Port: 443, Rule: "policy", Hint: "--allowed-cidr 203.0.113.9/32:443/tcp"}},
		"udp": {"udp", toUDP53, api.NetworkEvent{
			Protocol: "udp", Port: 53, Rule: "udp", Hint: "--allowed-cidr 203.0.113.9/32:53/udp"}},
		"options": {"policy", withOptions, api.NetworkEvent{
			Protocol: "udp", Port: 53, Rule: "policy", Hint: "--allowed-cidr 203.0.113.9/32:53/udp"}},
		"icmp": {"policy", ip(unix.IPPROTO_ICMP, "203.0.113.9", 8, 0, 1, 1), api.NetworkEvent{
			Protocol: "icmp", Rule: "policy", Hint: "--allowed-cidr 203.0.113.9/32"}},
		"a denied range has no flag that allows it": {"denied-cidr", toTCP443, api.NetworkEvent{
			Protocol: "tcp", Port: 443, Rule: "denied-cidr"}},
		"another protocol": {"policy", ip(47, "203.0.113.9"), api.NetworkEvent{
			Protocol: "47", Rule: "policy"}},
		"a fragment has no port": {"policy", fragment, api.NetworkEvent{
			Protocol: "udp", Rule: "policy"}},
		"cut within the ports": {"policy", toTCP443[:23], api.NetworkEvent{
			Protocol: "tcp", Rule: "policy"}},
	} {
		t.Run(name, func(t *testing.T) {
			packets, err := parseDatagram(message(c.prefix, c.payload))
			if err != nil || len(packets) != 1 {
				t.Fatalf("got %v, %v", packets, err)
			}
			c.want.Verdict, c.want.Kind, c.want.Name = api.VerdictDenied, api.EventFlow, "a.example"
			c.want.Destination = netip.MustParseAddr("203.0.113.9")
			if got := packets[0].event(names); got != c.want {
				t.Errorf("got %+v, want %+v", got, c.want)
			}
		})
	}
}

func names(addr netip.Addr) []string {
	if addr == netip.MustParseAddr("203.0.113.9") {
		return []string{"a.example", "b.example"}
	}
	return nil
}

func TestPacketThatIsNotIPv4StillHasAReason(t *testing.T) {
	for _, payload := range [][]byte{nil, {0x45}, toTCP443[:19], append([]byte{0x60}, make([]byte, 40)...)} {
		packets, err := parseDatagram(message("spoofed", payload))
		want := api.NetworkEvent{Verdict: api.VerdictDenied, Kind: api.EventFlow, Rule: "spoofed"}
		if err != nil || len(packets) != 1 || packets[0].event(names) != want {
			t.Errorf("% x: got %+v, %v", payload, packets, err)
		}
	}
}

func TestSeveralMessagesInADatagram(t *testing.T) {
	done := make([]byte, 20) // NLMSG_DONE
	binary.NativeEndian.PutUint32(done, 20)
	done[4] = unix.NLMSG_DONE
	datagram := slices.Concat(message("one", toTCP443), message("two!", toUDP53), done)
	packets, err := parseDatagram(datagram)
	if err != nil || len(packets) != 2 || packets[0].prefix != "one" || packets[1].prefix != "two!" {
		t.Errorf("got %+v, %v", packets, err)
	}
	// What is whole before the garbage counts.
	packets, err = parseDatagram(append(datagram, 1, 2, 3))
	if err == nil || len(packets) != 2 {
		t.Errorf("with garbage behind: got %+v, %v", packets, err)
	}
}

// datagrams are read one at a time, as from a netlink socket.
type datagrams [][]byte

func (d *datagrams) Read(b []byte) (int, error) {
	if len(*d) == 0 {
		return 0, io.EOF
	}
	n := copy(b, (*d)[0])
	*d = (*d)[1:]
	return n, nil
}

func TestWatchGoesOnAfterWhatItCannotRead(t *testing.T) {
	var p page
	l := New(&p, nil)
	lost := iotest.ErrReader(unix.EIO)
	socket := io.MultiReader(&datagrams{message("policy", toTCP443), []byte("garbage"), message("policy", toUDP53)}, lost)
	if err := l.Watch(socket, names); err == nil {
		t.Error("a broken socket is no error")
	}
	l.Close()
	events := p.events(t)
	if len(events) != 2 || events[0].Port != 443 || events[1].Port != 53 {
		t.Errorf("got %+v", events)
	}
}

func FuzzParseDatagram(f *testing.F) {
	f.Add(message("policy", toTCP443))
	f.Add(append(message("private", toUDP53), message("", nil)...))
	f.Add(message("policy", toTCP443)[:50])
	f.Add(bytes.Repeat([]byte{0xff}, 40))
	f.Fuzz(func(t *testing.T, b []byte) {
		packets, _ := parseDatagram(b)
		if len(packets) > len(b)/unix.SizeofNlMsghdr {
			t.Errorf("%d packets in %d bytes", len(packets), len(b))
		}
		for _, p := range packets {
			p.event(names)
		}
	})
}
