package gate

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/netip"
	"os"
	"strconv"

	"golang.org/x/sys/unix"

	"github.com/vmsan/vmsan/api"
	"github.com/vmsan/vmsan/internal/gate/denials"
	"github.com/vmsan/vmsan/internal/gate/logfile"
	"github.com/vmsan/vmsan/internal/gate/ports"
	"github.com/vmsan/vmsan/internal/gate/proxy"
	"github.com/vmsan/vmsan/internal/gate/resolver"
	"github.com/vmsan/vmsan/internal/policy"
)

// maxPorts is more published ports than a sandbox can have.
const maxPorts = 1024

// maxResolvers is how many of the host's resolvers are asked in turn, as in
// resolv.conf(5).
const maxResolvers = 3

// networkServer serves the guest's network: its names, what it reaches by
// name, and its published ports.
type networkServer struct {
	slog     *slog.Logger
	requests *requests
	packets  net.PacketConn // DNS
	streams  net.Listener   // DNS
	proxied  net.Listener
	denied   *os.File
	events   *denials.Log
	ports    []*os.File

	resolver *resolver.Resolver
	proxy    *proxy.Proxy
}

// inheritNetwork takes over the files of a network; count is how many
// published ports are among them, in decimal.
func inheritNetwork(count string, log *slog.Logger) (s *networkServer, err error) {
	n, err := strconv.Atoi(count)
	if err != nil || n < 0 || n > maxPorts {
		return nil, fmt.Errorf("inherit %.20q ports", count)
	}
	s = &networkServer{slog: log}
	if s.requests, err = inheritRequests(); err != nil {
		return nil, err
	}
	if s.packets, err = inheritPackets(fdDNSPacket, "DNS packets"); err != nil {
		return nil, err
	}
	if s.streams, err = inheritListener(fdDNSStream, "DNS streams"); err != nil {
		return nil, err
	}
	if s.proxied, err = inheritListener(fdProxy, "proxied connections"); err != nil {
		return nil, err
	}
	// Else its reader would block a thread, and could not be interrupted.
	if err := unix.SetNonblock(fdDenials, true); err != nil {
		return nil, fmt.Errorf("inherit denials: %w", err)
	}
	s.denied = os.NewFile(fdDenials, "denials")
	events, err := logfile.OpenLines(os.NewFile(fdNetworkLog, "network.log"))
	if err != nil {
		return nil, err
	}
	s.events = denials.New(events, s.tell)
	for i := range n {
		s.ports = append(s.ports, os.NewFile(uintptr(fdPorts+i), "published port"))
	}
	return s, nil
}

// tell has the monitor note what was refused. It may be gone: then so are we,
// soon.
func (s *networkServer) tell(e api.NetworkEvent) {
	if err := s.requests.Denied(e); err != nil {
		s.slog.Debug("tell of a denial", "error", err)
	}
}

// portCount is how many published ports there are; none without a network.
func (s *networkServer) portCount() int {
	if s == nil {
		return 0
	}
	return len(s.ports)
}

func inheritRequests() (*requests, error) {
	file := os.NewFile(fdRequests, "requests")
	defer file.Close()
	conn, err := net.FileConn(file)
	if err != nil {
		return nil, fmt.Errorf("inherit requests: %w", err)
	}
	packets, ok := conn.(*net.UnixConn)
	if !ok {
		return nil, errors.New("inherit requests: not a unix socket")
	}
	return &requests{conn: packets}, nil
}

func inheritPackets(fd uintptr, name string) (net.PacketConn, error) {
	file := os.NewFile(fd, name)
	defer file.Close()
	conn, err := net.FilePacketConn(file)
	if err != nil {
		return nil, fmt.Errorf("inherit %s: %w", name, err)
	}
	return conn, nil
}

// begin serves the network until the process ends. loopback dials a port of
// the guest's 127.0.0.1.
func (s *networkServer) begin(o NetworkOrder, loopback func(context.Context, uint16) (net.Conn, error)) error {
	if len(o.Ports) != len(s.ports) {
		return fmt.Errorf("%d published ports, and %d files for them", len(o.Ports), len(s.ports))
	}
	s.resolver = resolver.New(resolver.Config{
		Policy: o.Policy, Resolvers: maxResolvers, Dialer: s.requests, Opener: s.requests, Log: s.events, Pool: o.Pool,
	})
	s.proxy = proxy.New(proxy.Config{Policy: o.Policy, Names: s.resolver.Names, Log: s.events})
	s.serve("DNS over UDP", func() error { return s.resolver.ServePacket(s.packets) })
	s.serve("DNS over TCP", func() error { return s.resolver.ServeStream(s.streams) })
	s.serve("proxy", func() error { return s.proxy.Serve(s.proxied) })
	s.serve("denials", func() error { return s.events.Watch(s.denied, s.resolver.Names) })
	return s.publish(o, loopback)
}

// serve runs a part of the network. If one fails the others go on: what it
// would have let through is closed.
func (s *networkServer) serve(what string, run func() error) {
	go func() {
		if err := run(); err != nil {
			s.slog.Error("serve network", "part", what, "error", err)
		}
	}()
}

// publish joins the published ports to the guest's.
func (s *networkServer) publish(o NetworkOrder, loopback func(context.Context, uint16) (net.Conn, error)) error {
	var dialer net.Dialer
	published := ports.New(ports.Config{
		Dial: func(ctx context.Context, network string, port uint16) (net.Conn, error) {
			return dialer.DialContext(ctx, network, netip.AddrPortFrom(o.Guest, port).String())
		},
		DialLoopback: loopback, Log: s.slog,
	})
	for i, to := range o.Ports {
		file := s.ports[i]
		defer file.Close()
		if to.Protocol == policy.UDP {
			conn, err := net.FilePacketConn(file)
			if err != nil {
				return fmt.Errorf("publish %s: %w", to, err)
			}
			s.serve("port "+to.String(), func() error { return published.ServePacket(conn.(*net.UDPConn), to) })
			continue
		}
		listener, err := net.FileListener(file)
		if err != nil {
			return fmt.Errorf("publish %s: %w", to, err)
		}
		s.serve("port "+to.String(), func() error { return published.ServeStream(listener, to) })
	}
	return nil
}

// setPolicy changes what the guest may reach by name, and takes back what
// only the old policy had opened. It returns how many connections were cut.
func (s *networkServer) setPolicy(o PolicyOrder) (killed int, err error) {
	if s.resolver == nil {
		return 0, errors.New("not begun yet")
	}
	closed := s.resolver.SetPolicy(o.Policy)
	killed = s.proxy.SetPolicy(o.Policy, o.Kill)
	return killed, s.requests.Shut(closed)
}

// dialLoopback connects to a port of the guest's 127.0.0.1 once there is a
// link to it.
func (g *gate) dialLoopback(ctx context.Context, port uint16) (net.Conn, error) {
	select {
	case <-g.linked:
	case <-ctx.Done():
		return nil, context.Cause(ctx)
	}
	return g.client.DialPort(ctx, "tcp", net.JoinHostPort("127.0.0.1", strconv.Itoa(int(port))))
}
