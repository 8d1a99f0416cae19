package probe

import (
	"bufio"
	"bytes"
	"context"
	"crypto/ecdh"
	"crypto/rand"
	"crypto/tls"
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/netip"

	"github.com/miekg/dns"
)

// served is what a server of the lab says of a request.
type served struct {
	Where, Host, SNI string
	At               netip.AddrPort
}

// request asks for one.Host, and then for one.Then on the same connection.
func request(conn net.Conn, one Probe, to netip.AddrPort) (answer string, err error) {
	hosts := []string{one.Host}
	if one.Host == "" {
		hosts[0] = to.String()
	}
	if one.Then != "" {
		hosts = append(hosts, one.Then)
	}
	reader := bufio.NewReader(conn)
	for _, host := range hosts {
		if answer, err = askFor(conn, reader, host, to); err != nil {
			return "", fmt.Errorf("ask for %s: %w", host, err)
		}
	}
	return answer, nil
}

func askFor(conn net.Conn, reader *bufio.Reader, host string, to netip.AddrPort) (string, error) {
	if _, err := fmt.Fprintf(conn, "GET / HTTP/1.1\r\nHost: %s\r\n\r\n", host); err != nil {
		return "", err
	}
	response, err := http.ReadResponse(reader, nil)
	if err != nil {
		return "", err
	}
	defer response.Body.Close()
	body, err := io.ReadAll(response.Body)
	if err != nil {
		return "", err
	}
	var s served
	if err := json.Unmarshal(body, &s); err != nil {
		return "", fmt.Errorf("%s: %.80q", response.Status, body)
	}
	if s.Host != host || s.At != to {
		return "", fmt.Errorf("%s got the request for %s", s.At, s.Host)
	}
	return fmt.Sprintf("%s, %s for host %q and server %q", s.Where, s.At, s.Host, s.SNI), nil
}

// overTLS does what one wants once the server has shown that it is who was
// asked for.
func (p prober) overTLS(ctx context.Context, raw net.Conn, one Probe, to netip.AddrPort) (string, error) {
	config := &tls.Config{RootCAs: p.roots, ServerName: one.Server}
	if one.Server == "" {
		config.ServerName = to.Addr().String() // which is not sent
	}
	conn := tls.Client(raw, config)
	if err := conn.HandshakeContext(ctx); err != nil {
		return "", err
	}
	switch one.Kind {
	case DoT:
		return askOverTLS(&dns.Conn{Conn: conn}, one)
	case DoH:
		return askOverHTTPS(conn, one)
	}
	return request(conn, one, to)
}

func question(one Probe) *dns.Msg {
	return new(dns.Msg).SetQuestion(dns.Fqdn(one.Question), dns.StringToType[one.Type])
}

func askOverTLS(conn *dns.Conn, one Probe) (string, error) {
	if err := conn.WriteMsg(question(one)); err != nil {
		return "", err
	}
	reply, err := conn.ReadMsg()
	if err != nil {
		return "", err
	}
	return dataOf(reply)
}

func askOverHTTPS(conn net.Conn, one Probe) (string, error) {
	raw, err := question(one).Pack()
	if err != nil {
		return "", err
	}
	query, err := http.NewRequest(http.MethodPost, "https://resolver/dns-query", bytes.NewReader(raw))
	if err != nil {
		return "", err
	}
	if one.Host != "" {
		query.Host = one.Host
	}
	query.Header.Set("Content-Type", "application/dns-message")
	if err := query.Write(conn); err != nil {
		return "", err
	}
	response, err := http.ReadResponse(bufio.NewReader(conn), query)
	if err != nil {
		return "", err
	}
	defer response.Body.Close()
	body, err := io.ReadAll(response.Body)
	if err != nil {
		return "", err
	}
	reply := new(dns.Msg)
	if err := reply.Unpack(body); err != nil {
		return "", fmt.Errorf("%s: %w", response.Status, err)
	}
	return dataOf(reply)
}

// encryptedHello asks for one.Server behind a hello that asks for one.Host. A
// server that has no key for it says so, and thereby answers.
func (p prober) encryptedHello(ctx context.Context, raw net.Conn, one Probe) (string, error) {
	config, err := echConfig(one.Host)
	if err != nil {
		return "", err
	}
	conn := tls.Client(raw, &tls.Config{
		RootCAs: p.roots, ServerName: one.Server, MinVersion: tls.VersionTLS13,
		EncryptedClientHelloConfigList: config,
	})
	err = conn.HandshakeContext(ctx)
	if rejection := new(tls.ECHRejectionError); errors.As(err, &rejection) {
		return "no key for the encrypted hello", nil
	}
	if err == nil {
		err = errors.New("the encrypted hello was accepted")
	}
	return "", err
}

// echConfig is a list of one ECHConfig (RFC 9849, section 4) with a key that
// nobody has.
func echConfig(public string) ([]byte, error) {
	key, err := ecdh.X25519().GenerateKey(rand.Reader)
	if err != nil {
		return nil, err
	}
	contents := []byte{1, 0x00, 0x20} // its id; DHKEM(X25519, HKDF-SHA256)
	contents = binary.BigEndian.AppendUint16(contents, 32)
	contents = append(contents, key.PublicKey().Bytes()...)
	contents = append(contents, 0, 4, 0, 1, 0, 1) // HKDF-SHA256, AES-128-GCM
	contents = append(contents, 64, byte(len(public)))
	contents = append(contents, public...)
	contents = append(contents, 0, 0) // no extensions
	config := binary.BigEndian.AppendUint16([]byte{0xfe, 0x0d}, uint16(len(contents)))
	config = append(config, contents...)
	return append(binary.BigEndian.AppendUint16(nil, uint16(len(config))), config...), nil
}
