package firewall

import (
	"fmt"

	"github.com/google/nftables"
)

// Chain is a chain of a sandbox's table that packets come to.
type Chain struct {
	Name string
	// Drops tells that it drops what no rule is about.
	Drops bool
	Rules int
}

// Chains are those that the table of sandboxes has in the calling thread's
// namespace, as the kernel tells them; none if there is no such table.
func Chains() ([]Chain, error) {
	conn, err := connect()
	if err != nil {
		return nil, err
	}
	defer conn.CloseLasting()
	all, err := conn.ListChainsOfTableFamily(nftables.TableFamilyINet)
	if err != nil {
		return nil, fmt.Errorf("list chains: %w", err)
	}
	var found []Chain
	for _, c := range all {
		if c.Table.Name != tableName || c.Hooknum == nil {
			continue
		}
		rules, err := conn.GetRules(c.Table, c)
		if err != nil {
			return nil, fmt.Errorf("list rules of %s: %w", c.Name, err)
		}
		found = append(found, Chain{Name: c.Name, Drops: c.Policy != nil && *c.Policy == nftables.ChainPolicyDrop, Rules: len(rules)})
	}
	return found, nil
}
