package contract

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"time"

	"golang.org/x/sys/unix"

	"github.com/vmsan/vmsan/internal/agent"
	"github.com/vmsan/vmsan/internal/link"
)

// guest is the machine's inside: an agent in a process of its own, and the
// vsock that leads there.
type guest struct {
	process *os.Process // nil until it first runs
	sockets map[uint32]*net.UnixListener

	mu          sync.Mutex // guards all below
	changed     *sync.Cond
	still       bool
	connections map[net.Conn]bool
}

const guestDirectory = "/guest"

// newGuest makes a guest that stands still, and its vsock if it has one.
func newGuest(vsock map[string]any) (g *guest, err error) {
	g = &guest{still: true, sockets: map[uint32]*net.UnixListener{}, connections: map[net.Conn]bool{}}
	g.changed = sync.NewCond(&g.mu)
	if err := os.MkdirAll(filepath.Join(guestDirectory, "etc"), 0o755); err != nil {
		return nil, err
	}
	for _, port := range link.VsockPorts {
		if g.sockets[port], err = net.ListenUnix("unix", &net.UnixAddr{Name: socketPath(port), Net: "unix"}); err != nil {
			return nil, err
		}
	}
	if vsock == nil {
		return g, nil
	}
	listener, err := net.Listen("unix", vsock["uds_path"].(string))
	if err != nil {
		return nil, faultf("Vsock config error: Cannot create backend for vsock device: Error binding to the host-side Unix socket: %w", err)
	}
	go g.serve(listener)
	return g, nil
}

func socketPath(port uint32) string { return filepath.Join(guestDirectory, fmt.Sprint(port)) }

// set returns what it was before.
func (g *guest) set(still bool) (before bool) {
	g.mu.Lock()
	defer g.mu.Unlock()
	before, g.still = g.still, still
	g.changed.Broadcast()
	return before
}

// pause stops the guest, unless it is: each stop is told once.
func (g *guest) pause() error {
	if g.set(true) || g.process == nil {
		return nil
	}
	if err := g.process.Signal(unix.SIGSTOP); err != nil {
		return err
	}
	// Its threads stop one after the other.
	for range 1000 {
		var info unix.Siginfo
		err := unix.Waitid(unix.P_PID, g.process.Pid, &info, unix.WSTOPPED|unix.WNOHANG, nil)
		if err != nil || info.Signo != 0 {
			return err
		}
		time.Sleep(time.Millisecond)
	}
	return errors.New("the guest does not stand still")
}

func (g *guest) resume() error {
	defer g.set(false)
	if g.process != nil {
		return g.process.Signal(unix.SIGCONT)
	}
	return g.start()
}

// start starts the agent. What it ends with, the machine does.
func (g *guest) start() error {
	command := exec.Command("/firecracker")
	command.Env = []string{guestVar + "=1"}
	command.Stdin, command.Stdout, command.Stderr = os.Stdin, os.Stdout, os.Stderr
	for _, name := range []string{link.ControlPort, link.DataPort} {
		file, err := g.sockets[link.VsockPorts[name]].File()
		if err != nil {
			return err
		}
		defer file.Close()
		command.ExtraFiles = append(command.ExtraFiles, file)
	}
	if err := command.Start(); err != nil {
		return err
	}
	g.process = command.Process
	go func() {
		if command.Wait() == nil {
			os.Exit(0) // it has reset the machine
		}
		fmt.Fprintf(os.Stderr, "the contract's guest: %v\n", command.ProcessState)
		os.Exit(148)
	}()
	return nil
}

// serve is the vsock's end at the host.
func (g *guest) serve(listener net.Listener) {
	for {
		conn, err := listener.Accept()
		if err != nil {
			return
		}
		go func() {
			defer conn.Close()
			if err := g.join(conn); err != nil {
				fmt.Fprintf(os.Stderr, "warning: vsock: %v\n", err)
			}
		}()
	}
}

// requestTime is how long a guest has to answer a connection.
const requestTime = 2 * time.Second

// join carries one connection from the host to the guest.
func (g *guest) join(host net.Conn) error {
	port, err := readConnect(host)
	if err != nil {
		return err
	}
	late := time.AfterFunc(requestTime, func() { host.Close() })
	g.awaitRunning()
	if !late.Stop() {
		return nil
	}
	inside, err := net.Dial("unix", socketPath(port))
	if err != nil {
		return nil // nobody listens there
	}
	defer inside.Close()
	if _, err := io.WriteString(host, "OK 1073741824\n"); err != nil {
		return nil
	}
	g.track(host, inside)
	defer g.forget(host, inside)
	var both sync.WaitGroup
	for _, way := range []struct{ to, from net.Conn }{{inside, host}, {host, inside}} {
		both.Go(func() {
			io.Copy(way.to, way.from)
			way.to.Close()
			way.from.Close()
		})
	}
	both.Wait()
	return nil
}

func readConnect(host io.Reader) (port uint32, err error) {
	var line []byte
	for one := make([]byte, 1); len(line) < 32; line = append(line, one[0]) {
		if _, err := host.Read(one); err != nil {
			return 0, err
		}
		if one[0] != '\n' {
			continue
		}
		text, ok := strings.CutPrefix(string(line), "CONNECT ")
		n, err := strconv.ParseUint(text, 10, 32)
		if !ok || err != nil {
			return 0, fmt.Errorf("not a connect command: %q", line)
		}
		return uint32(n), nil
	}
	return 0, errors.New("a connect command without an end")
}

func (g *guest) awaitRunning() {
	g.mu.Lock()
	defer g.mu.Unlock()
	for g.still {
		g.changed.Wait()
	}
}

func (g *guest) track(conns ...net.Conn) {
	g.mu.Lock()
	defer g.mu.Unlock()
	for _, c := range conns {
		g.connections[c] = true
	}
}

func (g *guest) forget(conns ...net.Conn) {
	g.mu.Lock()
	defer g.mu.Unlock()
	for _, c := range conns {
		delete(g.connections, c)
	}
}

// reset ends every connection.
func (g *guest) reset() {
	g.mu.Lock()
	defer g.mu.Unlock()
	for c := range g.connections {
		c.Close()
	}
}

// bootID is the only thing that the guest looks for in a /proc that the jail
// does not have.
const bootID = "/proc/sys/kernel/random/boot_id"

// runGuest is the agent, without the rights over a kernel that a guest's has.
func runGuest([]string) error {
	etc := filepath.Join(guestDirectory, "etc")
	passwd := fmt.Sprintf("root:x:%d:%d::/:/bin/sh\n", os.Getuid(), os.Getgid())
	err := errors.Join(
		os.MkdirAll(memoryFiles, 0o755), os.MkdirAll(filepath.Dir(bootID), 0o755),
		os.WriteFile(filepath.Join(etc, "passwd"), []byte(passwd), 0o644),
		os.WriteFile(bootID, []byte("00000000-0000-4000-8000-000000000000\n"), 0o644))
	if err != nil {
		return err
	}
	control, data := os.NewFile(3, "control"), os.NewFile(4, "data")
	for _, f := range []*os.File{control, data} {
		if err := unix.SetNonblock(int(f.Fd()), false); err != nil {
			return err
		}
	}
	return agent.Serve(control, data, agent.Config{
		SystemRoot: guestDirectory, KeepDirectory: filepath.Join(guestDirectory, "keep"), Kernel: borrowed{},
		PowerOff: func(context.Context, bool) error {
			time.AfterFunc(20*time.Millisecond, func() { os.Exit(0) })
			return nil
		},
	})
}

// borrowed is the kernel of the host, which the guest must not change.
type borrowed struct{}

func (borrowed) Release() (string, error)                  { return "contract", nil }
func (borrowed) SetTime(time.Time) error                   { return nil }
func (borrowed) SetHostname(string) error                  { return nil }
func (borrowed) AddEntropy([]byte) error                   { return nil }
func (borrowed) SetNetwork(netip.Prefix, netip.Addr) error { return nil }
func (borrowed) ResetConnections() error                   { return nil }
func (borrowed) Freeze(string) error                       { return nil }
func (borrowed) Thaw(string) error                         { return nil }
func (borrowed) MountVolume(string, string, bool) error    { return errors.ErrUnsupported }

// Grow returns the size of the disk that is in the jail, once it has grown.
func (borrowed) Grow(_, _ string, least uint64) (uint64, error) {
	info, err := os.Stat("/disks/overlay")
	if err != nil {
		return 0, err
	}
	if uint64(info.Size()) < least {
		return 0, fmt.Errorf("the disk has %d bytes, not %d", info.Size(), least)
	}
	return uint64(info.Size()), nil
}

// Cover writes what it would mount.
func (borrowed) Cover(source, target string) error {
	text, err := os.ReadFile(source)
	if err != nil {
		return err
	}
	return os.WriteFile(target, text, 0o644)
}
