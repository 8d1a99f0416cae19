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
	"sync/atomic"

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

// Features says what the driver can do.
func (Driver) Features() vmm.Features {
	return vmm.Features{
		Name:         "qemu",
		Accelerators: []vmm.Accelerator{vmm.KVM, vmm.TCG},
		MinMemoryMiB: 64,
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
	path, err := exec.LookPath(program())
	if err != nil {
		return nil, fmt.Errorf("find QEMU: %w", err)
	}
	vm, theirs, err := newMachine()
	if err != nil {
		return nil, err
	}
	vm.process, err = launch(path, spec, theirs)
	theirs.close()
	if err != nil {
		vm.link.Close()
		return nil, err
	}
	if err := vm.connect(ctx); err != nil {
		return nil, errors.Join(err, vm.abandon())
	}
	go vm.wait()
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

// parts lists what the machine is made of.
func parts(spec vmm.Spec, e ends) []device {
	list := []device{
		machine{spec.Accelerator, spec.VCPUs, spec.MemoryMiB},
		kernel{spec.Kernel, spec.Initramfs, cmdline(spec)},
		qmp{e.qmp},
		console{e.console},
		ports{e.control, e.data},
		entropy{},
	}
	for i, d := range spec.Disks {
		list = append(list, disk{d, firstDiskBus - i})
	}
	if !spec.Jail.NoSeccomp {
		list = append(list, seccomp{})
	}
	return list
}

// firstDiskBus is the virtio-mmio slot of the first disk: the machine's last,
// because guests find, and so name, what is in them from the last one down.
const firstDiskBus = 7

// cmdline is the kernel's command line. A panic resets the machine at once,
// and a reset ends QEMU. The kernel's own tests of its ciphers, at each boot,
// take a fifth of an emulated one.
func cmdline(spec vmm.Spec) []string {
	words := []string{"console=ttyS0", "quiet", "panic=-1", "reboot=t", "random.trust_cpu=on", "cryptomgr.notests"}
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

func launch(path string, spec vmm.Spec, e ends) (*jail.Process, error) {
	jailed := jail.Spec{Path: path, Stdout: spec.Log, Stderr: spec.Log, Cgroup: spec.Jail.Cgroup, User: spec.Jail.User}
	if spec.Jail.User != nil {
		jailed.Root = root(path, spec)
		jailed.Namespaces = unix.CLONE_NEWPID | unix.CLONE_NEWNET | unix.CLONE_NEWIPC | unix.CLONE_NEWUTS
		spec.Kernel, spec.Initramfs = jailKernel, jailInitramfs
	}
	var c command
	for _, part := range parts(spec, e) {
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

// root is all that QEMU sees of the host's files: itself with its libraries,
// the kernel, and, for KVM, that one device. It cannot be empty, because
// QEMU is linked dynamically.
func root(path string, spec vmm.Spec) *jail.Root {
	r := &jail.Root{
		Mount: spec.Jail.Root,
		Binds: []jail.Bind{
			{Source: spec.Kernel, Target: jailKernel},
			{Source: spec.Initramfs, Target: jailInitramfs},
			{Source: "/usr", Target: "/usr"},
		},
		Links: map[string]string{},
	}
	for _, dir := range []string{"/lib", "/lib64", "/bin"} {
		target, err := os.Readlink(dir)
		switch {
		case err == nil:
			r.Links[dir] = target
		case isDir(dir):
			r.Binds = append(r.Binds, jail.Bind{Source: dir, Target: dir})
		}
	}
	if dir := filepath.Dir(path); dir != "/usr/bin" && dir != "/bin" {
		r.Binds = append(r.Binds, jail.Bind{Source: path, Target: path})
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

	guestEnded atomic.Bool // QEMU said that the guest shut itself down
	stopped    atomic.Bool // Stop was called
	done       chan struct{}
}

func newMachine() (*virtualMachine, ends, error) {
	vm := &virtualMachine{done: make(chan struct{})}
	var theirs ends
	for _, s := range []struct {
		name         string
		ours, theirs **os.File
	}{
		{"qmp", &vm.qmp, &theirs.qmp},
		{"console", &vm.link.Console, &theirs.console},
		{"control", &vm.link.Control, &theirs.control},
		{"data", &vm.link.Data, &theirs.data},
	} {
		var err error
		if *s.ours, *s.theirs, err = vmm.SocketPair(s.name); err != nil {
			vm.link.Close()
			theirs.close()
			return nil, ends{}, err
		}
	}
	return vm, theirs, nil
}

// connect opens the monitor.
func (vm *virtualMachine) connect(ctx context.Context) error {
	conn, err := net.FileConn(vm.qmp)
	vm.qmp.Close()
	if err != nil {
		return err
	}
	vm.monitor = newMonitor(conn, vm.event)
	return vm.monitor.negotiate(ctx)
}

func (vm *virtualMachine) event(name string, data json.RawMessage) {
	if name != "SHUTDOWN" {
		return
	}
	var shutdown struct{ Guest bool }
	if json.Unmarshal(data, &shutdown) == nil && shutdown.Guest {
		vm.guestEnded.Store(true)
	}
}

// abandon ends a QEMU that did not come up and says what became of it.
func (vm *virtualMachine) abandon() error {
	if err := vm.process.Kill(); err != nil {
		return err
	}
	<-vm.process.Done()
	if vm.monitor != nil {
		vm.monitor.close()
	}
	vm.link.Close()
	return fmt.Errorf("QEMU ended: %s", vm.process.Exit())
}

func (vm *virtualMachine) wait() {
	<-vm.process.Done()
	vm.monitor.close()
	vm.link.Close()
	close(vm.done)
}

func (vm *virtualMachine) PID() int              { return vm.process.PID() }
func (vm *virtualMachine) Link() vmm.Link        { return vm.link }
func (vm *virtualMachine) Done() <-chan struct{} { return vm.done }

func (vm *virtualMachine) Exit() vmm.Exit {
	switch {
	case vm.guestEnded.Load():
		return vmm.Exit{Reason: "guest shut down", Clean: true}
	case vm.stopped.Load():
		return vmm.Exit{Reason: "stopped", Clean: true}
	}
	return vmm.Exit{Reason: "QEMU ended: " + vm.process.Exit()}
}

func (vm *virtualMachine) Pause(ctx context.Context) error {
	return vm.monitor.run(ctx, "stop", nil, nil)
}

func (vm *virtualMachine) Resume(ctx context.Context) error {
	return vm.monitor.run(ctx, "cont", nil, nil)
}

// Stop asks QEMU to quit, which flushes its disks, and kills it if it does
// not.
func (vm *virtualMachine) Stop(ctx context.Context) error {
	vm.stopped.Store(true)
	quitErr := vm.monitor.run(ctx, "quit", nil, nil)
	if quitErr == nil || errors.Is(quitErr, errMonitorClosed) {
		select {
		case <-vm.done:
			return nil
		case <-ctx.Done():
		}
	}
	if err := vm.process.Kill(); err != nil {
		return fmt.Errorf("kill QEMU: %w", err)
	}
	<-vm.done
	return nil
}
