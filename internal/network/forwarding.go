package network

import (
	"fmt"
	"net/netip"
	"os"
	"slices"
	"strings"

	"github.com/vmsan/vmsan/internal/network/firewall"
	"github.com/vmsan/vmsan/internal/policy"
)

// CheckForwarding tells whether a rule set of the host's keeps sandboxes with
// addresses from pool from the internet, as a *HostError with the command that
// lets them through. It reads rules and sends nothing. A host without a default
// route passes: nothing is forwarded there.
func CheckForwarding(pool netip.Prefix) error {
	h, err := openHost()
	if err != nil {
		return err
	}
	defer h.close()
	uplinks := h.links.uplinks(policy.Policy{})
	if len(uplinks) == 0 {
		return nil
	}
	l, err := leaseOf(pool, 0)
	if err != nil {
		return err
	}
	link := firewall.LinkPrefix + "0000000000"
	out := firewall.Packet{
		In: link, Out: uplinks[0].Name,
		From: netip.AddrPortFrom(l.uplink.Addr(), 50000), To: netip.AddrPortFrom(far[0], 443),
	}
	back := firewall.Packet{In: out.Out, Out: out.In, From: out.To, To: out.From, Established: true}
	obstacle, err := h.rules.Obstacle(out, back)
	if err != nil {
		return explainFirewall(err)
	}
	if obstacle != nil {
		return obstacleError(*obstacle)
	}
	return nil
}

func obstacleError(o firewall.Obstacle) error {
	what := "what sandboxes send"
	if o.Packet.Established {
		what = "the answers to sandboxes"
	}
	keeper := keeperOf(o)
	return &HostError{
		fmt.Errorf("the host's firewall, %s, drops %s: chain %s of table %s", keeper.name, what, o.Chain, o.Table),
		strings.NewReplacer("TABLE", o.Table, "CHAIN", o.Chain, "LINKS", firewall.LinkPrefix).Replace(keeper.remedy),
	}
}

// keeper is a program that keeps a host's rules, and takes them for its own:
// what lets sandboxes through has to be said to it.
type keeper struct {
	name string
	// keeps tells it by what is in a table.
	keeps  func(o firewall.Obstacle) bool
	remedy string
}

const filterTable = "ip filter"

func hasChain(table, chain string) func(firewall.Obstacle) bool {
	return func(o firewall.Obstacle) bool { return o.Table == table && slices.Contains(o.Beside, chain) }
}

// keepers are in order: of those that share a table, the one that puts its own
// rules back when it is started comes first.
var keepers = []keeper{
	{
		"firewalld", func(o firewall.Obstacle) bool { return o.Table == "inet firewalld" },
		"firewall-cmd --permanent --zone=trusted --add-interface=LINKS+ && firewall-cmd --reload",
	},
	{"ufw", hasChain(filterTable, "ufw-user-forward"), "ufw route allow in on LINKS+"},
	{
		"Docker's", hasChain(filterTable, "DOCKER-USER"),
		"iptables -I DOCKER-USER -i LINKS+ -j ACCEPT; " +
			"iptables -I DOCKER-USER -o LINKS+ -m conntrack --ctstate RELATED,ESTABLISHED -j ACCEPT",
	},
	{
		"iptables", hasChain(filterTable, "FORWARD"),
		"iptables -I FORWARD -i LINKS+ -j ACCEPT; iptables -I FORWARD -o LINKS+ -m conntrack --ctstate RELATED,ESTABLISHED -j ACCEPT",
	},
	{
		"nftables", func(firewall.Obstacle) bool { return true },
		`nft insert rule TABLE CHAIN 'iifname "LINKS*" accept'; ` +
			`nft insert rule TABLE CHAIN 'oifname "LINKS*" ct state established,related accept'`,
	},
}

func keeperOf(o firewall.Obstacle) keeper {
	return keepers[slices.IndexFunc(keepers, func(k keeper) bool { return k.keeps(o) })]
}

// HasLegacyRules tells whether iptables-legacy filters here, whose rules
// CheckForwarding does not see.
func HasLegacyRules() bool {
	names, err := os.ReadFile("/proc/thread-self/net/ip_tables_names")
	return err == nil && slices.Contains(strings.Fields(string(names)), "filter")
}
