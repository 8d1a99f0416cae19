package sandbox

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"slices"
	"strconv"
	"strings"

	"github.com/vmsan/vmsan/api"
	"github.com/vmsan/vmsan/internal/hooks"
	"github.com/vmsan/vmsan/internal/monitor/control"
	"github.com/vmsan/vmsan/internal/network"
	"github.com/vmsan/vmsan/internal/policy"
	"github.com/vmsan/vmsan/internal/store"
)

// The kinds of network a sandbox can have.
const (
	networkNAT  = "nat"  // behind the host's address
	networkNone = "none" // loopback only
	// networkDetached is for templates, which are not connected to anything.
	networkDetached = "detached"
)

// The most that a sandbox can have of them.
const (
	maxPublications = 256
	maxResolvers    = 3 // as in resolv.conf(5)
)

// completeNetwork fills in the defaults of the network and checks them. Those
// of a sandbox that goes on from a snapshot are the snapshot's.
func (o *CreateOptions) completeNetwork() error {
	if o.Snapshot != "" {
		return o.checkPublications()
	}
	if o.Network == "" {
		o.Network = networkNone
		if os.Geteuid() == 0 || o.needsNetwork() {
			o.Network = networkNAT
		}
	}
	if err := checkChoice("--network", o.Network, networkNAT, networkNone); err != nil {
		return err
	}
	if o.Network == networkNone {
		return o.checkNoNetwork()
	}
	if o.Policy.Mode == "" {
		o.Policy.Mode = policy.AllowAll
	}
	return o.checkPublications()
}

func (o *CreateOptions) checkPublications() error {
	if len(o.Publications) > maxPublications {
		return api.Errorf(api.ErrValidationPort, "Invalid --publish: %d ports. At most %d.", len(o.Publications), maxPublications).
			WithFlag("--publish")
	}
	if err := policy.CheckPublications(o.Publications); err != nil {
		return api.Errorf(api.ErrValidationPortConflict, "Published port conflict: %w", err).WithFlag("--publish")
	}
	return nil
}

// needsNetwork tells whether anything was asked of a network.
func (o *CreateOptions) needsNetwork() bool {
	return o.Policy.Mode != "" || len(o.Publications) > 0 || len(o.Resolvers) > 0 || o.Bandwidth != (policy.Bandwidth{})
}

func (o *CreateOptions) checkNoNetwork() error {
	if o.needsNetwork() {
		return api.Errorf(api.ErrValidationFlags, "Cannot use --network none and flags of a network together").
			WithFlag("--network").WithHint("leave out --network none, or the other flags")
	}
	return nil
}

// ParsePool reads a range of addresses for sandboxes' networks.
func ParsePool(text string) (netip.Prefix, error) {
	pool, err := netip.ParsePrefix(text)
	if err == nil && pool != pool.Masked() {
		err = fmt.Errorf("it begins at %s", pool.Masked().Addr())
	}
	if err == nil {
		return pool, nil
	}
	return netip.Prefix{}, api.Errorf(api.ErrNetworkPool, "Invalid --network-pool: %.80q: %w", text, err).
		WithFlag("--network-pool")
}

// slotUsable tells whether nothing on the host is named after a slot any more:
// a network that was given up is taken apart by the kernel a moment later.
func slotUsable(s store.Spec) func(slot int) (bool, error) {
	return func(slot int) (bool, error) {
		if !s.Networked() {
			return true, nil
		}
		if slot >= network.Slots(s.Pool) {
			return false, nil
		}
		return network.Gone(slot, s.Pool)
	}
}

// checkNetwork fails if this user or this host cannot give a new sandbox the
// network that was asked for.
func checkNetwork(s store.Spec) error {
	switch {
	case !s.Networked():
		return nil
	case os.Geteuid() != 0:
		return api.Errorf(api.ErrPermission, "a sandbox with a network needs root, which makes its devices and firewall").
			WithFlag("--network").WithHint("sudo vmsan create, or vmsan create --network none")
	case s.Policy.Mode == policy.DenyAll:
		return nil
	}
	return checkRoute()
}

// checkRoute fails if the host has no way to the outside: who asks for a
// network now wants one that works. One that goes later may come back.
func checkRoute() error {
	_, err := network.DefaultRoute()
	if errors.Is(err, network.ErrNoRoute) {
		return api.Errorf(api.ErrNetworkDefaultInterface, "the host has no default route, so that the sandbox could reach nothing").
			WithFlag("--network").WithHint("ip route add default via GATEWAY; or vmsan create with --network none, or --network-policy deny-all")
	}
	if err != nil {
		return api.Errorf(api.ErrNetwork, "find the host's default route: %w", err)
	}
	return nil
}

// watchFirewall looks whether the host's firewall is in the way of a sandbox,
// while that comes up. warn says so, if it is known by then: nobody waits for
// it, and what is left to read of somebody's long rules is not read.
func (s *Service) watchFirewall(spec store.Spec) (warn func()) {
	if !spec.Networked() || spec.Policy.Mode == policy.DenyAll {
		return func() {}
	}
	found := make(chan error, 1)
	go func() { found <- network.CheckForwarding(spec.Pool) }()
	return func() {
		select {
		case err := <-found:
			var host *network.HostError
			if errors.As(err, &host) {
				s.log.Warn(err.Error(), "hint", host.Hint)
			}
		default:
		}
	}
}

// PolicyLists are the lists of a policy as typed.
type PolicyLists struct{ AllowedDomains, AllowedCIDRs, DeniedCIDRs []string }

// Parse makes a policy of a mode ("" is left to the lists) and the lists. It
// returns the zero policy if there is neither.
func (l PolicyLists) Parse(mode string) (policy.Policy, error) {
	domains, err := ParseDomains("--allowed-domain", l.AllowedDomains)
	if err != nil {
		return policy.Policy{}, err
	}
	allowed, err := ParseCIDRs("--allowed-cidr", l.AllowedCIDRs)
	if err != nil {
		return policy.Policy{}, err
	}
	denied, err := ParseCIDRs("--denied-cidr", l.DeniedCIDRs)
	if err != nil {
		return policy.Policy{}, err
	}
	if mode == "" && len(domains)+len(allowed)+len(denied) == 0 {
		return policy.Policy{}, nil
	}
	return newPolicy(policy.Mode(mode), domains, allowed, denied)
}

func newPolicy(mode policy.Mode, domains []policy.Domain, allowed, denied []policy.CIDR) (policy.Policy, error) {
	if mode != "" && !slices.Contains(policy.Modes, mode) {
		return policy.Policy{}, api.Errorf(api.ErrValidationNetworkPolicy, "Invalid --network-policy: %.80q. "+
			"Must be one of: allow-all, deny-all, custom.", string(mode)).WithFlag("--network-policy")
	}
	p, err := policy.New(mode, domains, allowed, denied)
	switch {
	case errors.Is(err, policy.ErrConflict):
		return p, api.Errorf(api.ErrValidationPolicyConflict, "Cannot combine deny-all with --allowed-domain, "+
			"--allowed-cidr or --denied-cidr").WithFlag("--network-policy").WithHint("leave out --network-policy, or the lists")
	case err != nil:
		return p, api.Errorf(api.ErrValidationNetworkPolicy, "Invalid network policy: %w", err).WithFlag("--network-policy")
	}
	return p, nil
}

// ParseDomains reads domains; flag is where they were typed.
func ParseDomains(flag string, list []string) ([]policy.Domain, error) {
	return parseList(api.ErrValidationDomain, flag, list, policy.ParseDomain)
}

// ParseCIDRs reads ranges of addresses; flag is where they were typed.
func ParseCIDRs(flag string, list []string) ([]policy.CIDR, error) {
	return parseList(api.ErrValidationCIDR, flag, list, policy.ParseCIDR)
}

// ParsePublications reads ports to publish, as --publish has them.
func ParsePublications(list []string) ([]policy.Publication, error) {
	return parseList(api.ErrValidationPort, "--publish", list, policy.ParsePublication)
}

// ParsePorts reads ports to publish as --publish-port has them: the same on
// both sides.
func ParsePorts(list []string) ([]policy.Publication, error) {
	return parseList(api.ErrValidationPort, "--publish-port", list, func(text string) (policy.Publication, error) {
		if strings.ContainsAny(text, ":/") {
			return policy.Publication{}, errors.New("expected a port, 1-65535")
		}
		return policy.ParsePublication(text)
	})
}

// ParseResolvers reads addresses of DNS servers, with a port if it is not 53.
func ParseResolvers(list []string) ([]netip.AddrPort, error) {
	if len(list) > maxResolvers {
		return nil, api.Errorf(api.ErrValidationAddress, "Invalid --dns: %d servers. At most %d.", len(list), maxResolvers).
			WithFlag("--dns")
	}
	return parseList(api.ErrValidationAddress, "--dns", list, func(text string) (netip.AddrPort, error) {
		if !strings.Contains(text, ":") {
			text += ":" + strconv.Itoa(53)
		}
		server, err := netip.ParseAddrPort(text)
		if err == nil && (!server.Addr().Is4() || server.Port() == 0) {
			err = errors.New("expected an IPv4 address")
		}
		return server, err
	})
}

// ParseBandwidth reads a bandwidth, "10mbit" or "10mbit:20mbit".
func ParseBandwidth(text string) (policy.Bandwidth, error) {
	b, err := policy.ParseBandwidth(text)
	if err != nil {
		return b, api.Errorf(api.ErrValidationBandwidth, "Invalid --bandwidth: %.80q: %w", text, err).WithFlag("--bandwidth")
	}
	return b, nil
}

func parseList[T any](code api.Code, flag string, list []string, parse func(string) (T, error)) (parsed []T, err error) {
	for _, text := range list {
		item, err := parse(strings.TrimSpace(text))
		if err != nil {
			return nil, api.Errorf(code, "Invalid %s: %.80q: %w", flag, text, err).WithFlag(flag)
		}
		parsed = append(parsed, item)
	}
	return parsed, nil
}

// PolicyChange makes a sandbox's next policy of the one it has.
type PolicyChange func(policy.Policy) (policy.Policy, error)

// Replace is the change to p, whatever there was.
func Replace(p policy.Policy) PolicyChange {
	return func(policy.Policy) (policy.Policy, error) { return p, nil }
}

// Edit is the change that adds and removes single rules. Removing what is not
// there is no error.
func Edit(add, remove PolicyLists) PolicyChange {
	return func(p policy.Policy) (policy.Policy, error) {
		domains, err := edit(ParseDomains, "allowed-domain", p.AllowedDomains, add.AllowedDomains, remove.AllowedDomains)
		if err != nil {
			return p, err
		}
		allowed, err := edit(ParseCIDRs, "allowed-cidr", p.AllowedCIDRs, add.AllowedCIDRs, remove.AllowedCIDRs)
		if err != nil {
			return p, err
		}
		denied, err := edit(ParseCIDRs, "denied-cidr", p.DeniedCIDRs, add.DeniedCIDRs, remove.DeniedCIDRs)
		if err != nil {
			return p, err
		}
		mode := p.Mode
		if len(domains)+len(allowed)+len(denied) > 0 {
			mode = policy.Custom
		}
		return newPolicy(mode, domains, allowed, denied)
	}
}

func edit[T comparable](parse func(string, []string) ([]T, error), list string, old []T, add, remove []string) ([]T, error) {
	added, err := parse("--add-"+list, add)
	if err != nil {
		return nil, err
	}
	removed, err := parse("--remove-"+list, remove)
	if err != nil {
		return nil, err
	}
	kept := slices.DeleteFunc(slices.Clone(old), func(item T) bool { return slices.Contains(removed, item) })
	return append(kept, added...), nil
}

// SetPolicy changes what a sandbox may reach: at once if it runs. With kill,
// open flows that are no longer allowed are cut. It returns the policy from
// before, the one that holds now, and how many flows were cut.
func (s *Service) SetPolicy(ctx context.Context, ref string, change PolicyChange, kill bool) (
	r *store.Record, previous policy.Policy, killed int, err error) {
	if r, err = s.Get(ctx, ref); err != nil {
		return nil, previous, 0, err
	}
	if !r.Spec.Networked() {
		return nil, previous, 0, api.Errorf(api.ErrUnsupported, "VM %s was created without a network", r.ID).WithVM(r.ID).
			WithHint("vmsan create, without --network none")
	}
	previous = r.Spec.Policy
	next, err := change(previous)
	if err != nil {
		return nil, previous, 0, err
	}
	if next.Mode == "" {
		next.Mode = policy.AllowAll
	}
	if killed, err = s.setPolicy(ctx, r, next, kill); err != nil {
		return nil, previous, 0, fmt.Errorf("change network of %s: %w", r.ID, err)
	}
	s.emitOf(r, api.EventVMPolicy, func(e *api.Event) { e.Policy = string(next.Mode) })
	if r, err = s.layout.Load(r.ID); err == nil {
		s.hooked(r).After(ctx, hooks.PolicyChange(store.ShowPolicy(previous), r))
	}
	return r, previous, killed, err
}

// setPolicy has the monitor do it, which is the only writer of the record
// while it lives, or does it under the lock.
func (s *Service) setPolicy(ctx context.Context, r *store.Record, next policy.Policy, kill bool) (killed int, err error) {
	if r.Running() {
		killed, err := control.Dial(s.layout.ControlSocket(r.ID)).SetPolicy(ctx, next, kill)
		if !errors.Is(err, control.ErrGone) {
			return killed, err
		}
	}
	lock, record, err := s.own(ctx, r.ID)
	if err != nil {
		return 0, err
	}
	defer lock.Release()
	record.Spec.Policy = next
	return 0, s.layout.Save(record)
}

// NetworkLogPath is the file of what the network of the sandbox id refused,
// and of the names that it asked for.
func (s *Service) NetworkLogPath(id string) string { return s.layout.NetworkLog(id) }
