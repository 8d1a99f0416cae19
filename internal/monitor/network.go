package monitor

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"slices"
	"syscall"
	"time"

	"github.com/miekg/dns"
	"golang.org/x/sys/unix"

	"github.com/vmsan/vmsan/api"
	"github.com/vmsan/vmsan/internal/fault"
	"github.com/vmsan/vmsan/internal/gate"
	"github.com/vmsan/vmsan/internal/network"
	"github.com/vmsan/vmsan/internal/policy"
	"github.com/vmsan/vmsan/internal/store"
	"github.com/vmsan/vmsan/internal/vmm"
)

// sandboxNetwork is the network of the sandbox, if it has one, and all that
// its gates need of it.
type sandboxNetwork struct {
	*network.Network
	ports []*os.File
	log   *os.File
}

// makeNetwork opens the published ports first: that one is taken is known
// before anything else is made.
func (m *monitor) makeNetwork(ctx context.Context) (err error) {
	s := m.record.Spec
	if !s.Networked() {
		return m.makeBareNIC()
	}
	var n sandboxNetwork
	for _, p := range s.Publications {
		port, err := listenPort(p)
		if err != nil {
			return portError(p, err)
		}
		n.ports = append(n.ports, port)
		m.undo.Add(port.Close)
	}
	n.log, err = os.OpenFile(m.layout.NetworkLog(m.id), os.O_RDWR|os.O_CREATE, 0o600)
	if err != nil {
		return fmt.Errorf("open network log: %w", err)
	}
	m.undo.Add(n.log.Close)
	// What is left of its last run, if the kernel is not done with that yet.
	if err := network.CleanUp(m.id); err != nil {
		return networkError(err)
	}
	n.Network, err = network.Create(ctx, network.Config{
		ID: m.id, Slot: m.record.Slot, Pool: s.Pool, Policy: s.Policy, Bandwidth: s.Bandwidth,
		Owner: m.layout.Run,
	})
	if err != nil {
		return networkError(err)
	}
	m.undo.Add(n.Close)
	m.background.Go(func() { m.keepRules(n.Network) })
	m.network = &n
	m.nic = &vmm.NIC{Tap: n.Tap(), MAC: network.GuestMAC}
	if m.driver.Features().OpensTap {
		name, err := n.LendTap(m.record.Host.UID)
		if err != nil {
			return networkError(err)
		}
		m.nic = &vmm.NIC{Name: name, Namespace: n.Namespace(), MAC: network.GuestMAC}
	}
	return nil
}

// keepRules puts the host's part of the sandbox's rules back whenever somebody
// has deleted it, until the network is closed.
func (m *monitor) keepRules(n *network.Network) {
	n.KeepRules(func(err error) {
		if err != nil {
			m.log.Error("the host's rules for sandboxes may be lost", "error", err)
		} else {
			m.log.Warn("the host's rules for sandboxes were deleted; put back")
		}
	})
}

// makeBareNIC makes the device of a machine that has one and no network.
func (m *monitor) makeBareNIC() (err error) {
	if !m.record.Spec.HasNIC() {
		return nil
	}
	if m.driver.Features().OpensTap {
		name, namespace, err := network.LentBareTap(m.record.Host.UID)
		if err != nil {
			return networkError(err)
		}
		m.undo.Add(namespace.Close)
		m.nic = &vmm.NIC{Name: name, Namespace: namespace, MAC: network.GuestMAC}
		return nil
	}
	tap, err := network.BareTap()
	if err != nil {
		return networkError(err)
	}
	m.undo.Add(tap.Close)
	m.nic = &vmm.NIC{Tap: tap, MAC: network.GuestMAC}
	return nil
}

// listenPort listens on a port of the host. Gates come and go; the port stays.
func listenPort(p policy.Publication) (*os.File, error) {
	if p.Protocol == policy.UDP {
		conn, err := net.ListenUDP("udp4", net.UDPAddrFromAddrPort(p.Host))
		if err != nil {
			return nil, err
		}
		defer conn.Close()
		return conn.File()
	}
	listener, err := net.ListenTCP("tcp4", net.TCPAddrFromAddrPort(p.Host))
	if err != nil {
		return nil, err
	}
	defer listener.Close()
	return listener.File()
}

func portError(p policy.Publication, err error) error {
	if errors.Is(err, syscall.EADDRINUSE) {
		return api.Errorf(api.ErrValidationPortConflict, "Published port conflict: %s (in use by another program of this host)", p.Host).
			WithFlag("--publish").WithHint("ss -ltnup 'sport = :%d' names the program", p.Host.Port())
	}
	return api.Errorf(api.ErrNetwork, "publish port %s: %w", p, err).WithFlag("--publish")
}

// networkError gives a network that cannot be made its code.
func networkError(err error) error {
	var host *network.HostError
	if errors.As(err, &host) {
		return api.Errorf(api.ErrNetworkUnavailable, "make network: %w", err).WithHint("%s", host.Hint)
	}
	return api.Errorf(api.ErrNetwork, "make network: %w", err)
}

// forGate are the files of the network that a gate gets.
func (n *sandboxNetwork) forGate() *gate.Network {
	if n == nil {
		return nil
	}
	s := n.Sockets()
	return &gate.Network{
		Namespace: n.Namespace(), DNSPacket: s.DNSPacket, DNSStream: s.DNSStream, Proxy: s.Proxy,
		Denials: s.Denials, Log: n.log, Ports: n.ports,
	}
}

// networkOrder is how a gate is to serve the network just now.
func (m *monitor) networkOrder() *gate.NetworkOrder {
	if m.network == nil {
		return nil
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	s := m.record.Spec
	return &gate.NetworkOrder{Policy: s.Policy, Guest: network.Guest.Addr(), Pool: s.Pool, Ports: s.Publications}
}

// SetPolicy implements control.Monitor. The firewall changes first; the gate's
// filters of names follow. In between only what both allow passes.
func (m *monitor) SetPolicy(ctx context.Context, p policy.Policy, kill bool) (killed int, err error) {
	if m.network == nil {
		return 0, api.Errorf(api.ErrUnsupported, "VM %s has no network", m.id).WithVM(m.id)
	}
	m.policyTurn.Lock()
	defer m.policyTurn.Unlock()
	// A gate that is started from here on has the new policy.
	previous := m.record.Spec.Policy
	if err := fault.After("policy: recorded", m.save(func(r *store.Record) { r.Spec.Policy = p })); err != nil {
		return 0, err
	}
	if err := fault.After("policy: firewall changed", m.network.SetPolicy(p)); err != nil {
		saveErr := m.save(func(r *store.Record) { r.Spec.Policy = previous })
		return 0, errors.Join(api.Errorf(api.ErrNetwork, "change firewall: %w", err).WithVM(m.id), saveErr)
	}
	cut, err := m.tellGate(ctx, gate.PolicyOrder{Policy: p, Kill: kill})
	if err = fault.After("policy: gate told", err); err != nil {
		return 0, err
	}
	if !kill {
		return 0, nil
	}
	killed, err = m.network.Kill(p)
	if err != nil {
		return 0, api.Errorf(api.ErrNetwork, "cut flows: %w", err).WithVM(m.id)
	}
	return killed + cut, nil
}

// tellGate has the gate change its filters of names, and returns how many
// connections it cut. One that dies meanwhile is replaced by one that knows, and
// an order that is broken off ends the gate, so whoever goes does not break it off.
func (m *monitor) tellGate(ctx context.Context, o gate.PolicyOrder) (cut int, err error) {
	ctx, cancel := context.WithTimeoutCause(context.WithoutCancel(ctx), gateTime, errors.New("the gate does not answer"))
	defer cancel()
	m.mu.Lock()
	g := m.gate
	m.mu.Unlock()
	report, err := g.order(ctx, gate.Order{Policy: &o})
	if err != nil && !g.ended() {
		// It is not to go on with the old one.
		g.conn.Close()
		return 0, fmt.Errorf("change filter of names: %w", err)
	}
	return max(report.Killed, 0), nil
}

// gateTime is how long a gate may take for what its guest is not asked for.
const gateTime = 10 * time.Second

// broker does what a gate asks for; see gate.Broker.
type broker struct{ *monitor }

// maxOpenTime bounds how long an address stays open that is not asked for
// again.
const maxOpenTime = 2 * time.Hour

// Open implements gate.Broker. A gate that was taken over cannot open what no
// domain may lead to.
func (b broker) Open(addresses []netip.Addr, ttl time.Duration) error {
	b.mu.Lock()
	allowed := slices.Clone(b.record.Spec.Policy.AllowedCIDRs)
	b.mu.Unlock()
	for _, a := range addresses {
		named := slices.ContainsFunc(allowed, func(c policy.CIDR) bool { return c.Prefix.Contains(a) })
		if !policy.IsPublic(a) && !named {
			return fmt.Errorf("%s is not of the public internet", a)
		}
	}
	return b.network.Open(addresses, min(ttl, maxOpenTime))
}

// Shut implements gate.Broker.
func (b broker) Shut(addresses []netip.Addr) error { return b.network.Shut(addresses) }

// Dial implements gate.Broker. Nothing waits here for a resolver: a
// connection by TCP is handed over while it is on its way.
func (b broker) Dial(resolver int, tcp bool) (*os.File, error) {
	servers, err := b.resolvers()
	if err != nil {
		return nil, err
	}
	if resolver >= len(servers) {
		return nil, fmt.Errorf("there is no resolver %d", resolver)
	}
	return dialResolver(servers[resolver], tcp)
}

// resolvers are those the user named, or else those that the host has now.
func (b broker) resolvers() ([]netip.AddrPort, error) {
	if named := b.record.Spec.Resolvers; len(named) > 0 {
		return named, nil
	}
	host, err := dns.ClientConfigFromFile("/etc/resolv.conf")
	if err != nil {
		return nil, fmt.Errorf("read the host's resolvers: %w", err)
	}
	var servers []netip.AddrPort
	for _, text := range host.Servers {
		address, err := netip.ParseAddr(text)
		if err != nil {
			continue // nothing that the resolver library would use either
		}
		servers = append(servers, netip.AddrPortFrom(address, 53))
	}
	return servers, nil
}

func dialResolver(server netip.AddrPort, tcp bool) (*os.File, error) {
	kind := unix.SOCK_DGRAM
	if tcp {
		kind = unix.SOCK_STREAM
	}
	family, address := unix.AF_INET6, unix.Sockaddr(&unix.SockaddrInet6{Port: int(server.Port()), Addr: server.Addr().As16()})
	if server.Addr().Is4() {
		family, address = unix.AF_INET, &unix.SockaddrInet4{Port: int(server.Port()), Addr: server.Addr().As4()}
	}
	fd, err := unix.Socket(family, kind|unix.SOCK_CLOEXEC|unix.SOCK_NONBLOCK, 0)
	if err != nil {
		return nil, fmt.Errorf("open socket: %w", err)
	}
	if err := unix.Connect(fd, address); err != nil && err != unix.EINPROGRESS {
		unix.Close(fd)
		return nil, fmt.Errorf("connect to resolver %s: %w", server, err)
	}
	return os.NewFile(uintptr(fd), "resolver"), nil
}
