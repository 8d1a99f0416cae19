package doctor

import (
	"net"
	"net/netip"
	"os"
	"os/exec"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/vmsan/vmsan/api"
	"github.com/vmsan/vmsan/internal/setup"
	"github.com/vmsan/vmsan/internal/testenv"
	"github.com/vmsan/vmsan/internal/testenv/lab"
)

// inLab is for checks of the host that the lab plays.
func inLab(t *testing.T) (*lab.Lab, *Options) {
	t.Helper()
	testenv.RequireRoot(t)
	o := options(t)
	o.setUp(t, setup.Record{})
	return testenv.Lab(t), o
}

// run runs a command whose words have no spaces in them.
func run(t *testing.T, command string) {
	t.Helper()
	args := strings.Fields(command)
	if out, err := exec.Command(args[0], args[1:]...).CombinedOutput(); err != nil {
		t.Fatalf("%s: %v: %s", command, err, out)
	}
}

func TestHostCanDoAll(t *testing.T) {
	_, o := inLab(t)
	for name, says := range map[string]string{
		"cgroup": "cpu, memory and pids", "tun": "makes a tap", "network": "all that networks", "route": "through uplink0",
		"pool": "198.18.0.0/15, room for 32768", "firewall": "no rule set drops", "resolvers": lab.Resolver.String(),
	} {
		o.want(t, name, api.HealthPass, says, "")
	}
}

func TestNoCgroups(t *testing.T) {
	_, o := inLab(t)
	hide(t, "/sys/fs/cgroup", 0)
	o.want(t, "cgroup", api.HealthFail, "cgroup", "cgroup")
}

func TestNoTun(t *testing.T) {
	_, o := inLab(t)
	hide(t, "/dev/net", 0)
	o.want(t, "tun", api.HealthFail, "/dev/net/tun: no such file", "modprobe tun")
	o.want(t, "network", api.HealthFail, "/dev/net/tun: no such file", "modprobe tun")
	if err := unix.Mount("", "/dev/net", "", unix.MS_REMOUNT|unix.MS_NODEV, ""); err != nil {
		t.Fatal(err)
	}
	if err := unix.Mknod("/dev/net/tun", unix.S_IFCHR|0o666, int(unix.Mkdev(10, 200))); err != nil {
		t.Fatal(err)
	}
	o.want(t, "tun", api.HealthFail, "permission denied", "remount,dev")
}

func TestNoRoute(t *testing.T) {
	world, o := inLab(t)
	reconnect, err := world.Disconnect()
	if err != nil {
		t.Fatal(err)
	}
	o.want(t, "route", api.HealthWarn, "no default route", "ip route add")
	o.want(t, "firewall", api.HealthPass, "", "")
	o.want(t, "resolvers", api.HealthFail, "no route to "+lab.Resolver.String(), "vmsan create --dns")
	if err := reconnect(); err != nil {
		t.Fatal(err)
	}
}

func TestPoolConflict(t *testing.T) {
	_, o := inLab(t)
	run(t, "ip address add 198.18.7.1/24 dev lan0")
	o.want(t, "pool", api.HealthFail, "198.18.0.0/15 overlaps the address 198.18.7.1 of device lan0", "vmsan setup --network-pool")
	run(t, "ip address del 198.18.7.1/24 dev lan0")
	run(t, "ip route add 198.19.0.0/16 via 10.20.0.9 dev lan0")
	o.want(t, "pool", api.HealthFail, "the route to 198.19.0.0/16 through device lan0", "vmsan setup --network-pool")
	run(t, "ip route del 198.19.0.0/16")
	o.setUp(t, setup.Record{Pool: netip.MustParsePrefix("10.20.0.0/24")})
	o.want(t, "pool", api.HealthFail, "10.20.0.1", "vmsan setup --network-pool")
}

// TestFirewall has one rule set in the way; package network tests more.
func TestFirewall(t *testing.T) {
	_, o := inLab(t)
	run(t, "nft add table inet mine")
	defer run(t, "nft delete table inet mine")
	run(t, "nft add chain inet mine forwarded { type filter hook forward priority filter; policy drop; }")
	o.want(t, "firewall", api.HealthFail, "drops what sandboxes send: chain forwarded of table inet mine",
		`nft insert rule inet mine forwarded 'iifname "vmsan*" accept'`)
	run(t, "nft add rule inet mine forwarded accept")
	o.want(t, "firewall", api.HealthPass, "no rule set drops", "")
}

// resolve writes the lab's resolv.conf, which is a mount over the machine's.
func resolve(t *testing.T, text string) {
	t.Helper()
	before, err := os.ReadFile(resolverFile)
	if err != nil {
		t.Fatal(err)
	}
	mounts, err := os.ReadFile("/proc/thread-self/mountinfo")
	if err != nil || !strings.Contains(string(mounts), " "+resolverFile+" ") {
		t.Fatalf("%s is the machine's own; %v", resolverFile, err)
	}
	if err := os.WriteFile(resolverFile, []byte(text), 0o644); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := os.WriteFile(resolverFile, before, 0o644); err != nil {
			t.Error(err)
		}
	})
}

func TestResolvers(t *testing.T) {
	world, o := inLab(t)
	asked := func() int { return world.Hits.Count(func(h lab.Hit) bool { return h.At.Addr() == lab.Resolver }) }
	before := asked()
	resolve(t, "# nobody\n")
	o.want(t, "resolvers", api.HealthFail, "names no server", "--dns")
	resolve(t, "nameserver nonsense\n")
	o.want(t, "resolvers", api.HealthFail, "none of the host's resolvers", "--dns")
	resolve(t, "nameserver 127.0.0.53\n")
	o.want(t, "resolvers", api.HealthFail, "nothing on this host listens on 127.0.0.53", "--dns")
	conn, err := net.ListenPacket("udp", "127.0.0.53:53")
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	o.want(t, "resolvers", api.HealthPass, "127.0.0.53", "")
	resolve(t, "nameserver 127.0.0.54\nnameserver "+lab.Resolver.String()+"\n")
	o.want(t, "resolvers", api.HealthWarn, "listens on 127.0.0.54, port 53; in use: "+lab.Resolver.String(), "--dns")
	if n := asked() - before; n > 0 {
		t.Errorf("the resolver was asked %d times", n)
	}
	o.AskResolvers = true
	resolve(t, "nameserver "+lab.Resolver.String()+"\n")
	o.want(t, "resolvers", api.HealthPass, lab.Resolver.String()+", which answer", "")
	if asked() == before {
		t.Error("the resolver was not asked")
	}
	resolve(t, "nameserver 127.0.0.53\n") // which listens, and does not answer
	o.want(t, "resolvers", api.HealthFail, "127.0.0.53 does not answer", "--dns")
}

func TestParseSocket(t *testing.T) {
	for line, want := range map[string]string{
		"  42: 3500007F:0035 00000000:0000 07 00000000:00000000": "127.0.0.53:53",
		"  42: 00000000:0044 00000000:0000 07":                   "0.0.0.0:68",
		"  42: 00000000000000000000000001000000:0035 0":          "[::1]:53",
		"  sl  local_address rem_address   st tx_queue":          "invalid AddrPort",
		"":                    "invalid AddrPort",
		"  1: 0:0":            "invalid AddrPort",
		"  1: 7F000001:99999": "invalid AddrPort",
	} {
		if got, _ := parseSocket(line); got.String() != want {
			t.Errorf("%q: got %s, want %s", line, got, want)
		}
	}
}
