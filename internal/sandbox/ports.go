package sandbox

import (
	"context"
	"net/netip"
	"time"

	"github.com/vmsan/vmsan/internal/guest"
	"github.com/vmsan/vmsan/internal/network"
	"github.com/vmsan/vmsan/internal/policy"
)

// Port is something that listens in a sandbox.
type Port struct {
	guest.Listening
	// Published are the host's ports that lead to it.
	Published []netip.AddrPort
}

// portsTime is how long a guest may take to look for them.
const portsTime = 30 * time.Second

// Ports lists what listens in the sandbox that ref names.
func (s *Service) Ports(ctx context.Context, ref string) (ports []Port, err error) {
	record, err := s.Get(ctx, ref)
	if err != nil {
		return nil, err
	}
	client, err := s.Guest(record)
	if err != nil {
		return nil, err
	}
	defer client.Close()
	ctx, cancel := context.WithTimeout(ctx, portsTime)
	defer cancel()
	list, err := client.Ports(ctx)
	if err != nil {
		return nil, s.Explain(ctx, record, err)
	}
	for _, l := range list {
		p := Port{Listening: l}
		for _, publication := range record.Spec.Publications {
			if leadsTo(publication, l) {
				p.Published = append(p.Published, publication.Host)
			}
		}
		ports = append(ports, p)
	}
	return ports, nil
}

// leadsTo tells whether a published port ends at a socket. One of IPv6 that is
// bound to no address takes what comes by IPv4, too, unless its program has
// asked for something else, which cannot be seen.
func leadsTo(p policy.Publication, l guest.Listening) bool {
	target := network.Guest.Addr()
	if p.Loopback {
		target = netip.AddrFrom4([4]byte{127, 0, 0, 1})
	}
	at := l.At.Addr().Unmap()
	return string(p.Protocol) == l.Protocol && p.Guest == l.At.Port() && (at.IsUnspecified() || at == target)
}
