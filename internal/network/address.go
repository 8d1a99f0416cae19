package network

import (
	"encoding/binary"
	"fmt"
	"net"
	"net/netip"

	"github.com/vmsan/vmsan/internal/network/firewall"
)

// What every sandbox has inside, so that a copy of one needs no change. The
// addresses are of a range that no public or private network is made of
// (RFC 7335).
var (
	// Guest is the address of the guest, and Gateway that of the tap, which
	// is where the gate listens.
	Guest   = netip.PrefixFrom(netip.AddrFrom4([4]byte{192, 0, 0, 2}), 30)
	Gateway = netip.PrefixFrom(netip.AddrFrom4([4]byte{192, 0, 0, 1}), 30)
	// GuestMAC and GatewayMAC are locally administered.
	GuestMAC   = net.HardwareAddr{0x02, 0x76, 0x6d, 0x73, 0x61, 0x6e}
	GatewayMAC = net.HardwareAddr{0x02, 0x76, 0x6d, 0x00, 0x00, 0x01}
)

// The ports on Gateway.
const (
	// DNSPort gets what the guest sends to port 53 of any address.
	DNSPort = 53
	// ProxyPort gets TCP to addresses of allowed domains.
	ProxyPort = 10443
)

// The names of the devices in a sandbox's namespace.
const (
	tapName    = "tap0"
	uplinkName = "uplink"
)

// slotBits is the prefix length of a slot: two addresses, and the two that a
// network has to have besides.
const slotBits = 30

// Slots is how many sandboxes a pool has room for.
func Slots(pool netip.Prefix) int {
	if !pool.IsValid() || !pool.Addr().Is4() || pool.Bits() > slotBits {
		return 0
	}
	return 1 << (slotBits - pool.Bits())
}

// lease is the /30 that links a sandbox's namespace to the host's.
type lease struct {
	// host and uplink are the two ends.
	host, uplink netip.Prefix
}

// leaseOf is the slot's.
func leaseOf(pool netip.Prefix, slot int) (lease, error) {
	if slots := Slots(pool); slot < 0 || slot >= slots {
		return lease{}, fmt.Errorf("slot %d is not in the address pool %s, which has %d", slot, pool, slots)
	}
	base := pool.Masked().Addr().As4()
	first := binary.BigEndian.Uint32(base[:]) + uint32(slot)<<(32-slotBits)
	at := func(n uint32) netip.Prefix {
		var raw [4]byte
		binary.BigEndian.PutUint32(raw[:], first+n)
		return netip.PrefixFrom(netip.AddrFrom4(raw), slotBits)
	}
	return lease{host: at(1), uplink: at(2)}, nil
}

// idPrefix begins every id.
const idPrefix = "vm"

// Device is the name of a sandbox's device in the host's namespace: 15
// bytes, which is as long as one can be.
func Device(id string) string { return firewall.LinkPrefix + id[len(idPrefix):] }

// checkID keeps what is no id from becoming a name of something else.
func checkID(id string) error {
	if len(id) != len(idPrefix)+10 || id[:len(idPrefix)] != idPrefix {
		return fmt.Errorf("%.40q is no id of a sandbox", id)
	}
	for _, c := range []byte(id) {
		if (c < 'a' || c > 'z') && (c < '0' || c > '9') {
			return fmt.Errorf("%.40q is no id of a sandbox", id)
		}
	}
	return nil
}
