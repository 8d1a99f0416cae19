// Package vmm is the waist between vmsan and the programs that run virtual
// machines: a driver starts what a Spec describes and returns a VM. What is
// said to the guest is not a driver's business.
package vmm

import (
	"context"
	"encoding/json"
	"fmt"
	"net"
	"os"

	"golang.org/x/sys/unix"

	"github.com/vmsan/vmsan/internal/cgroup"
	"github.com/vmsan/vmsan/internal/jail"
	"github.com/vmsan/vmsan/internal/link"
)

// Accelerator is what executes the guest's instructions.
type Accelerator string

// The accelerators.
const (
	KVM Accelerator = "kvm" // the CPU
	TCG Accelerator = "tcg" // QEMU's emulator; no security boundary by its makers' word
)

// Spec describes a virtual machine.
type Spec struct {
	ID string // the sandbox's id

	VCPUs       int // 1..32
	MemoryMiB   int // 64 or more
	Accelerator Accelerator

	Kernel    string   // path of an ELF vmlinux
	Initramfs string   // path
	Cmdline   []string // words of the kernel's command line, besides the driver's own

	// Disks become vda, vdb, ... in this order, MaxDisks at most. The driver
	// does not close their files.
	Disks []Disk
	// NIC is the network device. Optional.
	NIC *NIC

	Jail Jail
	// Linked is called at most once, while the VMM is started, with what
	// VM.Link will be, so that whoever talks to the guest can get ready
	// meanwhile. It must not block, and duplicates what it keeps. Optional.
	Linked func(Link)
	// Log takes what the VMM prints. The driver does not close it. Optional.
	Log *os.File
}

// MaxDisks is how many disks a machine has room for.
const MaxDisks = 7

// Disk is a raw disk image.
type Disk struct {
	Name     string // of the device, letters only
	File     *os.File
	ReadOnly bool
	Limit    DiskLimit
}

// DiskLimit is what a guest may read and write of one disk, together. It is no
// part of what is saved: a machine that goes on has that of its own spec. 0 is
// no limit.
type DiskLimit struct {
	BytesPerSecond int64
	OpsPerSecond   int64 // reads and writes; whether flushes count is the driver's business
}

// NIC is a network device. The driver does not close its files.
type NIC struct {
	// Tap is one queue of a tap device made with IFF_NO_PI and IFF_VNET_HDR.
	// Nil for a driver that OpensTap.
	Tap *os.File
	// Name and Namespace, which is a network namespace, are where such a driver
	// finds a tap that nobody has open and Jail.User owns.
	Name      string
	Namespace *os.File
	MAC       net.HardwareAddr
}

// Jail says how the VMM is shut in.
type Jail struct {
	// User is whom the VMM runs as; nil means the caller, who is not root.
	User *jail.User
	// Root is an empty directory to build the VMM's root on. Required with
	// User.
	Root string
	// Cgroup the VMM is born in. Optional.
	Cgroup *cgroup.Group
	// NoSeccomp leaves the VMM's system call filter off.
	NoSeccomp bool
	// Filter has system call filters in the VMM's own format, in the place of
	// those that it comes with, for a driver that TakesFilter. Optional.
	Filter *os.File
	// NoPIDNamespace leaves the VMM among the host's processes.
	NoPIDNamespace bool
}

// Namespaces are the CLONE_NEW flags of those that a VMM gets.
func (j Jail) Namespaces() uintptr {
	const most = unix.CLONE_NEWNET | unix.CLONE_NEWIPC | unix.CLONE_NEWUTS
	if j.NoPIDNamespace {
		return most
	}
	return most | unix.CLONE_NEWPID
}

// Features are what a driver can do, as data.
type Features struct {
	Name         string
	Accelerators []Accelerator
	// MinMemoryMiB is the least memory a guest can come up with.
	MinMemoryMiB int
	// Snapshots says that machines can be saved and restored.
	Snapshots bool
	// Seals says that what Save writes has to be sealed before it can be
	// restored. Without it, it can be restored as it is.
	Seals bool
	// OpensTap says that the VMM opens its tap itself: it cannot be handed one.
	OpensTap bool
	// TakesFilter says that there can be a Jail.Filter.
	TakesFilter bool
}

// Driver starts virtual machines. Its methods may be called from any
// goroutine.
type Driver interface {
	Features() Features
	// Version asks the VMM's program for its version.
	Version(ctx context.Context) (string, error)
	// Start starts the machine; its guest begins to boot. If it fails,
	// nothing is left behind. ctx bounds the start, not the machine's life.
	Start(ctx context.Context, spec Spec) (VM, error)

	// CPU says what the CPUs of a guest on this host are, so far as a
	// machine that was saved depends on it.
	CPU(accelerator Accelerator) (CPU, error)
	// Seal makes what Restore takes out of what Save wrote, for a driver
	// that Seals. spec is the saved machine's; of its disks and network
	// device only their kinds and number count, their files are not used.
	// from is read from where its files stand, and to's files are empty. The
	// VMM that does it is shut in by spec.Jail like one that runs. It gets no
	// file but these. If ctx ends or it fails, nothing is left running, and
	// to is of no use. Nothing is synced.
	Seal(ctx context.Context, spec Spec, from, to Saved) error
	// Restore starts a machine like spec in the state that was saved. Its
	// CPUs stand still until Resume. spec's disks have to hold what they held
	// when the machine was saved; its kernel, initramfs and command line are
	// in the memory already and not used. Many machines can be restored from
	// the same files, at a time too: Memory is mapped copy-on-write and never
	// written, and both files may be open for reading only. They stay the
	// caller's, who may close them when Restore returns; but the memory must
	// not change while a machine runs. A state that makes no sense or is
	// another machine's is an error and never a hang. One that was changed
	// with care may do harm, but only to the VMM, which is shut in by
	// spec.Jail; and memory is not looked into. Whoever keeps the files
	// checks their digests.
	Restore(ctx context.Context, spec Spec, from Saved) (VM, error)
}

// Saved is a machine at rest, as two files of the caller's.
type Saved struct {
	// Memory is the guest's memory, byte for byte; what is zero is a hole. A
	// driver that Seals does not use it in what it saves.
	Memory *os.File
	// State is all the rest, in the VMM's own format.
	State *os.File
}

// CPU is what a saved machine needs to find again.
type CPU struct {
	// Model names the CPU and what it can do: it has to be the same.
	Model string
	// TSCkHz is the rate of the time stamp counter, measured, so that it has
	// to be about the same. 0 where guests are told the rate.
	TSCkHz uint64
}

// VM is a virtual machine that was started. Its methods may be called from
// any goroutine; it ends when its caller's process does.
type VM interface {
	// PID is the VMM's process id.
	PID() int
	// Link is the way to the guest. It stays the same for the VM's life.
	Link() Link
	// Done is closed when the VMM has ended and nothing of it is left.
	Done() <-chan struct{}
	// Exit says how the VMM ended. Only after Done.
	Exit() Exit
	// Pause stops the guest's CPUs; pausing twice is fine. A VMM still takes
	// orders after one that ctx ended, though nobody knows what became of that.
	Pause(ctx context.Context) error
	// Resume lets them go on; resuming what runs is fine. As for Pause.
	Resume(ctx context.Context) error
	// Save writes the machine to files that are empty. It has to be paused,
	// and stays so, as it was, whether Save succeeds, fails or is given up
	// when ctx ends; Resume lets it go on. Save can be called once for each
	// Pause of a machine that ran. Its disks are as the guest sees them while
	// it is paused: a snapshot needs a copy made before Resume. Nothing is
	// synced.
	Save(ctx context.Context, to Saved) error
	// DiskResized tells the guest that the file of the disk with that name has
	// grown to bytes, which it has done already.
	DiskResized(ctx context.Context, disk string, bytes int64) error
	// Stop ends the VMM without asking the guest, in order if it does so
	// before ctx ends, and else by killing it. It returns after Done and is
	// no error if the VM had ended.
	Stop(ctx context.Context) error
}

// Ballooned is a VM that can have less memory than it was made with.
type Ballooned interface {
	// SetMemory leaves the guest so much of the memory that it was made with,
	// in MiB. It returns before the guest has given the rest back, which it
	// may never do.
	SetMemory(ctx context.Context, mib int) error
}

// Rebooter is a VM whose boot can begin anew.
type Rebooter interface {
	// Reboot begins the boot anew, unless the guest's agent is up: booted is
	// true then, and nothing was done. stood says where the guest's first CPU
	// was, for a log.
	Reboot(ctx context.Context) (booted bool, stood string, err error)
}

// Stalling is a VM that stops itself while the host has no room for what its
// guest writes.
type Stalling interface {
	// Stalled gets word each time.
	Stalled() <-chan struct{}
	// GoOn has it try again, unless it was paused. Resume does so as well.
	GoOn(ctx context.Context) error
}

// Metered is a VM that counts what it does.
type Metered interface {
	// Metrics returns its counters, as JSON in the VMM's own form.
	Metrics(ctx context.Context) (json.RawMessage, error)
}

// Exit says how a VMM ended.
type Exit struct {
	// Reason is a clause like "the guest shut down", or says what became of
	// the process and what it had to say: "QEMU ended: exit status 1: ...".
	Reason string
	// Clean is true if the guest ended itself, or Stop was called.
	Clean bool
}

// Link is the host's side of a guest's devices. The files are owned by the
// VM and closed when it is Done, which may be at any moment; Dup makes a link
// that can be handed from one gate to the next.
type Link struct {
	Control, Data *os.File // sockets, for link.HostPort
	Console       *os.File // socket: the serial console
}

// Dup returns a link of the caller's own, with the same other ends. It fails
// if the VM has ended.
func (l Link) Dup() (own Link, err error) {
	for _, f := range []struct {
		file *os.File
		own  **os.File
	}{{l.Control, &own.Control}, {l.Data, &own.Data}, {l.Console, &own.Console}} {
		if *f.own, err = dup(f.file); err != nil {
			own.Close()
			return Link{}, err
		}
	}
	return own, nil
}

// dup duplicates f, which somebody else may be closing.
func dup(f *os.File) (*os.File, error) {
	raw, err := f.SyscallConn()
	if err != nil {
		return nil, err
	}
	var fd int
	var dupErr error
	if err := raw.Control(func(number uintptr) {
		fd, dupErr = unix.FcntlInt(number, unix.F_DUPFD_CLOEXEC, 0)
	}); err != nil {
		return nil, err
	}
	if dupErr != nil {
		return nil, fmt.Errorf("duplicate %s: %w", f.Name(), dupErr)
	}
	return os.NewFile(uintptr(fd), f.Name()), nil
}

// DialGuest connects to the guest's agent over l. Closing the returned host
// leaves l open.
func (l Link) DialGuest(ctx context.Context) (*link.Host, error) {
	own, err := l.Dup()
	if err != nil {
		return nil, fmt.Errorf("dial guest: %w", err)
	}
	defer own.Close()
	control, err := link.HostPort(own.Control)
	if err != nil {
		return nil, fmt.Errorf("dial guest: %w", err)
	}
	data, err := link.HostPort(own.Data)
	if err != nil {
		control.Close()
		return nil, fmt.Errorf("dial guest: %w", err)
	}
	return link.Connect(ctx, control, data, nil)
}

// Close closes the files.
func (l Link) Close() {
	for _, f := range []*os.File{l.Control, l.Data, l.Console} {
		if f != nil {
			f.Close()
		}
	}
}
