package gate

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"math"
	"net"
	"net/netip"
	"os"
	"slices"
	"sync"
	"time"

	"golang.org/x/sys/unix"

	"github.com/vmsan/vmsan/api"
)

// A gate of a sandbox with a network asks its monitor for what it has no
// rights to do itself. Each request and each answer is one packet of a socket
// of their own, in a form that leaves nothing to parse: the monitor has all
// rights, and a gate may have been taken over.
//
//	open   'o', 4 bytes of seconds, 4 bytes for each address
//	shut   's', 4 bytes for each address
//	dial   'd', a byte for the resolver's number, 't' for TCP or 'u' for UDP
//	denied 'n', 4 bytes of count, 2 of port, 4 for the address, zeros if there is
//	       none, and four texts behind a byte of length each: kind, protocol,
//	       name and rule
//
// The answer is the byte 0 if it was done, with a socket beside it if it was
// to dial, and else the byte 1 and the reason.
const (
	requestOpen = 'o'
	requestShut = 's'
	requestDial = 'd'
	requestNote = 'n'

	answerDone    = 0
	answerRefused = 1
)

const (
	// maxAddresses is how many addresses are in one request.
	maxAddresses = 64
	maxNote      = 11 + noteTexts*256
	maxRequest   = max(5+4*maxAddresses, maxNote)
	maxAnswer    = 256
)

// Broker does what a gate asks for. Its methods are called one at a time.
type Broker interface {
	// Open lets the guest reach addresses of an allowed domain for a while.
	Open(addresses []netip.Addr, ttl time.Duration) error
	// Shut takes that back.
	Shut(addresses []netip.Addr) error
	// Dial connects to one of the host's resolvers, in the host's network. A
	// connection by TCP may still be on its way.
	Dial(resolver int, tcp bool) (*os.File, error)
	// Denied notes that the network has refused something. It has the fields of
	// a NetworkEvent that requestNote has, of which the texts may be anything.
	Denied(e api.NetworkEvent)
}

// Attend answers the requests that come over conn until it is closed. A
// request that is none ends it.
func Attend(conn *net.UnixConn, b Broker) error {
	packet := make([]byte, maxRequest+1)
	for {
		n, err := conn.Read(packet)
		if n == 0 || err != nil {
			return nil
		}
		file, err := carryOut(packet[:n], b)
		if errors.Is(err, errNoRequest) {
			return err
		}
		if err := answer(conn, file, err); err != nil {
			return fmt.Errorf("answer gate: %w", err)
		}
	}
}

var errNoRequest = errors.New("the gate's request is malformed")

func carryOut(packet []byte, b Broker) (*os.File, error) {
	switch kind, rest := packet[0], packet[1:]; {
	case kind == requestOpen && len(rest) >= 4:
		addresses, err := unpackAddresses(rest[4:])
		if err != nil {
			return nil, err
		}
		return nil, b.Open(addresses, time.Duration(binary.BigEndian.Uint32(rest))*time.Second)
	case kind == requestShut:
		addresses, err := unpackAddresses(rest)
		if err != nil {
			return nil, err
		}
		return nil, b.Shut(addresses)
	case kind == requestDial && len(rest) == 2 && (rest[1] == 't' || rest[1] == 'u'):
		return b.Dial(int(rest[0]), rest[1] == 't')
	case kind == requestNote:
		e, ok := unpackNote(rest)
		if !ok {
			return nil, errNoRequest
		}
		b.Denied(e)
		return nil, nil
	}
	return nil, errNoRequest
}

func unpackAddresses(raw []byte) (addresses []netip.Addr, err error) {
	if len(raw)%4 != 0 || len(raw) > 4*maxAddresses {
		return nil, errNoRequest
	}
	for ; len(raw) > 0; raw = raw[4:] {
		addresses = append(addresses, netip.AddrFrom4([4]byte(raw)))
	}
	return addresses, nil
}

// noteTexts is how many texts are in a requestNote.
const noteTexts = 4

// packNote makes a request of an event.
func packNote(e api.NetworkEvent) []byte {
	packet := binary.BigEndian.AppendUint32([]byte{requestNote}, uint32(min(max(e.Count, 0), math.MaxInt32)))
	packet = binary.BigEndian.AppendUint16(packet, e.Port)
	var address [4]byte
	if e.Destination.Is4() {
		address = e.Destination.As4()
	}
	packet = append(packet, address[:]...)
	for _, text := range [noteTexts]string{string(e.Kind), e.Protocol, e.Name, e.Rule} {
		text = text[:min(len(text), 255)]
		packet = append(append(packet, byte(len(text))), text...)
	}
	return packet
}

func unpackNote(raw []byte) (e api.NetworkEvent, ok bool) {
	if len(raw) < 10 {
		return e, false
	}
	e.Verdict = api.VerdictDenied
	e.Count, e.Port = int(binary.BigEndian.Uint32(raw)&math.MaxInt32), binary.BigEndian.Uint16(raw[4:])
	if address := [4]byte(raw[6:10]); address != [4]byte{} {
		e.Destination = netip.AddrFrom4(address)
	}
	raw = raw[10:]
	var texts [noteTexts]string
	for i := range texts {
		if len(raw) == 0 {
			return e, false
		}
		n := 1 + int(raw[0])
		if len(raw) < n {
			return e, false
		}
		texts[i], raw = string(raw[1:n]), raw[n:]
	}
	e.Kind, e.Protocol, e.Name, e.Rule = api.EventKind(texts[0]), texts[1], texts[2], texts[3]
	return e, len(raw) == 0 && slices.Contains(api.EventKinds, e.Kind)
}

// answer sends what came of a request, and closes file.
func answer(conn *net.UnixConn, file *os.File, failure error) error {
	reply, rights := []byte{answerDone}, []byte(nil)
	if failure != nil {
		reply = append([]byte{answerRefused}, failure.Error()...)
		reply = reply[:min(len(reply), maxAnswer)]
	}
	if file != nil {
		defer file.Close()
		rights = unix.UnixRights(int(file.Fd()))
	}
	_, _, err := conn.WriteMsgUnix(reply, rights, nil)
	return err
}

// requests is the gate's side. Its methods may be called from any goroutine.
type requests struct {
	turn sync.Mutex // held from a request to its answer
	conn *net.UnixConn
}

// Open asks for addresses in as many requests as it takes.
func (r *requests) Open(_ context.Context, addresses []netip.Addr, ttl time.Duration) error {
	head := binary.BigEndian.AppendUint32([]byte{requestOpen}, uint32(max(ttl, time.Second)/time.Second))
	return r.each(head, addresses)
}

// Shut takes back what Open opened.
func (r *requests) Shut(addresses []netip.Addr) error {
	return r.each([]byte{requestShut}, addresses)
}

func (r *requests) each(head []byte, addresses []netip.Addr) error {
	for len(addresses) > 0 {
		n := min(len(addresses), maxAddresses)
		packet := append([]byte(nil), head...)
		for _, address := range addresses[:n] {
			if !address.Is4() {
				return fmt.Errorf("%s is not an IPv4 address", address)
			}
			ip := address.As4()
			packet = append(packet, ip[:]...)
		}
		if err := r.ask(packet, nil); err != nil {
			return err
		}
		addresses = addresses[n:]
	}
	return nil
}

// Denied tells the monitor that the network has refused something.
func (r *requests) Denied(e api.NetworkEvent) error { return r.ask(packNote(e), nil) }

// Dial returns a connection to the resolver with that number, by "tcp" or
// "udp".
func (r *requests) Dial(_ context.Context, resolver int, network string) (net.Conn, error) {
	if resolver < 0 || resolver > 255 {
		return nil, fmt.Errorf("there is no resolver %d", resolver)
	}
	var file *os.File
	if err := r.ask([]byte{requestDial, byte(resolver), network[0]}, &file); err != nil {
		return nil, err
	}
	if file == nil {
		return nil, errors.New("the monitor sent no connection")
	}
	defer file.Close()
	return net.FileConn(file)
}

// ask sends a request and waits for its answer; what comes beside that is
// stored in file.
func (r *requests) ask(packet []byte, file **os.File) error {
	r.turn.Lock()
	defer r.turn.Unlock()
	if _, err := r.conn.Write(packet); err != nil {
		return fmt.Errorf("ask monitor: %w", err)
	}
	reply, rights := make([]byte, maxAnswer), make([]byte, unix.CmsgSpace(4))
	n, nrights, _, _, err := r.conn.ReadMsgUnix(reply, rights)
	if err == nil && n == 0 {
		err = io.EOF
	}
	if err != nil {
		return fmt.Errorf("hear from monitor: %w", err)
	}
	if reply[0] != answerDone {
		return errors.New(string(reply[1:n]))
	}
	if file == nil || nrights == 0 {
		return nil
	}
	*file, err = receivedFile(rights[:nrights])
	return err
}

// receivedFile takes a file out of what recvmsg(2) received beside a packet.
func receivedFile(rights []byte) (*os.File, error) {
	messages, err := unix.ParseSocketControlMessage(rights)
	if err != nil || len(messages) != 1 {
		return nil, fmt.Errorf("read what came beside an answer: %w", err)
	}
	fds, err := unix.ParseUnixRights(&messages[0])
	if err != nil || len(fds) != 1 {
		return nil, fmt.Errorf("read what came beside an answer: %w", err)
	}
	return os.NewFile(uintptr(fds[0]), "resolver"), nil
}
