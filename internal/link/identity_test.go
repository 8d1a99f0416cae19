package link

import (
	"bytes"
	"errors"
	"net/netip"
	"reflect"
	"strings"
	"testing"
	"time"
)

var testIdentity = Identity{
	Hostname: "box", MachineID: strings.Repeat("0f", 16), User: "me:staff", Workdir: "/srv/a b",
	Main:     &Main{Args: []string{"/bin/sh", "", "a b"}, Restart: "on-failure:3", StopSignal: 15},
	Env:      map[string]string{"A": "", "B": "x=y\nz", "C": "\u00e4"},
	Entropy:  []byte{0, 1, 255},
	Volumes:  []Volume{{Path: "/data"}, {Path: "/models of mine", ReadOnly: true}},
	Restored: true, Pattern: true, BootID: "01234567-89ab-cdef-0123-456789abcdef",
	Address: netip.MustParsePrefix("192.0.0.2/30"), Gateway: netip.MustParseAddr("192.0.0.1"),
}

// told connects to a guest that does what identify says, and returns what it
// was told.
func told(t *testing.T, identity *Identity, answer error) (got []Identity, host *Host, err error) {
	t.Helper()
	control, data := newWire(t), newWire(t)
	guest := Listen(control.guest, data.guest, &recordingSelf{identify: func(id Identity) error {
		got = append(got, id)
		return answer
	}})
	t.Cleanup(func() { guest.Close() })
	host, err = Connect(t.Context(), control.open(t), data.open(t), identity)
	if host != nil {
		t.Cleanup(func() { host.Close() })
	}
	return got, host, err
}

func TestIdentityIsToldFirst(t *testing.T) {
	got, _, err := told(t, &testIdentity, nil)
	if err != nil {
		t.Fatal(err)
	}
	if len(got) != 1 || !reflect.DeepEqual(got[0], testIdentity) {
		t.Errorf("the guest was told %+v, want %+v", got, testIdentity)
	}
}

func TestNoIdentity(t *testing.T) {
	got, _, err := told(t, nil, nil)
	if err != nil || len(got) > 0 {
		t.Errorf("the guest was told %+v (error %v)", got, err)
	}
}

func TestIdentityThatIsRefused(t *testing.T) {
	_, host, err := told(t, &testIdentity, errors.Join(errors.New("hostname: no"), errors.New("machine_id: no")))
	var failed *FailedError
	if host != nil || !errors.As(err, &failed) || failed.Reason != "hostname: no; machine_id: no" {
		t.Errorf("got %v", err)
	}
}

func TestIdentityWithNUL(t *testing.T) {
	id := testIdentity
	id.Workdir = "/a\x00env\x00B=c"
	if _, host, err := told(t, &id, nil); host != nil || err == nil {
		t.Error("an identity was told that reads as another one")
	}
}

func FuzzDecodeIdentity(f *testing.F) {
	digits, err := testIdentity.encode(time.Unix(1700000000, 5))
	if err != nil {
		f.Fatal(err)
	}
	for _, in := range []string{digits, digits[:len(digits)-2], "", "00", "0000", "zz", "7400", "6164647265737300302e302e302e302f3000"} {
		f.Add([]byte(in))
	}
	f.Fuzz(func(t *testing.T, in []byte) {
		id, err := decodeIdentity(string(bytes.TrimSpace(in)))
		if err != nil {
			return
		}
		again, err := id.encode(time.Now())
		if err != nil {
			t.Fatalf("%+v: %v", id, err)
		}
		if second, err := decodeIdentity(again); err != nil || !reflect.DeepEqual(id, second) {
			t.Errorf("%+v became %+v, error %v", id, second, err)
		}
	})
}
