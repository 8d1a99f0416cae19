package proxy

import (
	"errors"
	"io"
	"net/http"
	"time"

	"golang.org/x/net/http/httpguts"

	"github.com/vmsan/vmsan/api"
	"github.com/vmsan/vmsan/internal/gate/sockets"
)

// maxPipelined is how many requests a client may send before it has answers.
const maxPipelined = 32

// errUpgrade refuses to go on in a protocol that has names of its own, or
// after which we do not know what is read where.
const errUpgrade refusal = "upgrade to another protocol"

// exchange is a connection of HTTP/1. Requests are followed to their ends,
// because each has a name of its own; responses are followed to know which
// of them ends HTTP.
type exchange struct {
	*flow
	waiting chan *request // for their responses
	lost    chan struct{} // closed when responses are no longer understood
	ended   chan struct{} // closed when the server has said all
}

func (f *flow) serveHTTP() error {
	if c := f.client.buffer[0]; !httpguts.IsTokenRune(rune(c)) {
		return f.deny(api.EventFlow, "", errProtocol)
	}
	r, head, err := f.nextRequest()
	if err != nil {
		return err
	}
	if err := f.connect(); err != nil {
		return err
	}
	defer f.server.Close()
	x := &exchange{f, make(chan *request, maxPipelined), make(chan struct{}), make(chan struct{})}
	back := make(chan error, 1)
	go func() {
		defer close(x.ended)
		err := x.responses()
		if err != nil {
			f.cut()
		}
		back <- err
	}()
	err = x.requests(r, head)
	if err != nil {
		f.cut()
	}
	return errors.Join(err, <-back)
}

// nextRequest reads a request's head and checks whom it is for. At the end of
// all requests it returns io.EOF.
func (f *flow) nextRequest() (*request, int, error) {
	head, err := f.client.head(maxHead)
	if err == io.EOF {
		return nil, 0, err
	}
	var r *request
	if err == nil {
		r, err = parseRequest(head)
	}
	name := ""
	if err == nil {
		name = r.name
		err = f.allow(name)
	}
	if err != nil {
		return nil, 0, f.deny(api.EventHTTP, name, err)
	}
	f.log(api.EventHTTP, name)
	f.client.SetReadDeadline(time.Time{})
	return r, len(head), nil
}

// requests passes requests on until the client has said all.
func (x *exchange) requests(r *request, head int) error {
	for {
		if agreed, err := x.pass(r, head); agreed {
			return x.client.passAll(x.server.Conn)
		} else if err != nil {
			return err
		}
		var err error
		if r, head, err = x.nextRequest(); err == io.EOF {
			sockets.CloseWrite(x.server.Conn)
			return nil
		} else if err != nil {
			return err
		}
	}
}

// pass passes a request on. If that asks for another protocol it waits for
// what the server thinks of it.
func (x *exchange) pass(r *request, head int) (agreed bool, err error) {
	select {
	case x.waiting <- r:
	case <-x.lost:
	case <-x.ended:
	}
	if err := x.client.pass(x.server.Conn, int64(head)+r.body.length); err != nil {
		return false, err
	}
	if r.body.chunked {
		if err := x.client.passChunked(x.server.Conn); err != nil {
			return false, x.deny(api.EventHTTP, r.name, err)
		}
	}
	if !r.upgrade {
		return false, nil
	}
	return x.agreed(r)
}

func (x *exchange) agreed(r *request) (bool, error) {
	select {
	case agreed := <-r.agreed:
		return agreed, nil
	case <-x.lost:
	case <-x.ended:
	}
	select {
	case agreed := <-r.agreed:
		return agreed, nil
	default:
		return false, x.deny(api.EventHTTP, r.name, errUpgrade)
	}
}

// responses passes responses on until the server has said all.
func (x *exchange) responses() error {
	var r *request // that is being answered
	for {
		head, err := x.server.head(maxHead)
		if err == io.EOF {
			sockets.CloseWrite(x.client.Conn)
			return nil
		}
		var answer response
		if err == nil {
			answer, err = parseResponse(head)
		}
		if r == nil {
			r = x.next()
		}
		switch {
		case err != nil || r == nil:
			return x.passUnread()
		case answer.status == http.StatusSwitchingProtocols:
			return x.passSwitched(r, answer)
		case answer.status < 200: // there is another to come
			err = x.server.pass(x.client.Conn, int64(len(head)))
		default:
			r.agreed <- false
			err = x.passAnswer(r.method, answer, int64(len(head)))
			r = nil
		}
		if err != nil {
			return err
		}
	}
}

// next is the request that is answered next, if there is one.
func (x *exchange) next() *request {
	select {
	case r := <-x.waiting:
		return r
	default:
		return nil
	}
}

// passUnread passes on what is not understood. It harms nobody: only if the
// client is to speak another protocol do we have to know.
func (x *exchange) passUnread() error {
	close(x.lost)
	return x.server.passAll(x.client.Conn)
}

func (x *exchange) passSwitched(r *request, answer response) error {
	if !r.upgrade || !answer.agrees() {
		return x.deny(api.EventHTTP, r.name, errUpgrade)
	}
	r.agreed <- true
	return x.server.passAll(x.client.Conn)
}

// passAnswer passes on a response's head and what belongs to it (RFC 9112,
// section 6.3).
func (x *exchange) passAnswer(method string, answer response, head int64) error {
	bodiless := method == http.MethodHead || answer.status == http.StatusNoContent || answer.status == http.StatusNotModified
	switch {
	case bodiless:
		return x.server.pass(x.client.Conn, head)
	case answer.body.chunked:
		if err := x.server.pass(x.client.Conn, head); err != nil {
			return err
		}
		return x.server.passChunked(x.client.Conn)
	case answer.body.known:
		return x.server.pass(x.client.Conn, head+answer.body.length)
	}
	return x.passUnread() // all up to the end
}
