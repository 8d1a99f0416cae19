package network

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"net/netip"
	"syscall"

	"golang.org/x/sys/unix"

	"github.com/vmsan/vmsan/internal/network/netns"
	"github.com/vmsan/vmsan/internal/policy"
)

// HostError is what Create and CheckHost return when it is the host that
// cannot make networks, or this user.
type HostError struct {
	Cause error
	Hint  string // what to do about it: a command
}

func (e *HostError) Error() string { return e.Cause.Error() }

func (e *HostError) Unwrap() error { return e.Cause }

// remedies tell what helps against what the kernel says.
type remedies map[syscall.Errno]string

// explain makes a HostError of an error that it knows.
func (r remedies) explain(err error) error {
	var known *HostError
	if err == nil || errors.As(err, &known) {
		return err
	}
	for errno, hint := range r {
		if errors.Is(err, errno) {
			return &HostError{err, hint}
		}
	}
	if errors.Is(err, unix.EPERM) {
		return &HostError{err, "sudo vmsan: networks take root, or a container with CAP_NET_ADMIN and CAP_SYS_ADMIN (docker run --privileged)"}
	}
	return err
}

var (
	namespaceRemedies = remedies{
		unix.EINVAL: "the kernel has no network namespaces: grep CONFIG_NET_NS /boot/config-$(uname -r)",
		unix.ENOSPC: "sysctl -w user.max_net_namespaces=65536",
	}
	tunRemedies = remedies{
		unix.ENOENT: "modprobe tun; mkdir -p /dev/net && mknod -m 600 /dev/net/tun c 10 200",
		unix.ENODEV: "modprobe tun",
		unix.ENXIO:  "modprobe tun",
		unix.EACCES: "/dev/net/tun is on a file system without devices: findmnt -T /dev/net/tun names it, and mount -o remount,dev MOUNTPOINT allows them",
	}
	linkRemedies = remedies{
		unix.EOPNOTSUPP: "modprobe veth sch_tbf",
		unix.ENOENT:     "modprobe sch_tbf",
	}
	firewallRemedies = remedies{
		unix.EPROTONOSUPPORT: loadFirewall,
		unix.EOPNOTSUPP:      loadFirewall,
		unix.ENOENT:          loadFirewall,
		unix.EAFNOSUPPORT:    loadFirewall,
		unix.EINVAL:          loadFirewall, // a part of nfnetlink that is missing
	}
)

const loadFirewall = "modprobe -a nf_tables nft_ct nft_nat nft_masq nft_redir nft_reject_inet nft_log nft_limit nft_connlimit nft_fib_inet nfnetlink_log; " +
	"grep NF_TABLES /boot/config-$(uname -r) tells whether the kernel has them"

// oldestMajor and oldestMinor are of the first Linux that has NAT in tables of
// the inet family.
const (
	oldestMajor = 5
	oldestMinor = 2
)

// explainFirewall is for errors of the firewall: an old kernel does not say
// that it is one.
func explainFirewall(err error) error {
	err = firewallRemedies.explain(err)
	var known *HostError
	var name unix.Utsname
	if !errors.As(err, &known) || known.Hint != loadFirewall || unix.Uname(&name) != nil {
		return err
	}
	release, _, _ := bytes.Cut(name.Release[:], []byte{0})
	if !tooOld(string(release)) {
		return err
	}
	return &HostError{fmt.Errorf("the kernel, %s, is too old for the firewall: %w", release, err), fmt.Sprintf(
		"uname -r has to show %d.%d or newer: apt-get dist-upgrade, and reboot", oldestMajor, oldestMinor)}
}

func tooOld(release string) bool {
	var major, minor int
	if _, err := fmt.Sscanf(release, "%d.%d", &major, &minor); err != nil {
		return false
	}
	return major < oldestMajor || major == oldestMajor && minor < oldestMinor
}

// CheckHost makes a network of every kind of part, in a namespace that plays
// the host, so that nothing of the host's own is touched.
func CheckHost(ctx context.Context) error {
	host, err := netns.New()
	if err != nil {
		return namespaceRemedies.explain(err)
	}
	defer host.Close()
	return host.Do(func() error {
		n, err := Create(ctx, Config{
			ID: idPrefix + "check00000", Pool: netip.PrefixFrom(netip.AddrFrom4([4]byte{198, 18, 0, 0}), slotBits),
			Policy:    everyRule,
			Bandwidth: policy.Bandwidth{Down: 1e6, Up: 1e6},
		})
		if err != nil {
			return err
		}
		return n.Close()
	})
}

// everyRule is a policy that takes all that the firewall has.
var everyRule = policy.Policy{
	Mode:           policy.Custom,
	AllowedDomains: []policy.Domain{{Name: "example.com"}},
	AllowedCIDRs: []policy.CIDR{
		{Prefix: netip.MustParsePrefix("203.0.113.0/24")},
		{Prefix: netip.MustParsePrefix("203.0.113.7/32"), FirstPort: 8000, LastPort: 8999},
	},
	DeniedCIDRs: []policy.CIDR{{Prefix: netip.MustParsePrefix("203.0.113.9/32"), Protocol: policy.UDP}},
}
