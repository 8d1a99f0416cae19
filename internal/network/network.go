// Package network gives a sandbox its network: a network namespace of its
// own with a tap in it for the VMM, a link to the host's namespace, and
// firewalls on both sides that hold its policy.
//
// The host's namespace is the one this process is in. What stays there is
// named after the sandbox's id alone, so that CleanUp finds it; all else is in
// the sandbox's namespace, which has no name, and is gone when nobody holds it
// any more.
package network

import (
	"context"
	"errors"
	"net/netip"
	"os"
	"time"

	"github.com/vmsan/vmsan/internal/policy"
)

// Config says what network to make.
type Config struct {
	// ID is the sandbox's: vm and ten letters or digits.
	ID string
	// Slot is which /30 of Pool is the sandbox's, from 0.
	Slot int
	Pool netip.Prefix
	// Policy is what the guest may reach.
	Policy policy.Policy
	// Bandwidth is optional.
	Bandwidth policy.Bandwidth
}

// Sockets are what the gate serves a guest with. They were opened in the
// sandbox's namespace, with rights that the gate does not have.
type Sockets struct {
	// DNSPacket and DNSStream get what the guest sends to port 53 of any
	// address: bound UDP socket and TCP listener.
	DNSPacket, DNSStream *os.File
	// Proxy is a TCP listener that gets the guest's connections to addresses
	// that were given to Open; SO_ORIGINAL_DST tells which.
	Proxy *os.File
	// Denials is a bound NFLOG socket: nfnetlink messages with the first
	// bytes of what was denied, and the reason as prefix.
	Denials *os.File
}

// Network is a sandbox's network. Its methods may be called from any
// goroutine; Close ends it.
type Network struct{}

// Create makes a sandbox's network. On error nothing is left behind.
func Create(ctx context.Context, c Config) (*Network, error) { return nil, errors.ErrUnsupported }

// Tap is for the VMM: a tap device with virtio-net headers (IFF_VNET_HDR). It
// is the network's: who needs it longer duplicates it.
func (n *Network) Tap() *os.File { return nil }

// Namespace is the sandbox's, for the gate. It is the network's too.
func (n *Network) Namespace() *os.File { return nil }

// Sockets are for the gate. They are the network's too.
func (n *Network) Sockets() Sockets { return Sockets{} }

// SetPolicy replaces the policy, at once for new flows; those under way go on.
// There is no moment at which anything else holds than one or the other.
func (n *Network) SetPolicy(p policy.Policy) error { return errors.ErrUnsupported }

// Kill ends the flows that p does not allow, and tells how many. Flows
// through the gate are the gate's to end, unless p allows no domain.
func (n *Network) Kill(p policy.Policy) (int, error) { return 0, errors.ErrUnsupported }

// Open lets the guest reach addresses of an allowed domain, through the
// proxy, for ttl from now on.
func (n *Network) Open(addresses []netip.Addr, ttl time.Duration) error {
	return errors.ErrUnsupported
}

// Shut takes back Open.
func (n *Network) Shut(addresses []netip.Addr) error { return errors.ErrUnsupported }

// Close gives the network up. The kernel takes it apart behind, when the VMM
// and the gate have ended as well: see Gone.
func (n *Network) Close() error { return errors.ErrUnsupported }

// CleanUp removes what a process that died has left on the host of the
// sandbox's network. The VMM and gate have to be dead. It is no error if
// nothing is left.
func CleanUp(id string) error { return errors.ErrUnsupported }

// Gone tells whether the host has nothing of the slot's network any more, so
// that another sandbox can have the slot.
func Gone(slot int, pool netip.Prefix) (bool, error) { return false, errors.ErrUnsupported }

// Slots is how many sandboxes a pool has room for.
func Slots(pool netip.Prefix) int { return 0 }

// CheckHost tells whether this process can make networks on this host, by
// making one. The error is a *HostError.
func CheckHost(ctx context.Context) error { return errors.ErrUnsupported }

// CheckPool tells whether pool can be used on this host: its form, and
// whether the host has routes or addresses in it that are not ours. The error
// is a *HostError.
func CheckPool(pool netip.Prefix) error { return errors.ErrUnsupported }

// HostError says why a host cannot do something, and what would help.
type HostError struct {
	Cause error
	// Hint is what the user can do, and may be empty.
	Hint string
}

func (e *HostError) Error() string { return e.Cause.Error() }
func (e *HostError) Unwrap() error { return e.Cause }

// ErrNoRoute is what DefaultRoute returns on a host without one.
var ErrNoRoute = errors.New("the host has no default route")

// DefaultRoute names the device through which the host reaches the internet
// just now.
func DefaultRoute() (string, error) { return "", ErrNoRoute }

// Forwarded tells how many packets of sandboxes our rules have let through in
// the host's namespace, and how many of these were seen by the last rule of
// all. A difference that grows means that somebody else's rules drop them.
func Forwarded() (accepted, passed uint64, err error) { return 0, 0, errors.ErrUnsupported }
