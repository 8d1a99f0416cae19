package network

import (
	"fmt"
	"net/netip"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/vmsan/vmsan/internal/policy"
	"github.com/vmsan/vmsan/internal/testenv/lab"
)

// await waits until ok, which it must be in a few seconds.
func await(t testing.TB, what string, ok func() bool, state func() string) {
	t.Helper()
	for deadline := time.Now().Add(5 * time.Second); !ok(); time.Sleep(5 * time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatalf("waited in vain: %s: %s", what, state())
		}
	}
}

var testPool = netip.MustParsePrefix("198.18.0.0/15")

func testID(n int) string { return fmt.Sprintf("vmtest%06d", n) }

func create(t testing.TB, c Config) *Network {
	t.Helper()
	if c.ID == "" {
		c.ID = testID(c.Slot)
	}
	if !c.Pool.IsValid() {
		c.Pool = testPool
	}
	if c.Policy.Mode == "" {
		c.Policy.Mode = policy.AllowAll
	}
	n, err := Create(t.Context(), c)
	if err != nil {
		t.Fatal(err)
	}
	return n
}

// awaitGone waits for the kernel to take a slot's network apart.
func awaitGone(t testing.TB, slot int) {
	t.Helper()
	await(t, fmt.Sprintf("slot %d is gone", slot), func() bool {
		gone, err := Gone(slot, testPool)
		if err != nil {
			t.Fatal(err)
		}
		return gone
	}, func() string { return "" })
}

// What passes the tap is counted, in both directions.
func TestBytes(t *testing.T) {
	inLab(t)
	n := create(t, Config{Slot: 31})
	t.Cleanup(func() {
		if err := n.Close(); err != nil {
			t.Error(err)
		}
		awaitGone(t, 31)
	})
	g := newGuest(t, n)
	before, err := n.Bytes()
	if err != nil {
		t.Fatal(err)
	}
	frame := packet(Guest.Addr(), one, unix.IPPROTO_UDP, udp(lab.EchoPort))
	g.echo(one)
	after, err := n.Bytes()
	if want := 2 * uint64(len(frame)); err != nil || after-before < want {
		t.Errorf("%d bytes passed, %v; want %d at least", after-before, err, want)
	}
}
