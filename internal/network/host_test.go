package network

import (
	"bufio"
	"errors"
	"net/netip"
	"os"
	"strings"
	"sync"
	"testing"

	"github.com/vmsan/vmsan/internal/policy"
)

// abandoned is what a child makes that is killed then.
var abandoned = Config{
	ID: testID(9), Slot: 9, Pool: testPool,
	Policy: policy.Policy{Mode: policy.Custom, AllowedCIDRs: []policy.CIDR{{Prefix: netip.MustParsePrefix("10.20.0.1/32")}}},
}

// TestCleanUp kills who made a network, and finds it by its id.
func TestCleanUp(t *testing.T) {
	inLab(t)
	cmd := child("create")
	stdout, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	said, err := bufio.NewReader(stdout).ReadString('\n')
	if err := errors.Join(err, cmd.Process.Kill()); err != nil || said != "made <nil>\n" {
		t.Errorf("the child said %q; %v", said, err)
	}
	cmd.Wait() // it was killed
	if leftOnHost(t) == "" {
		t.Error("nothing is left to clean up")
	}
	for range 2 {
		if err := CleanUp(abandoned.ID); err != nil {
			t.Fatal(err)
		}
		if left := leftOnHost(t); left != "" {
			t.Fatal("left:", left)
		}
	}
	awaitGone(t, abandoned.Slot)
}

func TestCleanUpOfNothing(t *testing.T) {
	inLab(t)
	if err := CleanUp(testID(1)); err != nil {
		t.Error(err)
	}
	if err := CleanUp("../../tmp"); err == nil {
		t.Error("took what is no id")
	}
}

func TestGone(t *testing.T) {
	inLab(t)
	n := create(t, Config{Slot: 4})
	for slot, want := range map[int]bool{3: true, 4: false, 5: true} {
		if got, err := Gone(slot, testPool); err != nil || got != want {
			t.Errorf("slot %d: got %t, %v", slot, got, err)
		}
	}
	closeNetwork(t, n)
	awaitGone(t, 4)
	if _, err := Gone(Slots(testPool), testPool); err == nil {
		t.Error("a slot that does not exist is gone")
	}
}

// TestMany makes 32 networks at once.
func TestMany(t *testing.T) {
	inLab(t)
	var group sync.WaitGroup
	for slot := range 32 {
		group.Go(func() {
			n, err := Create(t.Context(), Config{
				ID: testID(slot), Slot: slot, Pool: testPool, Policy: only(t, "10.20.0.1/32", "203.0.113.0/24:443"),
				Bandwidth: policy.Bandwidth{Down: 1e7, Up: 1e7},
			})
			if err != nil {
				t.Errorf("slot %d: %v", slot, err)
				return
			}
			if err := n.SetPolicy(policy.Policy{Mode: policy.DenyAll}); err != nil {
				t.Errorf("slot %d: %v", slot, err)
			}
			closeNetwork(t, n)
		})
	}
	group.Wait()
}

// TestDefaultRoute: N18.
func TestDefaultRoute(t *testing.T) {
	world := inLab(t)
	want := func(device string) {
		t.Helper()
		if got, err := DefaultRoute(); err != nil || got != device {
			t.Errorf("got %q, %v; want %s", got, err, device)
		}
	}
	want("uplink0")
	run(t, "ip", "route", "add", "default", "via", "10.20.0.9", "dev", "lan0", "metric", "100")
	want("uplink0")
	reconnect, err := world.Disconnect()
	if err != nil {
		t.Fatal(err)
	}
	want("lan0")
	run(t, "ip", "route", "del", "default")
	if got, err := DefaultRoute(); !errors.Is(err, ErrNoRoute) {
		t.Errorf("got %q, %v", got, err)
	}
	n := create(t, Config{Slot: 1, Policy: policy.Policy{Mode: policy.DenyAll}})
	if err := reconnect(); err != nil {
		t.Fatal(err)
	}
	closeNetwork(t, n)
	for _, half := range []string{"0.0.0.0/1", "128.0.0.0/1"} {
		run(t, "ip", "route", "add", half, "via", "10.20.0.9", "dev", "lan0")
		defer run(t, "ip", "route", "del", half)
	}
	want("lan0")
}

// TestForwarding is on a host that forwards nothing of its own, until it
// begins to.
func TestForwarding(t *testing.T) {
	world := inLab(t)
	forwards := func(device string) string {
		text, err := os.ReadFile("/proc/sys/net/ipv4/conf/" + device + "/forwarding")
		if err != nil {
			t.Fatal(err)
		}
		return strings.TrimSpace(string(text))
	}
	opened := func() bool {
		return strings.Contains(run(t, "nft", "list", "set", "inet", "vmsan", "opened"), "uplink0")
	}
	setAll := func(value string) {
		if err := world.Host.Sysctl("ipv4/conf/all/forwarding", value); err != nil {
			t.Fatal(err)
		}
	}
	defer setAll("0")
	setAll("0") // on all devices
	n := create(t, Config{Slot: 1})
	if all, uplink, lan := forwards("all"), forwards("uplink0"), forwards("lan0"); all != "0" || uplink != "1" || lan != "0" {
		t.Errorf("all: %s, uplink0: %s, lan0: %s", all, uplink, lan)
	}
	if !opened() {
		t.Error("uplink0 may forward anything")
	}
	newGuest(t, n).echo(one)
	closeNetwork(t, n)
	setAll("1")
	n = create(t, Config{Slot: 2})
	if opened() {
		t.Error("uplink0 is kept from forwarding, which the host wants")
	}
	newGuest(t, n).echo(one)
	closeNetwork(t, n)
}

// TestShape is about what the kernel is told; that it does so is tested with
// machines.
func TestShape(t *testing.T) {
	inLab(t)
	n := create(t, Config{Slot: 1, Bandwidth: policy.Bandwidth{Down: 12e6, Up: 6e6}})
	defer closeNetwork(t, n)
	rates := func() (text string) {
		for _, device := range []string{tapName, uplinkName} {
			err := n.ns.Do(func() error {
				rate := "no limit"
				if _, after, ok := strings.Cut(run(t, "tc", "qdisc", "show", "dev", device), " rate "); ok {
					rate, _, _ = strings.Cut(after, " ")
				}
				text += device + ": " + rate + "\n"
				return nil
			})
			if err != nil {
				t.Fatal(err)
			}
		}
		return text
	}
	if got, want := rates(), "tap0: 12Mbit\nuplink: 6Mbit\n"; got != want {
		t.Errorf("got %s, want %s", got, want)
	}
	for _, c := range []struct {
		bandwidth policy.Bandwidth
		want      string
	}{
		{policy.Bandwidth{Down: 5e6}, "tap0: 5Mbit\nuplink: no limit\n"},
		{policy.Bandwidth{Up: 100e9}, "tap0: no limit\nuplink: 100Gbit\n"},
		{policy.Bandwidth{}, "tap0: no limit\nuplink: no limit\n"},
	} {
		if err := n.SetBandwidth(c.bandwidth); err != nil {
			t.Fatal(err)
		}
		if got := rates(); got != c.want {
			t.Errorf("got %s, want %s", got, c.want)
		}
	}
}
