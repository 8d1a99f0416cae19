package policy

import (
	"cmp"
	"errors"
	"fmt"
	"net/netip"
	"strconv"
	"strings"
)

// Protocol is a transport protocol, or any.
type Protocol string

// The protocols.
const (
	AnyProtocol Protocol = ""
	TCP         Protocol = "tcp"
	UDP         Protocol = "udp"
)

// CIDR is a range of IPv4 addresses, of ports and of protocols.
type CIDR struct {
	Prefix netip.Prefix // masked
	// FirstPort and LastPort are both 0 for any port.
	FirstPort, LastPort uint16
	// Protocol: any is TCP, UDP and ICMP echo; with ports TCP and UDP.
	Protocol Protocol
}

// Any tells whether c is about all protocols and ports, and so about ICMP
// echo too.
func (c CIDR) Any() bool { return c.FirstPort == 0 && c.Protocol == AnyProtocol }

// ParseCIDR reads "203.0.113.0/24", with ":443", ":8000-8999", "/tcp" and
// "/udp" behind it as one likes: "203.0.113.7/32:53/udp". An address alone is
// a range of one.
func ParseCIDR(text string) (CIDR, error) {
	var c CIDR
	for _, protocol := range []Protocol{TCP, UDP} {
		if rest, ok := strings.CutSuffix(strings.ToLower(text), "/"+string(protocol)); ok {
			text, c.Protocol = rest, protocol
			break
		}
	}
	text, ports, ok := strings.Cut(text, ":")
	if ok && !strings.Contains(ports, ":") {
		var err error
		if c.FirstPort, c.LastPort, err = parsePorts(ports); err != nil {
			return CIDR{}, err
		}
	} else if ok {
		return CIDR{}, errors.New("only IPv4 is supported")
	}
	prefix, err := parsePrefix(text)
	if err != nil {
		return CIDR{}, err
	}
	c.Prefix = prefix
	return c, nil
}

// parsePrefix has an error of its own for each thing that can be wrong.
func parsePrefix(text string) (netip.Prefix, error) {
	address, length, ranged := strings.Cut(text, "/")
	octets := strings.Split(address, ".")
	if len(octets) != 4 {
		return netip.Prefix{}, errors.New("invalid CIDR format: expected a.b.c.d/n")
	}
	var raw [4]byte
	for i, octet := range octets {
		n, err := strconv.ParseUint(octet, 10, 16)
		if err != nil || len(octet) > 1 && octet[0] == '0' {
			return netip.Prefix{}, errors.New("invalid CIDR format: expected a.b.c.d/n")
		}
		if n > 255 {
			return netip.Prefix{}, fmt.Errorf("invalid IP octet %d: must be 0-255", n)
		}
		raw[i] = byte(n)
	}
	bits := 32
	if ranged {
		n, err := strconv.ParseUint(length, 10, 16)
		if err != nil || len(length) > 1 && length[0] == '0' {
			return netip.Prefix{}, errors.New("invalid CIDR format: expected a.b.c.d/n")
		}
		if n > 32 {
			return netip.Prefix{}, fmt.Errorf("invalid prefix length %d: must be 0-32", n)
		}
		bits = int(n)
	}
	return netip.PrefixFrom(netip.AddrFrom4(raw), bits).Masked(), nil
}

// parsePorts reads "443" or "8000-8999".
func parsePorts(text string) (first, last uint16, err error) {
	from, to, ranged := strings.Cut(text, "-")
	if first, err = parsePort(from); err != nil {
		return 0, 0, err
	}
	if !ranged {
		return first, first, nil
	}
	if last, err = parsePort(to); err != nil {
		return 0, 0, err
	}
	if last < first {
		return 0, 0, fmt.Errorf("port range %d-%d is backwards", first, last)
	}
	return first, last, nil
}

// parsePort reads a port in plain decimal, 1 to 65535.
func parsePort(text string) (uint16, error) {
	n, err := strconv.ParseUint(text, 10, 16)
	if err != nil || n == 0 || text[0] == '0' {
		return 0, fmt.Errorf("invalid port %.40q: must be 1-65535", text)
	}
	return uint16(n), nil
}

// String is how ParseCIDR reads it.
func (c CIDR) String() string {
	text := c.Prefix.String()
	if c.FirstPort != 0 {
		text += ":" + strconv.Itoa(int(c.FirstPort))
	}
	if c.LastPort != c.FirstPort {
		text += "-" + strconv.Itoa(int(c.LastPort))
	}
	if c.Protocol != AnyProtocol {
		text += "/" + string(c.Protocol)
	}
	return text
}

// MarshalText is String.
func (c CIDR) MarshalText() ([]byte, error) { return []byte(c.String()), nil }

// UnmarshalText is ParseCIDR.
func (c *CIDR) UnmarshalText(text []byte) (err error) {
	*c, err = ParseCIDR(string(text))
	return err
}

func (c CIDR) compare(d CIDR) int {
	return cmp.Or(
		c.Prefix.Addr().Compare(d.Prefix.Addr()), cmp.Compare(c.Prefix.Bits(), d.Prefix.Bits()),
		cmp.Compare(c.String(), d.String()))
}
