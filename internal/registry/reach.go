package registry

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/http"
	"net/netip"
	"net/url"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
)

const maxRedirects = 5

// reach connects to the hosts that a registry sends us to, with the exception
// of what it has no business with: link-local addresses, where clouds hand out
// secrets of this machine to all who ask, and, if it is a public registry,
// what can be reached from this host alone. Names are no way around that: it
// is the addresses they stand for that count.
type reach struct {
	registry string // its host
	// inner and public tell what addresses the registry itself has had. It
	// takes a connection to the registry to be sent elsewhere by it.
	inner, public atomic.Bool
	// proxies are the hosts of those that the environment names.
	proxies sync.Map
}

var (
	errLinkLocal = errors.New("a registry may not send us to a link-local address")
	errInner     = errors.New("a public registry may not send us to a private address")
)

func (r *reach) proxy(req *http.Request) (*url.URL, error) {
	proxy, err := http.ProxyFromEnvironment(req)
	if proxy != nil {
		r.proxies.Store(proxy.Hostname(), true)
	}
	return proxy, err
}

func (r *reach) dial(ctx context.Context, network, address string) (net.Conn, error) {
	host, _, err := net.SplitHostPort(address)
	if err != nil {
		return nil, err
	}
	d := net.Dialer{Timeout: connectTimeout}
	if _, proxy := r.proxies.Load(host); host != r.registry && !proxy {
		d.Control = func(_, resolved string, _ syscall.RawConn) error { return r.check(resolved) }
	}
	conn, err := d.DialContext(ctx, network, address)
	if err != nil {
		return nil, err
	}
	if to, ok := conn.RemoteAddr().(*net.TCPAddr); ok && host == r.registry {
		r.connected(to.AddrPort().Addr())
	}
	return conn, nil
}

// connected notes an address of the registry itself.
func (r *reach) connected(ip netip.Addr) {
	if isInnerAddr(ip) {
		r.inner.Store(true)
	} else {
		r.public.Store(true)
	}
}

// check checks an address that the registry has sent us to.
func (r *reach) check(address string) error {
	to, err := netip.ParseAddrPort(address)
	switch {
	case err != nil:
		return err
	case to.Addr().Unmap().IsLinkLocalUnicast():
		return errLinkLocal
	case isInnerAddr(to.Addr()) && !r.isInner():
		return errInner
	}
	return nil
}

// isInner tells whether the registry is one that others cannot reach: by its
// name, or by all addresses it has had.
func (r *reach) isInner() bool {
	return isInner(r.registry) || r.inner.Load() && !r.public.Load()
}

// checkRedirect bounds where a registry can have us ask: a public one has no
// business with what can be reached from this host alone.
func checkRedirect(req *http.Request, via []*http.Request) error {
	if len(via) > maxRedirects {
		return fmt.Errorf("more than %d redirects", maxRedirects)
	}
	from, to := via[0].URL.Hostname(), req.URL.Hostname()
	if from == to || isInner(from) || !isInner(to) {
		return nil
	}
	return fmt.Errorf("%s sends us to %.100q, which is not a public address", from, to)
}

// isInner tells whether host is an address, or a name of one, that others
// than this host and its network cannot reach.
func isInner(host string) bool {
	ip, err := netip.ParseAddr(host)
	if err != nil {
		return isLoopback(host)
	}
	return isInnerAddr(ip)
}

func isInnerAddr(ip netip.Addr) bool {
	ip = ip.Unmap()
	return ip.IsLoopback() || ip.IsPrivate() || ip.IsLinkLocalUnicast() || ip.IsUnspecified()
}

func isLoopback(host string) bool {
	ip, err := netip.ParseAddr(host)
	return err == nil && ip.Unmap().IsLoopback() || host == "localhost" || strings.HasSuffix(host, ".localhost")
}

// hostname is a registry's without its port.
func hostname(registry string) string { return (&url.URL{Host: registry}).Hostname() }
