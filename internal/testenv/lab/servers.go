package lab

import (
	"context"
	"crypto/tls"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log"
	"net"
	"net/http"
	"net/netip"
	"strconv"
	"sync"
	"time"

	"github.com/miekg/dns"
	"golang.org/x/net/ipv4"
)

// Ports of the lab's servers, on every address of the place they are at.
const (
	EchoPort  = 7 // TCP and UDP
	HTTPPort  = 80
	HTTPSPort = 443
)

// idle is how long a connection may be silent: longer than any test.
const idle = 10 * time.Minute

// quiet is for servers whose clients do as they like.
var quiet = log.New(io.Discard, "", 0)

// Answer is what the HTTP servers say of a request, as JSON.
type Answer struct {
	Where string
	At    netip.AddrPort
	From  netip.AddrPort
	Host  string
	SNI   string
	Path  string
}

// place is a namespace that servers are in.
type place struct {
	*Lab
	name      string
	namespace *Namespace
}

func (l *Lab) serve() error {
	internet := place{l, "internet", l.Internet}
	lan := place{l, "lan", l.LAN}
	metadata := place{l, "metadata", l.Metadata}
	host := place{l, "host", l.Host}
	for _, s := range []struct {
		place
		start func(p place, port int) error
		ports []int
	}{
		{internet, place.echo, []int{EchoPort, 22, 25}},
		{internet, place.echoPackets, []int{EchoPort, 123, 443, 5353}},
		{internet, place.http, []int{HTTPPort, 8080}},
		{internet, place.https, []int{HTTPSPort, 8443}},
		{internet, place.dot, []int{853}},
		{lan, place.echo, []int{EchoPort, 22}},
		{lan, place.echoPackets, []int{EchoPort}},
		{lan, place.http, []int{HTTPPort}},
		{lan, place.https, []int{HTTPSPort}},
		{metadata, place.http, []int{HTTPPort}},
		{host, place.echo, []int{EchoPort, 22}},
		{host, place.echoPackets, []int{EchoPort, 123}},
		{host, place.http, []int{HTTPPort}},
		{host, place.https, []int{HTTPSPort}},
	} {
		for _, port := range s.ports {
			if err := s.start(s.place, port); err != nil {
				return fmt.Errorf("serve port %d of %s: %w", port, s.name, err)
			}
		}
	}
	for _, address := range []netip.Addr{Resolver, OtherResolver, ThirdResolver, PublicResolver} {
		if err := internet.dns(address); err != nil {
			return err
		}
	}
	return lan.dns(Neighbour)
}

// hit notes that a client came.
func (p place) hit(service string, at, from net.Addr, name string) {
	p.Hits.add(Hit{p.name, service, addressOf(at), addressOf(from).Addr(), name})
}

func (p place) listen(port int) (net.Listener, error) {
	listener, err := p.namespace.Listen("tcp", ":"+strconv.Itoa(port))
	if err == nil {
		p.close.Add(func() error { return ignoreClosed(listener.Close()) })
	}
	return listener, err
}

func ignoreClosed(err error) error {
	if errors.Is(err, net.ErrClosed) {
		return nil
	}
	return err
}

// echo sends back what comes.
func (p place) echo(port int) error {
	listener, err := p.listen(port)
	if err != nil {
		return err
	}
	var serving sync.WaitGroup
	ctx, cancel := context.WithCancel(context.Background())
	serving.Go(func() {
		for {
			conn, err := listener.Accept()
			if err != nil {
				return
			}
			p.hit("tcp", conn.LocalAddr(), conn.RemoteAddr(), "")
			serving.Go(func() {
				defer conn.Close()
				defer context.AfterFunc(ctx, func() { conn.Close() })()
				conn.SetDeadline(time.Now().Add(idle))
				io.Copy(conn, conn)
			})
		}
	})
	p.close.Add(func() error {
		cancel()
		listener.Close()
		serving.Wait()
		return nil
	})
	return nil
}

// echoPackets sends back datagrams, from the address they were sent to.
func (p place) echoPackets(port int) error {
	raw, err := p.namespace.ListenPacket("udp4", ":"+strconv.Itoa(port))
	if err != nil {
		return err
	}
	conn := ipv4.NewPacketConn(raw)
	if err := conn.SetControlMessage(ipv4.FlagDst, true); err != nil {
		raw.Close()
		return err
	}
	var serving sync.WaitGroup
	serving.Go(func() {
		buffer := make([]byte, 1<<16)
		for {
			n, control, from, err := conn.ReadFrom(buffer)
			if errors.Is(err, net.ErrClosed) {
				return
			}
			if err != nil {
				continue // an ICMP error for what was sent before
			}
			p.hit("udp", &net.UDPAddr{IP: control.Dst, Port: port}, from, "")
			conn.WriteTo(buffer[:n], &ipv4.ControlMessage{Src: control.Dst}, from)
		}
	})
	p.close.Add(func() error {
		raw.Close()
		serving.Wait()
		return nil
	})
	return nil
}

func (p place) http(port int) error {
	listener, err := p.listen(port)
	if err != nil {
		return err
	}
	p.serveHTTP(listener, "http")
	return nil
}

func (p place) https(port int) error {
	listener, err := p.listen(port)
	if err != nil {
		return err
	}
	p.serveHTTP(tls.NewListener(listener, p.tls()), "https")
	return nil
}

// tls has a certificate for every name, and for its address.
func (p place) tls() *tls.Config {
	return &tls.Config{
		NextProtos: []string{"http/1.1", "dot"},
		GetCertificate: func(hello *tls.ClientHelloInfo) (*tls.Certificate, error) {
			p.hit("tls", hello.Conn.LocalAddr(), hello.Conn.RemoteAddr(), hello.ServerName)
			if hello.ServerName != "" {
				return p.CA.Issue(hello.ServerName)
			}
			return p.CA.Issue(addressOf(hello.Conn.LocalAddr()).Addr().String())
		},
	}
}

func (p place) serveHTTP(listener net.Listener, service string) {
	mux := http.NewServeMux()
	mux.HandleFunc("/", func(w http.ResponseWriter, r *http.Request) { p.respond(w, r, service) })
	mux.HandleFunc("GET /bytes/{count}", sendBytes)
	mux.HandleFunc("POST /sink", func(_ http.ResponseWriter, r *http.Request) { io.Copy(io.Discard, r.Body) })
	mux.HandleFunc("/dns-query", p.doh)
	server := &http.Server{Handler: mux, IdleTimeout: idle, ErrorLog: quiet}
	var serving sync.WaitGroup
	serving.Go(func() { server.Serve(listener) })
	p.close.Add(func() error {
		err := server.Close()
		serving.Wait()
		return ignoreClosed(err)
	})
}

func (p place) respond(w http.ResponseWriter, r *http.Request, service string) {
	at := r.Context().Value(http.LocalAddrContextKey).(net.Addr)
	from, _ := netip.ParseAddrPort(r.RemoteAddr)
	p.Hits.add(Hit{p.name, service, addressOf(at), from.Addr().Unmap().WithZone(""), r.Host})
	answer := Answer{Where: p.name, At: addressOf(at), From: from, Host: r.Host, Path: r.URL.Path}
	if r.TLS != nil {
		answer.SNI = r.TLS.ServerName
	}
	w.Header().Set("Content-Type", "application/json")
	json.NewEncoder(w).Encode(answer)
}

// sendBytes sends as many as it is asked for.
func sendBytes(w http.ResponseWriter, r *http.Request) {
	count, err := strconv.ParseInt(r.PathValue("count"), 10, 64)
	if err != nil {
		http.Error(w, err.Error(), http.StatusBadRequest)
		return
	}
	w.Header().Set("Content-Length", strconv.FormatInt(count, 10))
	chunk := make([]byte, 1<<18)
	for count > 0 {
		n, err := w.Write(chunk[:min(count, int64(len(chunk)))])
		if err != nil {
			return
		}
		count -= int64(n)
	}
}

// resolve returns the handler of one of the zone's resolvers.
func (p place) resolve(service string, at net.Addr) dns.HandlerFunc {
	return func(w dns.ResponseWriter, request *dns.Msg) {
		if len(request.Question) != 1 {
			return
		}
		question := request.Question[0]
		p.hit(service, at, w.RemoteAddr(), question.Name)
		if special := p.Zone.handler(question.Name); special != nil {
			special(w, request)
			return
		}
		reply := p.Zone.answer(request)
		if service == "dns-udp" {
			size := dns.MinMsgSize
			if option := request.IsEdns0(); option != nil {
				size = int(option.UDPSize())
			}
			reply.Truncate(size)
		}
		w.WriteMsg(reply)
	}
}

// dns serves port 53 of one address.
func (p place) dns(address netip.Addr) error {
	at := netip.AddrPortFrom(address, 53).String()
	packets, err := p.namespace.ListenPacket("udp", at)
	if err != nil {
		return err
	}
	listener, err := p.namespace.Listen("tcp", at)
	if err != nil {
		packets.Close()
		return err
	}
	p.serveDNS(&dns.Server{PacketConn: packets, Handler: p.resolve("dns-udp", packets.LocalAddr())})
	p.serveDNS(&dns.Server{Listener: listener, Handler: p.resolve("dns-tcp", listener.Addr())})
	return nil
}

func (p place) serveDNS(server *dns.Server) {
	var serving sync.WaitGroup
	started := make(chan struct{})
	server.NotifyStartedFunc = func() { close(started) }
	// A guest may take seconds for a handshake.
	server.ReadTimeout, server.WriteTimeout = idle, idle
	serving.Go(func() { server.ActivateAndServe() })
	<-started
	p.close.Add(func() error {
		err := server.Shutdown()
		serving.Wait()
		return err
	})
}

// dot is DNS over TLS (RFC 7858).
func (p place) dot(port int) error {
	listener, err := p.listen(port)
	if err != nil {
		return err
	}
	p.serveDNS(&dns.Server{
		Listener: tls.NewListener(listener, p.tls()), Net: "tcp-tls",
		Handler: p.resolve("dot", listener.Addr()),
	})
	return nil
}

// doh is DNS over HTTPS (RFC 8484).
func (p place) doh(w http.ResponseWriter, r *http.Request) {
	raw, err := io.ReadAll(io.LimitReader(r.Body, dns.MaxMsgSize))
	if r.Method == http.MethodGet {
		raw, err = base64.RawURLEncoding.DecodeString(r.URL.Query().Get("dns"))
	}
	request := new(dns.Msg)
	if err != nil || request.Unpack(raw) != nil || len(request.Question) != 1 {
		http.Error(w, "not a query", http.StatusBadRequest)
		return
	}
	at := r.Context().Value(http.LocalAddrContextKey).(net.Addr)
	from, _ := netip.ParseAddrPort(r.RemoteAddr)
	p.Hits.add(Hit{p.name, "doh", addressOf(at), from.Addr().Unmap(), request.Question[0].Name})
	packed, err := p.Zone.answer(request).Pack()
	if err != nil {
		http.Error(w, err.Error(), http.StatusInternalServerError)
		return
	}
	w.Header().Set("Content-Type", "application/dns-message")
	w.Write(packed)
}
