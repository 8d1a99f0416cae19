// Package vmsantest has sandboxes in memory, for the tests of programs that use
// package vmsan: they have names, statuses, files and snapshots, and what a
// command does in them is up to the test. Nothing runs, no host is needed, and
// nothing is isolated from anything.
//
// It says no to what vmsan itself says no to where that follows from what is
// asked for: names that are taken, sandboxes that are not there, not stopped or
// not running. What depends on a host, an image or a guest it does not know.
package vmsantest

import (
	"cmp"
	"context"
	"fmt"
	"maps"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/vmsan/vmsan"
	"github.com/vmsan/vmsan/api"
)

// Exec is what commands do. It is called without any lock held, and may use the
// service.
type Exec func(ctx context.Context, vm api.VM, command vmsan.Command) (vmsan.Exit, error)

// New returns a service without sandboxes. Without exec no command is found.
// Hooks run as in vmsan.
func New(exec Exec, hooks ...vmsan.Hook) *Service {
	if exec == nil {
		exec = func(_ context.Context, _ api.VM, command vmsan.Command) (vmsan.Exit, error) {
			return vmsan.Exit{}, api.Errorf(api.ErrExecNotFound, "run %s in the guest: no such program", command.Args[0])
		}
	}
	return &Service{exec: exec, hooks: hooks, vms: map[string]*machine{}, snapshots: map[string]*saved{}}
}

// Service is a vmsan.Service in memory.
type Service struct {
	exec  Exec
	hooks []vmsan.Hook

	mu        sync.Mutex // guards what follows
	count     int        // of ids ever given away
	vms       map[string]*machine
	snapshots map[string]*saved
	journal   journal
}

var _ vmsan.Service = (*Service)(nil)

// machine is one sandbox.
type machine struct {
	vm        api.VM
	files     *tree
	ephemeral bool
	ended     chan struct{} // closed when it does not run any more
}

type saved struct {
	snapshot api.Snapshot
	source   api.VM
	files    *tree
}

// find returns the sandbox that ref names. The lock is held.
func (s *Service) find(ref string) (*machine, error) {
	var found []*machine
	for id, m := range s.vms {
		if id == ref || m.vm.Name == ref && ref != "" {
			return m, nil
		}
		if ref != "" && strings.HasPrefix(id, ref) {
			found = append(found, m)
		}
	}
	switch len(found) {
	case 0:
		return nil, api.Errorf(api.ErrVMNotFound, "VM not found: %s", ref).WithVM(ref).WithHint("vmsan list")
	case 1:
		return found[0], nil
	}
	return nil, api.Errorf(api.ErrVMAmbiguous, "several ids begin with %s", ref).WithVM(ref)
}

// List implements vmsan.Service.
func (s *Service) List(_ context.Context, filter vmsan.Filter) ([]api.VM, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	vms := []api.VM{}
	for _, m := range s.vms {
		if matches(m.vm, filter) {
			vms = append(vms, shown(m.vm))
		}
	}
	slices.SortFunc(vms, func(a, b api.VM) int { return cmp.Compare(a.ID, b.ID) })
	return vms, nil
}

func matches(vm api.VM, f vmsan.Filter) bool {
	for key, value := range f.Labels {
		if got, ok := vm.Labels[key]; !ok || got != value {
			return false
		}
	}
	return (f.Name == "" || vm.Name == f.Name) && (f.Project == "" || vm.Project == f.Project) &&
		(f.Status == "" || vm.Status == f.Status)
}

// shown is a copy of vm that shares nothing with it.
func shown(vm api.VM) api.VM {
	vm.Labels, vm.Env = maps.Clone(vm.Labels), maps.Clone(vm.Env)
	if vm.NetworkPolicy != nil {
		p := *vm.NetworkPolicy
		vm.NetworkPolicy = &p
	}
	return vm
}

// Get implements vmsan.Service.
func (s *Service) Get(_ context.Context, ref string) (api.VM, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	m, err := s.find(ref)
	if err != nil {
		return api.VM{}, err
	}
	return shown(m.vm), nil
}

// Create implements vmsan.Service.
func (s *Service) Create(ctx context.Context, o vmsan.CreateOptions) (api.VM, error) {
	s.mu.Lock()
	m, err := s.plan(o)
	s.mu.Unlock()
	if err != nil {
		return api.VM{}, err
	}
	return s.bring(ctx, m)
}

// plan makes what Create asks for. The lock is held.
func (s *Service) plan(o vmsan.CreateOptions) (*machine, error) {
	vm := api.VM{
		Name: o.Name, Project: o.Project, Labels: maps.Clone(o.Labels), Env: maps.Clone(o.Env), User: o.User, Workdir: o.Workdir,
		Image: cmp.Or(o.Image, "test"), Driver: "memory", VCPUs: cmp.Or(o.VCPUs, 1), MemoryMiB: cmp.Or(o.MemoryMiB, 256),
		DiskBytes: cmp.Or(o.DiskBytes, 10<<30), DiskBytesPerSecond: o.DiskRate, DiskIOPS: o.DiskIOPS,
		Network: cmp.Or(o.Network, "nat"), Ports: o.Publish, Volumes: o.Volumes,
	}
	if vm.Network != "none" {
		p := o.NetworkPolicy
		p.Policy = policyName(p)
		vm.NetworkPolicy = &p
	}
	m := &machine{vm: vm, files: newTree(), ephemeral: o.Ephemeral}
	if o.Snapshot != "" {
		from, err := s.findSnapshot(o.Snapshot)
		if err != nil {
			return nil, err
		}
		m.files = from.files.clone()
		m.vm.Image, m.vm.VCPUs, m.vm.MemoryMiB, m.vm.DiskBytes = from.source.Image, from.source.VCPUs, from.source.MemoryMiB, from.source.DiskBytes
	}
	return m, nil
}

func policyName(p api.NetworkPolicy) string {
	lists := len(p.AllowedDomains) + len(p.AllowedCIDRs) + len(p.DeniedCIDRs)
	switch {
	case p.Policy == "deny-all":
		return p.Policy
	case lists > 0:
		return "custom"
	}
	return cmp.Or(p.Policy, "allow-all")
}

// bring gives m its id and has it run.
func (s *Service) bring(ctx context.Context, m *machine) (api.VM, error) {
	s.mu.Lock()
	for _, other := range s.vms {
		if m.vm.Name != "" && other.vm.Name == m.vm.Name {
			s.mu.Unlock()
			return api.VM{}, api.Errorf(api.ErrVMNameTaken, "the name %s is taken by %s", m.vm.Name, other.vm.ID).WithFlag("--name")
		}
	}
	s.count++
	m.vm.ID, m.vm.Status, m.vm.CreatedAt = fmt.Sprintf("vm%010d", s.count), api.StatusCreating, time.Now().UTC()
	s.vms[m.vm.ID] = m
	s.mu.Unlock()
	if err := s.before(ctx, api.HookBeforeCreate, m, false); err != nil {
		s.mu.Lock()
		delete(s.vms, m.vm.ID)
		s.mu.Unlock()
		return api.VM{}, err
	}
	return s.run(ctx, api.HookAfterCreate, m), nil
}

// run has a sandbox that does not run do so.
func (s *Service) run(ctx context.Context, hook api.Hook, m *machine) api.VM {
	s.mu.Lock()
	now := time.Now().UTC()
	m.vm.Status, m.vm.Reason, m.vm.StartedAt, m.vm.StoppedAt = api.StatusRunning, "", &now, nil
	m.ended = make(chan struct{})
	vm := shown(m.vm)
	s.mu.Unlock()
	s.after(ctx, api.HookEvent{Hook: hook, VM: vm.ID, State: &vm})
	return vm
}

// before runs hooks before something. They may use the service.
func (s *Service) before(ctx context.Context, hook api.Hook, m *machine, force bool) error {
	s.mu.Lock()
	vm := shown(m.vm)
	s.mu.Unlock()
	for _, h := range s.hooks {
		if err := h.Run(ctx, api.HookEvent{Hook: hook, VM: vm.ID, State: &vm, Force: force}); err != nil {
			return api.Errorf(api.ErrHook, "hook %s of %s: %w", h.Name(), hook, err).WithVM(vm.ID)
		}
	}
	return nil
}

// after runs hooks of what has happened, which change nothing.
func (s *Service) after(ctx context.Context, event api.HookEvent) {
	s.journal.note(event)
	for _, h := range s.hooks {
		_ = h.Run(context.WithoutCancel(ctx), event)
	}
}

// change looks ref up, and has how change it under the lock.
func (s *Service) change(ref string, how func(m *machine) error) (api.VM, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	m, err := s.find(ref)
	if err == nil {
		err = how(m)
	}
	if err != nil {
		return api.VM{}, err
	}
	return shown(m.vm), nil
}

func notRunning(m *machine) error {
	return api.Errorf(api.ErrVMNotRunning, "VM %s is not running (current status: %s)", m.vm.ID, m.vm.Status).WithVM(m.vm.ID)
}

func runs(vm api.VM) bool { return vm.Status == api.StatusRunning || vm.Status == api.StatusPaused }

// Start implements vmsan.Service.
func (s *Service) Start(ctx context.Context, ref string) (api.VM, error) {
	var m *machine
	_, err := s.change(ref, func(found *machine) error {
		if m = found; m.vm.Status != api.StatusStopped {
			return api.Errorf(api.ErrVMNotStopped, "VM %s is not stopped (current status: %s)", m.vm.ID, m.vm.Status).WithVM(m.vm.ID)
		}
		return nil
	})
	if err == nil {
		err = s.before(ctx, api.HookBeforeStart, m, false)
	}
	if err != nil {
		return api.VM{}, err
	}
	return s.run(ctx, api.HookAfterStart, m), nil
}

// Stop implements vmsan.Service.
func (s *Service) Stop(ctx context.Context, ref string, _ time.Duration) (api.VM, error) {
	var m *machine
	vm, err := s.change(ref, func(found *machine) error {
		m = found
		return nil
	})
	if err != nil || !runs(vm) {
		return vm, err
	}
	if err := s.before(ctx, api.HookBeforeStop, m, false); err != nil {
		return api.VM{}, err
	}
	s.mu.Lock()
	previous := m.vm.Status
	if runs(m.vm) {
		now := time.Now().UTC()
		m.vm.Status, m.vm.Reason, m.vm.StoppedAt = api.StatusStopped, "stopped", &now
		close(m.ended)
		if m.ephemeral {
			delete(s.vms, m.vm.ID)
		}
	}
	vm = shown(m.vm)
	s.mu.Unlock()
	s.after(ctx, api.HookEvent{Hook: api.HookAfterStop, VM: vm.ID, State: &vm, PreviousStatus: previous})
	return vm, nil
}

// Pause implements vmsan.Service.
func (s *Service) Pause(_ context.Context, ref string) (api.VM, error) {
	return s.stand(ref, api.StatusPaused, api.EventVMPause)
}

func (s *Service) stand(ref string, status api.Status, event api.EventType) (api.VM, error) {
	before := status
	vm, err := s.change(ref, func(m *machine) error {
		if !runs(m.vm) {
			return notRunning(m)
		}
		before, m.vm.Status = m.vm.Status, status
		return nil
	})
	if err == nil && before != status {
		s.journal.add(api.Event{Type: event, VM: vm.ID, Name: vm.Name})
	}
	return vm, err
}

// Resume implements vmsan.Service.
func (s *Service) Resume(_ context.Context, ref string) (api.VM, error) {
	return s.stand(ref, api.StatusRunning, api.EventVMResume)
}

// Extend implements vmsan.Service. No limit ever passes.
func (s *Service) Extend(_ context.Context, ref string, d time.Duration) (api.VM, error) {
	vm, err := s.change(ref, func(m *machine) error {
		if !runs(m.vm) {
			return notRunning(m)
		}
		m.vm.TimeoutAt = nil
		if d > 0 {
			at := time.Now().UTC().Add(d)
			m.vm.TimeoutAt = &at
		}
		return nil
	})
	if err == nil {
		s.journal.add(api.Event{Type: api.EventVMExtend, VM: vm.ID, Name: vm.Name})
	}
	return vm, err
}

// Wait implements vmsan.Service.
func (s *Service) Wait(ctx context.Context, ref string) (api.VM, error) {
	var m *machine
	vm, err := s.change(ref, func(found *machine) error {
		m = found
		return nil
	})
	if err != nil || !runs(vm) {
		return vm, err
	}
	s.mu.Lock()
	ended := m.ended
	s.mu.Unlock()
	select {
	case <-ended:
		return s.Get(ctx, vm.ID)
	case <-ctx.Done():
		return api.VM{}, ctx.Err()
	}
}

// Remove implements vmsan.Service.
func (s *Service) Remove(ctx context.Context, ref string, force bool) error {
	var m *machine
	vm, err := s.change(ref, func(found *machine) error {
		if m = found; runs(m.vm) && !force {
			return api.Errorf(api.ErrVMNotStopped, "VM %s is not stopped (current status: %s)", m.vm.ID, m.vm.Status).WithVM(m.vm.ID)
		}
		return nil
	})
	if err == nil {
		err = s.before(ctx, api.HookBeforeRemove, m, force)
	}
	if err == nil && runs(vm) {
		vm, err = s.Stop(ctx, vm.ID, 0)
	}
	if err != nil {
		return err
	}
	s.mu.Lock()
	delete(s.vms, vm.ID)
	s.mu.Unlock()
	s.after(ctx, api.HookEvent{Hook: api.HookAfterRemove, VM: vm.ID, State: &vm})
	return nil
}

// findSnapshot returns the snapshot that ref names. The lock is held.
func (s *Service) findSnapshot(ref string) (*saved, error) {
	for id, found := range s.snapshots {
		if id == ref || found.snapshot.Name == ref && ref != "" {
			return found, nil
		}
	}
	return nil, api.Errorf(api.ErrSnapshotNotFound, "snapshot not found: %s", ref)
}

// Snapshot implements vmsan.Service.
func (s *Service) Snapshot(ctx context.Context, ref, name string) (api.Snapshot, error) {
	var made api.Snapshot
	vm, err := s.change(ref, func(m *machine) error {
		if !runs(m.vm) {
			return notRunning(m)
		}
		if _, err := s.findSnapshot(name); err == nil {
			return api.Errorf(api.ErrSnapshotNameTaken, "the name %s is taken", name)
		}
		s.count++
		made = api.Snapshot{
			ID: fmt.Sprintf("snap%010d", s.count), Name: name, CreatedAt: time.Now().UTC(), Source: m.vm.ID, SourceName: m.vm.Name,
			Image: m.vm.Image, VCPUs: m.vm.VCPUs, MemoryMiB: m.vm.MemoryMiB, DiskBytes: m.vm.DiskBytes, Driver: m.vm.Driver,
		}
		s.snapshots[made.ID] = &saved{snapshot: made, source: shown(m.vm), files: m.files.clone()}
		return nil
	})
	if err != nil {
		return api.Snapshot{}, err
	}
	s.after(ctx, api.HookEvent{Hook: api.HookSnapshotAfterCreate, VM: vm.ID, State: &vm, Snapshot: &made})
	return made, nil
}

// Snapshots implements vmsan.Service.
func (s *Service) Snapshots(context.Context) ([]api.Snapshot, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	all := []api.Snapshot{}
	for _, id := range slices.Sorted(maps.Keys(s.snapshots)) {
		all = append(all, s.snapshots[id].snapshot)
	}
	return all, nil
}

// DeleteSnapshot implements vmsan.Service.
func (s *Service) DeleteSnapshot(_ context.Context, ref string) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	found, err := s.findSnapshot(ref)
	if err == nil {
		delete(s.snapshots, found.snapshot.ID)
	}
	return err
}

// Fork implements vmsan.Service.
func (s *Service) Fork(ctx context.Context, ref string, count int, name string) ([]api.VM, error) {
	if count < 1 {
		return nil, api.Errorf(api.ErrValidationInteger, "Invalid --count: \"%d\".", count).WithFlag("--count")
	}
	forks := make([]*machine, count)
	_, err := s.change(ref, func(m *machine) error {
		if !runs(m.vm) {
			return notRunning(m)
		}
		for i := range forks {
			vm := shown(m.vm)
			vm.Name, vm.Ports = "", nil
			if name != "" {
				vm.Name = fmt.Sprintf("%s-%d", name, i+1)
			}
			forks[i] = &machine{vm: vm, files: m.files.clone()}
		}
		return nil
	})
	vms := []api.VM{}
	for _, m := range forks {
		if err != nil {
			break
		}
		var vm api.VM
		if vm, err = s.bring(ctx, m); err == nil {
			vms = append(vms, vm)
		}
	}
	if err == nil {
		return vms, nil
	}
	for _, vm := range vms {
		if removeErr := s.Remove(ctx, vm.ID, true); removeErr != nil {
			err = fmt.Errorf("%w; %w", err, removeErr)
		}
	}
	return nil, err
}

// Exec implements vmsan.Service.
func (s *Service) Exec(ctx context.Context, ref string, command vmsan.Command) (vmsan.Exit, error) {
	if len(command.Args) == 0 || command.Args[0] == "" {
		return vmsan.Exit{}, api.Errorf(api.ErrUsage, "the command is empty")
	}
	vm, err := s.change(ref, mustRun)
	if err != nil {
		return vmsan.Exit{}, err
	}
	return s.exec(ctx, vm, command)
}

func mustRun(m *machine) error {
	if m.vm.Status != api.StatusRunning {
		return notRunning(m)
	}
	return nil
}

// Files implements vmsan.Service.
func (s *Service) Files(_ context.Context, ref string) (vmsan.Files, error) {
	var files *tree
	_, err := s.change(ref, func(m *machine) error {
		files = m.files
		return mustRun(m)
	})
	if err != nil {
		return nil, err
	}
	return files, nil
}

// Copy is not there: it would need the host's files.
func (s *Service) Copy(context.Context, string, string) (api.Copied, error) {
	return api.Copied{}, api.Errorf(api.ErrUnsupported, "sandboxes in memory cannot copy files; use Files")
}

// SetNetworkPolicy implements vmsan.Service. No flow is ever cut.
func (s *Service) SetNetworkPolicy(ctx context.Context, ref string, p api.NetworkPolicy, _ bool) (api.NetworkChange, error) {
	var change api.NetworkChange
	vm, err := s.change(ref, func(m *machine) error {
		if m.vm.NetworkPolicy == nil {
			return api.Errorf(api.ErrUnsupported, "VM %s was created without a network", m.vm.ID).WithVM(m.vm.ID)
		}
		p.Policy = policyName(p)
		change = api.NetworkChange{VM: m.vm.ID, Previous: *m.vm.NetworkPolicy, Current: p}
		m.vm.NetworkPolicy = &p
		return nil
	})
	if err == nil {
		s.after(ctx, api.HookEvent{
			Hook: api.HookNetworkPolicyChange, VM: vm.ID, State: &vm, PreviousPolicy: &change.Previous, NewPolicy: &change.Current,
		})
	}
	return change, err
}
