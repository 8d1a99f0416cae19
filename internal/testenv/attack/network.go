package attack

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"math/rand/v2"
	"net"
	"net/netip"
	"os"
	"strings"
	"time"

	"github.com/miekg/dns"
	"golang.org/x/sys/unix"

	"github.com/vmsan/vmsan/internal/testenv/probe"
)

// onNetwork are floods and lies for the gateway, and for what is behind it.
// Each is told of an address that the policy allows, one that it does not, and
// a domain that it allows.
var onNetwork = []attack{
	{"arp-questions", floodARP(false)},
	{"arp-lies", floodARP(true)},
	{"frames-from-others", floodFrames(func(f []byte) { rand8(f[6:12]); f[6] &= 0xfe })},
	{"frames-of-all-kinds", floodFrames(func(f []byte) { rand8(f[12:14]) })},
	{"frames-of-all-sizes", floodSizes},
	{"frames-with-false-offloads", floodOffloads},
	{"ipv6-advertisements", floodFrames(func(f []byte) {
		copy(f[:6], []byte{0x33, 0x33, 0, 0, 0, 1})
		binary.BigEndian.PutUint16(f[12:], unix.ETH_P_IPV6)
		copy(f[14:], []byte{0x60, 0, 0, 0, 0, 16, unix.IPPROTO_ICMPV6, 255, 0xfe, 0x80})
		f[54] = 134
	})},
	{"fragments-without-end", floodPackets(func(t targets, p []byte) []byte {
		rand8(p[4:6])
		binary.BigEndian.PutUint16(p[6:], 0x2000) // more follow, which never come
		return to(t.allowed, unix.IPPROTO_UDP, p[:20+1024])
	})},
	{"flows-of-udp", floodPackets(func(t targets, p []byte) []byte {
		rand8(p[20:24])
		binary.BigEndian.PutUint16(p[24:], 16)
		return to(t.allowed, unix.IPPROTO_UDP, p[:36])
	})},
	{"flows-of-tcp", floodPackets(func(t targets, p []byte) []byte {
		rand8(p[20:28])
		p[32], p[33], p[34] = 5<<4, 2, 0xff // SYN
		binary.BigEndian.PutUint16(p[36:], checksumTCP(t, p))
		return to(t.allowed, unix.IPPROTO_TCP, p[:40])
	})},
	{"flows-of-ping", floodPackets(func(t targets, p []byte) []byte {
		p[20] = 8
		rand8(p[24:28])
		binary.BigEndian.PutUint16(p[22:], probe.Checksum(p[20:28]))
		return to(t.allowed, unix.IPPROTO_ICMP, p[:28])
	})},
	{"flows-that-are-denied", floodPackets(func(t targets, p []byte) []byte {
		rand8(p[20:24])
		binary.BigEndian.PutUint16(p[24:], 16)
		denied := t.denied.As4()
		rand8(denied[3:])
		return to(netip.AddrFrom4(denied), unix.IPPROTO_UDP, p[:36])
	})},
	{"packets-of-nonsense", floodPackets(func(t targets, p []byte) []byte {
		rand8(p[20:])
		return to(t.allowed, p[20], p[:20+rand.IntN(1400)])
	})},
	{"gateway-pinged", floodPackets(func(t targets, p []byte) []byte {
		p[20] = 8
		rand8(p[24:28])
		binary.BigEndian.PutUint16(p[22:], probe.Checksum(p[20:1420]))
		return to(t.gateway, unix.IPPROTO_ICMP, p[:1420])
	})},
	{"dns-nonsense", floodPackets(func(t targets, p []byte) []byte {
		rand8(p[28:])
		return datagram(t.gateway, 53, p[:28+rand.IntN(1000)])
	})},
	{"dns-loops", floodPackets(func(t targets, p []byte) []byte {
		// A name that points to itself, and one question of many that are not
		// there.
		copy(p[28:], []byte{byte(rand.Int()), 1, 1, 0, 0, 1, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xc0, 12, 0, 1, 0, 1})
		return datagram(t.gateway, 53, p[:46])
	})},
	{"dns-denied-names", floodNames(func(t targets) string { return fmt.Sprintf("%x.denied.example.", rand.Uint64()) })},
	{"dns-new-names", floodNames(func(t targets) string { return fmt.Sprintf("%x.%s.", rand.Uint64(), t.domain) })},
	{"dns-streams-held", holdStreams(53, func(targets) string { return "" })},
	{"dns-answers-unread", unreadAnswers},
	{"proxy-silence", holdStreams(443, func(targets) string { return "" })},
	{"proxy-nonsense", holdStreams(443, func(targets) string { return string(random(4096)) })},
	{"proxy-long-hello", holdStreams(443, func(targets) string { return "\x16\x03\x01\xff\xff\x01\x00\xff\xfb" + string(make([]byte, 60000)) })},
	{"proxy-long-head", holdStreams(80, func(t targets) string {
		return "GET / HTTP/1.1\r\nHost: " + t.domain + "\r\n" + strings.Repeat("X: "+strings.Repeat("x", 1000)+"\r\n", 200)
	})},
	{"proxy-unread", holdStreams(80, func(t targets) string {
		return "GET /bytes/1000000000 HTTP/1.1\r\nHost: " + t.domain + "\r\n\r\n"
	})},
	// The last: for a while no other name has an address any more.
	{"dns-many-addresses", floodNames(func(t targets) string { return fmt.Sprintf("n%d.%s.", rand.IntN(ManyNames), t.domain) })},
}

// ManyNames is how many names below the domain have many addresses: n0 and on.
const ManyNames = 100

// targets are what network attacks are aimed at.
type targets struct {
	allowed, denied, gateway, own netip.Addr
	domain                        string
	link                          net.Interface
}

func targetsOf(args []string) (t targets, err error) {
	if len(args) != 3 {
		return t, errors.New("told of no address that is allowed, no other one and no domain")
	}
	if t.allowed, err = netip.ParseAddr(args[0]); err != nil {
		return t, err
	}
	if t.denied, err = netip.ParseAddr(args[1]); err != nil {
		return t, err
	}
	t.domain = args[2]
	config, err := dns.ClientConfigFromFile("/etc/resolv.conf")
	if err != nil {
		return t, err
	}
	if t.gateway, err = netip.ParseAddr(config.Servers[0]); err != nil {
		return t, err
	}
	links, err := net.Interfaces()
	if err != nil {
		return t, err
	}
	for _, link := range links {
		if link.Flags&net.FlagLoopback != 0 || link.Flags&net.FlagUp == 0 {
			continue
		}
		addresses, err := link.Addrs()
		if err != nil {
			return t, err
		}
		for _, a := range addresses {
			if prefix, err := netip.ParsePrefix(a.String()); err == nil && prefix.Addr().Is4() {
				t.link, t.own = link, prefix.Addr()
				return t, nil
			}
		}
	}
	return t, errors.New("no network device has an address")
}

// rand8 fills b quickly.
func rand8(b []byte) {
	for i := range b {
		b[i] = byte(rand.Uint32())
	}
}

// to makes the head of a packet of IPv4, whose sender and checksum the kernel
// fills in.
func to(address netip.Addr, protocol byte, p []byte) []byte {
	p[0], p[8], p[9] = 0x45, 64, protocol
	binary.BigEndian.PutUint16(p[2:], uint16(len(p)))
	copy(p[16:], address.AsSlice())
	return p
}

// datagram has a packet carry one from a random port.
func datagram(address netip.Addr, port uint16, p []byte) []byte {
	rand8(p[20:22])
	binary.BigEndian.PutUint16(p[22:], port)
	binary.BigEndian.PutUint16(p[24:], uint16(len(p)-20))
	return to(address, unix.IPPROTO_UDP, p)
}

func checksumTCP(t targets, p []byte) uint16 {
	p[36], p[37] = 0, 0
	pseudo := append(t.own.AsSlice(), t.allowed.AsSlice()...)
	pseudo = append(pseudo, 0, unix.IPPROTO_TCP, 0, 20)
	return probe.Checksum(append(pseudo, p[20:40]...))
}

// busy tells whether an error is that the device has no room just now, or that
// the guest's own kernel does not send something: the next one may go.
func busy(err error) bool {
	return errors.Is(err, unix.ENOBUFS) || errors.Is(err, unix.EAGAIN) || errors.Is(err, unix.EPERM) ||
		errors.Is(err, unix.EINVAL) || errors.Is(err, unix.EMSGSIZE)
}

// floodPackets sends packets of IPv4 that packet makes of a buffer.
func floodPackets(packet func(t targets, p []byte) []byte) func(context.Context, []string) (int, error) {
	return func(ctx context.Context, args []string) (int, error) {
		t, err := targetsOf(args)
		if err != nil {
			return 0, err
		}
		fd, err := unix.Socket(unix.AF_INET, unix.SOCK_RAW|unix.SOCK_CLOEXEC, unix.IPPROTO_RAW)
		if err != nil {
			return 0, err
		}
		defer unix.Close(fd)
		sent := 0
		buffer := make([]byte, 2000)
		_, err = repeat(ctx, func(int) error {
			p := packet(t, buffer)
			err := unix.Sendto(fd, p, 0, &unix.SockaddrInet4{Addr: [4]byte(p[16:20])})
			if err == nil {
				sent++
			} else if busy(err) {
				return nil
			}
			return err
		})
		return sent, err
	}
}

// floodLink sends frames that make makes, with what goes before a frame.
func floodLink(ctx context.Context, args []string, options map[int]int, frame func(t targets) []byte) (sent int, err error) {
	t, err := targetsOf(args)
	if err != nil {
		return 0, err
	}
	fd, err := unix.Socket(unix.AF_PACKET, unix.SOCK_RAW|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return 0, err
	}
	defer unix.Close(fd)
	for option, value := range options {
		if err := unix.SetsockoptInt(fd, unix.SOL_PACKET, option, value); err != nil {
			return 0, err
		}
	}
	_, err = repeat(ctx, func(int) error {
		err := unix.Sendto(fd, frame(t), 0, &unix.SockaddrLinklayer{Ifindex: t.link.Index, Halen: 6})
		if err == nil {
			sent++
		} else if busy(err) {
			return nil
		}
		return err
	})
	return sent, err
}

// broadcast is a frame to everybody, with 60 bytes of zeros.
func broadcast(t targets) []byte {
	f := make([]byte, 74)
	copy(f, "\xff\xff\xff\xff\xff\xff")
	copy(f[6:], t.link.HardwareAddr)
	return f
}

func floodFrames(change func(f []byte)) func(context.Context, []string) (int, error) {
	return func(ctx context.Context, args []string) (int, error) {
		return floodLink(ctx, args, nil, func(t targets) []byte {
			f := broadcast(t)
			change(f)
			return f
		})
	}
}

func floodARP(lies bool) func(context.Context, []string) (int, error) {
	return func(ctx context.Context, args []string) (int, error) {
		return floodLink(ctx, args, nil, func(t targets) []byte {
			f := broadcast(t)
			copy(f[12:], []byte{0x08, 0x06, 0, 1, 8, 0, 6, 4, 0, 1})
			copy(f[22:], t.link.HardwareAddr)
			copy(f[28:], t.own.AsSlice())
			copy(f[38:], t.own.AsSlice()[:2])
			rand8(f[40:42]) // who has any address of the link?
			if lies {       // the gateway is here, and here, and here
				f[21] = 2
				rand8(f[23:28])
				copy(f[28:], t.gateway.AsSlice())
			}
			return f
		})
	}
}

func floodSizes(ctx context.Context, args []string) (int, error) {
	return floodLink(ctx, args, nil, func(t targets) []byte {
		f := append(broadcast(t), make([]byte, 1440)...)
		binary.BigEndian.PutUint16(f[12:], unix.ETH_P_IP)
		f[14] = 0x4f // a head that is longer than many of them
		return f[:14+rand.IntN(len(f)-14)]
	})
}

// floodOffloads has the guest's kernel tell the device that there is more to do
// with a frame than its bytes allow (struct virtio_net_hdr).
func floodOffloads(ctx context.Context, args []string) (int, error) {
	return floodLink(ctx, args, map[int]int{unix.PACKET_VNET_HDR: 1}, func(t targets) []byte {
		head := make([]byte, 10)
		head[0] = 1                             // it needs a checksum
		head[1] = []byte{0, 1, 3, 4}[rand.N(4)] // none, TCP, UDP, TCP by IPv6
		binary.LittleEndian.PutUint16(head[2:], uint16(54+rand.N(100)))
		binary.LittleEndian.PutUint16(head[4:], uint16(1+rand.N(1400)))
		binary.LittleEndian.PutUint16(head[6:], uint16(34+rand.N(20)))
		binary.LittleEndian.PutUint16(head[8:], uint16([]int{6, 16}[rand.N(2)]))
		f := append(broadcast(t), make([]byte, 8000)...)
		binary.BigEndian.PutUint16(f[12:], unix.ETH_P_IP)
		p := to(t.allowed, unix.IPPROTO_TCP, f[14:14+1400+rand.N(6000)])
		copy(p[12:], t.own.AsSlice())
		p[32] = 5 << 4
		return append(head, f[:14+len(p)]...)
	})
}

// floodNames asks for names, and reads no answer.
func floodNames(name func(t targets) string) func(context.Context, []string) (int, error) {
	return func(ctx context.Context, args []string) (int, error) {
		t, err := targetsOf(args)
		if err != nil {
			return 0, err
		}
		conn, err := net.Dial("udp4", netip.AddrPortFrom(t.gateway, 53).String())
		if err != nil {
			return 0, err
		}
		defer conn.Close()
		return repeat(ctx, func(int) error {
			question, err := new(dns.Msg).SetQuestion(name(t), dns.TypeA).Pack()
			if err != nil {
				return err
			}
			if _, err := conn.Write(question); err != nil && !busy(err) {
				return err
			}
			return nil
		})
	}
}

// holdStreams opens as many streams as it gets to a port of the domain, or of
// the gateway for port 53, says something on each, and reads nothing.
func holdStreams(port uint16, said func(targets) string) func(context.Context, []string) (int, error) {
	return func(ctx context.Context, args []string) (int, error) {
		t, err := targetsOf(args)
		if err != nil {
			return 0, err
		}
		address := t.gateway
		if port != 53 {
			if address, err = lookUp(t); err != nil {
				return 0, err
			}
		}
		var held []net.Conn
		defer func() {
			for _, conn := range held {
				conn.Close()
			}
		}()
		const most = 700
		opened := 0
		_, err = repeat(ctx, func(int) error {
			if len(held) >= most {
				held[0].Close()
				held = held[1:]
			}
			conn, err := (&net.Dialer{Timeout: time.Second}).DialContext(ctx, "tcp4", netip.AddrPortFrom(address, port).String())
			if err != nil {
				return nil // refused, for it has too many
			}
			opened++
			held = append(held, conn)
			conn.SetWriteDeadline(time.Now().Add(100 * time.Millisecond))
			if _, err := conn.Write([]byte(said(t))); err != nil && !errors.Is(err, os.ErrDeadlineExceeded) {
				return nil // cut
			}
			return nil
		})
		return opened, err
	}
}

func lookUp(t targets) (netip.Addr, error) {
	question := new(dns.Msg).SetQuestion(dns.Fqdn(t.domain), dns.TypeA)
	for range 10 {
		reply, _, err := (&dns.Client{Timeout: time.Second}).Exchange(question, netip.AddrPortFrom(t.gateway, 53).String())
		if err != nil {
			continue
		}
		for _, rr := range reply.Answer {
			if a, ok := rr.(*dns.A); ok {
				address, _ := netip.AddrFromSlice(a.A)
				return address.Unmap(), nil
			}
		}
	}
	return netip.Addr{}, fmt.Errorf("%s has no address", t.domain)
}

// unreadAnswers asks and asks on streams, and takes no answer.
func unreadAnswers(ctx context.Context, args []string) (int, error) {
	t, err := targetsOf(args)
	if err != nil {
		return 0, err
	}
	question, err := new(dns.Msg).SetQuestion(dns.Fqdn(t.domain), dns.TypeA).Pack()
	if err != nil {
		return 0, err
	}
	framed := append(binary.BigEndian.AppendUint16(nil, uint16(len(question))), question...)
	asked := 0
	_, err = repeat(ctx, func(int) error {
		conn, err := (&net.Dialer{Timeout: time.Second}).DialContext(ctx, "tcp4", netip.AddrPortFrom(t.gateway, 53).String())
		if err != nil {
			return nil
		}
		defer conn.Close()
		conn.SetWriteDeadline(time.Now().Add(time.Second))
		for ctx.Err() == nil {
			if _, err := conn.Write(framed); err != nil {
				return nil
			}
			asked++
		}
		return nil
	})
	return asked, err
}

// reach has a server echo something. It is what a bystander tries.
func reach(ctx context.Context, args []string) (int, error) {
	conn, err := new(net.Dialer).DialContext(ctx, "tcp4", args[0])
	if err != nil {
		return 0, err
	}
	defer conn.Close()
	if _, err := conn.Write([]byte("hello")); err != nil {
		return 0, err
	}
	return conn.Read(make([]byte, 5))
}

// ServePort is where serve-floods answers whoever comes, by TCP and UDP, with
// all it can send.
const ServePort = 7070

func serveFloods(ctx context.Context, _ []string) (int, error) {
	listener, err := net.Listen("tcp4", fmt.Sprintf(":%d", ServePort))
	if err != nil {
		return 0, err
	}
	defer listener.Close()
	packets, err := net.ListenPacket("udp4", fmt.Sprintf(":%d", ServePort))
	if err != nil {
		return 0, err
	}
	defer packets.Close()
	go func() {
		buffer := make([]byte, 1400)
		for {
			_, from, err := packets.ReadFrom(buffer)
			if err != nil {
				return
			}
			go repeat(ctx, func(int) error {
				_, err := packets.WriteTo(buffer, from)
				if busy(err) {
					return nil
				}
				return err
			})
		}
	}()
	go func() {
		for {
			conn, err := listener.Accept()
			if err != nil {
				return
			}
			go func() {
				defer conn.Close()
				endless(conn, make([]byte, 64<<10))
			}()
		}
	}()
	<-ctx.Done()
	return 1, nil
}
