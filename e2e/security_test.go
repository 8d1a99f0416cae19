package e2e

import (
	"encoding/json"
	"slices"
	"strings"
	"testing"

	"github.com/vmsan/vmsan/api"
)

// TestSecurity: what vmsan says holds a sandbox is what the kernel says, and
// walls that were taken away are missed.
func TestSecurity(t *testing.T) {
	t.Parallel()
	h := newHost(t)
	const emulated = "the machine is emulated"
	for _, c := range []struct {
		name   string
		flags  []string
		misses []string // beginnings of what is weak
	}{
		{"all", nil, nil},
		{"none", []string{"--no-seccomp", "--no-cgroup", "--no-pid-ns", "--network", "none"}, []string{
			"the VMM may call all system calls", "the VMM shares the host's namespaces: pid",
			"the VMM has no limits", "the gate has no limits",
		}},
	} {
		h.must(append([]string{"create", "--name", c.name}, c.flags...)...)
		var vm api.VM
		if err := json.Unmarshal([]byte(h.must("inspect", "--security", c.name)), &vm); err != nil {
			t.Fatal(err)
		}
		if vm.Security == nil {
			t.Fatal("nothing is said of what holds it")
		}
		weak := vm.Security.Weaknesses
		if vm.Security.Boundary == "emulation" {
			c.misses = append(c.misses, emulated)
		}
		if len(weak) != len(c.misses) {
			t.Errorf("%s: found weak: %q, want %q", c.name, weak, c.misses)
		}
		for _, miss := range c.misses {
			if !slices.ContainsFunc(weak, func(w string) bool { return strings.HasPrefix(w, miss) }) {
				t.Errorf("%s: %q is not found weak: %q", c.name, miss, weak)
			}
		}
		if chains := len(vm.Security.Firewall); (chains > 0) != (c.flags == nil) {
			t.Errorf("%s: its firewall has %d chains", c.name, chains)
		}
	}
	h.must("stop", "all")
	if e := h.refused("inspect", "--security", "all"); e.Code != api.ErrVMNotRunning {
		t.Errorf("of one that does not run: %+v", e)
	}
}
