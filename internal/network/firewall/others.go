package firewall

import (
	"bytes"
	"fmt"
	"strings"

	"github.com/google/nftables"
	"github.com/google/nftables/binaryutil"
	"github.com/google/nftables/expr"
	"github.com/google/nftables/xt"
	"github.com/mdlayher/netlink"
	"golang.org/x/sys/unix"
)

// Obstacle is a chain of somebody else's that drops a packet which our own
// rules let through.
type Obstacle struct {
	Table  string // with its family: "ip filter"
	Chain  string
	Packet Packet
	// Beside are the names of all chains of that table, which tell whose it is.
	Beside []string
}

// Obstacle looks through the rules of others for a chain that is certain to
// drop one of the packets while it is forwarded; nil if there is none. What
// cannot be known of a packet, as what a limit makes of it, counts in favour of
// it. Only nf_tables is seen, which iptables writes into too unless it is
// iptables-legacy.
func (h *Host) Obstacle(packets ...Packet) (*Obstacle, error) {
	chains, err := h.conn.ListChains()
	if err != nil {
		return nil, fmt.Errorf("list chains of host: %w", err)
	}
	for _, c := range chains {
		if !forwards(c) || c.Table.Name == tableName && c.Table.Family == h.table.Family {
			continue
		}
		for _, p := range packets {
			t := trial{conn: h.conn, table: c.Table, packet: p}
			drops, err := t.drops(c)
			if err != nil {
				return nil, fmt.Errorf("read rules of chain %s: %w", c.Name, err)
			}
			if drops {
				return &Obstacle{familyName(c.Table.Family) + " " + c.Table.Name, c.Name, p, namesBeside(chains, c.Table)}, nil
			}
		}
	}
	return nil, nil
}

// forwards tells whether packets of IPv4 pass a chain when they are forwarded.
func forwards(c *nftables.Chain) bool {
	ours := c.Table.Family == nftables.TableFamilyINet || c.Table.Family == nftables.TableFamilyIPv4
	return ours && c.Type == nftables.ChainTypeFilter && c.Hooknum != nil && *c.Hooknum == *nftables.ChainHookForward
}

func familyName(f nftables.TableFamily) string {
	if f == nftables.TableFamilyINet {
		return "inet"
	}
	return "ip"
}

func namesBeside(chains []*nftables.Chain, t *nftables.Table) (names []string) {
	for _, c := range chains {
		if c.Table.Name == t.Name && c.Table.Family == t.Family {
			names = append(names, c.Name)
		}
	}
	return names
}

// trial is a packet on its way through a base chain.
type trial struct {
	conn   *nftables.Conn
	table  *nftables.Table
	packet Packet
	// spared is true once a rule may have let the packet through.
	spared bool
	depth  int
}

// outcome is what becomes of a packet.
type outcome int

const (
	goesOn outcome = iota // to the next rule, or back to the chain before
	ends                  // this chain, as far as is known: another has it
	passes
	dropped
)

// drops tells whether the base chain is certain to drop the packet.
func (t *trial) drops(base *nftables.Chain) (bool, error) {
	got, err := t.chain(base.Name)
	if err != nil || t.spared {
		return false, err
	}
	if got == goesOn && base.Policy != nil && *base.Policy == nftables.ChainPolicyDrop {
		got = dropped
	}
	return got == dropped, nil
}

// maxDepth is how deep chains can call each other (NFT_JUMP_STACK_SIZE).
const maxDepth = 16

// chain has the packet pass the rules of a chain.
func (t *trial) chain(name string) (outcome, error) {
	if t.depth++; t.depth > maxDepth {
		return passes, nil
	}
	defer func() { t.depth-- }()
	rules, err := t.conn.GetRules(t.table, &nftables.Chain{Name: name})
	if err != nil {
		return goesOn, err
	}
	for _, r := range rules {
		got, err := t.rule(r)
		if err != nil {
			return goesOn, err
		}
		switch got {
		case goesOn:
		case ends:
			return goesOn, nil
		default:
			return got, nil
		}
	}
	return goesOn, nil
}

// certainty is whether a part of a rule matches.
type certainty int

const (
	no certainty = iota
	maybe
	yes
)

func sure(matches bool) certainty {
	if matches {
		return yes
	}
	return no
}

// rule has the packet meet a rule.
func (t *trial) rule(r *nftables.Rule) (outcome, error) {
	matches, known := yes, registers{}
	for _, e := range r.Exprs {
		switch e := e.(type) {
		case *expr.Verdict:
			return t.verdict(e, matches)
		case *expr.Reject:
			return t.judge(dropped, matches), nil
		case *expr.Target:
			return t.judge(targets[e.Name], matches), nil
		case *expr.Queue:
			return t.judge(passes, maybe), nil
		case *expr.Lookup:
			found, verdict, err := t.lookup(e, known)
			if err != nil {
				return goesOn, err
			}
			matches = min(matches, found)
			if verdict != nil && matches != no {
				return t.verdict(verdict, matches)
			}
		default:
			matches = min(matches, t.match(e, known))
		}
		if matches == no {
			return goesOn, nil
		}
	}
	return goesOn, nil
}

// targets are iptables' own that end a packet's way; all others let it go on.
var targets = map[string]outcome{"REJECT": dropped, "NFQUEUE": passes, "QUEUE": passes}

// judge is what becomes of a packet that a rule may be meant for.
func (t *trial) judge(o outcome, matches certainty) outcome {
	if matches == yes {
		return o
	}
	if o == passes {
		t.spared = true
	}
	return goesOn
}

func (t *trial) verdict(v *expr.Verdict, matches certainty) (outcome, error) {
	switch v.Kind {
	case expr.VerdictAccept:
		return t.judge(passes, matches), nil
	case expr.VerdictDrop:
		return t.judge(dropped, matches), nil
	case expr.VerdictReturn:
		// If it may have returned, what comes is not certain to be met.
		if matches == maybe {
			t.spared = true
		}
		return t.judge(ends, matches), nil
	case expr.VerdictJump, expr.VerdictGoto:
		got, err := t.chain(v.Chain)
		if v.Kind == expr.VerdictGoto && got == goesOn {
			got = ends
			t.spared = t.spared || matches == maybe
		}
		return t.judge(got, matches), err
	}
	return goesOn, nil
}

// registers are those whose content is known. Each use of one forgets it: rules
// load it again before the next, and what loads it may be something that the
// library does not know.
type registers map[uint32]value

// value is what a register holds. Numbers from packets are ordered as their
// bytes are; the machine's own are not.
type value struct {
	bytes   []byte
	ordered bool
}

func (r registers) take(n uint32) value {
	defer delete(r, n)
	return r[n]
}

// match evaluates an expression.
func (t *trial) match(e expr.Any, known registers) certainty {
	switch e := e.(type) {
	case *expr.Meta:
		if !e.SourceRegister {
			known[e.Register] = value{bytes: t.packet.meta(e.Key)}
		}
	case *expr.Payload:
		if e.OperationType == expr.PayloadLoad {
			known[e.DestRegister] = value{t.packet.load(e), true}
		}
	case *expr.Ct:
		if !e.SourceRegister {
			known[e.Register] = value{bytes: t.packet.flow(e.Key)}
		}
	case *expr.Immediate:
		known[e.Register] = value{bytes: e.Data}
	case *expr.Bitwise:
		known[e.DestRegister] = known[e.SourceRegister].masked(e)
	case *expr.Cmp:
		return known.take(e.Register).compare(e.Op, e.Data)
	case *expr.Range:
		v := known.take(e.Register)
		inside := min(v.compare(expr.CmpOpGte, e.FromData), v.compare(expr.CmpOpLte, e.ToData))
		if e.Op == expr.CmpOpNeq {
			return yes - inside
		}
		return inside
	case *expr.Match:
		return t.extension(e)
	case *expr.Limit, *expr.Quota, *expr.Connlimit, *expr.Dynset:
		return maybe
	case *expr.Fib:
		delete(known, e.Register)
	case *expr.Numgen:
		delete(known, e.Register)
	case *expr.Hash:
		delete(known, e.DestRegister)
	case *expr.Exthdr:
		delete(known, e.DestRegister)
	}
	return yes // what only counts, logs or marks
}

func (v value) masked(e *expr.Bitwise) value {
	if len(v.bytes) == 0 || len(v.bytes) != len(e.Mask) || len(v.bytes) != len(e.Xor) {
		return value{}
	}
	made := make([]byte, len(v.bytes))
	for i := range made {
		made[i] = v.bytes[i]&e.Mask[i] ^ e.Xor[i]
	}
	return value{made, v.ordered}
}

// compare compares with data as far as that goes: a name that ends in * is
// shorter.
func (v value) compare(op expr.CmpOp, data []byte) certainty {
	if len(v.bytes) < len(data) || len(data) == 0 {
		return maybe
	}
	order := bytes.Compare(v.bytes[:len(data)], data)
	switch op {
	case expr.CmpOpEq:
		return sure(order == 0)
	case expr.CmpOpNeq:
		return sure(order != 0)
	}
	if !v.ordered {
		return maybe
	}
	switch op {
	case expr.CmpOpLt:
		return sure(order < 0)
	case expr.CmpOpLte:
		return sure(order <= 0)
	case expr.CmpOpGt:
		return sure(order > 0)
	case expr.CmpOpGte:
		return sure(order >= 0)
	}
	return maybe
}

// extension evaluates a match of iptables' own.
func (t *trial) extension(e *expr.Match) certainty {
	switch info := e.Info.(type) {
	case *xt.Comment:
		return yes
	case *xt.Tcp:
		return t.ports(info)
	case *xt.ConntrackMtinfo1:
		return t.conntrack(info.ConntrackMtinfoBase, uint16(info.StateMask))
	case *xt.ConntrackMtinfo2:
		return t.conntrack(info.ConntrackMtinfoBase, info.StateMask)
	case *xt.ConntrackMtinfo3:
		return t.conntrack(info.ConntrackMtinfoBase, info.StateMask)
	}
	return maybe
}

// conntrack knows of states alone.
func (t *trial) conntrack(base xt.ConntrackMtinfoBase, mask uint16) certainty {
	const state = uint16(xt.ConntrackState)
	if base.MatchFlags&^uint16(xt.ConntrackStateAlias) != state {
		return maybe
	}
	return sure((uint32(mask)&t.packet.state() != 0) != (base.InvertFlags&state != 0))
}

// ports knows of ports alone: linux/netfilter/xt_tcpudp.h.
func (t *trial) ports(info *xt.Tcp) certainty {
	if info.Option != 0 || info.FlagsMask != 0 || info.InvFlags != 0 {
		return maybe
	}
	inside := func(port uint16, ports [2]uint16) bool { return port >= ports[0] && port <= ports[1] }
	return sure(inside(t.packet.From.Port(), info.SrcPorts) && inside(t.packet.To.Port(), info.DstPorts))
}

// maxElements bounds the sets that are looked into.
const maxElements = 1 << 14

// lookup looks for a value in a set, or in a map of verdicts.
func (t *trial) lookup(e *expr.Lookup, known registers) (found certainty, v *expr.Verdict, err error) {
	value := known.take(e.SourceRegister).bytes
	elements, err := t.conn.GetSetElements(&nftables.Set{Table: t.table, Name: e.SetName})
	if err != nil {
		return no, nil, fmt.Errorf("read set %s: %w", e.SetName, err)
	}
	if value == nil || len(elements) > maxElements {
		t.spared = t.spared || e.IsDestRegSet && !harmless(elements)
		return maybe, nil, nil
	}
	at, found := search(elements, value)
	switch {
	case found == maybe && e.IsDestRegSet:
		t.spared = t.spared || !harmless(elements)
	case found == yes && e.IsDestRegSet:
		if v = verdictOf(at.Val); v == nil { // a map of something else
			delete(known, e.DestRegister)
		}
	}
	if e.Invert {
		found = yes - found
	}
	return found, v, nil
}

// search finds the element that a value is in. In a set of ranges an element
// begins one, and the next, which is no member, ends it.
func search(elements []nftables.SetElement, value []byte) (at nftables.SetElement, found certainty) {
	ranges := false
	var below *nftables.SetElement
	for i, e := range elements {
		switch {
		case len(e.Key) != len(value) || len(e.KeyEnd) > 0:
			return at, maybe // it is about more than this value
		case bytes.Equal(e.Key, value) && !e.IntervalEnd:
			return e, yes
		}
		ranges = ranges || e.IntervalEnd
		if bytes.Compare(e.Key, value) <= 0 && (below == nil || bytes.Compare(e.Key, below.Key) > 0) {
			below = &elements[i]
		}
	}
	if ranges && below != nil && !below.IntervalEnd {
		return *below, yes
	}
	return at, no
}

// harmless tells whether no verdict of a map can let a packet through.
func harmless(elements []nftables.SetElement) bool {
	for _, e := range elements {
		if v := verdictOf(e.Val); v != nil && v.Kind != expr.VerdictDrop {
			return false
		}
	}
	return true
}

// verdictOf reads the value of a map's element; nil if it is no verdict.
func verdictOf(raw []byte) *expr.Verdict {
	attributes, err := netlink.NewAttributeDecoder(raw)
	if err != nil {
		return nil
	}
	var v *expr.Verdict
	for attributes.Next() {
		switch attributes.Type() {
		case unix.NFTA_VERDICT_CODE:
			if code := attributes.Bytes(); len(code) == 4 {
				v = &expr.Verdict{Kind: expr.VerdictKind(int32(binaryutil.BigEndian.Uint32(code)))}
			}
		case unix.NFTA_VERDICT_CHAIN:
			if v != nil {
				v.Chain = strings.TrimRight(string(attributes.Bytes()), "\x00")
			}
		}
	}
	if attributes.Err() != nil {
		return nil
	}
	return v
}
