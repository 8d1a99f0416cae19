// Package policy says what a sandbox may reach, as data: it reads what users
// type, and matches names and addresses. It does no I/O.
package policy

import (
	"errors"
	"fmt"
	"slices"
)

// Mode is a policy in one word.
type Mode string

// The modes.
const (
	AllowAll Mode = "allow-all" // the public internet
	DenyAll  Mode = "deny-all"  // nothing
	Custom   Mode = "custom"    // what the lists say
)

// Modes are all of them, in the order to show them in.
var Modes = []Mode{AllowAll, DenyAll, Custom}

// Policy is what a sandbox may reach. No policy reaches the host, other
// sandboxes or addresses that are not of the public internet, unless one of
// AllowedCIDRs names them. What DeniedCIDRs name is never reached.
//
// With something allowed in Custom all the rest is denied; with nothing but
// denied CIDRs the rest is the public internet; without any list nothing is
// reached.
type Policy struct {
	Mode           Mode     `json:"mode"`
	AllowedDomains []Domain `json:"allowed_domains,omitempty"`
	AllowedCIDRs   []CIDR   `json:"allowed_cidrs,omitempty"`
	DeniedCIDRs    []CIDR   `json:"denied_cidrs,omitempty"`
}

// MaxRules bounds each list of a policy.
const MaxRules = 1024

// ErrConflict is what New returns for lists beside deny-all.
var ErrConflict = errors.New("deny-all cannot be combined with lists of what is allowed or denied")

// New makes a policy of its parts. Lists beside allow-all, or without a mode,
// make it custom; no mode and no list is allow-all. Lists are sorted, and
// what they have twice is dropped.
func New(mode Mode, domains []Domain, allowed, denied []CIDR) (Policy, error) {
	lists := len(domains)+len(allowed)+len(denied) > 0
	switch {
	case mode == "" && !lists:
		mode = AllowAll
	case mode == "" || mode == AllowAll && lists:
		mode = Custom
	case mode == DenyAll && lists:
		return Policy{}, ErrConflict
	case !slices.Contains(Modes, mode):
		return Policy{}, fmt.Errorf("%.40q is no network policy", mode)
	}
	for _, n := range []int{len(domains), len(allowed), len(denied)} {
		if n > MaxRules {
			return Policy{}, fmt.Errorf("a list of %d rules is longer than %d", n, MaxRules)
		}
	}
	return Policy{
		Mode:           mode,
		AllowedDomains: unique(domains, Domain.compare),
		AllowedCIDRs:   unique(allowed, CIDR.compare),
		DeniedCIDRs:    unique(denied, CIDR.compare),
	}, nil
}

func unique[T comparable](list []T, compare func(a, b T) int) []T {
	if len(list) == 0 {
		return nil
	}
	return slices.Compact(slices.SortedFunc(slices.Values(list), compare))
}

// Public tells whether p reaches the public internet, but for what it denies.
func (p Policy) Public() bool {
	switch p.Mode {
	case AllowAll:
		return true
	case Custom:
		return len(p.AllowedDomains)+len(p.AllowedCIDRs) == 0 && len(p.DeniedCIDRs) > 0
	}
	return false
}

// AllowsLookup tells whether the DNS name may be asked for at all.
func (p Policy) AllowsLookup(name string) bool {
	return p.Public() || slices.ContainsFunc(p.AllowedDomains, func(d Domain) bool { return d.Matches(name) })
}

// AllowsName tells whether the name may be reached by TCP at port, and
// whether a rule names that very port.
func (p Policy) AllowsName(name string, port uint16) (allowed, named bool) {
	for _, d := range p.AllowedDomains {
		if !d.Matches(name) || d.Port != 0 && d.Port != port {
			continue
		}
		allowed = true
		named = named || d.Port == port
	}
	return allowed, named
}
