// Package lab is a small world of network namespaces, cut off from the
// machine's network, in which tests let vmsan and its guests send what they
// like:
//
//	host      what vmsan takes for its host: it runs in it
//	internet  answers for every public address, on the host's uplink
//	lan       a neighbour of the host in a private network
//	metadata  what a cloud has at 169.254.169.254
//
// Servers note who asked them, and the uplink's packets are counted.
package lab

import (
	"errors"
	"fmt"
	"net/netip"

	"github.com/vmsan/vmsan/internal/undo"
)

// The lab's addresses. The internet answers for all others, too.
var (
	Uplink  = netip.MustParseAddr("203.0.113.2") // of the host
	Gateway = netip.MustParseAddr("203.0.113.1") // of the host, in the internet
	Uplink6 = netip.MustParseAddr("2001:db8:113::2")
	// HostLAN and HostLink are the host's other addresses.
	HostLAN  = netip.MustParseAddr("10.20.0.1")
	HostLink = netip.MustParseAddr("169.254.169.1")

	Neighbour = netip.MustParseAddr("10.20.0.9") // in the host's LAN
	Metadata  = netip.MustParseAddr("169.254.169.254")

	// Resolver is the host's, and the others are more of the internet's, all
	// with the same zone.
	Resolver       = netip.MustParseAddr("198.51.100.53")
	OtherResolver  = netip.MustParseAddr("198.51.100.54")
	ThirdResolver  = netip.MustParseAddr("203.0.113.140")
	PublicResolver = netip.MustParseAddr("8.8.8.8")

	Server6 = netip.MustParseAddr("2001:db8:100::10") // in the internet
)

// UplinkName is the host's link to the internet.
const UplinkName = "uplink0"

// Lab is the world around the namespace that it was opened in.
type Lab struct {
	Host, Internet, LAN, Metadata *Namespace

	// Zone is what the internet's resolvers know.
	Zone *Zone
	// Hits is what reached a server.
	Hits *Hits
	// CA signs the certificates of the lab's servers.
	CA *CA

	close undo.Stack
}

// Open builds a lab around the namespace that this process is in, from which
// nothing may lead out.
func Open() (*Lab, error) {
	l := &Lab{Hits: newHits()}
	if err := l.open(); err != nil {
		return nil, fmt.Errorf("open lab: %w", errors.Join(err, l.Close()))
	}
	return l, nil
}

// Close ends the servers, and so all of the lab but the host.
func (l *Lab) Close() error { return l.close.Run() }

func (l *Lab) open() (err error) {
	if l.Host, err = current(); err != nil {
		return err
	}
	l.close.Add(l.Host.close)
	if err := l.Host.cutOff(); err != nil {
		return err
	}
	for _, ns := range []**Namespace{&l.Internet, &l.LAN, &l.Metadata} {
		if *ns, err = newNamespace(); err != nil {
			return err
		}
		l.close.Add((*ns).close)
	}
	if l.CA, err = newCA(); err != nil {
		return err
	}
	if l.Zone, err = newZone(); err != nil {
		return err
	}
	for _, step := range []func() error{l.settings, l.connect, l.route, l.serve} {
		if err := step(); err != nil {
			return err
		}
	}
	return nil
}

// Attach gives the host one more neighbour, as a container is: a namespace
// behind a link of the name, with a route to everywhere by the host. Removing
// it removes the link.
func (l *Lab) Attach(link string, host, neighbour netip.Prefix) (ns *Namespace, remove func() error, err error) {
	if ns, err = newNamespace(); err != nil {
		return nil, nil, err
	}
	remove = func() error { return errors.Join(l.Host.removeLink(link), ns.close()) }
	err = connect(end{l.Host, link, []string{host.String()}}, end{ns, "host0", []string{neighbour.String()}})
	if err == nil {
		err = ns.addRoute(route{to: "0.0.0.0/0", via: host.Addr().String(), link: "host0"})
	}
	if err != nil {
		return nil, nil, fmt.Errorf("attach %s: %w", link, errors.Join(err, remove()))
	}
	return ns, remove, nil
}

// defaultRoute is the host's.
var defaultRoute = route{to: "0.0.0.0/0", via: Gateway.String(), link: UplinkName}

// Disconnect takes the host's default route away, until it is put back.
func (l *Lab) Disconnect() (reconnect func() error, err error) {
	if err := l.Host.removeRoute(defaultRoute); err != nil {
		return nil, err
	}
	return func() error { return l.Host.addRoute(defaultRoute) }, nil
}

// settings undoes those of the machine, which the kernel copies.
func (l *Lab) settings() error {
	for name, value := range map[string]string{
		"ipv4/conf/all/forwarding": "0", "ipv4/conf/default/forwarding": "0",
		"ipv4/conf/all/rp_filter": "0", "ipv4/conf/default/rp_filter": "0",
		"ipv4/conf/all/arp_ignore": "0", "ipv4/conf/default/arp_ignore": "0",
		"ipv6/conf/all/disable_ipv6": "0", "ipv6/conf/default/disable_ipv6": "0",
	} {
		for _, ns := range []*Namespace{l.Host, l.Internet, l.LAN, l.Metadata} {
			if err := ns.Sysctl(name, value); err != nil {
				return err
			}
		}
	}
	return nil
}

func (l *Lab) connect() error {
	for _, pair := range [][2]end{
		{{l.Host, UplinkName, []string{"203.0.113.2/24", "2001:db8:113::2/64"}},
			{l.Internet, "host0", []string{"203.0.113.1/24", "2001:db8:113::1/64"}}},
		{{l.Host, "lan0", []string{"10.20.0.1/24"}}, {l.LAN, "host0", []string{"10.20.0.9/24"}}},
		{{l.Host, "metadata0", []string{"169.254.169.1/24"}}, {l.Metadata, "host0", []string{"169.254.169.254/24"}}},
	} {
		if err := connect(pair[0], pair[1]); err != nil {
			return err
		}
	}
	return l.Internet.setUp("lo", Server6.String()+"/128")
}

func (l *Lab) route() error {
	for _, r := range []struct {
		namespace *Namespace
		route
	}{
		{l.Host, defaultRoute},
		{l.Host, route{to: "::/0", via: "2001:db8:113::1", link: UplinkName}},
		// All addresses but the host's are the internet's own.
		{l.Internet, route{to: "0.0.0.0/0", link: "lo", local: true}},
		{l.Internet, route{to: "203.0.113.0/24", link: "lo", local: true}},
		{l.Internet, route{to: Uplink.String() + "/32", link: "host0"}},
		// So that what the host lets through untranslated gets an answer.
		{l.LAN, route{to: "0.0.0.0/0", via: HostLAN.String(), link: "host0"}},
		{l.Metadata, route{to: "0.0.0.0/0", via: HostLink.String(), link: "host0"}},
	} {
		if err := r.namespace.addRoute(r.route); err != nil {
			return err
		}
	}
	return nil
}
