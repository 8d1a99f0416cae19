package proxy

import (
	"errors"
	"io"
	"net"
	"net/netip"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/google/nftables"
	"github.com/google/nftables/binaryutil"
	"github.com/google/nftables/expr"
	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"github.com/vmsan/vmsan/internal/network/netns"
	"github.com/vmsan/vmsan/internal/testenv"
)

// redirect has all TCP to 203.0.113.0/24, which is here, go to one port.
func redirect(port uint16) error {
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
	table := conn.AddTable(&nftables.Table{Name: "test", Family: nftables.TableFamilyIPv4})
	chain := conn.AddChain(&nftables.Chain{
		Name: "output", Table: table, Type: nftables.ChainTypeNAT,
		Hooknum: nftables.ChainHookOutput, Priority: nftables.ChainPriorityNATDest,
	})
	conn.AddRule(&nftables.Rule{Table: table, Chain: chain, Exprs: []expr.Any{
		&expr.Payload{DestRegister: 1, Base: expr.PayloadBaseNetworkHeader, Offset: 16, Len: 3},
		&expr.Cmp{Register: 1, Data: []byte{203, 0, 113}},
		&expr.Meta{Key: expr.MetaKeyL4PROTO, Register: 1},
		&expr.Cmp{Register: 1, Data: []byte{unix.IPPROTO_TCP}},
		&expr.Immediate{Register: 1, Data: binaryutil.BigEndian.PutUint16(port)},
		&expr.Redir{RegisterProtoMin: 1},
	}})
	return conn.Flush()
}

// TestRedirectedConnections has the kernel redirect connections to a proxy,
// in a network namespace of their own. One that was made to the proxy itself
// goes nowhere.
func TestRedirectedConnections(t *testing.T) {
	testenv.RequireRoot(t)
	ns, err := netns.New()
	if err != nil {
		t.Fatal(err)
	}
	defer ns.Close()
	var listener net.Listener
	err = ns.Do(func() (err error) {
		if listener, err = net.Listen("tcp4", "0.0.0.0:0"); err != nil {
			return err
		}
		return redirect(uint16(listener.Addr().(*net.TCPAddr).Port))
	})
	if err != nil {
		t.Fatal(err)
	}
	w := newWorld(t, "a.example c.example", "203.0.113.1:80", newServer(t).addr)
	proxy := New(Config{Policy: w.proxy.Policy, Names: w.proxy.Names, Log: w, Dial: w.proxy.Dial})
	var serving sync.WaitGroup
	serving.Go(func() { proxy.Serve(listener) })
	defer serving.Wait()
	defer proxy.Close()
	ask := func(to, host string) (answer string, err error) {
		nsErr := ns.Do(func() error {
			conn, dialErr := net.DialTCP("tcp4", nil, net.TCPAddrFromAddrPort(netip.MustParseAddrPort(to)))
			if err = dialErr; err != nil {
				return nil
			}
			defer conn.Close()
			io.WriteString(conn, "GET / HTTP/1.1\r\nHost: "+host+"\r\nConnection: close\r\n\r\n")
			conn.SetDeadline(time.Now().Add(3 * time.Second))
			all, readErr := io.ReadAll(conn)
			answer, err = string(all), readErr
			return nil
		})
		return answer, errors.Join(nsErr, err)
	}
	if answer, err := ask("203.0.113.1:80", "a.example"); answer == "" || err != nil {
		t.Errorf("got %q, %v", answer, err)
	}
	for to, host := range map[string]string{
		"203.0.113.1:80": "c.example", "203.0.113.2:80": "a.example", listener.Addr().String(): "a.example",
	} {
		if answer, err := ask(to, host); !errors.Is(err, syscall.ECONNRESET) {
			t.Errorf("%s at %s: got %q, %v", host, to, answer, err)
		}
	}
}
