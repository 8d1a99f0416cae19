// Package qemu drives QEMU's microvm machine, with KVM or with QEMU's own
// emulation.
package qemu

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"runtime"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"golang.org/x/sys/unix"

	"github.com/vmsan/vmsan/internal/jail"
	"github.com/vmsan/vmsan/internal/vmm"
)

// Driver starts QEMU. Its zero value is ready.
type Driver struct{}

// program is QEMU's name for the host's architecture.
func program() string {
	if runtime.GOARCH == "arm64" {
		return "qemu-system-aarch64"
	}
	return "qemu-system-x86_64"
}

// Program is the name of QEMU's program.
func (Driver) Program() string { return program() }

// Features says what the driver can do.
func (Driver) Features() vmm.Features {
	return vmm.Features{
		Name:         "qemu",
		Accelerators: []vmm.Accelerator{vmm.KVM, vmm.TCG},
		MinMemoryMiB: 64,
		Snapshots:    true,
		Seals:        true,
	}
}

var versionLine = regexp.MustCompile(`version ([0-9][0-9A-Za-z.+~-]*)`)

// Version runs QEMU to ask for its version, like "7.2.22".
func (Driver) Version(ctx context.Context) (string, error) {
	out, err := exec.CommandContext(ctx, program(), "--version").Output()
	if err != nil {
		return "", fmt.Errorf("ask %s for its version: %w", program(), err)
	}
	found := versionLine.FindSubmatch(out)
	if found == nil {
		return "", fmt.Errorf("ask %s for its version: it says %.80q", program(), out)
	}
	return string(found[1]), nil
}

// Start starts QEMU and returns when it takes commands.
func (Driver) Start(ctx context.Context, spec vmm.Spec) (vmm.VM, error) {
	vm, err := start(ctx, build{spec: spec, parts: parts})
	if err != nil {
		return nil, err
	}
	go vm.wait()
	return vm, nil
}

// build is what there is to know of a QEMU before it is started.
type build struct {
	spec  vmm.Spec
	parts func(vmm.Spec, ends) []device
	// memory is what QEMU finds at memoryPath. Nil if it does not look.
	memory *os.File
}

// start returns when QEMU takes commands. The machine is abandoned or waited
// for by the caller.
func start(ctx context.Context, b build) (*virtualMachine, error) {
	if len(b.spec.Disks) > vmm.MaxDisks {
		return nil, fmt.Errorf("a machine has room for %d disks, and not for %d", vmm.MaxDisks, len(b.spec.Disks))
	}
	path, err := exec.LookPath(program())
	if err != nil {
		return nil, fmt.Errorf("find QEMU: %w", err)
	}
	vm, theirs, err := newMachine(b.spec.Log)
	if err != nil {
		return nil, err
	}
	if b.spec.Linked != nil {
		b.spec.Linked(vm.link)
	}
	vm.process, err = launch(path, b, theirs, vm.output.File())
	theirs.close()
	if err != nil {
		vm.close()
		return nil, err
	}
	if err := vm.connect(ctx); err != nil {
		return nil, vm.abandon(err)
	}
	return vm, nil
}

// ends are QEMU's ends of its sockets.
type ends struct{ qmp, console, control, data *os.File }

func (e ends) close() {
	for _, f := range []*os.File{e.qmp, e.console, e.control, e.data} {
		if f != nil {
			f.Close()
		}
	}
}

// parts lists what a machine that boots is made of.
func parts(spec vmm.Spec, e ends) []device {
	return slices.Concat(
		board(spec, e),
		[]device{ram{spec.MemoryMiB}, kernel{spec.Kernel, spec.Initramfs, cmdline(spec)}},
		disks(spec), network(spec), filter(spec))
}

// board is what every machine has.
func board(spec vmm.Spec, e ends) []device {
	return []device{
		machine{spec.Accelerator, spec.VCPUs, spec.MemoryMiB},
		qmp{e.qmp},
		console{e.console},
		ports{e.control, e.data},
		entropy{},
	}
}

func disks(spec vmm.Spec) (list []device) {
	for i, d := range spec.Disks {
		list = append(list, disk{d, diskBus(i)})
	}
	return list
}

func network(spec vmm.Spec) []device {
	if spec.NIC == nil {
		return nil
	}
	return []device{nic{*spec.NIC}}
}

func filter(spec vmm.Spec) []device {
	if spec.Jail.NoSeccomp {
		return nil
	}
	return []device{seccomp{}}
}

// firstDiskBus is the virtio-mmio slot of the first disk, and others are below
// it, because guests find, and so name, what is in them from the last one
// down. The network device has a fixed one too, so that a snapshot fits.
const (
	firstDiskBus = 7
	nicBus       = 2
)

// diskBus is the slot of a disk by its number.
func diskBus(i int) int {
	if bus := firstDiskBus - i; bus > nicBus {
		return bus
	}
	return firstDiskBus - i - 1
}

// cmdline is the kernel's command line. A panic resets the machine at once,
// and a reset ends QEMU. The kernel's own tests of its ciphers, at each boot,
// take a fifth of an emulated one. Its I/O scheduler for disks of one queue,
// which is never started, would put in order what the host orders again.
func cmdline(spec vmm.Spec) []string {
	words := []string{"console=ttyS0", "quiet", "panic=-1", "reboot=t", "random.trust_cpu=on", "cryptomgr.notests",
		"initcall_blacklist=deadline_init"}
	if spec.Accelerator == vmm.TCG {
		words = append(words, tscParameter()...)
		// The kernel checks its clock against the timer interrupt, which on
		// a busy host comes so late that it takes the clock for broken.
		words = append(words, "tsc=reliable")
		// Speculation cannot leak where the guest's instructions are
		// translated one by one; the kernel's defences only cost time.
		words = append(words, "mitigations=off")
	}
	return append(words, spec.Cmdline...)
}

func launch(path string, b build, e ends, output *os.File) (*jail.Process, error) {
	jailed := jail.Spec{Path: path, Stdout: output, Stderr: output, Cgroup: b.spec.Jail.Cgroup, User: b.spec.Jail.User}
	if b.spec.Jail.User != nil {
		jailed.Root = root(path, b.spec)
		jailed.Namespaces = b.spec.Jail.Namespaces()
		b.spec.Kernel, b.spec.Initramfs = jailKernel, jailInitramfs
	}
	if b.memory != nil {
		jailed.Opens = map[string]*os.File{memoryPath: b.memory}
	}
	var c command
	for _, part := range b.parts(b.spec, e) {
		part.addTo(&c)
	}
	jailed.Args, jailed.Files = c.args, c.files
	return jail.Start(jailed)
}

// Where the jail shows the kernel and its initramfs.
const (
	jailKernel    = "/boot/vmlinux"
	jailInitramfs = "/boot/initramfs"
)

// root is all that QEMU sees of the host's files: itself with its libraries
// and firmware, the kernel if it is to boot one, and, for KVM, that one
// device. It cannot be empty, because QEMU is linked dynamically.
func root(path string, spec vmm.Spec) *jail.Root {
	r := &jail.Root{
		Mount: spec.Jail.Root,
		Binds: []jail.Bind{{Source: path, Target: path}},
		Links: map[string]string{},
	}
	if spec.Kernel != "" {
		r.Binds = append(r.Binds, jail.Bind{Source: spec.Kernel, Target: jailKernel}, jail.Bind{Source: spec.Initramfs, Target: jailInitramfs})
	}
	for _, prefix := range slices.Compact([]string{"/usr", filepath.Dir(filepath.Dir(path))}) {
		for _, dir := range []string{"lib", "lib32", "lib64", "libexec", "share/qemu", "share/seabios"} {
			if at := filepath.Join(prefix, dir); prefix != "/" && isDir(at) {
				r.Binds = append(r.Binds, jail.Bind{Source: at, Target: at})
			}
		}
	}
	for _, dir := range []string{"/lib", "/lib64"} {
		target, err := os.Readlink(dir)
		switch {
		case err == nil:
			r.Links[dir] = target
		case isDir(dir):
			r.Binds = append(r.Binds, jail.Bind{Source: dir, Target: dir})
		}
	}
	if spec.Accelerator == vmm.KVM {
		r.Devices = append(r.Devices, jail.Device{Path: "/dev/kvm", Major: 10, Minor: 232})
	}
	return r
}

func isDir(path string) bool {
	info, err := os.Stat(path)
	return err == nil && info.IsDir()
}

// virtualMachine is a QEMU that runs. Its methods are vmm.VM's.
type virtualMachine struct {
	process *jail.Process
	qmp     *os.File
	monitor *monitor
	link    vmm.Link
	output  *vmm.Output

	guestEnd atomic.Pointer[string] // how the guest ended itself
	stopped  atomic.Bool            // Stop was called
	deaf     atomic.Bool            // it took no commands any more
	done     chan struct{}

	migration chan string // the states that a migration goes through
	stalled   chan struct{}

	pausing sync.Mutex // held while the machine is paused or resumed; guards the next
	paused  bool
}

func newMachine(log *os.File) (vm *virtualMachine, theirs ends, err error) {
	vm = &virtualMachine{done: make(chan struct{}), migration: make(chan string, maxStates), stalled: make(chan struct{}, 1)}
	if vm.output, err = vmm.NewOutput(log); err != nil {
		return nil, ends{}, err
	}
	for _, s := range []struct {
		name         string
		ours, theirs **os.File
	}{
		{"qmp", &vm.qmp, &theirs.qmp},
		{"console", &vm.link.Console, &theirs.console},
		{"control", &vm.link.Control, &theirs.control},
		{"data", &vm.link.Data, &theirs.data},
	} {
		if *s.ours, *s.theirs, err = vmm.SocketPair(s.name); err != nil {
			vm.close()
			theirs.close()
			return nil, ends{}, err
		}
	}
	if err := enlarge(theirs.data); err != nil {
		vm.close()
		theirs.close()
		return nil, ends{}, err
	}
	return vm, theirs, nil
}

// dataBuffer is how much of what a guest sends the kernel holds, with its own
// overhead, which for QEMU's writes of a page is as much again. When it is
// full, QEMU's main loop has to be asked to go on, and takes turns with the
// guest's CPU for that.
const dataBuffer = 2 << 20

func enlarge(socket *os.File) error {
	fd := int(socket.Fd())
	err := unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_SNDBUFFORCE, dataBuffer)
	if errors.Is(err, unix.EPERM) {
		// Without the right to, there is less, and it is slower.
		err = unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_SNDBUF, dataBuffer)
	}
	if err != nil {
		return fmt.Errorf("enlarge the buffer of the data port: %w", err)
	}
	return nil
}

// close closes vm's own ends of what it shares with QEMU, and reads out what
// QEMU printed.
func (vm *virtualMachine) close() {
	if vm.qmp != nil {
		vm.qmp.Close()
	}
	if vm.monitor != nil {
		vm.monitor.drain()
	}
	vm.output.Close()
	vm.link.Close()
}

// connect opens the monitor.
func (vm *virtualMachine) connect(ctx context.Context) error {
	conn, err := net.FileConn(vm.qmp)
	if err != nil {
		return err
	}
	vm.monitor = newMonitor(conn, vm.event)
	return vm.monitor.negotiate(ctx)
}

// guestEnds are the ways in which a guest ends itself, by QEMU's name for
// them (ShutdownCause in its qapi/run-state.json).
var guestEnds = map[string]string{
	"guest-shutdown": "the guest shut down",
	"guest-reset":    "the guest shut down or its kernel panicked",
	"guest-panic":    "the guest's kernel panicked",
}

func (vm *virtualMachine) event(name string, data json.RawMessage) {
	switch name {
	case "SHUTDOWN":
		vm.shutdownEvent(data)
	case "MIGRATION":
		vm.migrationEvent(data)
	case "BLOCK_IO_ERROR":
		vm.blockErrorEvent(data)
	}
}

// blockErrorEvent tells of a disk of which something could not be written, for
// which QEMU stops the machine if the host has no room (its werror=enospc, the
// default). Other errors are the guest's.
func (vm *virtualMachine) blockErrorEvent(data json.RawMessage) {
	var failed struct{ Action string }
	if json.Unmarshal(data, &failed) != nil || failed.Action != "stop" {
		return
	}
	select {
	case vm.stalled <- struct{}{}:
	default: // there is word already
	}
}

// Stalled implements vmm.Stalling.
func (vm *virtualMachine) Stalled() <-chan struct{} { return vm.stalled }

func (vm *virtualMachine) shutdownEvent(data json.RawMessage) {
	var shutdown struct{ Reason string }
	if json.Unmarshal(data, &shutdown) != nil {
		return
	}
	if end, ok := guestEnds[shutdown.Reason]; ok {
		vm.guestEnd.Store(&end)
	}
}

// abandon ends a QEMU that did not come up, and says what became of it. If it
// had ended by itself, that is the whole reason; else err is.
func (vm *virtualMachine) abandon(err error) error {
	if errors.Is(err, errMonitorClosed) {
		// It is on its way out; what it says of itself is worth the wait.
		select {
		case <-vm.process.Done():
		case <-time.After(drainTime):
		}
	}
	killErr := vm.process.Kill()
	<-vm.process.Done()
	vm.close()
	if errors.Is(err, errMonitorClosed) {
		return errors.New(vm.exit())
	}
	return errors.Join(err, killErr)
}

// wait returns when QEMU has ended. One that takes no commands any more is ended:
// nobody could pause it, or let it go on.
func (vm *virtualMachine) wait() {
	select {
	case <-vm.process.Done():
	case <-vm.monitor.done:
		select {
		case <-vm.process.Done():
		case <-time.After(commandTime): // it may have disks to flush
			vm.deaf.Store(true)
			vm.process.Kill()
		}
		<-vm.process.Done()
	}
	vm.close()
	close(vm.done)
}

func (vm *virtualMachine) PID() int              { return vm.process.PID() }
func (vm *virtualMachine) Link() vmm.Link        { return vm.link }
func (vm *virtualMachine) Done() <-chan struct{} { return vm.done }

func (vm *virtualMachine) Exit() vmm.Exit {
	if end := vm.guestEnd.Load(); end != nil {
		return vmm.Exit{Reason: *end, Clean: true}
	}
	switch {
	case vm.stopped.Load():
		return vmm.Exit{Reason: "stopped", Clean: true}
	case vm.deaf.Load():
		return vmm.Exit{Reason: "QEMU did not take commands any more, and was killed"}
	}
	return vmm.Exit{Reason: vm.exit()}
}

// exit is how the process ended, and why by its own word.
func (vm *virtualMachine) exit() string {
	reason := "QEMU ended: " + vm.process.Exit()
	if complaint := vm.output.Complaint(program()); complaint != "" {
		reason += ": " + complaint
	}
	return reason
}

// pauseTime bounds a stop of the machine's CPUs, behind which QEMU writes out
// what its disks still owe the host's.
const pauseTime = 5 * time.Minute

func (vm *virtualMachine) Pause(ctx context.Context) error {
	vm.pausing.Lock()
	defer vm.pausing.Unlock()
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), pauseTime)
	defer cancel()
	err := vm.monitor.run(ctx, "stop", nil, nil)
	vm.paused = vm.paused || err == nil
	return err
}

func (vm *virtualMachine) Resume(ctx context.Context) error {
	vm.pausing.Lock()
	defer vm.pausing.Unlock()
	ctx, cancel := commandContext(ctx)
	defer cancel()
	err := vm.monitor.run(ctx, "cont", nil, nil)
	vm.paused = vm.paused && err != nil
	return err
}

// GoOn implements vmm.Stalling.
func (vm *virtualMachine) GoOn(ctx context.Context) error {
	vm.pausing.Lock()
	defer vm.pausing.Unlock()
	if vm.paused {
		return nil
	}
	ctx, cancel := commandContext(ctx)
	defer cancel()
	return vm.monitor.run(ctx, "cont", nil, nil)
}

// DiskResized cuts or grows nothing: the file has that size, and QEMU only looks
// again.
func (vm *virtualMachine) DiskResized(ctx context.Context, disk string, bytes int64) error {
	return vm.monitor.run(ctx, "block_resize", map[string]any{"node-name": disk, "size": bytes}, nil)
}

// quits asks QEMU to end and tells whether it did before ctx.
func (vm *virtualMachine) quits(ctx context.Context) bool {
	err := vm.monitor.run(ctx, "quit", nil, nil)
	if err != nil && !errors.Is(err, errMonitorClosed) {
		return false
	}
	select {
	case <-vm.done:
		return true
	case <-ctx.Done():
		return false
	}
}

// Stop asks QEMU to quit, which flushes its disks, and kills it if it does
// not, or if ctx has ended already.
func (vm *virtualMachine) Stop(ctx context.Context) error {
	select {
	case <-vm.done:
		return nil
	default:
	}
	vm.stopped.Store(true)
	if ctx.Err() == nil && vm.quits(ctx) {
		return nil
	}
	if err := vm.process.Kill(); err != nil {
		return fmt.Errorf("kill QEMU: %w", err)
	}
	<-vm.done
	return nil
}
