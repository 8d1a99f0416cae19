package network

import (
	"errors"
	"fmt"
	"net/netip"
	"strings"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"github.com/vmsan/vmsan/internal/network/firewall"
)

// largestPool is the shortest prefix of a pool.
const largestPool = 8

// notForPools are addresses that a device of the host cannot have, or that
// guests have.
var notForPools = []netip.Prefix{
	netip.MustParsePrefix("0.0.0.0/8"),
	netip.MustParsePrefix("127.0.0.0/8"),
	Gateway.Masked(),
	netip.MustParsePrefix("224.0.0.0/3"),
}

// CheckPool tells whether sandboxes of this host can have their addresses from
// pool: it has the right form, and nothing else on the host uses any of it.
func CheckPool(pool netip.Prefix) error {
	switch {
	case !pool.IsValid() || !pool.Addr().Is4():
		return errors.New("a pool is a range of IPv4 addresses, like 198.18.0.0/15")
	case pool != pool.Masked():
		return fmt.Errorf("%s does not begin where its length says: %s does", pool, pool.Masked())
	case pool.Bits() < largestPool || pool.Bits() > slotBits:
		return fmt.Errorf("%s has a length that is not between /%d and /%d", pool, largestPool, slotBits)
	}
	for _, p := range notForPools {
		if pool.Overlaps(p) {
			return fmt.Errorf("%s overlaps %s, which is not for devices of a host", pool, p)
		}
	}
	links, err := openLinks()
	if err != nil {
		return err
	}
	defer links.close()
	if err := links.checkAddresses(pool); err != nil {
		return err
	}
	return links.checkRoutes(pool)
}

func (l *links) checkAddresses(pool netip.Prefix) error {
	addresses, err := whole(func() ([]netlink.Addr, error) { return l.AddrList(nil, netlink.FAMILY_V4) })
	if err != nil {
		return fmt.Errorf("list addresses: %w", err)
	}
	for _, a := range addresses {
		address, ok := netip.AddrFromSlice(a.IP.To4())
		if name := l.nameOf(a.LinkIndex); ok && pool.Contains(address) && !ours(name) {
			return fmt.Errorf("%s overlaps the address %s of device %s", pool, address, name)
		}
	}
	return nil
}

// checkRoutes looks at those of all tables: VPNs have their own.
func (l *links) checkRoutes(pool netip.Prefix) error {
	routes, err := whole(func() ([]netlink.Route, error) {
		return l.RouteListFiltered(netlink.FAMILY_V4, &netlink.Route{Table: unix.RT_TABLE_UNSPEC}, netlink.RT_FILTER_TABLE)
	})
	if err != nil {
		return fmt.Errorf("list routes: %w", err)
	}
	for _, r := range routes {
		to, ok := destination(r)
		if !ok || !pool.Overlaps(to) {
			continue
		}
		index := r.LinkIndex
		if len(r.MultiPath) > 0 {
			index = r.MultiPath[0].LinkIndex
		}
		if index == 0 {
			return fmt.Errorf("%s overlaps the route to %s", pool, to)
		}
		if name := l.nameOf(index); !ours(name) {
			return fmt.Errorf("%s overlaps the route to %s through device %s", pool, to, name)
		}
	}
	return nil
}

// destination is false for a default route, which is everybody's. VPNs like to
// make two of it, one for each half of all addresses.
func destination(r netlink.Route) (to netip.Prefix, ok bool) {
	if r.Dst == nil {
		return netip.Prefix{}, false
	}
	address, ok := netip.AddrFromSlice(r.Dst.IP.To4())
	bits, _ := r.Dst.Mask.Size()
	return netip.PrefixFrom(address, bits), ok && bits > 1
}

// nameOf is the number if the device has gone meanwhile.
func (l *links) nameOf(index int) string {
	link, err := l.LinkByIndex(index)
	if err != nil {
		return fmt.Sprint(index)
	}
	return link.Attrs().Name
}

func ours(device string) bool { return strings.HasPrefix(device, firewall.LinkPrefix) }
