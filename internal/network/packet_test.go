package network

import (
	"net"
	"net/netip"
	"os"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"github.com/vmsan/vmsan/internal/network/firewall"
	"github.com/vmsan/vmsan/internal/policy"
	"github.com/vmsan/vmsan/internal/testenv/lab"
)

// Addresses of the lab's internet.
var (
	one   = netip.MustParseAddr("203.0.113.10")
	other = netip.MustParseAddr("203.0.113.20")
)

func only(t testing.TB, cidrs ...string) policy.Policy {
	t.Helper()
	p := policy.Policy{Mode: policy.Custom}
	for _, text := range cidrs {
		c, err := policy.ParseCIDR(text)
		if err != nil {
			t.Fatal(err)
		}
		p.AllowedCIDRs = append(p.AllowedCIDRs, c)
	}
	return p
}

func closeNetwork(t testing.TB, n *Network) {
	if err := n.Close(); err != nil {
		t.Error(err)
	}
}

// watch counts what leaves the lab's host for an address.
func watch(t testing.TB, world *lab.Lab) (sentTo func(netip.Addr) int) {
	t.Helper()
	capture, err := world.Watch()
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { capture.Close() })
	return func(to netip.Addr) (n int) {
		flows, err := capture.Flows()
		if err != nil {
			t.Fatal(err)
		}
		for flow, count := range flows {
			if flow.To == to {
				n += count
			}
		}
		return n
	}
}

// TestTap sends what is not of the guest, each to an address of its own.
func TestTap(t *testing.T) {
	world := inLab(t)
	n := create(t, Config{Slot: 1})
	defer closeNetwork(t, n)
	g, sentTo := newGuest(t, n), watch(t, world)
	strangerMAC := net.HardwareAddr{2, 0, 0, 0, 0, 9}
	to := netip.MustParseAddr("203.0.113.100")
	var forbidden []netip.Addr
	for _, spoof := range []func(to netip.Addr) []byte{
		func(to netip.Addr) []byte { return packet(to.Prev(), to, unix.IPPROTO_UDP, udp(7)) },
		func(to netip.Addr) []byte { return packet(Guest.Addr().Next(), to, unix.IPPROTO_UDP, udp(7)) },
		func(to netip.Addr) []byte { return packet(lab.Uplink, to, unix.IPPROTO_UDP, udp(7)) },
		func(to netip.Addr) []byte {
			frame := packet(Guest.Addr(), to, unix.IPPROTO_UDP, udp(7))
			copy(frame[6:], strangerMAC)
			return frame
		},
		func(to netip.Addr) []byte { // said to be IPv6
			frame := packet(Guest.Addr(), to, unix.IPPROTO_UDP, udp(7))
			frame[12], frame[13] = 0x86, 0xdd
			return frame
		},
		func(to netip.Addr) []byte { // in a VLAN
			frame := packet(Guest.Addr(), to, unix.IPPROTO_UDP, udp(7))
			return append(append(append([]byte(nil), frame[:12]...), 0x81, 0, 0, 1), frame[12:]...)
		},
		func(to netip.Addr) []byte { return packet(Guest.Addr(), to, unix.IPPROTO_UDP, udp(7))[:33] },
	} {
		to = to.Next()
		forbidden = append(forbidden, to)
		g.send(spoof(to))
	}
	g.echo(one)
	if sentTo(one) == 0 {
		t.Error("the capture does not see what is allowed")
	}
	for i, to := range forbidden {
		if sentTo(to) > 0 {
			t.Errorf("frame %d got out", i)
		}
	}
}

// TestTapARP tries to be somebody else by ARP: the gateway answers who it
// believes, and the guest alone.
func TestTapARP(t *testing.T) {
	inLab(t)
	n := create(t, Config{Slot: 1})
	defer closeNetwork(t, n)
	g := newGuest(t, n)
	g.send(arp(1, net.HardwareAddr{2, 0, 0, 0, 0, 9}, Guest.Addr(), Gateway.Addr()))
	g.send(arp(1, GuestMAC, netip.MustParseAddr("192.0.0.3"), Gateway.Addr()))
	g.send(arp(2, GuestMAC, lab.Gateway, Gateway.Addr()))
	g.send(arp(1, GuestMAC, Guest.Addr(), Gateway.Addr()))
	answers := 0
	g.await("an answer by ARP", func(frame []byte) bool {
		if isARP(frame, 2) {
			answers++
		}
		return answers == 1
	})
	// Answers come in the order of the questions: the first is the only one.
	g.echo(one)
	if len(g.frames) > 0 {
		t.Errorf("%d more frames came", len(g.frames))
	}
}

// TestHostKeepsApart has a sandbox whose own firewall lets it send anywhere,
// so that the host's rules are all there is.
func TestHostKeepsApart(t *testing.T) {
	world := inLab(t)
	n := create(t, Config{Slot: 1, Policy: only(t, "0.0.0.0/0")})
	defer closeNetwork(t, n)
	neighbour := create(t, Config{Slot: 2})
	defer closeNetwork(t, neighbour)
	g := newGuest(t, n)
	g.echo(one)
	before := received(t, neighbour)
	l, err := leaseOf(testPool, 2)
	if err != nil {
		t.Fatal(err)
	}
	g.send(packet(Guest.Addr(), l.uplink.Addr(), unix.IPPROTO_UDP, udp(7)))
	g.send(packet(Guest.Addr(), l.uplink.Addr(), unix.IPPROTO_ICMP, ping()))
	g.echo(one)
	if after := received(t, neighbour); after != before {
		t.Errorf("the neighbour received %d packets", after-before)
	}
	// Addresses of the host are allowed to who names them alone.
	if err := n.SetPolicy(policy.Policy{Mode: policy.AllowAll}); err != nil {
		t.Fatal(err)
	}
	world.Hits.Reset()
	for _, to := range []netip.Addr{lab.Uplink, lab.HostLAN, lab.Neighbour, lab.Metadata, l.host.Addr()} {
		g.send(packet(Guest.Addr(), to, unix.IPPROTO_UDP, udp(lab.EchoPort)))
	}
	g.echo(one)
	if n := world.Hits.Count(func(h lab.Hit) bool { return h.Where != "internet" }); n > 0 {
		t.Errorf("%d packets reached the host or its neighbours", n)
	}
	if err := n.SetPolicy(only(t, lab.HostLAN.String()+"/32:7/udp", one.String()+"/32")); err != nil {
		t.Fatal(err)
	}
	g.echo(lab.HostLAN)
}

// received is how many packets have come to a sandbox's uplink.
func received(t testing.TB, n *Network) (packets uint64) {
	t.Helper()
	err := n.ns.Do(func() error {
		link, err := netlink.LinkByName(uplinkName)
		if err == nil {
			packets = link.Attrs().Statistics.RxPackets
		}
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	return packets
}

func TestKill(t *testing.T) {
	world := inLab(t)
	n := create(t, Config{Slot: 1})
	defer closeNetwork(t, n)
	g, sentTo := newGuest(t, n), watch(t, world)
	g.echo(one)
	g.echo(other)
	g.send(packet(Guest.Addr(), one, unix.IPPROTO_ICMP, ping()))
	g.await("an answer to its ping", from(one, unix.IPPROTO_ICMP))
	g.send(packet(Guest.Addr(), other, unix.IPPROTO_UDP, udp(DNSPort))) // is the gate's
	p := only(t, one.String()+"/32:7/udp")
	if err := n.SetPolicy(p); err != nil {
		t.Fatal(err)
	}
	g.echo(other) // flows go on
	for _, want := range []int{2, 0} {
		if killed, err := n.Kill(p); err != nil || killed != want {
			t.Errorf("killed %d, %v; want %d", killed, err, want)
		}
	}
	before := sentTo(other)
	g.send(packet(Guest.Addr(), other, unix.IPPROTO_UDP, udp(lab.EchoPort)))
	g.echo(one)
	if after := sentTo(other); after != before {
		t.Errorf("%d packets of a flow that was killed", after-before)
	}
}

// TestForbidden is what Kill takes for forbidden.
func TestForbidden(t *testing.T) {
	denied := only(t, "203.0.113.0/24")
	denied.DeniedCIDRs, denied.AllowedCIDRs = denied.AllowedCIDRs, nil
	both := only(t, "203.0.113.0/24")
	both.DeniedCIDRs = only(t, "203.0.113.7/32:22").AllowedCIDRs
	all := policy.Policy{Mode: policy.AllowAll}
	for _, c := range []struct {
		policy   policy.Policy
		to       string
		port     uint16
		protocol uint8
		want     bool
	}{
		{all, "203.0.113.7", 1, unix.IPPROTO_TCP, false},
		{all, "203.0.113.7", 0, unix.IPPROTO_ICMP, false},
		{all, "203.0.113.7", 0, unix.IPPROTO_SCTP, true},
		{all, "10.0.0.1", 1, unix.IPPROTO_TCP, true},
		{all, "44.128.0.5", 1, unix.IPPROTO_TCP, true}, // the pool
		{policy.Policy{Mode: policy.DenyAll}, "203.0.113.7", 1, unix.IPPROTO_UDP, true},
		{denied, "203.0.113.7", 1, unix.IPPROTO_UDP, true},
		{denied, "198.51.100.7", 1, unix.IPPROTO_UDP, false},
		{both, "203.0.113.7", 22, unix.IPPROTO_TCP, true},
		{both, "203.0.113.7", 23, unix.IPPROTO_TCP, false},
		{both, "203.0.113.7", 0, unix.IPPROTO_ICMP, false},
		{both, "198.51.100.7", 23, unix.IPPROTO_TCP, true},
		{only(t, "10.0.0.0/8/tcp"), "10.0.0.1", 5, unix.IPPROTO_TCP, false},
		{only(t, "10.0.0.0/8/tcp"), "10.0.0.1", 0, unix.IPPROTO_ICMP, true},
		{policy.Policy{Mode: policy.Custom, AllowedDomains: []policy.Domain{{Name: "example.com"}}}, "203.0.113.7", 443, unix.IPPROTO_TCP, true},
	} {
		flow := &netlink.ConntrackFlow{
			Forward: netlink.IPTuple{SrcIP: Guest.Addr().AsSlice(), DstIP: net.ParseIP(c.to).To4(), DstPort: c.port, Protocol: c.protocol},
			Reverse: netlink.IPTuple{SrcIP: net.ParseIP(c.to).To4()},
		}
		f := forbidden{c.policy, netip.MustParsePrefix("44.128.0.0/16")}
		if got := f.MatchConntrackFlow(flow); got != c.want {
			t.Errorf("%+v: got %t", c, got)
		}
		flow.Reverse.SrcIP = Gateway.Addr().AsSlice()
		if f.MatchConntrackFlow(flow) {
			t.Errorf("%+v: took one of the gate's", c)
		}
	}
}

// TestOthersRules has somebody else drop all that is forwarded.
func TestOthersRules(t *testing.T) {
	inLab(t)
	n := create(t, Config{Slot: 1})
	defer closeNetwork(t, n)
	g := newGuest(t, n)
	g.echo(one)
	lost := func() uint64 {
		accepted, passed, err := Forwarded()
		if err != nil || accepted == 0 {
			t.Fatalf("accepted %d, %v", accepted, err)
		}
		return accepted - passed
	}
	before := lost()
	run(t, "nft", "add table ip others; add chain ip others forward { type filter hook forward priority filter; policy drop; }")
	g.send(packet(Guest.Addr(), one, unix.IPPROTO_UDP, udp(lab.EchoPort)))
	await(t, "a packet is seen to be lost", func() bool { return lost() == before+1 }, func() string { return "" })
	run(t, "nft", "delete table ip others")
	g.echo(one)
	if lost() != before+1 {
		t.Error("packets that get through count as lost")
	}
}

// TestFlows: however many flows a guest begins, the host knows a bounded number
// of them, a policy that is set anew does not forget them, and a flow that there
// was before goes on.
func TestFlows(t *testing.T) {
	inLab(t)
	n := create(t, Config{Slot: 1})
	defer closeNetwork(t, n)
	guest := newGuest(t, n)
	known := func() (inside, outside int) {
		if err := n.ns.Do(func() error { inside = flows(t); return nil }); err != nil {
			t.Fatal(err)
		}
		return inside, flows(t)
	}
	guest.echo(lab.OtherResolver)
	_, before := known()
	most := 0
	// Twice as many as there may be. None of them is answered.
	for i := range 2 * firewall.MaxFlows {
		to := netip.AddrFrom4([4]byte{198, 51, byte(i >> 8), byte(i)})
		guest.send(packet(Guest.Addr(), to, unix.IPPROTO_UDP, udp(4)))
		if i%10 == 0 {
			time.Sleep(15 * time.Millisecond)
		}
		if i == firewall.MaxFlows {
			if err := n.SetPolicy(policy.Policy{Mode: policy.AllowAll}); err != nil {
				t.Fatal(err)
			}
		}
		if i%500 == 0 {
			inside, outside := known()
			most = max(most, inside, outside-before)
		}
	}
	inside, outside := known()
	// One more than counts: it is compared after it was counted.
	if most = max(most, inside, outside-before); most > firewall.MaxFlows+1 {
		t.Errorf("the host knows %d flows of the guest", most)
	}
	if inside < firewall.MaxFlows/2 {
		t.Errorf("there are only %d flows, so nothing was bounded", inside)
	}
	guest.echo(lab.OtherResolver)
}

// TestOneWayFlow: a flow that nobody answers is one flow, however many packets
// it has.
func TestOneWayFlow(t *testing.T) {
	inLab(t)
	n := create(t, Config{Slot: 1})
	defer closeNetwork(t, n)
	guest := newGuest(t, n)
	for range 5000 {
		guest.send(packet(Guest.Addr(), lab.OtherResolver, unix.IPPROTO_UDP, udp(4)))
	}
	guest.echo(lab.OtherResolver)
	if err := n.ns.Do(func() error {
		chain := run(t, "nft", "list", "chain", "inet", "vmsan", "flows")
		if dropped := grep(chain, `counter packets [^0]`); dropped != "" {
			t.Errorf("packets were dropped:\n%s", chain)
		}
		return nil
	}); err != nil {
		t.Fatal(err)
	}
}

// flows is how many flows the kernel knows in the namespace of the calling
// thread.
func flows(t testing.TB) int {
	t.Helper()
	text, err := os.ReadFile("/proc/sys/net/netfilter/nf_conntrack_count")
	if err != nil {
		t.Fatal(err)
	}
	n, err := strconv.Atoi(strings.TrimSpace(string(text)))
	if err != nil {
		t.Fatal(err)
	}
	return n
}

// TestSetPolicyUnderLoad changes between policies of which none allows some
// addresses, while the guest sends to these all the time.
func TestSetPolicyUnderLoad(t *testing.T) {
	world := inLab(t)
	policies := []policy.Policy{
		only(t, one.String()+"/32"),
		{Mode: policy.DenyAll},
		only(t, one.String()+"/32/udp", "10.0.0.0/8", "192.0.0.0/3:22"),
		{Mode: policy.Custom, DeniedCIDRs: only(t, other.String()+"/31").AllowedCIDRs},
		{Mode: policy.Custom, AllowedDomains: []policy.Domain{{Name: "example.com"}}},
	}
	n := create(t, Config{Slot: 1, Policy: policies[0]})
	defer closeNetwork(t, n)
	g, sentTo := newGuest(t, n), watch(t, world)
	g.echo(one)
	stop, done := make(chan struct{}), make(chan int)
	refused := []netip.Addr{other, netip.MustParseAddr("172.16.5.5")}
	go func() {
		for sent := 0; ; sent++ {
			select {
			case <-stop:
				done <- sent
				return
			default:
				g.send(packet(Guest.Addr(), refused[sent%2], unix.IPPROTO_UDP, udp(lab.EchoPort)))
			}
		}
	}()
	for i := range 1000 {
		if err := n.SetPolicy(policies[i%len(policies)]); err != nil {
			t.Error(err)
			break
		}
	}
	close(stop)
	sent := <-done
	if err := n.SetPolicy(policies[0]); err != nil {
		t.Fatal(err)
	}
	g.echo(one)
	for _, to := range refused {
		if got := sentTo(to); got > 0 {
			t.Errorf("%d packets to %s left", got, to)
		}
	}
	if sent < 1000 {
		t.Errorf("the guest sent no more than %d packets", sent)
	}
}
