package network

import (
	"errors"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/vmsan/vmsan/internal/testenv/lab"
)

// hostRules are rule sets of the kinds that hosts have, and whether sandboxes
// get through them.
var hostRules = []struct {
	name string
	// commands make the rules, and undo takes them away.
	commands, undo []string
	keeper         string // who is named; empty: packets pass
	// remedy does what the hint's command does, where its program is not to be
	// had here. Empty: the hint is typed.
	remedy []string
}{
	{name: "none"},
	{
		name: "Docker", keeper: "Docker's",
		commands: []string{
			"iptables -P FORWARD DROP", "iptables -N DOCKER-USER", "iptables -A FORWARD -j DOCKER-USER",
			"iptables -N DOCKER-FORWARD", "iptables -A FORWARD -j DOCKER-FORWARD",
			"iptables -A DOCKER-FORWARD -o docker0 -m conntrack --ctstate RELATED,ESTABLISHED -j ACCEPT",
			"iptables -A DOCKER-FORWARD -i docker0 ! -o docker0 -j ACCEPT", "iptables -A DOCKER-USER -j RETURN",
		},
		undo: legacyUndo,
	},
	{
		name: "ufw", keeper: "ufw",
		commands: []string{
			"iptables -P FORWARD DROP", "iptables -N ufw-before-forward", "iptables -N ufw-user-forward", "iptables -N ufw-reject-forward",
			"iptables -A FORWARD -j ufw-before-forward", "iptables -A FORWARD -j ufw-reject-forward",
			"iptables -A ufw-before-forward -m conntrack --ctstate RELATED,ESTABLISHED -j ACCEPT",
			"iptables -A ufw-before-forward -p icmp --icmp-type 8 -j ACCEPT", "iptables -A ufw-before-forward -j ufw-user-forward",
			"iptables -A ufw-reject-forward -m limit --limit 3/min -j LOG",
		},
		undo:   legacyUndo,
		remedy: []string{"iptables -A ufw-user-forward -i vmsan+ -j ACCEPT"},
	},
	{
		name: "firewalld", keeper: "firewalld",
		commands: []string{
			"nft add table inet firewalld",
			"nft add chain inet firewalld filter_FORWARD { type filter hook forward priority filter + 10; policy accept; }",
			"nft add chain inet firewalld filter_FORWARD_ZONES", "nft add chain inet firewalld filter_FWD_public",
			"nft add chain inet firewalld filter_FWD_trusted", "nft add rule inet firewalld filter_FWD_trusted accept",
			"nft add rule inet firewalld filter_FORWARD ct state { established, related } accept",
			"nft add rule inet firewalld filter_FORWARD ct status dnat accept",
			"nft add rule inet firewalld filter_FORWARD iifname lo accept",
			"nft add rule inet firewalld filter_FORWARD jump filter_FORWARD_ZONES",
			"nft add rule inet firewalld filter_FORWARD ct state { invalid } drop",
			"nft add rule inet firewalld filter_FORWARD reject with icmpx type admin-prohibited",
			"nft add rule inet firewalld filter_FORWARD_ZONES iifname uplink0 goto filter_FWD_public",
		},
		undo:   []string{"nft delete table inet firewalld"},
		remedy: []string{`nft insert rule inet firewalld filter_FORWARD_ZONES iifname "vmsan*" goto filter_FWD_trusted`},
	},
	{
		name: "iptables", keeper: "iptables", undo: legacyUndo,
		commands: []string{"iptables -A FORWARD -i lan0 -j ACCEPT", "iptables -A FORWARD -m comment --comment all -j REJECT"},
	},
	{
		name: "iptables that lets ours through", undo: legacyUndo,
		commands: []string{"iptables -P FORWARD DROP", "iptables -A FORWARD -i vmsan+ -j ACCEPT",
			"iptables -A FORWARD -m state --state ESTABLISHED,RELATED -j ACCEPT"},
	},
	{
		name: "iptables by port", keeper: "iptables", undo: legacyUndo,
		commands: []string{
			"iptables -P FORWARD DROP", "iptables -A FORWARD -p tcp --dport 22 -j ACCEPT", "iptables -A FORWARD -p tcp --sport 1:1023 -j ACCEPT",
			"iptables -A FORWARD -p udp --dport 53 -j ACCEPT", "iptables -A FORWARD -m comment --comment late -j LOG",
		},
	},
	{
		name: "answers only", keeper: "iptables", undo: legacyUndo,
		commands: []string{"iptables -P FORWARD DROP", "iptables -A FORWARD -s 44.128.0.0/16 -j ACCEPT"},
	},
	{
		name: "nftables", keeper: "nftables", undo: []string{"nft delete table inet mine"},
		commands: []string{
			"nft add table inet mine", "nft add chain inet mine forwarded { type filter hook forward priority filter; policy drop; }",
			"nft add rule inet mine forwarded iifname { lan0, metadata0 } accept",
			"nft add rule inet mine forwarded ct state vmap { invalid : drop, untracked : accept }",
			"nft add rule inet mine forwarded tcp dport 22 counter accept", "nft add rule inet mine forwarded tcp dport 8000-8999 accept",
			"nft add rule inet mine forwarded ip ttl < 9 accept", "nft add rule inet mine forwarded ip saddr 10.0.0.0/8 accept",
			"nft add rule inet mine forwarded ip daddr { 10.0.0.0/8, 172.16.0.0/12, 192.168.0.0-192.168.3.255 } accept",
		},
	},
	{
		name: "nftables by sets", undo: []string{"nft delete table ip mine"},
		commands: []string{
			"nft add table ip mine", "nft add chain ip mine forwarded { type filter hook forward priority filter; policy drop; }",
			`nft add set ip mine inside { type ifname; flags interval; }`, `nft add element ip mine inside { "vmsan*" }`,
			"nft add rule ip mine forwarded ct state vmap { invalid : drop, established : accept, related : accept }",
			"nft add rule ip mine forwarded iifname @inside accept",
		},
	},
	{
		name: "another family and hook", undo: []string{"nft delete table ip6 mine", "nft delete table inet mine"},
		commands: []string{
			"nft add table ip6 mine", "nft add chain ip6 mine forwarded { type filter hook forward priority filter; policy drop; }",
			"nft add table inet mine", "nft add chain inet mine in { type filter hook input priority filter; policy drop; }",
		},
	},
}

var legacyUndo = []string{"iptables -P FORWARD ACCEPT", "iptables -F", "iptables -X", "nft delete table ip filter"}

// TestCheckForwarding asks the rules, and then the kernel, by a packet that is
// sent through them; and once more after what the hint says to type.
func TestCheckForwarding(t *testing.T) {
	inLab(t)
	for i, host := range hostRules {
		t.Run(host.name, func(t *testing.T) {
			n := create(t, Config{Slot: i})
			defer closeNetwork(t, n)
			g := newGuest(t, n)
			defer runAll(t, host.undo)
			runAll(t, host.commands)
			err := CheckForwarding(testPool)
			var known *HostError
			switch {
			case host.keeper == "" && err != nil:
				t.Fatalf("packets get through, and it says %v", err)
			case host.keeper != "" && (!errors.As(err, &known) || !strings.Contains(err.Error(), "firewall, "+host.keeper+",")):
				t.Fatalf("got %v, want that %s is named", err, host.keeper)
			case host.keeper == "":
				g.echo(one)
				return
			}
			before := lostPackets(t)
			g.send(packet(Guest.Addr(), one, unix.IPPROTO_UDP, udp(lab.EchoPort)))
			await(t, "a packet is lost", func() bool { return lostPackets(t) == before+1 }, func() string { return err.Error() })
			if len(host.remedy) > 0 {
				runAll(t, host.remedy)
			} else {
				run(t, "sh", "-c", known.Hint)
			}
			if err := CheckForwarding(testPool); err != nil {
				t.Errorf("after what it says, %s: %v", known.Hint, err)
			}
			g.echo(one)
		})
	}
}

// runAll runs commands whose words have no spaces in them.
func runAll(t testing.TB, commands []string) {
	t.Helper()
	for _, c := range commands {
		run(t, strings.Fields(c)...)
	}
}

func lostPackets(t *testing.T) uint64 {
	t.Helper()
	accepted, passed, err := Forwarded()
	if err != nil {
		t.Fatal(err)
	}
	return accepted - passed
}

// TestCheckForwardingOffline is on a host without a way out.
func TestCheckForwardingOffline(t *testing.T) {
	world := inLab(t)
	reconnect, err := world.Disconnect()
	if err != nil {
		t.Fatal(err)
	}
	defer reconnect()
	if err := CheckForwarding(testPool); err != nil {
		t.Error(err)
	}
}
