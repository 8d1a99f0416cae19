package store

import (
	"crypto/sha256"
	"fmt"
	"os"
	"time"

	"github.com/vmsan/vmsan/api"
	"github.com/vmsan/vmsan/internal/policy"
)

// emulationWarning is said wherever a sandbox without KVM is shown.
const emulationWarning = "software emulation isolates by QEMU's code alone, which its makers do not call a security boundary; --require-kvm refuses to run this way"

// unprivilegedWarning is said of a sandbox that was started without root.
const unprivilegedWarning = "without root the VMM runs as this user, with its files and network in reach, behind the system call filter alone"

// StalledReason is the reason of a sandbox that stands still for the host's sake.
const StalledReason = "it stands still until the host's disk has room for what it writes"

// Show turns a record into what the user sees.
func (r *Record) Show() api.VM {
	vm := api.VM{
		ID: r.ID, Name: r.Name, Project: r.Project, Labels: r.Labels,
		Status: r.Status, Reason: r.Reason,
		CreatedAt: r.CreatedAt, StartedAt: timeOrNil(r.StartedAt), StoppedAt: timeOrNil(r.StoppedAt),
		Image: r.Spec.ImageName, ImageDigest: r.Spec.Image, Kernel: r.Spec.Kernel,
		Driver: r.Spec.Driver, Accelerator: r.Spec.Accelerator,
		VCPUs: r.Spec.VCPUs, MemoryMiB: r.Spec.MemoryMiB, MemoryLeftMiB: r.Spec.MemoryLeftMiB, DiskBytes: r.Spec.DiskBytes,
		Network: r.Spec.Network, Init: r.Spec.Init, User: r.Spec.User, Workdir: r.Spec.Workdir, Env: r.Spec.Env,
		Main: r.Spec.Main, Restart: r.Spec.Restart, Volumes: texts(r.Spec.Volumes),
		DiskBytesPerSecond: r.Spec.DiskRate, DiskIOPS: r.Spec.DiskIOPS,
		TimeoutMs: r.Spec.Timeout.Milliseconds(), IdleTimeoutMs: r.Spec.IdleTimeout.Milliseconds(), OnTimeout: r.Spec.OnTimeout,
		TimeoutAt: timeOrNil(r.TimeoutAt), TimeoutLeftMs: max(r.TimeoutLeft, 0).Milliseconds(),
		Trace: r.Trace,
	}
	if r.Stalled && r.Status == api.StatusRunning {
		vm.Reason = StalledReason
	}
	if r.Spec.Networked() {
		p := ShowPolicy(r.Spec.Policy)
		vm.NetworkPolicy, vm.Bandwidth = &p, r.Spec.Bandwidth.String()
		vm.Ports, vm.Resolvers = texts(r.Spec.Publications), texts(r.Spec.Resolvers)
	}
	if r.Host.Monitor.PID != 0 {
		vm.PIDs = &api.PIDs{Monitor: r.Host.Monitor.PID, VMM: r.Host.VMM.PID, Gate: r.Host.Gate.PID}
		vm.Isolation = isolation(r)
	}
	if r.Spec.Accelerator == "tcg" {
		vm.Warnings = append(vm.Warnings, emulationWarning)
	}
	if vm.Isolation != nil && !vm.Isolation.Namespaces {
		vm.Warnings = append(vm.Warnings, unprivilegedWarning)
	}
	return vm
}

// isolation is what shuts the VMM of a running sandbox in.
func isolation(r *Record) *api.Isolation {
	i := &api.Isolation{
		Boundary: "hardware", Seccomp: !r.Spec.NoSeccomp, Cgroup: len(r.Host.Cgroups) > 0,
		UID: r.Host.UID, Namespaces: r.Host.UID != 0, PIDNamespace: r.Host.UID != 0 && !r.Spec.NoPIDs,
	}
	if len(r.Spec.Filter) > 0 {
		i.SeccompFilter = fmt.Sprintf("sha256:%x", sha256.Sum256(r.Spec.Filter))
	}
	if r.Spec.Accelerator == "tcg" {
		i.Boundary = "emulation"
	}
	if i.UID == 0 {
		// Without root it runs as its owner, whose alone the record is.
		i.UID = uint32(os.Geteuid())
	}
	return i
}

func timeOrNil(t time.Time) *time.Time {
	if t.IsZero() {
		return nil
	}
	return &t
}

// ShowPolicy turns a policy into what the user sees.
func ShowPolicy(p policy.Policy) api.NetworkPolicy {
	return api.NetworkPolicy{
		Policy: string(p.Mode), AllowedDomains: texts(p.AllowedDomains),
		AllowedCIDRs: texts(p.AllowedCIDRs), DeniedCIDRs: texts(p.DeniedCIDRs),
	}
}

// texts are the items of a list as they are typed.
func texts[T interface{ String() string }](list []T) (all []string) {
	for _, item := range list {
		all = append(all, item.String())
	}
	return all
}
