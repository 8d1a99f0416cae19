package proxy

import (
	"slices"
	"strings"

	"golang.org/x/crypto/cryptobyte"
)

// Of TLS (RFC 8446, sections 4.1.2, 4.2, 5.1).
const (
	recordHandshake   = 22
	recordHeader      = 5
	maxRecord         = 1 << 14
	handshakeHello    = 1
	handshakeHeader   = 4
	extensionName     = 0
	extensionECH      = 0xfe0d
	nameOfHost        = 0
	tlsMajor          = 3
	maxServerName     = 255
	maxExtensions     = 256
	fragmentsPerHello = 64
)

// maxHello is the longest ClientHello, in bytes: one with keys that withstand
// quantum computers and a ticket is some 2 KiB, and tickets may be large.
const maxHello = 20 << 10

// The refusals of TLS.
const (
	errHello  refusal = "malformed TLS"
	errNoName refusal = "no server name"
	errECH    refusal = "encrypted server name"
)

// helloName reads a ClientHello, which may be in several records, and returns
// the name of the server that it asks for.
func (a *ahead) helloName() (string, error) {
	var message []byte
	offset, want := 0, handshakeHeader
	for range fragmentsPerHello {
		fragment, err := a.fragment(offset)
		if err != nil {
			return "", err
		}
		offset += recordHeader + len(fragment)
		message = append(message, fragment...)
		if len(message) >= handshakeHeader {
			length := int(message[1])<<16 | int(message[2])<<8 | int(message[3])
			if message[0] != handshakeHello || length > maxHello {
				return "", errHello
			}
			want = handshakeHeader + length
		}
		if len(message) >= want {
			break
		}
	}
	// Nothing may follow in the same record: there is no second message yet.
	if len(message) != want {
		return "", errHello
	}
	return parseHello(message[handshakeHeader:])
}

// fragment returns what is in the record at offset.
func (a *ahead) fragment(offset int) ([]byte, error) {
	if err := a.need(offset + recordHeader); err != nil {
		return nil, err
	}
	header := a.buffer[offset:]
	length := int(header[3])<<8 | int(header[4])
	if header[0] != recordHandshake || header[1] != tlsMajor || length == 0 || length > maxRecord {
		return nil, errHello
	}
	if err := a.need(offset + recordHeader + length); err != nil {
		return nil, err
	}
	return a.buffer[offset+recordHeader:][:length], nil
}

// parseHello returns the server's name in a ClientHello. Whatever different
// readers could read differently is refused.
func parseHello(hello []byte) (string, error) {
	s := cryptobyte.String(hello)
	var session, suites, compressions, extensions cryptobyte.String
	const versionAndRandom = 2 + 32
	if !s.Skip(versionAndRandom) ||
		!s.ReadUint8LengthPrefixed(&session) ||
		!s.ReadUint16LengthPrefixed(&suites) ||
		!s.ReadUint8LengthPrefixed(&compressions) {
		return "", errHello
	}
	if s.Empty() {
		return "", errNoName
	}
	if !s.ReadUint16LengthPrefixed(&extensions) || !s.Empty() {
		return "", errHello
	}
	return nameIn(extensions)
}

func nameIn(extensions cryptobyte.String) (name string, err error) {
	var seen []uint16
	for !extensions.Empty() {
		var kind uint16
		var data cryptobyte.String
		if !extensions.ReadUint16(&kind) || !extensions.ReadUint16LengthPrefixed(&data) ||
			slices.Contains(seen, kind) || len(seen) >= maxExtensions {
			return "", errHello
		}
		seen = append(seen, kind)
		switch kind {
		case extensionECH:
			return "", errECH
		case extensionName:
			if name, err = serverName(data); err != nil {
				return "", err
			}
		}
	}
	if name == "" {
		return "", errNoName
	}
	return name, nil
}

// serverName reads a list of exactly one name (RFC 6066, section 3).
func serverName(data cryptobyte.String) (string, error) {
	var list, name cryptobyte.String
	var kind uint8
	if !data.ReadUint16LengthPrefixed(&list) || !data.Empty() ||
		!list.ReadUint8(&kind) || kind != nameOfHost ||
		!list.ReadUint16LengthPrefixed(&name) || !list.Empty() ||
		len(name) == 0 || len(name) > maxServerName {
		return "", errHello
	}
	return normal(string(name)), nil
}

// normal is how names are compared.
func normal(name string) string { return strings.ToLower(strings.TrimSuffix(name, ".")) }
