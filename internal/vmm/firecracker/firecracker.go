// Package firecracker drives Firecracker under its jailer.
package firecracker

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"path/filepath"
	"sync"
	"sync/atomic"
	"time"

	"golang.org/x/sys/unix"

	"github.com/vmsan/vmsan/internal/jail"
	"github.com/vmsan/vmsan/internal/link"
	"github.com/vmsan/vmsan/internal/vmm"
)

// Name is the driver's.
const Name = "firecracker"

// Driver starts Firecracker. Its zero value starts the one in the search path.
type Driver struct {
	// Dir is the directory with the programs. Optional.
	Dir string
}

// Program is Firecracker's program.
func (d Driver) Program() string { return d.path(program) }

// Features says what the driver can do.
func (Driver) Features() vmm.Features {
	return vmm.Features{
		Name:         Name,
		Accelerators: []vmm.Accelerator{vmm.KVM},
		MinMemoryMiB: 64,
		Snapshots:    true,
		OpensTap:     true,
		TakesFilter:  true,
	}
}

// CPU says what the CPUs of a guest on this host are. A guest that is restored
// is told the rate of its time stamp counter.
func (Driver) CPU(vmm.Accelerator) (vmm.CPU, error) {
	model, err := vmm.HostCPU()
	if err != nil {
		return vmm.CPU{}, fmt.Errorf("identify CPU: %w", err)
	}
	return vmm.CPU{Model: model}, nil
}

// Seal is not needed: the driver does not Seal.
func (Driver) Seal(context.Context, vmm.Spec, vmm.Saved, vmm.Saved) error {
	return fmt.Errorf("seal saved machine: %w", errors.ErrUnsupported)
}

// Start starts Firecracker and returns when the guest's CPUs run.
func (d Driver) Start(ctx context.Context, spec vmm.Spec) (vmm.VM, error) {
	o, err := d.newOrder(spec)
	if err != nil {
		return nil, err
	}
	for _, f := range []struct{ path, inJail string }{{spec.Kernel, jailKernel}, {spec.Initramfs, jailInitramfs}} {
		file, err := os.Open(f.path)
		if err != nil {
			return nil, err
		}
		defer file.Close()
		if err := readable(file); err != nil {
			return nil, err
		}
		o.add(file, f.inJail, false)
	}
	vm, err := start(ctx, o, append(configuration(spec), instanceStart()))
	if err != nil {
		return nil, err
	}
	vm.run(true)
	return vm, nil
}

// virtualMachine is a Firecracker that runs. Its methods are vmm.VM's.
type virtualMachine struct {
	process *jail.Process
	api     *client
	link    vmm.Link
	output  *vmm.Output
	user    jail.User
	memory  int // MiB

	// The jail as its last process sees it.
	root, mounts *os.File

	connectors sync.WaitGroup
	theirs     []*net.UnixConn // of the link's ports
	log        pipe            // Firecracker's own
	metrics    *metrics        // what it counts
	reader     sync.WaitGroup  // of both

	stopped atomic.Bool   // Stop was called
	gone    chan struct{} // closed when the process has ended
	done    chan struct{}

	turn    sync.Mutex // held while the machine's state changes
	largest int64      // that Firecracker may make a file, in bytes
	running atomic.Bool
	unsure  bool // the last change of running failed; guarded by turn

	mu          sync.Mutex          // guards connections
	connections map[uint32]*os.File // the last one to each port of the guest's
}

// start returns when the requests are carried out. The machine is run or
// abandoned by the caller.
func start(ctx context.Context, o *order, requests []request) (*virtualMachine, error) {
	if ctx.Err() != nil {
		return nil, context.Cause(ctx)
	}
	vm, theirs, err := newMachine(o.spec)
	if err != nil {
		return nil, err
	}
	vm.largest = o.largest + slack
	o.add(vm.log.read, jailLog, true)
	o.add(vm.metrics.pipe.read, jailMetrics, true)
	vm.process, err = o.start(theirs, vm.output.File())
	theirs.Close()
	vm.log.forget()
	vm.metrics.pipe.forget()
	if err != nil {
		vm.close()
		return nil, err
	}
	// Not before: a process starts its children one after the other
	// (syscall.ForkLock), and here are two.
	if o.spec.Linked != nil {
		o.spec.Linked(vm.link)
	}
	err = vm.reach(ctx)
	if err == nil {
		err = vm.api.each(ctx, requests)
	}
	if err != nil {
		return nil, vm.abandon(err)
	}
	return vm, nil
}

// newMachine returns the machine and Firecracker's end of its console.
func newMachine(spec vmm.Spec) (vm *virtualMachine, console *os.File, err error) {
	vm = &virtualMachine{gone: make(chan struct{}), done: make(chan struct{}), user: *spec.Jail.User, memory: spec.MemoryMiB, metrics: newMetrics(), connections: map[uint32]*os.File{}}
	vm.api = newClient(func(ctx context.Context) (net.Conn, error) { return vm.connect(ctx, jailAPI) })
	if vm.output, err = vmm.NewOutput(spec.Log); err != nil {
		return nil, nil, err
	}
	if vm.link.Console, console, err = vmm.SocketPair("console"); err == nil {
		err = vm.makePorts()
	}
	if err == nil {
		err = vm.openLog(spec.Jail.Root)
	}
	if err == nil {
		err = vm.openMetrics(spec.Jail.Root)
	}
	if err != nil {
		vm.close()
		if console != nil {
			console.Close()
		}
		return nil, nil, err
	}
	return vm, console, nil
}

// makePorts makes the ports of the link, whose connections the guest's vsock
// has.
func (vm *virtualMachine) makePorts() error {
	for _, p := range []struct {
		name string
		ours **os.File
	}{{link.ControlPort, &vm.link.Control}, {link.DataPort, &vm.link.Data}} {
		ours, theirs, err := vmm.PacketPair(p.name)
		if err != nil {
			return err
		}
		*p.ours = ours
		conn, err := net.FileConn(theirs)
		theirs.Close()
		if err != nil {
			return err
		}
		packets := conn.(*net.UnixConn)
		vm.theirs = append(vm.theirs, packets)
		port := link.VsockPorts[p.name]
		vm.connectors.Go(func() {
			link.Connector(packets, func() (*os.File, error) { return vm.dialGuest(port) })
		})
	}
	return nil
}

// openLog reads Firecracker's log from now on.
func (vm *virtualMachine) openLog(dir string) (err error) {
	if vm.log, err = newPipe(filepath.Join(dir, "log"), vm.user); err != nil {
		return err
	}
	vm.reader.Go(func() {
		defer vm.log.read.Close()
		io.Copy(vm.output.File(), vm.log.read)
	})
	return nil
}

// run has the machine waited for.
func (vm *virtualMachine) run(running bool) {
	vm.running.Store(running)
	go func() {
		<-vm.process.Done()
		vm.close()
		close(vm.done)
	}()
}

// close closes what vm has once there is no Firecracker, and reads out what
// that said.
func (vm *virtualMachine) close() {
	close(vm.gone)
	vm.log.end()
	vm.metrics.pipe.end()
	vm.api.close()
	for _, conn := range vm.theirs {
		conn.Close()
	}
	vm.reader.Wait()
	vm.output.Close()
	vm.link.Close()
	vm.connectors.Wait()
	vm.reset()
	// Not while a machine is saved.
	vm.turn.Lock()
	defer vm.turn.Unlock()
	for _, f := range []*os.File{vm.root, vm.mounts} {
		if f != nil {
			f.Close()
		}
	}
}

// lastMoment is how long a Firecracker that does not answer may take to end.
const lastMoment = 500 * time.Millisecond

// abandon ends a Firecracker that did not come up, and says what became of it.
// If it had ended by itself, that is the whole reason; else err is.
func (vm *virtualMachine) abandon(err error) error {
	ended := false
	if !isFault(err) {
		// It may be on its way out; what it says of itself is worth the wait.
		select {
		case <-vm.process.Done():
			ended = true
		case <-time.After(lastMoment):
		}
	}
	killErr := vm.process.Kill()
	<-vm.process.Done()
	vm.close()
	if ended {
		return errors.New(vm.exit())
	}
	return errors.Join(err, killErr)
}

func (vm *virtualMachine) PID() int              { return vm.process.PID() }
func (vm *virtualMachine) Link() vmm.Link        { return vm.link }
func (vm *virtualMachine) Done() <-chan struct{} { return vm.done }

// cleanExit is how Firecracker ends when its guest has reset the machine.
const cleanExit = "exit status 0"

func (vm *virtualMachine) Exit() vmm.Exit {
	switch {
	case vm.stopped.Load():
		return vmm.Exit{Reason: "stopped", Clean: true}
	case vm.process.Exit() == cleanExit:
		return vmm.Exit{Reason: "the guest shut down or its kernel panicked", Clean: true}
	}
	return vmm.Exit{Reason: vm.exit()}
}

// exit is how the process ended, and why by its own word.
func (vm *virtualMachine) exit() string {
	reason := "Firecracker ended: " + vm.process.Exit()
	if complaint := vm.output.Complaint(program); complaint != "" {
		reason += ": " + complaint
	}
	return reason
}

func (vm *virtualMachine) Pause(ctx context.Context) error { return vm.change(ctx, false) }

func (vm *virtualMachine) Resume(ctx context.Context) error { return vm.change(ctx, true) }

// change pauses or resumes the machine, unless that is as it is.
func (vm *virtualMachine) change(ctx context.Context, running bool) error {
	vm.turn.Lock()
	defer vm.turn.Unlock()
	if err := vm.alive(); err != nil || vm.running.Load() == running && !vm.unsure {
		return err
	}
	wanted := "Paused"
	if running {
		wanted = "Resumed"
	}
	err := vm.api.each(ctx, []request{state(wanted)})
	if vm.unsure = err != nil; vm.unsure {
		return err
	}
	vm.running.Store(running)
	return nil
}

var errEnded = errors.New("the machine has ended")

func (vm *virtualMachine) alive() error {
	select {
	case <-vm.process.Done():
		return errEnded
	default:
		return nil
	}
}

// Stop kills Firecracker. It has no other end in order: what the guest has
// flushed is the host kernel's already.
func (vm *virtualMachine) Stop(context.Context) error {
	select {
	case <-vm.done:
		return nil
	default:
	}
	vm.stopped.Store(true)
	if err := vm.process.Kill(); err != nil {
		return fmt.Errorf("kill Firecracker: %w", err)
	}
	<-vm.done
	return nil
}

// The pauses between looks for what has no way to tell that it is there.
const (
	shortestLook = 200 * time.Microsecond
	longestLook  = time.Millisecond
)

// reach returns when Firecracker listens, in its jail.
func (vm *virtualMachine) reach(ctx context.Context) error {
	bounded, cancel := context.WithTimeoutCause(ctx, apiTime, fmt.Errorf("no sign of Firecracker within %s", apiTime))
	defer cancel()
	for wait := shortestLook; ; wait = min(2*wait, longestLook) {
		err := vm.look(bounded)
		if err == nil {
			return nil
		}
		select {
		case <-time.After(wait):
		case <-vm.process.Done():
			return err
		case <-bounded.Done():
			return errors.Join(context.Cause(bounded), err)
		}
	}
}

// look opens the jail, if there is one by now with somebody who listens in it.
func (vm *virtualMachine) look(ctx context.Context) (err error) {
	proc := fmt.Sprintf("/proc/%d/", vm.process.PID())
	if vm.root == nil {
		if vm.root, err = openJail(proc + "root"); err != nil {
			return err
		}
	}
	conn, err := vm.connect(ctx, jailAPI)
	if err != nil {
		return err
	}
	conn.Close()
	vm.mounts, err = os.Open(proc + "ns/mnt")
	return err
}

// openJail opens a process's root, once that is no longer this one's.
func openJail(path string) (*os.File, error) {
	fd, err := unix.Open(path, unix.O_PATH|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	if err != nil {
		return nil, fmt.Errorf("open jail: %w", err)
	}
	root := os.NewFile(uintptr(fd), path)
	var there, here unix.Stat_t
	err = errors.Join(unix.Fstat(fd, &there), unix.Stat("/", &here))
	if err == nil && there.Dev == here.Dev && there.Ino == here.Ino {
		err = errors.New("the jailer has not made its jail yet")
	}
	if err != nil {
		root.Close()
		return nil, err
	}
	return root, nil
}

// open opens a file in the jail, where links lead nowhere: its owner may have
// been taken over.
func (vm *virtualMachine) open(path string, flags uint64) (*os.File, error) {
	fd, err := unix.Openat2(int(vm.root.Fd()), path[1:], &unix.OpenHow{
		Flags: flags | unix.O_CLOEXEC, Resolve: unix.RESOLVE_BENEATH | unix.RESOLVE_NO_SYMLINKS | unix.RESOLVE_NO_XDEV,
	})
	if err != nil {
		return nil, fmt.Errorf("open %s in the jail: %w", path, err)
	}
	return os.NewFile(uintptr(fd), path), nil
}

// connect connects to a socket in the jail. No path of the host's leads to
// it, so it cannot be too long for one either.
func (vm *virtualMachine) connect(ctx context.Context, path string) (net.Conn, error) {
	socket, err := vm.open(path, unix.O_PATH)
	if err != nil {
		return nil, err
	}
	defer socket.Close()
	var dialer net.Dialer
	conn, err := dialer.DialContext(ctx, "unix", fmt.Sprintf("/proc/self/fd/%d", socket.Fd()))
	if err != nil {
		return nil, fmt.Errorf("connect to %s in the jail: %w", path, err)
	}
	return conn, nil
}
