package sandbox

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"slices"
	"strings"

	"github.com/vmsan/vmsan/api"
	"github.com/vmsan/vmsan/internal/cgroup"
	"github.com/vmsan/vmsan/internal/jail"
	"github.com/vmsan/vmsan/internal/monitor"
	"github.com/vmsan/vmsan/internal/network"
	"github.com/vmsan/vmsan/internal/store"
)

// Security finds out what holds a sandbox that runs: it asks the kernel about
// its processes, and not the record.
func (s *Service) Security(r *store.Record) (api.Security, error) {
	if !r.Running() || r.Host.VMM.PID == 0 || r.Host.Gate.PID == 0 {
		return api.Security{}, notRunning(r)
	}
	held, err := look(r)
	if err != nil {
		return held, fmt.Errorf("look at what holds %s: %w", r.ID, err)
	}
	held.Weaknesses = weaknesses(held, r.Spec.Networked())
	return held, nil
}

func look(r *store.Record) (held api.Security, err error) {
	groups := monitor.Cgroups(r.ID)
	held = api.Security{Boundary: "emulation", Firewall: []api.FirewallChain{}}
	vmm, err := lookAt(r.Host.VMM, groups[0], &held.VMM)
	if err != nil {
		return held, err
	}
	if vmm.KVM {
		held.Boundary = "hardware"
	}
	if _, err := lookAt(r.Host.Gate, groups[1], &held.Gate); err != nil {
		return held, err
	}
	if os.Geteuid() != 0 {
		return held, nil // nobody else makes firewalls, or may look at them
	}
	chains, err := network.Chains(r.Host.Gate.PID)
	for _, c := range chains {
		held.Firewall = append(held.Firewall, api.FirewallChain(c))
	}
	return held, err
}

// lookAt looks at a process, and makes sure that it is the one that is meant.
func lookAt(p store.Process, group string, to *api.Walls) (jail.Walls, error) {
	w, err := jail.Look(p.PID)
	if err != nil {
		return w, err
	}
	if store.ProcessOf(p.PID) != p {
		return w, fmt.Errorf("process %d has ended", p.PID)
	}
	*to = api.Walls{
		PID: p.PID, UID: w.UID, GID: w.GID, Groups: w.Groups, Capabilities: w.Capabilities, NoNewPrivileges: w.NoNewPrivileges,
		SeccompFilters: w.Filters, Namespaces: list(w.Namespaces), WritableMounts: list(w.Writable),
	}
	members, err := cgroup.Members(group)
	if errors.Is(err, fs.ErrNotExist) || err == nil && !slices.Contains(members, p.PID) {
		return w, nil
	}
	if err != nil {
		return w, err
	}
	limits, err := cgroup.Read(group)
	to.Limits = &api.Limits{CPUs: limits.CPUs, MemoryBytes: limits.Memory, PIDs: limits.PIDs}
	return w, err
}

// list is never null in JSON.
func list(words []string) []string { return append([]string{}, words...) }

func weaknesses(held api.Security, networked bool) []string {
	found := []string{}
	add := func(yes bool, format string, args ...any) {
		if yes {
			found = append(found, fmt.Sprintf(format, args...))
		}
	}
	add(held.Boundary != "hardware", "the machine is emulated, which QEMU's makers do not call a security boundary; --require-kvm refuses that")
	for _, p := range []struct {
		name string
		api.Walls
	}{{"the VMM", held.VMM}, {"the gate", held.Gate}} {
		add(p.UID == 0, "%s runs as root", p.name)
		add(p.UID == uint32(os.Geteuid()) && p.UID != 0, "%s is the user who runs vmsan, and may do what that one may", p.name)
		add(p.Groups > 0, "%s is in %d groups beside its own", p.name, p.Groups)
		add(p.Capabilities > 0, "%s has or could get %d capabilities", p.name, p.Capabilities)
		add(!p.NoNewPrivileges, "programs that %s starts could have more rights", p.name)
		add(p.SeccompFilters == 0, "%s may call all system calls", p.name)
		shared := slices.DeleteFunc([]string{"ipc", "mnt", "net", "pid", "uts"}, func(kind string) bool {
			return slices.Contains(p.Namespaces, kind)
		})
		add(len(shared) > 0, "%s shares the host's namespaces: %s", p.name, strings.Join(shared, ", "))
		add(len(p.WritableMounts) > 0, "%s sees file systems that are not read-only: %s", p.name, some(p.WritableMounts))
		add(p.Limits == nil, "%s has no limits on CPU, memory and processes", p.name)
		add(p.Limits != nil && (p.Limits.CPUs == 0 || p.Limits.MemoryBytes == 0 || p.Limits.PIDs == 0), "%s lacks a limit: %+v", p.name, p.Limits)
	}
	add(held.VMM.UID == held.Gate.UID, "VMM and gate are the same user")
	if networked {
		for _, hook := range []string{"forward", "input", "output"} {
			add(!slices.ContainsFunc(held.Firewall, func(c api.FirewallChain) bool { return c.Name == hook && c.Drops && c.Rules > 0 }),
				"the firewall's chain %s does not drop what no rule allows", hook)
		}
	}
	return found
}

// some are the first of many.
func some(words []string) string {
	const most = 5
	if len(words) <= most {
		return strings.Join(words, ", ")
	}
	return fmt.Sprintf("%s and %d more", strings.Join(words[:most], ", "), len(words)-most)
}
