package firewall

import (
	"errors"
	"fmt"
	"strings"

	"github.com/google/nftables"
	"github.com/google/nftables/binaryutil"
	"github.com/google/nftables/expr"
	"golang.org/x/sys/unix"

	"github.com/vmsan/vmsan/internal/policy"
)

// LinkPrefix begins the names of sandboxes' devices in the host's namespace,
// and of nothing else: the host's table is about them alone.
const LinkPrefix = "vmsan"

// Host is the table in the host's namespace. All sandboxes share it, those of
// other state directories too. It is made when it is missing, and left.
type Host struct {
	conn      *nftables.Conn
	table     *nftables.Table
	opened    *nftables.Set
	sandboxes *nftables.Set
}

// The names of the counters.
const (
	counterAccepted = "accepted"
	counterPassed   = "passed"
)

// OpenHost connects to the firewall of the calling thread's namespace.
func OpenHost() (*Host, error) {
	conn, err := connect()
	if err != nil {
		return nil, err
	}
	table := &nftables.Table{Name: tableName, Family: nftables.TableFamilyINet}
	return &Host{
		conn: conn, table: table,
		// The byte order is for nft(8), which shows names by it.
		opened: &nftables.Set{
			Table: table, ID: 1, Name: "opened",
			KeyType: nftables.TypeIFName, KeyByteOrder: binaryutil.NativeEndian,
		},
		sandboxes: &nftables.Set{
			Table: table, ID: 2, Name: "sandboxes", IsMap: true,
			KeyType: nftables.TypeIFName, KeyByteOrder: binaryutil.NativeEndian, DataType: nftables.TypeVerdict,
		},
	}, nil
}

// Close ends the connection.
func (h *Host) Close() error { return h.conn.CloseLasting() }

// version is a chain of which nothing but its name counts: that of the rules
// that are in the table. It changes when they do.
const version = "version-1"

// Install makes the table, or replaces the rules that another version of
// vmsan has made. What the sets have in them stays.
func (h *Host) Install() error {
	if h.has(version) {
		return nil
	}
	w := &writer{conn: h.conn, table: h.table}
	h.conn.AddTable(h.table)
	for _, set := range []*nftables.Set{h.opened, h.sandboxes} {
		if err := h.conn.AddSet(set, nil); err != nil {
			return err
		}
	}
	for _, name := range []string{counterAccepted, counterPassed} {
		h.conn.AddObj(&nftables.CounterObj{Table: h.table, Name: name})
	}
	h.input(w)
	h.forward(w)
	h.postrouting(w)
	w.regular(version)
	if err := w.commit(); err != nil {
		return fmt.Errorf("set rules of host: %w", err)
	}
	return nil
}

// has tells whether the table has a chain. It takes any error for a no, since
// the library does not hand over which it was; a connection that does not work
// shows in what comes next.
func (h *Host) has(chain string) bool {
	_, err := h.conn.ListChain(h.table, chain)
	return err == nil
}

// Intact tells whether the table is there, with what Admit has put into it.
func (h *Host) Intact(link string, p policy.Policy) bool {
	return h.has(version) && (len(p.AllowedCIDRs) == 0 || h.has(link))
}

// input keeps sandboxes from the host's own addresses, but for those that an
// allowed CIDR of theirs names.
func (h *Host) input(w *writer) {
	c := w.hook("input", nftables.ChainTypeFilter, nftables.ChainHookInput, nftables.ChainPriorityRef(-10), policyAccept)
	sandbox := iifPrefix(LinkPrefix)
	w.rule(c, sandbox, established, accept)
	w.rule(c, sandbox, part{
		&expr.Meta{Key: expr.MetaKeyIIFNAME, Register: reg},
		&expr.Lookup{SourceRegister: reg, IsDestRegSet: true, SetName: h.sandboxes.Name, SetID: h.sandboxes.ID},
	})
	w.rule(c, sandbox, drop)
}

// forward keeps sandboxes from each other, and lets nobody begin to talk to
// one. It comes before the rules of others, and what it lets through is
// counted again after them.
func (h *Host) forward(w *writer) {
	c := w.hook("forward", nftables.ChainTypeFilter, nftables.ChainHookForward, nftables.ChainPriorityRef(-10), policyAccept)
	out, in, opened := w.regular("from-sandbox"), w.regular("to-sandbox"), w.regular("from-opened")
	w.rule(c, iifPrefix(LinkPrefix), gotoChain(out))
	w.rule(c, oifPrefix(LinkPrefix), gotoChain(in))
	w.rule(c, part{&expr.Meta{Key: expr.MetaKeyIIFNAME, Register: reg}, lookup(h.opened)}, gotoChain(opened))

	w.rule(out, notIPv4, drop)
	w.rule(out, oifPrefix(LinkPrefix), drop)
	// From an address that is not behind that device.
	w.rule(out, part{
		&expr.Fib{Register: reg, ResultOIF: true, FlagSADDR: true, FlagIIF: true},
		&expr.Cmp{Op: expr.CmpOpEq, Register: reg, Data: make([]byte, 4)},
	}, drop)
	w.rule(out, counted(counterAccepted), accept)

	w.rule(in, ipv4, established, counted(counterAccepted), accept)
	w.rule(in, drop)

	// A device that forwards for us alone: see Host.AddOpened.
	w.rule(opened, established, accept)
	w.rule(opened, redirected, accept)
	w.rule(opened, drop)

	last := w.hook("last", nftables.ChainTypeFilter, nftables.ChainHookForward, nftables.ChainPriorityRef(1000), policyAccept)
	w.rule(last, iifPrefix(LinkPrefix), counted(counterPassed))
	w.rule(last, oifPrefix(LinkPrefix), counted(counterPassed))
}

// postrouting gives sandboxes' flows the host's own address.
func (h *Host) postrouting(w *writer) {
	c := w.hook("postrouting", nftables.ChainTypeNAT, nftables.ChainHookPostrouting, nftables.ChainPriorityNATSource, policyAccept)
	w.rule(c, ipv4, iifPrefix(LinkPrefix), notOifPrefix(LinkPrefix), masquerade)
}

func counted(name string) part {
	return part{&expr.Objref{Type: int(nftables.ObjTypeCounter), Name: name}}
}

// Admit lets the sandbox behind link reach the addresses of the host that the
// policy's allowed CIDRs name.
func (h *Host) Admit(link string, p policy.Policy) error {
	if len(p.AllowedCIDRs) == 0 {
		return h.Forget(link)
	}
	w := &writer{conn: h.conn, table: h.table}
	plain, c := w.regular(link+plainSuffix), w.regular(link)
	w.deny(c, p.DeniedCIDRs, drop)
	w.allow(c, plain, p.AllowedCIDRs)
	if err := h.conn.SetAddElements(h.sandboxes, []nftables.SetElement{{
		Key: ifname(link), VerdictData: &expr.Verdict{Kind: expr.VerdictJump, Chain: link},
	}}); err != nil {
		return err
	}
	if err := w.commit(); err != nil {
		return fmt.Errorf("set rules of host for %s: %w", link, err)
	}
	return nil
}

// Forget takes Admit back. It is no error if there is nothing to take back.
func (h *Host) Forget(link string) error {
	if !h.has(link) {
		return nil
	}
	if err := h.conn.SetDeleteElements(h.sandboxes, []nftables.SetElement{{
		Key: ifname(link), VerdictData: &expr.Verdict{Kind: expr.VerdictJump, Chain: link},
	}}); err != nil {
		return err
	}
	for _, name := range []string{link, link + plainSuffix} {
		c := &nftables.Chain{Table: h.table, Name: name}
		h.conn.FlushChain(c)
		h.conn.DelChain(c)
	}
	if err := h.conn.Flush(); err != nil && !errors.Is(err, unix.ENOENT) {
		return fmt.Errorf("remove rules of host for %s: %w", link, err)
	}
	return nil
}

// Links are the devices that have rules of their own, from Admit.
func (h *Host) Links() (names []string, err error) {
	chains, err := h.conn.ListChainsOfTableFamily(h.table.Family)
	if err != nil {
		return nil, fmt.Errorf("list chains of host: %w", err)
	}
	for _, c := range chains {
		if c.Table.Name == tableName && strings.HasPrefix(c.Name, LinkPrefix) {
			names = append(names, strings.TrimSuffix(c.Name, plainSuffix))
		}
	}
	return names, nil
}

// plainSuffix ends the name of the second chain of a device.
const plainSuffix = "-plain"

// AddOpened says that a device forwards because we have told it to, for
// replies to sandboxes to get through, on a host that does not forward
// otherwise. Nothing else is forwarded from it, unless it belongs to a
// connection, or somebody's rules lead it elsewhere.
func (h *Host) AddOpened(device string) error {
	if err := h.conn.SetAddElements(h.opened, []nftables.SetElement{{Key: ifname(device)}}); err != nil {
		return err
	}
	if err := h.conn.Flush(); err != nil {
		return fmt.Errorf("keep %s from forwarding: %w", device, err)
	}
	return nil
}

// Opened are the devices of AddOpened.
func (h *Host) Opened() (devices []string, err error) {
	have, err := h.conn.GetSetElements(h.opened)
	if err != nil {
		return nil, fmt.Errorf("list devices that forward: %w", err)
	}
	for _, e := range have {
		devices = append(devices, strings.TrimRight(string(e.Key), "\x00"))
	}
	return devices, nil
}

// ForgetOpened is for when the host has begun to forward.
func (h *Host) ForgetOpened() error {
	have, err := h.conn.GetSetElements(h.opened)
	if err == nil && len(have) > 0 {
		h.conn.FlushSet(h.opened)
		err = h.conn.Flush()
	}
	if err != nil {
		return fmt.Errorf("let devices forward again: %w", err)
	}
	return nil
}

// Counters tell how many packets of sandboxes were accepted in the host's
// namespace, and how many were seen after the rules of others: none before
// there was a sandbox.
func (h *Host) Counters() (accepted, passed uint64, err error) {
	if !h.has(version) {
		return 0, 0, nil
	}
	for name, n := range map[string]*uint64{counterAccepted: &accepted, counterPassed: &passed} {
		o, err := h.conn.GetObject(&nftables.CounterObj{Table: h.table, Name: name})
		if err != nil {
			return 0, 0, fmt.Errorf("read counter %s: %w", name, err)
		}
		c, ok := o.(*nftables.CounterObj)
		if !ok {
			return 0, 0, fmt.Errorf("read counter %s: it is a %T", name, o)
		}
		*n = c.Packets
	}
	return accepted, passed, nil
}
