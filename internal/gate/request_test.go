package gate

import (
	"errors"
	"io"
	"net"
	"net/netip"
	"os"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/vmsan/vmsan/api"
	"github.com/vmsan/vmsan/internal/vmm"
)

// recordingBroker writes down what it is asked for.
type recordingBroker struct {
	mu           sync.Mutex // guards all below
	opened, shut []netip.Addr
	ttl          time.Duration
	denied       []api.NetworkEvent
	fail         error
}

func (b *recordingBroker) Denied(e api.NetworkEvent) {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.denied = append(b.denied, e)
}

// seen returns what was asked for until now.
func (b *recordingBroker) seen() (opened, shut []netip.Addr, ttl time.Duration) {
	b.mu.Lock()
	defer b.mu.Unlock()
	return slices.Clone(b.opened), slices.Clone(b.shut), b.ttl
}

func (b *recordingBroker) failWith(err error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.fail = err
}

func (b *recordingBroker) Open(addresses []netip.Addr, ttl time.Duration) error {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.opened, b.ttl = append(b.opened, addresses...), ttl
	return b.fail
}

func (b *recordingBroker) Shut(addresses []netip.Addr) error {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.shut = append(b.shut, addresses...)
	return b.fail
}

// Dial returns the end of a pipe of bytes, on which it says what it was.
func (b *recordingBroker) Dial(resolver int, tcp bool) (*os.File, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.fail != nil {
		return nil, b.fail
	}
	ours, theirs, err := vmm.SocketPair("resolver")
	if err != nil {
		return nil, err
	}
	defer ours.Close()
	_, err = ours.WriteString("tcp")
	return theirs, err
}

// ask starts a broker and returns the gate's side of it.
func ask(t *testing.T, b Broker) (*requests, <-chan error) {
	t.Helper()
	ours, theirs := packetConns(t)
	attended := make(chan error, 1)
	go func() { attended <- Attend(ours, b) }()
	t.Cleanup(func() { theirs.Close(); ours.Close() })
	return &requests{conn: theirs}, attended
}

func packetConns(t *testing.T) (ours, theirs *net.UnixConn) {
	t.Helper()
	a, b, err := vmm.PacketPair("requests")
	if err != nil {
		t.Fatal(err)
	}
	conns := [2]*net.UnixConn{}
	for i, file := range []*os.File{a, b} {
		conn, err := net.FileConn(file)
		if err != nil {
			t.Fatal(err)
		}
		file.Close()
		conns[i] = conn.(*net.UnixConn)
	}
	return conns[0], conns[1]
}

func TestRequests(t *testing.T) {
	b := &recordingBroker{}
	r, attended := ask(t, b)
	var many []netip.Addr
	for i := range maxAddresses + 3 { // more than one request takes
		many = append(many, netip.AddrFrom4([4]byte{198, 51, 100, byte(i)}))
	}
	if err := r.Open(t.Context(), many, 90*time.Second); err != nil {
		t.Fatal(err)
	}
	if opened, _, ttl := b.seen(); !slices.Equal(opened, many) || ttl != 90*time.Second {
		t.Errorf("opened %v for %s", opened, ttl)
	}
	if err := r.Shut(many[:2]); err != nil {
		t.Fatal(err)
	}
	if _, shut, _ := b.seen(); !slices.Equal(shut, many[:2]) {
		t.Errorf("shut %v", shut)
	}
	conn, err := r.Dial(t.Context(), 2, "tcp")
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	if text, err := io.ReadAll(conn); err != nil || string(text) != "tcp" {
		t.Errorf("the connection says %q, %v", text, err)
	}
	b.failWith(errors.New("no such thing"))
	for what, err := range map[string]error{
		"open": r.Open(t.Context(), many[:1], time.Second),
		"dial": func() error { _, err := r.Dial(t.Context(), 0, "udp"); return err }(),
	} {
		if err == nil || err.Error() != "no such thing" {
			t.Errorf("%s: %v", what, err)
		}
	}
	if err := r.Open(t.Context(), []netip.Addr{netip.IPv6Loopback()}, time.Second); err == nil {
		t.Error("an IPv6 address was asked for")
	}
	r.conn.Close()
	if err := <-attended; err != nil {
		t.Errorf("Attend = %v, after the gate has ended", err)
	}
}

// A gate that was taken over and sends something else is not heard again.
func TestAttendMalformed(t *testing.T) {
	for _, packet := range []string{"x", "o", "o\x00\x00\x00\x01abc", "sabc", "d", "d\x00x", "d\x00tt",
		"s" + strings.Repeat("abcd", maxAddresses+1)} {
		b := &recordingBroker{}
		r, attended := ask(t, b)
		if _, err := r.conn.Write([]byte(packet)); err != nil {
			t.Fatal(err)
		}
		if err := <-attended; !errors.Is(err, errNoRequest) {
			t.Errorf("%q: Attend = %v", packet, err)
		}
		if opened, shut, _ := b.seen(); len(opened)+len(shut) > 0 {
			t.Errorf("%q did something", packet)
		}
	}
}

// denial is one with all that a note of it holds.
var denial = api.NetworkEvent{
	Verdict: api.VerdictDenied, Kind: api.EventFlow, Protocol: "tcp", Destination: netip.MustParseAddr("192.0.2.7"), Port: 443,
	Name: "www.example", Rule: "denied range", Count: 3,
}

func TestDenied(t *testing.T) {
	b := &recordingBroker{}
	r, _ := ask(t, b)
	long := denial
	long.Name, long.Destination, long.Count = strings.Repeat("n", 300), netip.MustParseAddr("2001:db8::1"), -1
	for _, e := range []api.NetworkEvent{denial, long} {
		if err := r.Denied(e); err != nil {
			t.Fatal(err)
		}
	}
	long.Name, long.Destination, long.Count = long.Name[:255], netip.Addr{}, 0
	b.mu.Lock()
	defer b.mu.Unlock()
	if len(b.denied) != 2 || b.denied[0] != denial || b.denied[1] != long {
		t.Errorf("got %v", b.denied)
	}
	for i := range packNote(denial) {
		if _, ok := unpackNote(packNote(denial)[1 : 1+i]); ok && i+1 < len(packNote(denial)) {
			t.Errorf("%d bytes of a note are one", i)
		}
	}
	kind := denial
	kind.Kind = "gossip"
	if _, ok := unpackNote(packNote(kind)[1:]); ok {
		t.Error("a kind that there is not was taken")
	}
}

func FuzzCarryOut(f *testing.F) {
	for _, packet := range []string{"o\x00\x00\x00\x3cabcd", "sabcdefgh", "d\x00t", "d\x01u", "q", string(packNote(denial))} {
		f.Add([]byte(packet))
	}
	f.Fuzz(func(t *testing.T, packet []byte) {
		if len(packet) == 0 || len(packet) > maxRequest {
			return
		}
		b := &recordingBroker{}
		file, err := carryOut(packet, b)
		if file != nil {
			file.Close()
		}
		for _, e := range b.denied {
			if again, ok := unpackNote(packNote(e)[1:]); !ok || again != e {
				t.Errorf("%q means %v, and that %v", packet, e, again)
			}
		}
		if errors.Is(err, errNoRequest) && len(b.opened)+len(b.shut)+len(b.denied) > 0 {
			t.Errorf("%q is malformed and did something", packet)
		}
		if len(b.opened) > maxAddresses || len(b.shut) > maxAddresses {
			t.Errorf("%q means %d addresses", packet, len(b.opened)+len(b.shut))
		}
	})
}
