package firewall

import (
	"fmt"
	"net"
	"net/netip"
	"sync"
	"time"

	"github.com/google/nftables"
	"golang.org/x/sys/unix"

	"github.com/vmsan/vmsan/internal/policy"
)

// Layout says who is who in a sandbox's namespace.
type Layout struct {
	// Tap and Uplink are devices: to the guest, and to the host.
	Tap, Uplink string
	// Guest and GuestMAC are all that may come out of the tap.
	Guest    netip.Addr
	GuestMAC net.HardwareAddr
	// Gateway is where the gate listens, for DNS and for connections to
	// addresses of allowed domains.
	Gateway            netip.Addr
	DNSPort, ProxyPort uint16
	// Pool is where the sandboxes' links have their addresses.
	Pool netip.Prefix
}

// LogGroup is the NFLOG group that is told of what is denied.
const LogGroup = 1

// The reasons for which something is denied, as the log has them.
const (
	DeniedCIDR    = "denied-cidr" // a rule of the policy denies it
	DeniedPrivate = "private"     // an address that is not of the public internet
	DeniedUDP     = "udp"         // an allowed domain's address, by UDP
	DeniedPolicy  = "policy"      // nothing allows it
)

// maxResolved bounds how many addresses domains can have at a time.
const maxResolved = 65536

// Sandbox is the table in a sandbox's namespace.
type Sandbox struct {
	layout Layout
	mu     sync.Mutex
	conn   *nftables.Conn
	table  *nftables.Table
	// resolved are the addresses of domains, and private those that no policy
	// reaches unless an allowed CIDR names them. That set never changes.
	resolved, private *nftables.Set
}

// OpenSandbox connects to the firewall of the calling thread's namespace.
func OpenSandbox(l Layout) (*Sandbox, error) {
	conn, err := connect()
	if err != nil {
		return nil, err
	}
	table := &nftables.Table{Name: tableName, Family: nftables.TableFamilyINet}
	return &Sandbox{
		layout: l, conn: conn, table: table,
		resolved: &nftables.Set{
			Table: table, ID: 1, Name: "resolved", KeyType: nftables.TypeIPAddr, HasTimeout: true, Size: maxResolved,
		},
		private: &nftables.Set{
			Table: table, ID: 2, Name: "private", KeyType: nftables.TypeIPAddr, Constant: true, Interval: true,
		},
	}, nil
}

// Install makes the table, for p. The tap has to exist.
//
// It may be called from any thread, and should not be from one that is locked
// to its goroutine: the library switches between goroutines for each of the
// kernel's answers, which then takes ten times as long.
func (s *Sandbox) Install(p policy.Policy) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.conn.AddTable(s.table)
	if err := s.conn.AddSet(s.resolved, nil); err != nil {
		return err
	}
	if err := s.conn.AddSet(s.private, elements(merge(append([]netip.Prefix{s.layout.Pool}, policy.NotPublic...)))); err != nil {
		return err
	}
	s.guardTap()
	s.boundFlows()
	return s.set(p)
}

// Set replaces the policy. What domains resolved to stays.
func (s *Sandbox) Set(p policy.Policy) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.set(p)
}

func (s *Sandbox) set(p policy.Policy) error {
	w := &writer{conn: s.conn, table: s.table}
	r := rules{writer: w, Layout: s.layout, Policy: p, resolved: s.resolved, private: s.private}
	r.write()
	if err := w.commit(); err != nil {
		return fmt.Errorf("set rules of sandbox: %w", err)
	}
	return nil
}

// Open puts addresses into the set of those that domains resolved to, until
// ttl has passed from now.
func (s *Sandbox) Open(addresses []netip.Addr, ttl time.Duration) error {
	list, err := keys(addresses, ttl)
	if err != nil || len(list) == 0 {
		return err
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	// Kernels before 6.12 keep the timeout of what is in the set already, so
	// it is taken out in between, which fails for what is not.
	for _, change := range []func(*nftables.Set, []nftables.SetElement) error{
		s.conn.SetAddElements, s.conn.SetDeleteElements, s.conn.SetAddElements,
	} {
		if err := change(s.resolved, list); err != nil {
			return err
		}
	}
	if err := s.conn.Flush(); err != nil {
		return fmt.Errorf("open %d addresses: %w", len(addresses), err)
	}
	return nil
}

// Shut takes addresses out of that set.
func (s *Sandbox) Shut(addresses []netip.Addr) error {
	list, err := keys(addresses, time.Minute)
	if err != nil || len(list) == 0 {
		return err
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	// Added first, since what is missing cannot be deleted.
	for _, change := range []func(*nftables.Set, []nftables.SetElement) error{s.conn.SetAddElements, s.conn.SetDeleteElements} {
		if err := change(s.resolved, list); err != nil {
			return err
		}
	}
	if err := s.conn.Flush(); err != nil {
		return fmt.Errorf("shut %d addresses: %w", len(addresses), err)
	}
	return nil
}

func keys(addresses []netip.Addr, ttl time.Duration) (list []nftables.SetElement, err error) {
	seen := map[netip.Addr]bool{}
	for _, a := range addresses {
		if !a.Is4() {
			return nil, fmt.Errorf("%s is not an IPv4 address", a)
		}
		if !seen[a] {
			seen[a] = true
			list = append(list, nftables.SetElement{Key: a.AsSlice(), Timeout: ttl})
		}
	}
	return list, nil
}

// Close ends the connection. The table stays as long as the namespace.
func (s *Sandbox) Close() error {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.conn.CloseLasting()
}

// guardTap lets nothing in through the tap but ARP and IPv4 that say they are
// from the guest.
func (s *Sandbox) guardTap() {
	w := &writer{conn: s.conn, table: &nftables.Table{Name: tableName, Family: nftables.TableFamilyNetdev}}
	s.conn.AddTable(w.table)
	c := w.chain(nftables.Chain{
		Name: "tap", Type: nftables.ChainTypeFilter, Hooknum: nftables.ChainHookIngress,
		Priority: nftables.ChainPriorityFilter, Policy: policyDrop, Device: s.layout.Tap,
	})
	guest := s.layout.Guest.AsSlice()
	w.rule(c, notEtherSaddr(s.layout.GuestMAC), count, drop)
	w.rule(c, etherType(unix.ETH_P_IP), inNetwork(12, guest), accept)
	// The sender as ARP has it: who asks, and where.
	w.rule(c, etherType(unix.ETH_P_ARP), inNetwork(8, s.layout.GuestMAC), inNetwork(14, guest), accept)
	w.rule(c, count, drop)
}

// MaxFlows is how many flows a guest can have at a time.
const MaxFlows = 4096

// A guest may begin so many flows a second, and so many at once after a rest.
// The kernel forgets eight flows that are gone each time it counts, a few
// hundred times a second at least: at this rate, what it counts cannot grow.
const (
	flowRate  = 500
	flowBurst = 1000
)

// boundFlows keeps the guest from filling the kernel's table of flows, which it
// shares with all of the host in the host's namespace. The chain is no part of
// a policy, whose change would have the count begin anew.
func (s *Sandbox) boundFlows() {
	w := &writer{conn: s.conn, table: s.table}
	c := w.hook("flows", nftables.ChainTypeFilter, nftables.ChainHookPrerouting, nftables.ChainPriorityMangle, policyAccept)
	w.rule(c, iifname(s.layout.Tap), fresh, fasterThan(flowRate, flowBurst), count, drop)
	w.rule(c, iifname(s.layout.Tap), fresh, moreFlowsThan(MaxFlows), count, drop)
}

// rules are those of a policy.
type rules struct {
	*writer
	Layout
	policy.Policy
	resolved, private *nftables.Set

	allowed, plain, denied *nftables.Chain
	// Where something that is refused is led to.
	forDenied, forPrivate, forUDPToName, forEverythingElse *nftables.Chain
}

// byName tells whether domains count: if all the public internet is allowed,
// their addresses are too.
func (r *rules) byName() bool { return len(r.AllowedDomains) > 0 && !r.Public() }

func (r *rules) write() {
	r.refusals()
	r.addresses()
	r.prerouting()
	r.forward()
	r.input()
	r.output()
	r.postrouting()
}

// refusals makes the chains that log why something is refused, and refuse it.
func (r *rules) refusals() {
	refuse := r.regular("refuse")
	r.rule(refuse, tcp, reset)
	r.rule(refuse, prohibited)
	because := func(reason string) *nftables.Chain {
		c := r.regular(reason)
		r.rule(c, log(LogGroup, reason))
		r.rule(c, gotoChain(refuse))
		return c
	}
	r.forDenied, r.forPrivate = because(DeniedCIDR), because(DeniedPrivate)
	r.forUDPToName, r.forEverythingElse = because(DeniedUDP), because(DeniedPolicy)
}

// addresses makes the chains that look for addresses of the policy.
func (r *rules) addresses() {
	r.plain, r.allowed = r.regular("plain"), r.regular("allowed")
	r.allow(r.allowed, r.plain, r.AllowedCIDRs)
	r.denied = r.regular("denied")
	r.deny(r.denied, r.DeniedCIDRs, gotoChain(r.forDenied))
}

// prerouting leads to the gate what it answers. What an allowed CIDR names
// goes its way, and what a denied one names goes to where it is refused; but
// DNS to such an address is still the gate's, to spare the guest a timeout.
func (r *rules) prerouting() {
	c := r.hook("prerouting", nftables.ChainTypeNAT, nftables.ChainHookPrerouting, nftables.ChainPriorityNATDest, policyAccept)
	r.rule(c, notIifname(r.Tap), accept)
	r.rule(c, jump(r.allowed))
	r.forTCPAndUDP(c, ipv4, join(dport(53, 53), redirectTo(r.DNSPort)))
	if r.byName() {
		r.deny(c, r.DeniedCIDRs, accept)
		r.rule(c, daddrInSet(r.resolved), tcp, redirectTo(r.ProxyPort))
	}
}

// forward decides what the guest may send to the host's namespace.
func (r *rules) forward() {
	c := r.hook("forward", nftables.ChainTypeFilter, nftables.ChainHookForward, nftables.ChainPriorityFilter, policyDrop)
	guest := r.regular("guest")
	r.rule(c, notIPv4, drop)
	r.rule(c, invalid, drop)
	r.rule(c, established, accept)
	r.rule(c, iifname(r.Tap), oifname(r.Uplink), gotoChain(guest))

	r.rule(guest, jump(r.denied))
	r.rule(guest, jump(r.allowed))
	r.rule(guest, daddrInSet(r.private), gotoChain(r.forPrivate))
	if r.Public() {
		r.rule(guest, jump(r.plain))
	}
	if r.byName() {
		r.rule(guest, daddrInSet(r.resolved), echoRequest, accept)
		r.rule(guest, daddrInSet(r.resolved), udp, gotoChain(r.forUDPToName))
	}
	r.rule(guest, gotoChain(r.forEverythingElse))
}

// input lets the guest reach the gate, and nobody else anything.
func (r *rules) input() {
	c := r.hook("input", nftables.ChainTypeFilter, nftables.ChainHookInput, nftables.ChainPriorityFilter, policyDrop)
	r.rule(c, notIPv4, drop)
	r.rule(c, invalid, drop)
	r.rule(c, established, accept)
	gateway := join(iifname(r.Tap), daddrIn(netip.PrefixFrom(r.Gateway, 32)))
	r.forTCPAndUDP(c, gateway, join(dport(r.DNSPort, r.DNSPort), accept))
	if r.byName() {
		r.rule(c, gateway, redirected, tcp, dport(r.ProxyPort, r.ProxyPort), accept)
	}
	r.rule(c, gateway, echoRequest, accept)
	r.rule(c, iifname(r.Tap), gotoChain(r.forEverythingElse))
}

// output is the gate's way to the guest, and to the addresses of domains.
func (r *rules) output() {
	c := r.hook("output", nftables.ChainTypeFilter, nftables.ChainHookOutput, nftables.ChainPriorityFilter, policyDrop)
	r.rule(c, notIPv4, drop)
	r.rule(c, established, accept)
	r.forTCPAndUDP(c, join(oifname(r.Tap), daddrIn(netip.PrefixFrom(r.Guest, 32))), accept)
	proxy := r.regular("proxy")
	if r.byName() {
		r.rule(c, oifname(r.Uplink), tcp, gotoChain(proxy))
		r.rule(proxy, jump(r.denied))
		r.rule(proxy, daddrInSet(r.private), gotoChain(r.forPrivate))
		r.rule(proxy, daddrInSet(r.resolved), accept)
		r.rule(proxy, gotoChain(r.forEverythingElse))
	}
}

// postrouting gives the guest's flows the address of the uplink.
func (r *rules) postrouting() {
	c := r.hook("postrouting", nftables.ChainTypeNAT, nftables.ChainHookPostrouting, nftables.ChainPriorityNATSource, policyAccept)
	r.rule(c, oifname(r.Uplink), masquerade)
}
