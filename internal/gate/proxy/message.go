package proxy

import (
	"bytes"
	"errors"
	"net"
	"net/http"
	"strconv"
	"strings"

	"golang.org/x/net/http/httpguts"
)

// Bounds of HTTP, in bytes but for maxFields. There may be MaxConns of them in
// a gate's memory, which is small.
const (
	maxHead      = 16 << 10
	maxFields    = 256
	maxChunkLine = 4 << 10
	maxTrailer   = 16 << 10
)

// The refusals of HTTP.
const (
	errHTTP      refusal = "malformed HTTP"
	errSmuggling refusal = "HTTP with an uncertain length"
	errHTTP2     refusal = "HTTP/2 in clear text"
	errConnect   refusal = "CONNECT"
	errNoHost    refusal = "no Host"
)

// field is a header field, its name in lower case.
type field struct{ name, value string }

// parseHead splits a head, with its empty line, into its first line and its
// fields.
func parseHead(head []byte) (first string, fields []field, err error) {
	first, rest, ok := strings.Cut(string(head), "\r\n")
	if !ok {
		return "", nil, errHTTP
	}
	fields, err = parseFields(rest)
	return first, fields, err
}

// parseFields reads lines up to an empty one.
func parseFields(lines string) (fields []field, err error) {
	for line := range strings.SplitSeq(strings.TrimSuffix(lines, "\r\n"), "\r\n") {
		if line == "" {
			break
		}
		// A line that is folded begins with a space, which no name does.
		name, value, ok := strings.Cut(line, ":")
		value = strings.Trim(value, " \t")
		if !ok || !httpguts.ValidHeaderFieldName(name) || !httpguts.ValidHeaderFieldValue(value) || len(fields) >= maxFields {
			return nil, errHTTP
		}
		fields = append(fields, field{strings.ToLower(name), value})
	}
	return fields, nil
}

func values(fields []field, name string) (list []string) {
	for _, f := range fields {
		if f.name == name {
			list = append(list, f.value)
		}
	}
	return list
}

// body is how long the rest of a message is.
type body struct {
	chunked bool
	known   bool // that there is a length
	length  int64
}

// bodyOf refuses all in which two readers could find different lengths
// (RFC 9112, sections 6.3 and 11.2).
func bodyOf(fields []field, version string) (b body, err error) {
	encodings, lengths := values(fields, "transfer-encoding"), values(fields, "content-length")
	switch {
	case len(encodings) > 0:
		if len(encodings) > 1 || len(lengths) > 0 || version != "HTTP/1.1" || !strings.EqualFold(encodings[0], "chunked") {
			return b, errSmuggling
		}
		b.chunked = true
	case len(lengths) > 0:
		const maxDigits = 18 // of an int64
		text := lengths[0]
		if len(lengths) > 1 || len(text) > maxDigits || strings.Trim(text, "0123456789") != "" {
			return b, errSmuggling
		}
		b.known = true
		if b.length, err = strconv.ParseInt(text, 10, 64); err != nil {
			return b, errSmuggling
		}
	}
	return b, nil
}

// request is what matters of one.
type request struct {
	method string
	name   string
	body   body
	// upgrade is set if the client would like to speak another protocol;
	// then agreed says whether the server would too.
	upgrade bool
	agreed  chan bool
}

func parseRequest(head []byte) (*request, error) {
	line, fields, err := parseHead(head)
	if err != nil {
		return nil, err
	}
	parts := strings.Split(line, " ")
	if len(parts) != 3 || !httpguts.ValidHeaderFieldName(parts[0]) || !validTarget(parts[1]) {
		return nil, errHTTP
	}
	method, target, version := parts[0], parts[1], parts[2]
	switch {
	case version == "HTTP/2.0":
		return nil, errHTTP2
	case version != "HTTP/1.1" && version != "HTTP/1.0":
		return nil, errHTTP
	case method == http.MethodConnect:
		return nil, errConnect
	}
	r := &request{method: method, upgrade: len(values(fields, "upgrade")) > 0, agreed: make(chan bool, 1)}
	if r.name, err = nameOf(target, values(fields, "host")); err != nil {
		return nil, err
	}
	r.body, err = bodyOf(fields, version)
	return r, err
}

// validTarget tells whether a target has nothing in it but what is visible.
func validTarget(target string) bool {
	return target != "" && !strings.ContainsFunc(target, func(c rune) bool { return c <= ' ' || c == 0x7f })
}

// nameOf returns whom a request is for, on which the target, if it has a
// name, and the Host must agree.
func nameOf(target string, hosts []string) (string, error) {
	if len(hosts) == 0 || len(hosts) == 1 && hosts[0] == "" {
		return "", errNoHost
	}
	if len(hosts) > 1 {
		return "", errHTTP
	}
	name, err := hostName(hosts[0])
	if err != nil || strings.HasPrefix(target, "/") || target == "*" {
		return name, err
	}
	const scheme = "http://"
	if len(target) < len(scheme) || !strings.EqualFold(target[:len(scheme)], scheme) {
		return "", errHTTP
	}
	authority := target[len(scheme):]
	if end := strings.IndexAny(authority, "/?#"); end >= 0 {
		authority = authority[:end]
	}
	if other, err := hostName(authority); err != nil || other != name {
		return "", errHTTP
	}
	return name, nil
}

// hostName takes the port off.
func hostName(host string) (string, error) {
	if strings.Contains(host, ":") {
		name, port, err := net.SplitHostPort(host)
		if err != nil || strings.Trim(port, "0123456789") != "" {
			return "", errHTTP
		}
		host = name
	}
	if host == "" || strings.ContainsAny(host, "@/\\?#%[], \t") {
		return "", errHTTP
	}
	return normal(host), nil
}

// response is what matters of one.
type response struct {
	status  int
	body    body
	upgrade []string
}

var errResponse = errors.New("malformed response")

func parseResponse(head []byte) (r response, err error) {
	line, fields, err := parseHead(head)
	if err != nil {
		return r, err
	}
	version, rest, _ := strings.Cut(line, " ")
	code, _, _ := strings.Cut(rest, " ")
	if version != "HTTP/1.1" && version != "HTTP/1.0" || len(code) != 3 {
		return r, errResponse
	}
	if r.status, err = strconv.Atoi(code); err != nil || r.status < 100 {
		return r, errResponse
	}
	r.upgrade = values(fields, "upgrade")
	r.body, err = bodyOf(fields, version)
	return r, err
}

// agrees tells whether the server goes on in a protocol that may be passed
// on unread. One that asks for names of its own may not.
func (r response) agrees() bool {
	if len(r.upgrade) != 1 {
		return false
	}
	protocol := strings.ToLower(r.upgrade[0])
	return !strings.HasPrefix(protocol, "h2") && !strings.HasPrefix(protocol, "http") && !strings.HasPrefix(protocol, "tls")
}

// passChunked passes a body on that is in chunks (RFC 9112, section 7.1).
func (a *ahead) passChunked(to net.Conn) error {
	for {
		line, err := a.line(0, maxChunkLine)
		if err != nil {
			return unexpected(err)
		}
		size, err := chunkSize(line)
		if err != nil {
			return err
		}
		if size == 0 {
			return a.passTrailer(to, len(line))
		}
		if err := a.passChunk(to, int64(len(line)), size); err != nil {
			return err
		}
	}
}

// passChunk passes a chunk on with its line before and the CRLF behind it, at
// once if it is all there.
func (a *ahead) passChunk(to net.Conn, line, size int64) error {
	all := line + size + int64(len("\r\n"))
	if int64(len(a.buffer)) < all {
		if err := a.pass(to, line+size); err != nil {
			return err
		}
		if err := a.need(len("\r\n")); err != nil {
			return err
		}
		all = int64(len("\r\n"))
	}
	if !bytes.HasSuffix(a.buffer[:all], []byte("\r\n")) {
		return errSmuggling
	}
	return a.pass(to, all)
}

// chunkSize reads the line before a chunk.
func chunkSize(line []byte) (int64, error) {
	digits, extension, _ := strings.Cut(string(line[:len(line)-2]), ";")
	const maxDigits = 15 // of an int64 with room for sums
	if !httpguts.ValidHeaderFieldValue(extension) || len(digits) == 0 || len(digits) > maxDigits ||
		strings.Trim(digits, "0123456789abcdefABCDEF") != "" {
		return 0, errSmuggling
	}
	return strconv.ParseInt(digits, 16, 64)
}

// passTrailer passes the last chunk's line on, and the fields behind it.
func (a *ahead) passTrailer(to net.Conn, last int) error {
	for end := last; ; {
		line, err := a.line(end, maxTrailer-end)
		if err != nil {
			return unexpected(err)
		}
		end += len(line)
		if len(line) > len("\r\n") {
			continue
		}
		if _, err := parseFields(string(a.buffer[last:end])); err != nil {
			return err
		}
		return a.pass(to, int64(end))
	}
}
