package resolver

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"net"
	"strings"
	"time"

	"github.com/miekg/dns"
)

// How long an upstream has to answer, and how long all of them have: less
// than a guest's own resolver waits, which is five seconds.
const (
	tryTime = 1500 * time.Millisecond
	askTime = 4500 * time.Millisecond
	rounds  = 2
)

// ask puts a question to the resolvers, one after another, and begins with
// the one that answered last.
func (r *Resolver) ask(ctx context.Context, k key) *found {
	ctx, cancel := context.WithTimeout(ctx, askTime)
	defer cancel()
	question := dns.Question{Name: dns.Fqdn(k.name), Qtype: k.qtype, Qclass: dns.ClassINET}
	f := &found{rcode: dns.RcodeServerFailure, ttl: failureTTL}
	if err := r.asking.Wait(ctx); err == nil {
		best := int(r.best.Load())
		for try := range rounds * r.Resolvers {
			resolver := (best + try) % r.Resolvers
			m, err := r.exchange(ctx, resolver, question)
			if err == nil {
				r.best.Store(int64(resolver))
				f = distill(m, question)
				break
			}
			if ctx.Err() != nil {
				break
			}
		}
	}
	f.until = time.Now().Add(f.ttl)
	return f
}

// exchange asks one resolver, by TCP if the answer is too long for UDP.
func (r *Resolver) exchange(ctx context.Context, resolver int, question dns.Question) (*dns.Msg, error) {
	m, err := r.try(ctx, resolver, "udp", question)
	if err == nil && m.Truncated {
		m, err = r.tryLarge(ctx, resolver, question)
	}
	if err != nil {
		return nil, fmt.Errorf("ask resolver %d: %w", resolver, err)
	}
	if m.Rcode != dns.RcodeSuccess && m.Rcode != dns.RcodeNameError {
		return nil, fmt.Errorf("ask resolver %d: %s", resolver, dns.RcodeToString[m.Rcode])
	}
	return m, nil
}

// maxLarge is how many answers by TCP there are at once, since such a one may
// take half a megabyte once it is read.
const maxLarge = 16

func (r *Resolver) tryLarge(ctx context.Context, resolver int, question dns.Question) (*dns.Msg, error) {
	select {
	case r.large <- struct{}{}:
		defer func() { <-r.large }()
		return r.try(ctx, resolver, "tcp", question)
	case <-ctx.Done():
		return nil, ctx.Err()
	}
}

func (r *Resolver) try(ctx context.Context, resolver int, network string, question dns.Question) (*dns.Msg, error) {
	ctx, cancel := context.WithTimeout(ctx, tryTime)
	defer cancel()
	conn, err := r.Dialer.Dial(ctx, resolver, network)
	if err != nil {
		return nil, err
	}
	defer conn.Close()
	defer context.AfterFunc(ctx, func() { conn.SetDeadline(time.Unix(1, 0)) })()
	m := new(dns.Msg)
	m.Id = dns.Id()
	m.RecursionDesired = true
	m.Question = []dns.Question{question}
	m.SetEdns0(udpSize, false)
	packet, err := m.Pack()
	if err != nil {
		return nil, err
	}
	if network == "tcp" {
		return askStream(conn, m, packet)
	}
	return askPacket(conn, m, packet)
}

// maxStray is how many packets that are no answer are read before one is
// given up, on a socket which only the resolver can write to.
const maxStray = 16

func askPacket(conn net.Conn, m *dns.Msg, packet []byte) (*dns.Msg, error) {
	if _, err := conn.Write(packet); err != nil {
		return nil, err
	}
	buffer := make([]byte, maxQuery)
	var stray error
	for range maxStray {
		n, err := conn.Read(buffer)
		if err != nil {
			return nil, errors.Join(stray, err)
		}
		var answer *dns.Msg
		if answer, stray = parseAnswer(buffer[:n], m); stray == nil {
			return answer, nil
		}
	}
	return nil, stray
}

func askStream(conn net.Conn, m *dns.Msg, packet []byte) (*dns.Msg, error) {
	framed := binary.BigEndian.AppendUint16(nil, uint16(len(packet)))
	if _, err := conn.Write(append(framed, packet...)); err != nil {
		return nil, err
	}
	answer, err := readFrame(conn, dns.MaxMsgSize)
	if err != nil {
		return nil, err
	}
	return parseAnswer(answer, m)
}

// readFrame reads a message with its length before it.
func readFrame(r io.Reader, most int) ([]byte, error) {
	var length [2]byte
	if _, err := io.ReadFull(r, length[:]); err != nil {
		return nil, err
	}
	size := int(binary.BigEndian.Uint16(length[:]))
	if size > most {
		return nil, fmt.Errorf("a message of %d bytes", size)
	}
	message := make([]byte, size)
	_, err := io.ReadFull(r, message)
	return message, err
}

// parseAnswer reads an answer to the question of m.
func parseAnswer(packet []byte, m *dns.Msg) (*dns.Msg, error) {
	answer := new(dns.Msg)
	if err := answer.Unpack(packet); err != nil && !answer.Truncated {
		return nil, fmt.Errorf("read answer: %w", err)
	}
	if !answer.Response || answer.Id != m.Id || answer.Opcode != dns.OpcodeQuery || len(answer.Question) != 1 {
		return nil, errors.New("not an answer to the question")
	}
	asked, got := m.Question[0], answer.Question[0]
	if got.Qtype != asked.Qtype || got.Qclass != asked.Qclass || !strings.EqualFold(got.Name, asked.Name) {
		return nil, errors.New("an answer to another question")
	}
	return answer, nil
}
