package guest

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/url"
	"strconv"
	"sync"

	"github.com/vmsan/vmsan/api"
)

// ErrAddressInUse is what Listen returns where something in the guest listens
// already.
var ErrAddressInUse = errors.New("something in the guest listens there")

// Listener listens in the guest: what connects there is had here. It is a
// net.Listener, whose Accept is called by one goroutine at a time.
//
// The guest cannot open streams: each connection comes over one that Accept
// has opened and that waits for it.
type Listener struct {
	dial    Dial
	key     string
	stream  net.Conn // as long as which the agent listens
	address address

	mu      sync.Mutex
	err     error    // why it is closed
	waiting net.Conn // the stream of an Accept under way
}

// Listen has the agent listen for us: network is "tcp" or "unix", address is as
// for net.Listen, in the guest.
func (c *Client) Listen(ctx context.Context, network, at string) (*Listener, error) {
	stream, err := c.dial(ctx)
	if err != nil {
		return nil, linkError(err)
	}
	l := &Listener{dial: c.dial, key: rand.Text()}
	conn, header, err := upgrade(stream, "listen", url.Values{"network": {network}, "address": {at}, "key": {l.key}}, dialTime)
	if err != nil {
		stream.Close()
		var no *refusal
		if errors.As(err, &no) && no.status == http.StatusConflict {
			err = ErrAddressInUse
		}
		return nil, fmt.Errorf("listen on %s in the guest: %w", at, err)
	}
	l.stream, l.address = conn, address{network, at}
	if network == "tcp" {
		l.address.text = chosenPort(at, header.Get("Vmsan-Address"))
	}
	go l.watch()
	return l, nil
}

// chosenPort is the address that was asked for with the port that the guest
// says it chose, if it was to choose.
func chosenPort(asked, told string) string {
	host, port, err := net.SplitHostPort(asked)
	if err != nil || port != "0" {
		return asked
	}
	_, chosen, err := net.SplitHostPort(told)
	if err != nil || !isPort(chosen) {
		return asked
	}
	return net.JoinHostPort(host, chosen)
}

func isPort(text string) bool {
	n, err := strconv.ParseUint(text, 10, 16)
	return err == nil && n > 0
}

// watch waits for the end of the stream, on which a guest has nothing to say.
func (l *Listener) watch() {
	_, err := io.CopyN(io.Discard, l.stream, 1)
	if err == nil {
		err = api.Errorf(api.ErrGuest, "the guest talks where it has nothing to say")
	} else {
		err = linkError(err)
	}
	l.end(err)
}

// Accept waits for the next connection. When the listener is closed, by us or
// by the guest, it returns net.ErrClosed; Err knows which.
func (l *Listener) Accept() (net.Conn, error) {
	// Who closes the listener closes the stream.
	stream, err := l.dial(context.Background())
	if err == nil && !l.wait(stream) {
		stream.Close()
		return nil, net.ErrClosed
	}
	if err != nil {
		l.end(linkError(err))
		return nil, net.ErrClosed
	}
	conn, _, err := upgrade(stream, "accept", url.Values{"key": {l.key}}, 0)
	open := l.wait(nil)
	if err != nil {
		stream.Close()
		l.end(err)
		return nil, net.ErrClosed
	}
	if !open {
		stream.Close()
		return nil, net.ErrClosed
	}
	return conn, nil
}

// wait has end close a stream, and tells whether the listener is open.
func (l *Listener) wait(stream net.Conn) bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.waiting = stream
	return l.err == nil
}

// end closes the listener, for the first reason that there is.
func (l *Listener) end(reason error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.err != nil {
		return
	}
	l.err = reason
	l.stream.Close()
	if l.waiting != nil {
		l.waiting.Close()
	}
}

// Err returns why the listener is closed: net.ErrClosed if Close did it.
func (l *Listener) Err() error {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.err
}

// Close has the agent stop listening, and cut what has connected.
func (l *Listener) Close() error {
	l.end(net.ErrClosed)
	return nil
}

// Addr is where it listens, in the guest.
func (l *Listener) Addr() net.Addr { return l.address }

type address struct{ network, text string }

func (a address) Network() string { return a.network }
func (a address) String() string  { return a.text }
