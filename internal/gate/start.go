package gate

import (
	"fmt"
	"os"

	"golang.org/x/sys/unix"

	"github.com/vmsan/vmsan/internal/cgroup"
	"github.com/vmsan/vmsan/internal/jail"
	"github.com/vmsan/vmsan/internal/vmm"
)

// Command is the hidden command of the vmsan binary that is the gate.
const Command = "gate"

// StartSpec says how to start a gate. All files stay the caller's.
type StartSpec struct {
	ID       string // of the sandbox, shown in the process list
	Listener *os.File
	Link     vmm.Link
	Console  *os.File // the log to write
	Log      *os.File
	First    *os.File // a client that came before the guest; nil without

	// User, Root and Cgroup shut the gate in, like vmm.Jail's.
	User   *jail.User
	Root   string
	Cgroup *cgroup.Group

	// Network is what a gate serves the guest's network with. Nil without one.
	Network *Network
}

// Network has the files for a sandbox's network, opened with rights that the
// gate does not have.
type Network struct {
	Namespace *os.File // for the gate to be in
	// DNSPacket and DNSStream get what the guest asks of port 53, and Proxy
	// its connections to what domains allow.
	DNSPacket, DNSStream, Proxy *os.File
	Denials                     *os.File   // netlink: what the firewall refused
	Log                         *os.File   // to write events to
	Ports                       []*os.File // the published ones, listening
}

func (n *Network) files() []*os.File {
	return append([]*os.File{n.DNSPacket, n.DNSStream, n.Proxy, n.Denials, n.Log}, n.Ports...)
}

// program is where the gate sees its own binary, the only file there is.
const program = "/vmsan"

// Started is a gate that runs, with the monitor's ends of the ways to it.
type Started struct {
	*jail.Process
	Orders *os.File
	// Requests are what Attend answers. Nil without a network.
	Requests *os.File
}

// Start starts a gate.
func Start(spec StartSpec) (started Started, err error) {
	self, err := os.Executable()
	if err != nil {
		return started, fmt.Errorf("find own binary: %w", err)
	}
	defer func() {
		if err != nil {
			closeFile(started.Orders)
			closeFile(started.Requests)
		}
	}()
	var orders, requests *os.File
	if started.Orders, orders, err = vmm.SocketPair("orders"); err != nil {
		return started, err
	}
	defer orders.Close()
	jailed := jail.Spec{
		Path: self, Args: []string{Command, spec.ID},
		// The runtime would look at files that are not there, and try to
		// adapt to changes of a cgroup that it cannot see.
		Env:    []string{"GODEBUG=updatemaxprocs=0", "GOMAXPROCS=2", "GOTRACEBACK=single"},
		Stdout: spec.Log, Stderr: spec.Log,
		Files:  []*os.File{orders, spec.Listener, spec.Link.Control, spec.Link.Data, spec.Link.Console, spec.Console},
		User:   spec.User,
		Cgroup: spec.Cgroup,
	}
	if spec.User != nil {
		jailed.Path = program
		jailed.Root = &jail.Root{Mount: spec.Root, Binds: []jail.Bind{{Source: self, Target: program}}}
		jailed.Namespaces = unix.CLONE_NEWPID | unix.CLONE_NEWNET | unix.CLONE_NEWIPC | unix.CLONE_NEWUTS
	}
	if spec.Network != nil {
		if started.Requests, requests, err = vmm.PacketPair("requests"); err != nil {
			return started, err
		}
		defer requests.Close()
		jailed.Namespaces &^= unix.CLONE_NEWNET
		jailed.Network = spec.Network.Namespace
		jailed.Files = append(append(jailed.Files, requests), spec.Network.files()...)
		jailed.Args = append(jailed.Args, fmt.Sprint(len(spec.Network.Ports)))
	}
	if spec.First != nil {
		jailed.Files = append(jailed.Files, spec.First)
	}
	if started.Process, err = jail.Start(jailed); err != nil {
		return started, fmt.Errorf("start gate: %w", err)
	}
	return started, nil
}

func closeFile(f *os.File) {
	if f != nil {
		f.Close()
	}
}
