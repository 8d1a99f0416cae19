package proxy

import (
	"bytes"
	"context"
	"errors"
	"io"
	"net"
	"net/netip"
	"os"
	"slices"
	"strconv"
	"time"

	"github.com/vmsan/vmsan/api"
	"github.com/vmsan/vmsan/internal/gate/sockets"
	"github.com/vmsan/vmsan/internal/policy"
)

// The refusals of names and addresses.
const (
	errPolicy   refusal = "policy"
	errDenied   refusal = "denied-cidr"
	errAddress  refusal = "name of another address"
	errUnknown  refusal = "address without a name"
	errPort     refusal = "port"
	errProtocol refusal = "neither TLS nor HTTP"
	errSilent   refusal = "silent client"
)

// A client has helloTime to say what it wants. If its port is one that may
// carry anything, nothing is expected of it after serverFirst.
const (
	helloTime   = 10 * time.Second
	serverFirst = 250 * time.Millisecond
)

// flow is a client's connection and ours to the server.
type flow struct {
	proxy  *Proxy
	to     netip.AddrPort
	names  []string // of the address, when the client connected
	client ahead
	server ahead // once it is dialled

	// Of the proxy's lock:
	passing bool     // something has been allowed
	name    string   // for what, if not for the address alone
	up      net.Conn // the server's connection
	gone    bool     // was cut
}

// serve returns an error if the client is not to think that all was well.
func (f *flow) serve() error {
	unread, any, err := f.open()
	if err != nil {
		return f.deny(api.EventFlow, "", err)
	}
	if unread {
		return f.passRaw()
	}
	kind, err := f.sniff(any)
	switch {
	case errors.Is(err, io.EOF):
		return nil // it has changed its mind
	case err != nil:
		return f.deny(api.EventFlow, "", err)
	case kind == kindTLS:
		return f.serveTLS()
	case kind == kindHTTP:
		return f.serveHTTP()
	}
	if err := f.allowAddress(); err != nil {
		return f.deny(api.EventFlow, "", err)
	}
	f.log(api.EventFlow, first(f.names))
	return f.passRaw()
}

func first(names []string) string {
	if len(names) == 0 {
		return ""
	}
	return names[0]
}

// open tells whether anything may be reached at the address. What a policy
// allows without a name is not looked at; and a port that a rule names may
// carry anything that is not TLS or HTTP.
func (f *flow) open() (unread, any bool, err error) {
	f.proxy.mu.Lock()
	defer f.proxy.mu.Unlock()
	p, port := f.proxy.policy, f.to.Port()
	switch {
	case matches(p.DeniedCIDRs, f.to):
		return false, false, errDenied
	case p.Public() || matches(p.AllowedCIDRs, f.to):
		f.passing = true
		return true, false, nil
	case len(f.names) == 0:
		return false, false, errUnknown
	}
	reachable, named := false, false
	for _, name := range f.names {
		allowed, explicit := p.AllowsName(name, port)
		reachable, named = reachable || allowed, named || explicit
	}
	if !reachable {
		return false, false, errPort
	}
	return false, named && port != 80 && port != 443, nil
}

// allow notes that f is for a name, if it may be.
func (f *flow) allow(name string) error {
	f.proxy.mu.Lock()
	defer f.proxy.mu.Unlock()
	p := f.proxy.policy
	if matches(p.DeniedCIDRs, f.to) {
		return errDenied
	}
	if p.Public() || matches(p.AllowedCIDRs, f.to) {
		f.passing, f.name = true, name
		return nil
	}
	if allowed, _ := p.AllowsName(name, f.to.Port()); !allowed {
		return errPolicy
	}
	// What the address was when the client connected, it is for as long as
	// it is connected.
	if !slices.Contains(f.names, name) && !slices.Contains(f.proxy.Names(f.to.Addr()), name) {
		return errAddress
	}
	f.passing, f.name = true, name
	return nil
}

// allowAddress notes that f is for an address whatever the name.
func (f *flow) allowAddress() error {
	f.proxy.mu.Lock()
	defer f.proxy.mu.Unlock()
	if !keeps(f.proxy.policy, f) {
		return errPolicy
	}
	f.passing = true
	return nil
}

// connect dials the server.
func (f *flow) connect() error {
	ctx, cancel := context.WithTimeout(f.proxy.ctx, dialTime)
	defer cancel()
	conn, err := f.proxy.Dial(ctx, f.to)
	if err != nil {
		return err
	}
	sockets.SetKeepAlive(conn)
	f.proxy.mu.Lock()
	defer f.proxy.mu.Unlock()
	if f.gone || f.proxy.ctx.Err() != nil {
		conn.Close()
		return net.ErrClosed
	}
	f.server.Conn, f.up = conn, conn
	return nil
}

// cut ends both connections as broken.
func (f *flow) cut() {
	f.proxy.mu.Lock()
	defer f.proxy.mu.Unlock()
	f.cutLocked()
}

func (f *flow) cutLocked() {
	f.gone = true
	sockets.Cut(f.client.Conn)
	if f.up != nil {
		sockets.Cut(f.up)
	}
}

// passRaw joins the client and the server.
func (f *flow) passRaw() error {
	f.client.SetReadDeadline(time.Time{})
	if err := f.connect(); err != nil {
		return err
	}
	defer f.server.Close()
	back := make(chan error, 1)
	go func() { back <- f.server.passAll(f.client.Conn) }()
	err := f.client.passAll(f.server.Conn)
	if err != nil {
		f.cut()
	}
	return errors.Join(err, <-back)
}

func (f *flow) serveTLS() error {
	name, err := f.client.helloName()
	if err == nil {
		err = f.allow(name)
	}
	if err != nil {
		return f.deny(api.EventTLS, name, err)
	}
	f.log(api.EventTLS, name)
	return f.passRaw()
}

// The kinds of what clients say.
type kind int

const (
	undecided kind = iota
	kindTLS
	kindHTTP
	kindRaw
)

// sniff reads on until it knows what the client speaks.
func (f *flow) sniff(any bool) (kind, error) {
	start := time.Now()
	for {
		if kind := kindOf(f.client.buffer, any); kind != undecided {
			f.client.SetReadDeadline(start.Add(helloTime))
			return kind, nil
		}
		patience := helloTime
		if any && len(f.client.buffer) == 0 {
			patience = serverFirst
		}
		f.client.SetReadDeadline(start.Add(patience))
		err := f.client.more(maxHead)
		switch {
		case err == nil:
		case any && (errors.Is(err, io.EOF) || errors.Is(err, os.ErrDeadlineExceeded) && len(f.client.buffer) == 0):
			return kindRaw, nil
		case errors.Is(err, os.ErrDeadlineExceeded):
			return undecided, errSilent
		default:
			return undecided, err
		}
	}
}

// kindOf tells what begins with b. Where there may be anything, HTTP is what
// has a first line of HTTP.
func kindOf(b []byte, any bool) kind {
	switch {
	case len(b) == 0:
		return undecided
	case b[0] == recordHandshake:
		if any && len(b) < 2 {
			return undecided
		}
		if any && b[1] != tlsMajor {
			return kindRaw
		}
		return kindTLS
	case !any:
		return kindHTTP
	}
	method, _, complete := bytes.Cut(b, []byte(" "))
	if len(bytes.Trim(method, "ABCDEFGHIJKLMNOPQRSTUVWXYZ")) > 0 || len(method) > maxMethod {
		return kindRaw
	}
	line, _, ended := bytes.Cut(b, []byte("\n"))
	switch {
	case ended && complete && bytes.Contains(line, []byte(" HTTP/")):
		return kindHTTP
	case ended || len(b) >= maxHead:
		return kindRaw
	}
	return undecided
}

// maxMethod is longer than any method of HTTP.
const maxMethod = 24

// deny logs why f is not passed on, and returns an error for it to be cut.
func (f *flow) deny(kind api.EventKind, name string, err error) error {
	var why refusal
	if !errors.As(err, &why) {
		return err // gone, or too slow
	}
	if why == errSilent && len(f.client.buffer) == 0 && (f.to.Port() == 80 || f.to.Port() == 443) {
		return err // browsers connect before they know what for
	}
	e := f.event(kind, name)
	e.Verdict, e.Rule, e.Hint = api.VerdictDenied, string(why), f.hint(name, why)
	f.proxy.Log.Log(e)
	return err
}

func (f *flow) log(kind api.EventKind, name string) {
	e := f.event(kind, name)
	e.Verdict = api.VerdictAllowed
	f.proxy.Log.Log(e)
}

func (f *flow) event(kind api.EventKind, name string) api.NetworkEvent {
	if name == "" {
		name = first(f.names)
	}
	return api.NetworkEvent{Kind: kind, Protocol: "tcp", Destination: f.to.Addr(), Port: f.to.Port(), Name: name}
}

// hint is the flag that would allow what was refused, if there is one that
// would.
func (f *flow) hint(name string, why refusal) string {
	port := strconv.Itoa(int(f.to.Port()))
	switch why {
	case errPolicy:
		if d, err := policy.ParseDomain(name); err == nil {
			return "--allowed-domain " + d.Name
		}
	case errPort, errProtocol, errSilent:
		if len(f.names) > 0 && port != "80" && port != "443" {
			return "--allowed-domain " + f.names[0] + ":" + port
		}
	case errUnknown, errAddress, errNoName, errNoHost, errECH, errHTTP2:
		return "--allowed-cidr " + f.to.Addr().String() + "/32:" + port + "/tcp"
	}
	return ""
}
