package main

import (
	"context"
	"fmt"
	"net/netip"
	"os/exec"
	"strings"
	"time"

	"github.com/vmsan/vmsan/internal/network"
	"github.com/vmsan/vmsan/internal/policy"
	"github.com/vmsan/vmsan/internal/timing"
)

// neighbours is how many sandboxes have a network already when that of one
// more is measured.
const neighbours = 500

// network measures making a sandbox's network, beside commands that do the
// same one after the other.
func (b *bench) network(ctx context.Context) error {
	w := &networks{pool: netip.MustParsePrefix("198.18.0.0/15")}
	defer w.close()
	if err := w.make(ctx); err != nil {
		return err
	}
	ours, closing, theirs, err := w.besideCommands(ctx)
	if err != nil {
		return err
	}
	o, t := timing.Median(ours), timing.Median(theirs)
	b.add("network of a sandbox; floor: ip, iptables and sysctl", ms(o), ms(t), fmt.Sprintf("%.0f x faster", t.Seconds()/o.Seconds()), "<= 10 ms, >= 20 x")
	b.add("giving it up, beside stopping the VMM", ms(timing.Median(closing)), "-", "-", "<= 10 ms")
	alone, err := w.measure(ctx)
	if err != nil {
		return err
	}
	for len(w.made) < neighbours {
		if err := w.make(ctx); err != nil {
			return err
		}
	}
	crowded, err := w.measure(ctx)
	if err != nil {
		return err
	}
	a, c := timing.Median(alone), timing.Median(crowded)
	b.add(fmt.Sprintf("network of a sandbox beside %d; floor: beside one", neighbours), ms(c), ms(a), ratio(c, a), "<= 1.3 x")
	return nil
}

// networks are those that are there while another is measured.
type networks struct {
	pool netip.Prefix
	made []*network.Network
	next int // slot
}

func (w *networks) create(ctx context.Context) (n *network.Network, slot int, err error) {
	slot = w.next
	w.next++
	n, err = network.Create(ctx, network.Config{
		ID: fmt.Sprintf("vmbench%05d", slot), Slot: slot, Pool: w.pool, Policy: policy.Policy{Mode: policy.AllowAll},
	})
	return n, slot, err
}

// make makes one more that stays.
func (w *networks) make(ctx context.Context) error {
	n, _, err := w.create(ctx)
	if err == nil {
		w.made = append(w.made, n)
	}
	return err
}

func (w *networks) close() {
	for _, n := range w.made {
		n.Close()
	}
}

// once makes a network and gives it up. It returns when the kernel is done
// with that, so as not to measure the next one beside it.
func (w *networks) once(ctx context.Context) (up, down time.Duration, err error) {
	var n *network.Network
	var slot int
	up, err = timing.Timed(func() (err error) {
		n, slot, err = w.create(ctx)
		return err
	})
	if err != nil {
		return 0, 0, err
	}
	if down, err = timing.Timed(n.Close); err != nil {
		return 0, 0, err
	}
	for gone := false; !gone; time.Sleep(5 * time.Millisecond) {
		if gone, err = network.Gone(slot, w.pool); err != nil {
			return 0, 0, err
		}
	}
	return up, down, nil
}

func (w *networks) measure(ctx context.Context) (ups []time.Duration, err error) {
	for range quick {
		up, _, err := w.once(ctx)
		if err != nil {
			return nil, err
		}
		ups = append(ups, up)
	}
	return ups, nil
}

func (w *networks) besideCommands(ctx context.Context) (ours, closing, theirs []time.Duration, err error) {
	for range quick {
		up, down, err := w.once(ctx)
		if err != nil {
			return nil, nil, nil, err
		}
		took, err := timing.Timed(func() error { return runAll(ctx, networkByCommands()) })
		if undoErr := runAll(ctx, strings.Split(strings.TrimSpace(networkUndo), "\n")); err == nil {
			err = undoErr
		}
		if err != nil {
			return nil, nil, nil, err
		}
		ours, closing, theirs = append(ours, up), append(closing, down), append(theirs, took)
	}
	return ours, closing, theirs, nil
}

// runAll runs commands, one to a line, without a shell.
func runAll(ctx context.Context, lines []string) error {
	for _, line := range lines {
		words := strings.Fields(line)
		if out, err := exec.CommandContext(ctx, words[0], words[1:]...).CombinedOutput(); err != nil {
			return fmt.Errorf("%s: %w: %s", line, err, out)
		}
	}
	return nil
}

// inNamespace goes before a command that is about the sandbox's end.
const inNamespace = "ip netns exec vmsan-bench "

// networkByCommands is what a program runs that makes a sandbox's network by
// starting others: a namespace, a pair of links and a tap, and the rules of a
// policy that leads DNS to two resolvers and denies what gets around them.
func networkByCommands() []string {
	lines := strings.Split(strings.TrimSpace(`
ip netns add vmsan-bench
ip link add veth-h-0 type veth peer name veth-g-0
ip link set veth-g-0 netns vmsan-bench
ip addr add 10.200.0.1/30 dev veth-h-0
ip link set veth-h-0 up
`+inNamespace+`ip addr add 10.200.0.2/30 dev veth-g-0
`+inNamespace+`ip link set veth-g-0 up
`+inNamespace+`ip link set lo up
`+inNamespace+`ip route add default via 10.200.0.1
`+inNamespace+`sysctl -w net.ipv4.ip_forward=1
ip route add 172.16.0.0/30 via 10.200.0.2
sysctl -w net.ipv4.ip_forward=1
`+inNamespace+`ip tuntap add fhvm0 mode tap
`+inNamespace+`ip addr add 172.16.0.1/30 dev fhvm0
`+inNamespace+`ip link set fhvm0 up
ip route show default
iptables -t nat -A POSTROUTING -s 172.16.0.0/30 -o uplink0 -j MASQUERADE
iptables -A FORWARD -i veth-h-0 -o uplink0 -s 172.16.0.0/30 -j ACCEPT
iptables -A FORWARD -i uplink0 -o veth-h-0 -d 172.16.0.0/30 -m state --state RELATED,ESTABLISHED -j ACCEPT`), "\n")
	rule := func(format string, args ...any) {
		lines = append(lines, inNamespace+"iptables -A FORWARD "+fmt.Sprintf(format, args...))
	}
	protocols := []string{"udp", "tcp"}
	for _, protocol := range protocols {
		for _, resolver := range []string{"8.8.8.8", "8.8.4.4"} {
			rule("-i fhvm0 -p %s -d %s --dport 53 -j ACCEPT", protocol, resolver)
		}
	}
	for _, port := range []int{53, 853} {
		for _, protocol := range protocols {
			rule("-i fhvm0 -p %s --dport %d -j DROP", protocol, port)
		}
	}
	for i := range 10 { // resolvers over HTTPS
		for _, protocol := range protocols {
			rule("-i fhvm0 -p %s -d 198.51.100.%d --dport 443 -j DROP", protocol, i+1)
		}
	}
	rule("-i fhvm0 -d 172.16.0.0/16 -j DROP")
	rule("-i fhvm0 -j ACCEPT")
	rule("-o fhvm0 -m state --state RELATED,ESTABLISHED -j ACCEPT")
	return lines
}

// networkUndo leaves the lab as it was.
const networkUndo = `
ip link del veth-h-0
ip netns del vmsan-bench
iptables -t nat -F POSTROUTING
iptables -F FORWARD
sysctl -w net.ipv4.ip_forward=0`
