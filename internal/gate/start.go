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
}

// program is where the gate sees its own binary, the only file there is.
const program = "/vmsan"

// Start starts a gate and returns it with the monitor's end of its orders.
func Start(spec StartSpec) (*jail.Process, *os.File, error) {
	self, err := os.Executable()
	if err != nil {
		return nil, nil, fmt.Errorf("find own binary: %w", err)
	}
	ours, theirs, err := vmm.SocketPair("orders")
	if err != nil {
		return nil, nil, err
	}
	defer theirs.Close()
	jailed := jail.Spec{
		Path: self, Args: []string{Command, spec.ID},
		// The runtime would look at files that are not there, and try to
		// adapt to changes of a cgroup that it cannot see.
		Env:    []string{"GODEBUG=updatemaxprocs=0", "GOMAXPROCS=2", "GOTRACEBACK=single"},
		Stdout: spec.Log, Stderr: spec.Log,
		Files:  []*os.File{theirs, spec.Listener, spec.Link.Control, spec.Link.Data, spec.Link.Console, spec.Console},
		User:   spec.User,
		Cgroup: spec.Cgroup,
	}
	if spec.First != nil {
		jailed.Files = append(jailed.Files, spec.First)
	}
	if spec.User != nil {
		jailed.Path = program
		jailed.Root = &jail.Root{Mount: spec.Root, Binds: []jail.Bind{{Source: self, Target: program}}}
		jailed.Namespaces = unix.CLONE_NEWPID | unix.CLONE_NEWNET | unix.CLONE_NEWIPC | unix.CLONE_NEWUTS
	}
	process, err := jail.Start(jailed)
	if err != nil {
		ours.Close()
		return nil, nil, fmt.Errorf("start gate: %w", err)
	}
	return process, ours, nil
}
