package agent

import (
	"fmt"
	"net"
	"net/netip"
	"os"
	"regexp"
	"runtime"
	"strings"
	"testing"
	"unsafe"

	"golang.org/x/sys/unix"

	"github.com/vmsan/vmsan/internal/testenv"
)

// The kernel's struct rtentry, as gcc lays it out on a 64-bit machine.
func TestRouteEntryLayout(t *testing.T) {
	var r routeEntry
	for name, offset := range map[string][2]uintptr{
		"rt_dst": {unsafe.Offsetof(r.destination), 8}, "rt_gateway": {unsafe.Offsetof(r.gateway), 24},
		"rt_genmask": {unsafe.Offsetof(r.mask), 40}, "rt_flags": {unsafe.Offsetof(r.flags), 56},
		"rt_metric": {unsafe.Offsetof(r.metric), 80}, "rt_dev": {unsafe.Offsetof(r.device), 88},
		"size": {unsafe.Sizeof(r), 120},
	} {
		if offset[0] != offset[1] {
			t.Errorf("%s is at %d, not %d", name, offset[0], offset[1])
		}
	}
}

func TestNetmask(t *testing.T) {
	for bits, want := range map[int]string{0: "0.0.0.0", 8: "255.0.0.0", 30: "255.255.255.252", 32: "255.255.255.255"} {
		if got := netip.AddrFrom4(netmask(bits)).String(); got != want {
			t.Errorf("netmask(%d) = %s, want %s", bits, got, want)
		}
	}
}

func TestSetNetwork(t *testing.T) {
	testenv.RequireRoot(t)
	inNewNamespace(t, func() {
		address, gateway := netip.MustParsePrefix("192.0.0.2/30"), netip.MustParseAddr("192.0.0.1")
		if err := (linux{}).SetNetwork(address, gateway); err == nil {
			t.Error("an address was set on a device that is not there")
		}
		defer makeDevice(t).Close()
		for range 2 { // it is told again after a restore
			if err := (linux{}).SetNetwork(address, gateway); err != nil {
				t.Fatal(err)
			}
		}
		eth0, err := net.InterfaceByName(device)
		if err != nil {
			t.Fatal(err)
		}
		addresses, err := eth0.Addrs()
		if err != nil || eth0.Flags&net.FlagUp == 0 || !strings.Contains(fmt.Sprint(addresses), address.String()) {
			t.Errorf("%s is %v with %v, %v", device, eth0.Flags, addresses, err)
		}
		routes, err := os.ReadFile("/proc/thread-self/net/route")
		if err != nil || !regexp.MustCompile(`(?m)^eth0\t00000000\t010000C0\t`).Match(routes) {
			t.Errorf("no default route via %s: %v\n%s", gateway, err, routes)
		}
	})
}

// inNewNamespace calls f on a thread of its own in an empty network namespace.
func inNewNamespace(t *testing.T, f func()) {
	t.Helper()
	done := make(chan struct{})
	go func() {
		defer close(done)
		runtime.LockOSThread() // and never unlocked: the thread ends here
		if err := unix.Unshare(unix.CLONE_NEWNET); err != nil {
			t.Error(err)
			return
		}
		f()
	}()
	<-done
}

// makeDevice makes a network device with the guest's name.
func makeDevice(t *testing.T) *os.File {
	t.Helper()
	tap, err := os.OpenFile("/dev/net/tun", os.O_RDWR, 0)
	if err != nil {
		t.Fatal(err)
	}
	request, err := unix.NewIfreq(device)
	if err != nil {
		t.Fatal(err)
	}
	request.SetUint16(unix.IFF_TAP | unix.IFF_NO_PI)
	if err := unix.IoctlIfreq(int(tap.Fd()), unix.TUNSETIFF, request); err != nil {
		t.Fatal(err)
	}
	return tap
}
