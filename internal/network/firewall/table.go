// Package firewall holds a sandbox's policy with nftables: a table in the
// sandbox's namespace, where it is all decided, and one in the host's that
// keeps sandboxes from the host and from each other. Each change is one
// transaction.
//
// There is no text form of rules here; the testdata of package network has what
// nft(8) makes of them.
package firewall

import (
	"fmt"

	"github.com/google/nftables"
	"github.com/mdlayher/netlink"
)

// tableName is the name of every table of ours.
const tableName = "vmsan"

// queueSize is for the kernel's answers to a transaction, one to each part of
// it, which it does not wait for anybody to read; and for the transaction.
const queueSize = 16 << 20

// connect opens a connection to the firewall of the calling thread's
// namespace.
func connect() (*nftables.Conn, error) {
	conn, err := nftables.New(nftables.AsLasting(), nftables.WithSockOptions(func(c *netlink.Conn) error {
		if err := c.SetReadBuffer(queueSize); err != nil {
			return err
		}
		return c.SetWriteBuffer(queueSize)
	}))
	if err != nil {
		return nil, fmt.Errorf("open nf_tables: %w", err)
	}
	return conn, nil
}

// writer collects the changes of a transaction to one table.
type writer struct {
	conn  *nftables.Conn
	table *nftables.Table
}

// rule adds a rule to the end of a chain.
func (w *writer) rule(c *nftables.Chain, parts ...part) {
	w.conn.AddRule(&nftables.Rule{Table: w.table, Chain: c, Exprs: join(parts...)})
}

// chain makes a chain, if it is missing, and empties it.
func (w *writer) chain(c nftables.Chain) *nftables.Chain {
	c.Table = w.table
	made := w.conn.AddChain(&c)
	w.conn.FlushChain(made)
	return made
}

// regular is a chain that others lead to.
func (w *writer) regular(name string) *nftables.Chain { return w.chain(nftables.Chain{Name: name}) }

// hook is a chain that packets come to.
func (w *writer) hook(name string, kind nftables.ChainType, hook *nftables.ChainHook, priority *nftables.ChainPriority, policy *nftables.ChainPolicy) *nftables.Chain {
	return w.chain(nftables.Chain{Name: name, Type: kind, Hooknum: hook, Priority: priority, Policy: policy})
}

// commit makes all changes, or none.
func (w *writer) commit() error { return w.conn.Flush() }

var (
	policyDrop   = new(nftables.ChainPolicyDrop)
	policyAccept = new(nftables.ChainPolicyAccept)
)
