package gate

import (
	"bytes"
	"errors"
	"io"
	"net/netip"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"

	"github.com/vmsan/vmsan/internal/link"
)

// pair is both directions of a connection, in memory.
type pair struct{ bytes.Buffer }

func TestConn(t *testing.T) {
	var wire pair
	conn := NewConn(&wire)
	orders := []Order{
		{Begin: &Begin{Identity: &link.Identity{Hostname: "web", Env: map[string]string{"A": "line\nbreak"}}}},
		{PowerOff: time.Second},
	}
	for _, want := range orders {
		if err := conn.Send(want); err != nil {
			t.Fatal(err)
		}
		var got Order
		if err := conn.Receive(&got); err != nil || !cmp.Equal(got, want, cmpopts.EquateComparable(netip.Prefix{}, netip.Addr{})) {
			t.Errorf("got %+v, %v; want %+v", got, err, want)
		}
	}
	var none Order
	if err := conn.Receive(&none); !errors.Is(err, io.EOF) {
		t.Errorf("at the end: got %v", err)
	}
}

func TestConnRefuses(t *testing.T) {
	for name, line := range map[string]string{
		"no JSON":         "begin\n",
		"another type":    `{"power_off": "yes"}` + "\n",
		"too long a line": `{"error": "` + strings.Repeat("x", maxLine) + `"}` + "\n",
	} {
		var order Order
		if err := NewConn(bytes.NewBufferString(line)).Receive(&order); err == nil || errors.Is(err, io.EOF) {
			t.Errorf("%s: got %v", name, err)
		}
	}
}

// FuzzReport has a gate that was taken over say anything to its monitor.
func FuzzReport(f *testing.F) {
	f.Add([]byte(`{"linked": 1.5, "configured": 2}` + "\n" + `{"error": "no", "failed": true}` + "\n"))
	f.Add([]byte("{\n"))
	f.Fuzz(func(t *testing.T, says []byte) {
		conn := NewConn(bytes.NewBuffer(says))
		for range 1000 {
			var r Report
			if conn.Receive(&r) != nil {
				return
			}
		}
	})
}
