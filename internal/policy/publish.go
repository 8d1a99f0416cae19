package policy

import (
	"cmp"
	"errors"
	"fmt"
	"net/netip"
	"strconv"
	"strings"
)

// Publication is a port of the host that leads to one of the guest.
type Publication struct {
	// Host is where the host listens.
	Host netip.AddrPort
	// Guest is the guest's port.
	Guest uint16
	// Protocol is TCP or UDP.
	Protocol Protocol
	// Loopback leads to the guest's 127.0.0.1 instead of its network
	// address. TCP only.
	Loopback bool
}

// defaultBind is reachable from the host alone.
var defaultBind = netip.AddrFrom4([4]byte{127, 0, 0, 1})

// ParsePublication reads "8080", "8080:80", "0.0.0.0:8080:80", with "/udp",
// "/tcp" or ":lo" behind it.
func ParsePublication(text string) (Publication, error) {
	p := Publication{Protocol: TCP}
	rest := text
	for _, protocol := range []Protocol{TCP, UDP} {
		if cut, ok := strings.CutSuffix(rest, "/"+string(protocol)); ok {
			rest, p.Protocol = cut, protocol
			break
		}
	}
	rest, p.Loopback = strings.CutSuffix(rest, ":lo")
	if p.Loopback && p.Protocol == UDP {
		return Publication{}, errors.New(":lo is for TCP")
	}
	parts := strings.Split(rest, ":")
	bind := defaultBind
	if len(parts) == 3 {
		address, err := netip.ParseAddr(parts[0])
		if err != nil || !address.Is4() {
			return Publication{}, fmt.Errorf("%.40q is not an IPv4 address", parts[0])
		}
		bind, parts = address, parts[1:]
	}
	if len(parts) > 2 {
		return Publication{}, errors.New("expected [IP:]HOST:GUEST[/udp]")
	}
	host, err := parsePort(parts[0])
	if err != nil {
		return Publication{}, err
	}
	if p.Guest, err = parsePort(parts[len(parts)-1]); err != nil {
		return Publication{}, err
	}
	p.Host = netip.AddrPortFrom(bind, host)
	return p, nil
}

// Overlaps tells whether both cannot be listened for at once.
func (p Publication) Overlaps(q Publication) bool {
	same := p.Host.Addr() == q.Host.Addr() || p.Host.Addr().IsUnspecified() || q.Host.Addr().IsUnspecified()
	return same && p.Host.Port() == q.Host.Port() && p.Protocol == q.Protocol
}

// CheckPublications refuses lists in which a port of the host is twice.
func CheckPublications(list []Publication) error {
	for i, p := range list {
		for _, q := range list[:i] {
			if p.Overlaps(q) {
				return fmt.Errorf("%s and %s are the same port of the host", q, p)
			}
		}
	}
	return nil
}

// String is how ParsePublication reads it.
func (p Publication) String() string {
	text := p.Host.String() + ":" + strconv.Itoa(int(p.Guest))
	if p.Loopback {
		text += ":lo"
	}
	if p.Protocol == UDP {
		text += "/udp"
	}
	return text
}

// MarshalText is String.
func (p Publication) MarshalText() ([]byte, error) { return []byte(p.String()), nil }

// UnmarshalText is ParsePublication.
func (p *Publication) UnmarshalText(text []byte) (err error) {
	*p, err = ParsePublication(string(text))
	return err
}

// Compare orders publications by where they listen.
func (p Publication) Compare(q Publication) int {
	return cmp.Or(p.Host.Compare(q.Host), cmp.Compare(p.String(), q.String()))
}
