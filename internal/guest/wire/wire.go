// Package wire is what host and agent say on the stream of a command: a byte
// that tells it from HTTP, and then frames of a kind, a length and a body.
//
// It is made by hand because it is the path of every command: under emulation
// each instruction of the guest that runs for the first time has to be
// translated, and bodies of output must go from pipe to port untouched.
package wire

import (
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"time"
)

// Hello begins a stream. No request of HTTP begins so.
const Hello = 0x01

// Kind says what the body of a frame is.
type Kind byte

// What the host sends: one Start, StartKept or Join, and then of Input what the
// agent has room for.
const (
	// Start has a Request. The end of the stream ends the command.
	Start Kind = iota + 1
	// Input is for the command's standard input, or its terminal.
	Input
	// InputEnd closes standard input. No body.
	InputEnd
	// Join follows a kept command that is there already, whose process id of
	// four bytes it has. Its output comes from the oldest that was kept on.
	Join
	// Resize has a Size.
	Resize
	// StartKept has a Request, of a command that goes on without us and whose
	// output is kept.
	StartKept
)

// What the agent sends: either one Failed, or Started, anything of the next
// four, and Ended or Failed.
const (
	// Started has the process id, of four bytes.
	Started Kind = iota + 0x11
	// Stdout and Stderr are output. A terminal's is Stdout.
	Stdout
	Stderr
	// Taken has the number of bytes of Input that there is room for again.
	Taken
	// Ended has an End.
	Ended
	// Failed has a Failure.
	Failed
	// CaughtUp says that all that was kept from before a Join has come. No body.
	CaughtUp
)

const (
	// HeaderSize is the size of a frame less its body: kind and length.
	HeaderSize = 1 + 4
	// MaxOutput bounds the body of Stdout and Stderr, in bytes.
	MaxOutput = 2 << 20
	// InputWindow is how many bytes of Input may be sent before any was
	// Taken. The agent buffers as much.
	InputWindow = 256 << 10
	// maxRequest has room for more arguments and variables than the agent
	// accepts.
	maxRequest = 4 << 20
	// maxText bounds the text of a Failure.
	maxText = 4 << 10
)

// longest is the most that the body of each kind can have.
var longest = [...]int{
	Start: maxRequest, Input: InputWindow, InputEnd: 0, Join: 4, Resize: sizeSize, StartKept: maxRequest,
	Started: 4, Stdout: MaxOutput, Stderr: MaxOutput, Taken: 4, Ended: endSize, Failed: 4 + maxText, CaughtUp: 0,
}

// Header is that of a frame.
type Header struct {
	Kind   Kind
	Length int
}

// Put writes h to the beginning of b.
func (h Header) Put(b []byte) {
	b[0] = byte(h.Kind)
	binary.BigEndian.PutUint32(b[1:], uint32(h.Length))
}

// ReadHeader reads a header, which one side may send, and checks it. The end
// of the stream before it is io.EOF.
func ReadHeader(r io.Reader, fromHost bool) (Header, error) {
	var b [HeaderSize]byte
	if _, err := io.ReadFull(r, b[:]); err != nil {
		return Header{}, err
	}
	h := Header{Kind(b[0]), int(binary.BigEndian.Uint32(b[1:]))}
	if h.Kind < Start || h.Kind > CaughtUp || (h.Kind > StartKept && h.Kind < Started) || fromHost != (h.Kind <= StartKept) {
		return Header{}, fmt.Errorf("frame of unknown kind %#x", b[0])
	}
	if h.Length > longest[h.Kind] {
		return Header{}, fmt.Errorf("frame of kind %#x with %d bytes, more than %d", b[0], h.Length, longest[h.Kind])
	}
	return h, nil
}

// Frame is a whole frame.
func Frame(kind Kind, body []byte) []byte {
	b := make([]byte, HeaderSize, HeaderSize+len(body))
	Header{kind, len(body)}.Put(b)
	return append(b, body...)
}

// Number is a frame of Started, Taken or Join.
func Number(kind Kind, n int) []byte {
	var body [4]byte
	binary.BigEndian.PutUint32(body[:], uint32(n))
	return Frame(kind, body[:])
}

// ReadNumber reads the body of Started, Taken or Join.
func ReadNumber(r io.Reader, h Header) (int, error) {
	var body [4]byte
	if h.Length != len(body) {
		return 0, fmt.Errorf("a number of %d bytes", h.Length)
	}
	if _, err := io.ReadFull(r, body[:]); err != nil {
		return 0, err
	}
	return int(binary.BigEndian.Uint32(body[:])), nil
}

// Size is that of a terminal, in characters. Zeros stand for 80 and 24.
type Size struct{ Columns, Rows uint16 }

const sizeSize = 2 + 2

func (s Size) append(b []byte) []byte {
	return binary.BigEndian.AppendUint16(binary.BigEndian.AppendUint16(b, s.Columns), s.Rows)
}

// Frame is the frame of s.
func (s Size) Frame() []byte { return Frame(Resize, s.append(nil)) }

// ReadSize reads the body of Resize.
func ReadSize(r io.Reader, h Header) (Size, error) {
	var body [sizeSize]byte
	if h.Length != len(body) {
		return Size{}, fmt.Errorf("a size of %d bytes", h.Length)
	}
	if _, err := io.ReadFull(r, body[:]); err != nil {
		return Size{}, err
	}
	p := parser{rest: body[:]}
	return p.size(), nil
}

// End is how a command ended.
type End struct {
	Code     int32 // -1 if a signal ended it
	Signal   int32
	TimedOut bool
}

const endSize = 4 + 4 + 1

// Frame is the frame of e.
func (e End) Frame() []byte {
	var body [endSize]byte
	binary.BigEndian.PutUint32(body[0:], uint32(e.Code))
	binary.BigEndian.PutUint32(body[4:], uint32(e.Signal))
	if e.TimedOut {
		body[8] = 1
	}
	return Frame(Ended, body[:])
}

// ReadEnd reads the body of Ended.
func ReadEnd(r io.Reader, h Header) (e End, err error) {
	var body [endSize]byte
	if h.Length != len(body) {
		return e, fmt.Errorf("an end of %d bytes", h.Length)
	}
	if _, err := io.ReadFull(r, body[:]); err != nil {
		return e, err
	}
	e.Code = int32(binary.BigEndian.Uint32(body[0:]))
	e.Signal = int32(binary.BigEndian.Uint32(body[4:]))
	e.TimedOut = body[8] != 0
	return e, nil
}

// Failure is why a command was not started, or its end is not known: a code
// of Connect and a text.
type Failure struct {
	Code uint32
	Text string
}

// Frame is the frame of f, with as much of the text as it may have.
func (f Failure) Frame() []byte {
	text := f.Text[:min(len(f.Text), maxText)]
	return Frame(Failed, append(binary.BigEndian.AppendUint32(nil, f.Code), text...))
}

// ReadFailure reads the body of Failed.
func ReadFailure(r io.Reader, h Header) (Failure, error) {
	body := make([]byte, h.Length)
	if _, err := io.ReadFull(r, body); err != nil {
		return Failure{}, err
	}
	if len(body) < 4 {
		return Failure{}, fmt.Errorf("a failure of %d bytes", len(body))
	}
	return Failure{Code: binary.BigEndian.Uint32(body), Text: string(body[4:])}, nil
}

// Request is the command to start.
type Request struct {
	Args      []string // at least one
	Env       map[string]string
	Dir, User string
	Timeout   time.Duration // 0: none
	Stdin     bool          // there will be Input; else it is /dev/null
	Keep      bool          // it is for StartKept
	Terminal  *Size         // it runs on one of its own, which takes Input; nil: it does not
}

// Bits of a request's flags.
const (
	flagStdin = 1 << iota
	flagTerminal
)

func (r *Request) flags() (flags byte) {
	if r.Stdin {
		flags |= flagStdin
	}
	if r.Terminal != nil {
		flags |= flagTerminal
	}
	return flags
}

// Frame is the frame of r. A request that is too large for one is refused by
// the other side.
func (r *Request) Frame() []byte {
	b := make([]byte, HeaderSize, 512)
	b = binary.BigEndian.AppendUint64(b, uint64(r.Timeout))
	b = append(b, r.flags())
	if r.Terminal != nil {
		b = r.Terminal.append(b)
	}
	b = appendString(appendString(b, r.Dir), r.User)
	b = binary.BigEndian.AppendUint32(b, uint32(len(r.Args)))
	for _, arg := range r.Args {
		b = appendString(b, arg)
	}
	for key, value := range r.Env {
		b = appendString(appendString(b, key), value)
	}
	kind := Start
	if r.Keep {
		kind = StartKept
	}
	Header{kind, len(b) - HeaderSize}.Put(b)
	return b
}

func appendString(b []byte, s string) []byte {
	return append(binary.BigEndian.AppendUint32(b, uint32(len(s))), s...)
}

// ReadRequest reads the body of Start or StartKept.
func ReadRequest(r io.Reader, h Header) (*Request, error) {
	body := make([]byte, h.Length)
	if _, err := io.ReadFull(r, body); err != nil {
		return nil, err
	}
	request, err := parseRequest(body)
	if err == nil {
		request.Keep = h.Kind == StartKept
	}
	return request, err
}

var errShort = errors.New("a request that is cut short")

func parseRequest(body []byte) (*Request, error) {
	p := parser{rest: body}
	request := &Request{Timeout: time.Duration(p.uint64())}
	flags := p.byte()
	request.Stdin = flags&flagStdin != 0
	if flags&flagTerminal != 0 {
		size := p.size()
		request.Terminal = &size
	}
	request.Dir, request.User = p.string(), p.string()
	count := p.uint32()
	// Each takes four bytes at least, so that a count cannot make us
	// allocate more than was sent.
	if p.short || int(count) > len(p.rest)/4 {
		return nil, errShort
	}
	if count == 0 || request.Timeout < 0 {
		return nil, errors.New("a request without a command, or of negative time")
	}
	request.Args = make([]string, count)
	for i := range request.Args {
		request.Args[i] = p.string()
	}
	for len(p.rest) > 0 && !p.short {
		if request.Env == nil {
			request.Env = map[string]string{}
		}
		key := p.string()
		request.Env[key] = p.string()
	}
	if p.short {
		return nil, errShort
	}
	return request, nil
}

// parser takes values off rest, and zero values once that is too short.
type parser struct {
	rest  []byte
	short bool
}

func (p *parser) take(n int) []byte {
	if p.short || n > len(p.rest) {
		p.short = true
		return make([]byte, min(n, 8))
	}
	taken := p.rest[:n]
	p.rest = p.rest[n:]
	return taken
}

func (p *parser) byte() byte     { return p.take(1)[0] }
func (p *parser) uint16() uint16 { return binary.BigEndian.Uint16(p.take(2)) }
func (p *parser) uint32() uint32 { return binary.BigEndian.Uint32(p.take(4)) }
func (p *parser) uint64() uint64 { return binary.BigEndian.Uint64(p.take(8)) }
func (p *parser) size() Size     { return Size{p.uint16(), p.uint16()} }

func (p *parser) string() string {
	s := p.take(int(p.uint32()))
	if p.short {
		return ""
	}
	return string(s)
}
