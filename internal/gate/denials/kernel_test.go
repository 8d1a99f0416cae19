package denials

import (
	"net"
	"net/netip"
	"os"
	"sync"
	"testing"
	"time"

	"github.com/google/nftables"
	"github.com/google/nftables/expr"
	nfnetlink "github.com/mdlayher/netlink"
	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"github.com/vmsan/vmsan/api"
	"github.com/vmsan/vmsan/internal/network/netns"
	"github.com/vmsan/vmsan/internal/testenv"
)

const group = 7

// dropAll drops, and tells of, all that is sent; 203.0.113.0/24 is here.
func dropAll() error {
	lo, err := netlink.LinkByName("lo")
	if err != nil {
		return err
	}
	if err := netlink.LinkSetUp(lo); err != nil {
		return err
	}
	all, err := netlink.ParseAddr("203.0.113.254/24")
	if err != nil {
		return err
	}
	if err := netlink.AddrAdd(lo, all); err != nil {
		return err
	}
	conn, err := nftables.New()
	if err != nil {
		return err
	}
	table := conn.AddTable(&nftables.Table{Name: "test", Family: nftables.TableFamilyINet})
	chain := conn.AddChain(&nftables.Chain{
		Name: "output", Table: table, Type: nftables.ChainTypeFilter,
		Hooknum: nftables.ChainHookOutput, Priority: nftables.ChainPriorityFilter,
	})
	conn.AddRule(&nftables.Rule{Table: table, Chain: chain, Exprs: []expr.Any{
		&expr.Log{Key: 1<<unix.NFTA_LOG_GROUP | 1<<unix.NFTA_LOG_PREFIX, Group: group, Data: []byte("policy")},
		&expr.Verdict{Kind: expr.VerdictDrop},
	}})
	return conn.Flush()
}

// bind has a socket be told of group, at once.
func bind(conn *nfnetlink.Conn) error {
	for _, attribute := range [][]byte{
		{5, 0, 1, 0, 1, 0, 0, 0},                // NFULA_CFG_CMD: bind
		{10, 0, 2, 0, 0, 0, 0, 128, 2, 0, 0, 0}, // NFULA_CFG_MODE: the first 128 bytes
		{8, 0, 5, 0, 0, 0, 0, 1},                // NFULA_CFG_QTHRESH
	} {
		_, err := conn.Execute(nfnetlink.Message{
			Header: nfnetlink.Header{Type: unix.NFNL_SUBSYS_ULOG<<8 | 1, Flags: nfnetlink.Request | nfnetlink.Acknowledge},
			Data:   append([]byte{unix.AF_UNSPEC, 0, 0, group}, attribute...),
		})
		if err != nil {
			return err
		}
	}
	return nil
}

// TestWatchReadsTheKernel has the kernel tell of packets, in a network
// namespace of their own.
func TestWatchReadsTheKernel(t *testing.T) {
	testenv.RequireRoot(t)
	ns, err := netns.New()
	if err != nil {
		t.Fatal(err)
	}
	defer ns.Close()
	var socket *os.File
	err = ns.Do(func() error {
		conn, err := nfnetlink.Dial(unix.NETLINK_NETFILTER, nil)
		if err != nil {
			return err
		}
		defer conn.Close()
		if err := bind(conn); err != nil {
			return err
		}
		raw, err := conn.SyscallConn()
		if err != nil {
			return err
		}
		err = raw.Control(func(fd uintptr) {
			own, _ := unix.FcntlInt(fd, unix.F_DUPFD_CLOEXEC, 0)
			unix.SetNonblock(own, true)
			socket = os.NewFile(uintptr(own), "nflog")
		})
		if err != nil {
			return err
		}
		return dropAll()
	})
	if err != nil {
		t.Fatal(err)
	}
	var p page
	log := New(&p, nil)
	var watching sync.WaitGroup
	watching.Go(func() {
		if err := log.Watch(socket, names); err != nil {
			t.Error(err)
		}
	})
	err = ns.Do(func() error {
		packets, err := net.Dial("udp4", "203.0.113.9:53")
		if err != nil {
			return err
		}
		packets.Write([]byte("x"))
		packets.Close()
		d := net.Dialer{Timeout: 10 * time.Millisecond}
		if conn, err := d.Dial("tcp4", "203.0.113.8:443"); err == nil {
			t.Error("a connection came through")
			conn.Close()
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	want := []api.NetworkEvent{
		{
			Verdict: api.VerdictDenied, Kind: api.EventFlow, Protocol: "udp", Destination: netip.MustParseAddr("203.0.113.9"), Port: 53,
			Name: "a.example", Rule: "policy", Count: 1, Hint: "--allowed-cidr 203.0.113.9/32:53/udp",
		},
		{
			Verdict: api.VerdictDenied, Kind: api.EventFlow, Protocol: "tcp", Destination: netip.MustParseAddr("203.0.113.8"), Port: 443,
			Rule: "policy", Count: 1, Hint: "--allowed-cidr 203.0.113.8/32:443/tcp",
		},
	}
	var got []api.NetworkEvent
	for deadline := time.Now().Add(5 * time.Second); len(got) < len(want) && time.Now().Before(deadline); time.Sleep(time.Millisecond) {
		got = append(got, p.events(t)...)
	}
	if len(got) < len(want) || got[0] != want[0] || got[1] != want[1] {
		t.Errorf("got %+v", got)
	}
	socket.Close()
	watching.Wait()
	log.Close()
}
