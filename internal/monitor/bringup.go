package monitor

import (
	"context"
	"errors"
	"fmt"
	"hash/fnv"
	"io"
	"net"
	"os"
	"os/exec"
	"time"

	"github.com/vmsan/vmsan/api"
	"github.com/vmsan/vmsan/internal/cgroup"
	"github.com/vmsan/vmsan/internal/fault"
	"github.com/vmsan/vmsan/internal/gate"
	"github.com/vmsan/vmsan/internal/image"
	"github.com/vmsan/vmsan/internal/jail"
	"github.com/vmsan/vmsan/internal/kernel"
	"github.com/vmsan/vmsan/internal/link"
	"github.com/vmsan/vmsan/internal/network"
	"github.com/vmsan/vmsan/internal/store"
	"github.com/vmsan/vmsan/internal/vmm"
)

// bringUp starts the sandbox, step by step; what was done is undone if a
// later step fails, and the record says why.
func (m *monitor) bringUp(ctx context.Context) error {
	ctx, cancel := context.WithTimeoutCause(ctx, m.record.Spec.BootTimeout,
		api.Errorf(api.ErrTimeoutAgent, "the guest did not say ready within %s", m.record.Spec.BootTimeout).
			WithHint("vmsan create --boot-timeout with a longer time, if this host is slow or busy"))
	defer cancel()
	t := newTrace()
	m.emit(api.EventVMStart, func(e *api.Event) { e.From = m.from() })
	err := m.steps(ctx, t)
	if err == nil {
		err = m.save(func(r *store.Record) {
			r.Status, r.Reason, r.Saved = api.StatusRunning, "", nil
			r.StartedAt, r.StoppedAt = time.Now().UTC(), time.Time{}
			r.Trace = append(r.Trace, t.stages...)
		})
		err = fault.After("monitor: running", err)
	}
	if err == nil {
		m.limit.begin(m.record.Spec.Timeout, m.record.TimeoutLeft)
		m.emit(api.EventVMRunning, nil)
		return nil
	}
	return m.fail(ctx, err)
}

// steps is the bring-up, in the order that it happens.
func (m *monitor) steps(ctx context.Context, t *trace) error {
	m.nameHost()
	if err := fault.After("monitor: recorded", m.save(func(r *store.Record) { r.Status = api.StatusCreating })); err != nil {
		return err
	}
	t.done("record", "")
	if err := fault.After("monitor: sockets opened", m.openSockets()); err != nil {
		return err
	}
	groups, err := m.makeCgroups()
	if err = fault.After("monitor: cgroups made", err); err != nil {
		return err
	}
	t.done("host", "")
	if err := fault.After("monitor: network made", m.makeNetwork(ctx)); err != nil {
		return err
	}
	if m.network != nil {
		t.done("network", "")
	}
	beside := m.gateBeside(groups.gate)
	if err := fault.After("monitor: VMM started", m.startVMM(ctx, groups.vmm, beside.start)); err != nil {
		return errors.Join(err, beside.abandon())
	}
	t.done("vmm", m.how())
	if err := fault.After("monitor: gate started", m.takeGate(beside)); err != nil {
		return m.unlessEnded(err)
	}
	t.done("gate", "")
	if err := fault.After("monitor: guest ready", m.awaitGuest(ctx, t)); err != nil {
		return err
	}
	if m.record.Grown {
		// It works as it is; what it lacks is room.
		if err := m.growGuest(ctx); err != nil {
			m.log.Warn("grow disk", "error", err)
		}
		t.done("grow disk", "")
	}
	return m.save(func(r *store.Record) {
		r.Host.VMM, r.Host.Gate = store.ProcessOf(m.vm.PID()), store.ProcessOf(m.gate.PID())
	})
}

// how says how the machine comes up.
func (m *monitor) how() string {
	if m.record.Saved != nil {
		return m.record.Spec.Accelerator + ", restored"
	}
	return m.record.Spec.Accelerator
}

// The host's users of sandboxes: two for each slot, the VMM's and the
// gate's, out of a range that no distribution hands out. Each state directory
// has one of many parts of it, so that sandboxes of two directories are most
// likely different users too.
const (
	firstUID  = 1_600_000_000
	uidRanges = 1024
)

func (m *monitor) firstUser() uint32 { return Users(m.layout) + 2*uint32(m.record.Slot) }

// Users is the first of the host's users of the sandboxes of a state directory,
// which are twice store.Slots.
func Users(l store.Layout) (first uint32) {
	directory := fnv.New32a()
	io.WriteString(directory, l.Dir)
	return firstUID + directory.Sum32()%uidRanges*2*store.Slots
}

// Cgroups are the names of the control groups of the sandbox id: its VMM's and
// its gate's.
func Cgroups(id string) []string { return []string{"vmsan-" + id, "vmsan-" + id + "-gate"} }

// nameHost fills in the names of all that is about to be made.
func (m *monitor) nameHost() {
	h := store.Host{Monitor: store.ProcessOf(os.Getpid()), BootID: store.BootID()}
	if m.root {
		h.UID = m.firstUser()
		h.GateUID = h.UID + 1
		if !m.record.Spec.NoCgroup {
			h.Cgroups = Cgroups(m.id)
		}
	}
	m.record.Host = h
}

// openSockets makes the sandbox's run directory with its sockets, and opens
// its logs.
func (m *monitor) openSockets() error {
	run := m.layout.SandboxRun(m.id)
	// What a monitor that was killed left there is of no use.
	if err := os.RemoveAll(run); err != nil {
		return fmt.Errorf("clear run directory: %w", err)
	}
	if err := os.MkdirAll(m.layout.JailRoot(m.id), 0o700); err != nil {
		return fmt.Errorf("make run directory: %w", err)
	}
	m.undo.Add(func() error { return os.RemoveAll(run) })
	var err error
	if m.controlListener, err = net.Listen("unix", m.layout.ControlSocket(m.id)); err != nil {
		return fmt.Errorf("open control socket: %w", err)
	}
	if m.listener, err = listenFile(m.layout.GuestSocket(m.id)); err != nil {
		return fmt.Errorf("open guest socket: %w", err)
	}
	m.undo.Add(m.listener.Close)
	m.console, err = os.OpenFile(m.layout.Console(m.id), os.O_RDWR|os.O_CREATE|os.O_TRUNC, 0o600)
	if err != nil {
		return fmt.Errorf("open console log: %w", err)
	}
	m.undo.Add(m.console.Close)
	if m.vmmLog, err = boundedLog(m.layout.MonitorLog(m.id)); err != nil {
		return err
	}
	m.undo.Add(m.vmmLog.Close)
	return nil
}

// listenFile opens a socket as a file, which one gate after the other
// accepts from: clients wait in its backlog while there is none.
func listenFile(path string) (*os.File, error) {
	listener, err := net.ListenUnix("unix", &net.UnixAddr{Name: path, Net: "unix"})
	if err != nil {
		return nil, err
	}
	defer listener.Close()
	listener.SetUnlinkOnClose(false)
	return listener.File()
}

type groups struct{ vmm, gate *cgroup.Group }

// What a VMM and a gate need besides the guest's memory: QEMU's heap, its
// cache of translated code and what the disks have in the page cache, which
// is counted too but given back under pressure.
const (
	vmmMemory  = 192 << 20
	gateMemory = 96 << 20
	vmmPIDs    = 192
	gatePIDs   = 64
)

func (m *monitor) makeCgroups() (g groups, err error) {
	if len(m.record.Host.Cgroups) == 0 {
		return g, nil
	}
	names := Cgroups(m.id)
	for _, name := range m.record.Host.Cgroups {
		if err := cgroup.Remove(name); err != nil {
			return g, err
		}
		m.undo.Add(func() error { return cgroup.Remove(name) })
	}
	s := m.record.Spec
	g.vmm, err = cgroup.Create(names[0], cgroup.Limits{
		// Emulated devices run beside the guest's CPUs.
		CPUs:   float64(s.VCPUs) + 0.5,
		Memory: int64(s.MemoryMiB)<<20 + vmmMemory,
		PIDs:   int64(s.VCPUs) + vmmPIDs,
	})
	if err != nil {
		return g, noCgroup(err)
	}
	g.gate, err = cgroup.Create(names[1], cgroup.Limits{CPUs: 1, Memory: gateMemory, PIDs: gatePIDs})
	if err != nil {
		return g, noCgroup(err)
	}
	return g, nil
}

func noCgroup(err error) error {
	return api.Errorf(api.ErrUnsupported, "limit the sandbox: %w", err).
		WithHint("vmsan create --no-cgroup runs it without limits on CPU, memory and processes")
}

func (m *monitor) startVMM(ctx context.Context, group *cgroup.Group, linked func(vmm.Link)) error {
	s := m.record.Spec
	base, err := os.Open(image.Store{Layout: m.layout}.RootfsPath(s.Image))
	if err != nil {
		return fmt.Errorf("open image %s: %w", s.ImageName, err)
	}
	defer base.Close()
	overlay, err := os.OpenFile(m.layout.Overlay(m.id), os.O_RDWR, 0)
	if err != nil {
		return fmt.Errorf("open overlay: %w", err)
	}
	if m.record.Ephemeral {
		// A file is not freed before it is closed, which takes a while for
		// one as large, and nobody has to wait for our end.
		m.overlay = overlay
	} else {
		defer overlay.Close()
	}
	volumes, err := m.openVolumes()
	if err != nil {
		return err
	}
	filter, err := m.filter()
	if err != nil {
		return err
	}
	if filter != nil {
		defer filter.Close()
	}
	spec := vmm.Spec{
		ID: m.id, VCPUs: s.VCPUs, MemoryMiB: s.MemoryMiB, Accelerator: vmm.Accelerator(s.Accelerator),
		Kernel:    kernel.VmlinuxPath(m.layout, s.Kernel),
		Initramfs: kernel.InitramfsPath(m.layout, s.Kernel),
		Disks:     []vmm.Disk{{Name: imageDisk, File: base, ReadOnly: true}, {Name: overlayDisk, File: overlay}},
		Jail: vmm.Jail{
			User: user(m.record.Host.UID), Root: m.layout.JailRoot(m.id), Cgroup: group,
			NoSeccomp: s.NoSeccomp, Filter: filter, NoPIDNamespace: s.NoPIDs,
		},
		NIC:    m.nic,
		Linked: linked,
		Log:    m.vmmLog,
	}
	spec.Disks = append(spec.Disks, volumes...)
	for i := range spec.Disks {
		spec.Disks[i].Limit = vmm.DiskLimit{BytesPerSecond: s.DiskRate, OpsPerSecond: s.DiskIOPS}
	}
	// For the agent, as the kernel passes on what it does not know: signals to
	// threads that have run for 10 ms, by which Go's scheduler takes turns,
	// are code that an emulated guest has to translate. It takes turns at
	// calls of functions as well.
	spec.Cmdline = append(spec.Cmdline, "GODEBUG=asyncpreemptoff=1")
	if m.record.Ephemeral && !m.record.Internal {
		spec.Cmdline = append(spec.Cmdline, "vmsan.ephemeral")
	}
	if s.Init != "" {
		spec.Cmdline = append(spec.Cmdline, "vmsan.init="+s.Init)
	}
	if err := m.power(ctx, spec); err != nil {
		return startError(err)
	}
	m.background.Go(m.keepCatchingUp)
	if vm, ok := m.vm.(vmm.Stalling); ok {
		m.background.Go(func() { m.watchStalls(vm) })
	}
	m.undo.Add(func() error {
		ctx, cancel := context.WithTimeout(context.Background(), quitTime)
		defer cancel()
		return m.vm.Stop(ctx)
	})
	if len(volumes) > 0 {
		return m.save(func(r *store.Record) { r.Host.VMM = store.ProcessOf(m.vm.PID()) })
	}
	return nil
}

// filter has the sandbox's own system call filters as a file. Nil: it has none.
func (m *monitor) filter() (*os.File, error) {
	if len(m.record.Spec.Filter) == 0 {
		return nil, nil
	}
	if features := m.driver.Features(); !features.TakesFilter {
		return nil, api.Errorf(api.ErrUnsupported, "the driver %s takes no filter of system calls", features.Name)
	}
	path := m.layout.Filter(m.id)
	if err := os.WriteFile(path, m.record.Spec.Filter, 0o444); err != nil {
		return nil, fmt.Errorf("write filter of system calls: %w", err)
	}
	return os.Open(path)
}

// power starts the machine: it boots, or goes on from where one was saved.
func (m *monitor) power(ctx context.Context, spec vmm.Spec) (err error) {
	if m.record.Saved == nil {
		m.vm, err = m.driver.Start(ctx, spec)
		return err
	}
	saved, closeFiles, err := openSaved(m.record.Saved)
	if err != nil {
		return err
	}
	defer closeFiles()
	if m.vm, err = m.driver.Restore(ctx, spec, saved); err != nil {
		return err
	}
	if err := m.vm.Resume(ctx); err != nil {
		return errors.Join(err, m.vm.Stop(ctx))
	}
	return nil
}

// startError gives a VMM that does not start its code.
func startError(err error) error {
	if errors.Is(err, exec.ErrNotFound) {
		return api.Errorf(api.ErrSetupMissingBinary, "start VMM: %w", err).
			WithHint("vmsan setup, after installing what is missing: apt-get install qemu-system-x86, or vmsan setup --firecracker")
	}
	return api.Errorf(api.ErrVMBoot, "start VMM: %w", err)
}

// unlessEnded returns how the VMM ended if it does, which explains err.
func (m *monitor) unlessEnded(err error) error {
	select {
	case <-m.vm.Done():
		return endedEarly(m.vm)
	case <-time.After(lastMoment):
		return err
	}
}

// user is nil without root, when everything runs as the caller.
func user(uid uint32) *jail.User {
	if uid == 0 {
		return nil
	}
	return &jail.User{UID: uid, GID: uid}
}

// gateBeside is the first gate, which starts while the VMM does.
type gateBeside struct {
	monitor *monitor
	spec    gate.StartSpec
	begun   bool
	started chan error // when process and link are set
	process *gateProcess
	link    vmm.Link
}

func (m *monitor) gateBeside(group *cgroup.Group) *gateBeside {
	return &gateBeside{monitor: m, started: make(chan error, 1), spec: gate.StartSpec{
		ID: m.id, Listener: m.listener, Console: m.console, Log: m.vmmLog,
		First: m.first, User: user(m.record.Host.GateUID), Root: m.layout.JailRoot(m.id), Cgroup: group,
		Network: m.network.forGate(),
	}}
}

// start is called by the driver.
func (b *gateBeside) start(l vmm.Link) {
	b.begun = true
	var err error
	if b.link, err = l.Dup(); err != nil {
		b.started <- fmt.Errorf("keep guest's link: %w", err)
		return
	}
	b.spec.Link = b.link
	go func() {
		var err error
		b.process, err = b.monitor.newGate(b.spec)
		b.started <- err
	}()
}

// abandon ends a gate whose VMM did not start.
func (b *gateBeside) abandon() error {
	if !b.begun {
		return nil
	}
	if <-b.started != nil {
		b.link.Close()
		return nil // the VMM's error counts
	}
	b.process.conn.Close()
	err := b.process.Kill()
	<-b.process.Done()
	b.link.Close()
	return err
}

func (m *monitor) takeGate(b *gateBeside) error {
	if !b.begun {
		b.start(m.vm.Link())
	}
	err := <-b.started
	m.link = b.link
	m.undo.Add(func() error {
		b.link.Close()
		return nil
	})
	if m.first != nil {
		// It ends with the gate.
		m.first.Close()
	}
	if err != nil {
		return err
	}
	m.gate = b.process
	m.undo.Add(func() error { return m.gate.stop() })
	return nil
}

func (m *monitor) identity() link.Identity {
	r := m.record
	env := map[string]string{"VMSAN_ID": r.ID}
	for k, v := range r.Spec.Env {
		env[k] = v
	}
	hostname := r.Name
	if !hostnameLabel.MatchString(hostname) {
		hostname = r.ID
	}
	id := link.Identity{
		Hostname: hostname, MachineID: machineID(r.ID), Env: env, User: r.Spec.User, Workdir: r.Spec.Workdir,
		Volumes: guestVolumes(r.Spec.Volumes),
	}
	if len(r.Spec.Main) > 0 {
		id.Main = &link.Main{Args: r.Spec.Main, Restart: r.Spec.Restart, StopSignal: r.Spec.StopSignal}
	}
	if r.Saved != nil {
		id.Restored, id.BootID = true, newUUID()
	}
	if r.Internal {
		// Its copies' boot ids go where this one is, and their network is
		// there already.
		id.Pattern, id.BootID = true, newUUID()
	}
	if r.Spec.HasNIC() {
		id.Address, id.Gateway = network.Guest, network.Gateway.Addr()
	}
	return id
}

// gaveUp is the error of a bring-up whose context ended: for want of time, or
// by a signal.
func gaveUp(cause error) error {
	var known *api.Error
	if errors.As(cause, &known) {
		return cause
	}
	return api.Errorf(api.ErrVMBoot, "the sandbox's monitor was told to stop: %w", cause)
}

// enoughMemory is what any distribution's kernel boots with, in MiB. Some do
// with less.
const enoughMemory = 128

// lateness tells a guest that had no time to come up from one that hangs.
func (m *monitor) lateness() string {
	if m.vm == nil {
		return ""
	}
	r, err := m.bootWatch.measure(m.vm.PID())
	if err != nil {
		return ""
	}
	return fmt.Sprintf("; its VMM has run for %s, and waited for a processor for %s", r.Ran.Round(time.Millisecond), r.Waited.Round(time.Millisecond))
}

// fail undoes the bring-up and returns err with what the console and the VMM
// said last.
func (m *monitor) fail(ctx context.Context, err error) error {
	if cause := context.Cause(ctx); cause != nil {
		err = gaveUp(cause)
	}
	late := ""
	if api.HasCode(err, api.ErrTimeoutAgent) {
		late = m.lateness()
	}
	undoErr := m.undo.Run()
	err = errors.Join(err, undoErr)
	m.background.Wait()
	failure := api.AsError(err)
	failure.Message += late
	if failure.Code == api.ErrInternal && m.vm != nil {
		failure.Code = api.ErrVMBoot
	}
	kernelRan := m.vm != nil && m.record.Saved == nil && context.Cause(ctx) == nil
	if kernelRan && failure.Code == api.ErrVMBoot && failure.Hint == "" && m.record.Spec.MemoryMiB < enoughMemory {
		failure.Hint = fmt.Sprintf("vmsan create --memory %d, if the kernel had too little to boot", enoughMemory)
	}
	failure.VM = m.id
	failure.Console, failure.Log = tail(m.layout.Console(m.id)), tail(m.layout.MonitorLog(m.id))
	if saveErr := m.save(func(r *store.Record) {
		if m.vm == nil && r.Saved != nil && *r.Saved == m.layout.Reclaimed(m.id) {
			r.Status, r.Reason = api.StatusPaused, failure.Message
		} else {
			// A machine that has run is not the one that was saved any more.
			r.Status, r.Reason, r.Saved = api.StatusError, failure.Message, nil
			r.TimeoutLeft = 0
		}
		if undoErr == nil {
			r.Host = store.Host{}
		}
	}); saveErr != nil {
		m.log.Error("write record", "error", saveErr)
	}
	m.emit(api.EventVMError, because(failure.Message))
	return failure
}
