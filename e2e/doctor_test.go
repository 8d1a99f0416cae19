package e2e

import (
	"context"
	"strings"
	"testing"

	"github.com/vmsan/vmsan/api"
)

// TestFirewallInTheWay has somebody's rules drop what is forwarded: create says
// so in a line, with the command against it, and so does doctor.
func TestFirewallInTheWay(t *testing.T) {
	h := newHost(t)
	create := func(flags ...string) string {
		t.Helper()
		cmd := h.command(context.Background(), append([]string{"create"}, flags...)...)
		var said strings.Builder
		cmd.Stderr = &said
		if err := cmd.Run(); err != nil {
			t.Fatalf("create %v: %v: %s", flags, err, said.String())
		}
		return said.String()
	}
	sh(t, "nft add table inet mine; nft 'add chain inet mine forwarded { type filter hook forward priority filter; policy drop; }'")
	const hint = "nft insert rule inet mine forwarded"
	if said := create("--name", "blocked"); strings.Count(said, hint) == 0 || strings.Count(said, "firewall") != 1 {
		t.Errorf("create says %q", said)
	}
	if said := create("--network-policy", "deny-all"); strings.Contains(said, hint) {
		t.Errorf("of a sandbox that reaches nothing anyway create says %q", said)
	}
	out, err := h.vmsan("doctor", "firewall")
	if err == nil || !strings.Contains(out, hint) {
		t.Errorf("doctor: %v: %s", err, out)
	}
	sh(t, "nft delete table inet mine")
	if said := create(); strings.Contains(said, "firewall") {
		t.Errorf("with nothing in the way create says %q", said)
	}
	h.must("doctor", "firewall")
	if vm := h.inspect("blocked"); vm.Status != api.StatusRunning {
		t.Errorf("the sandbox is %s", vm.Status)
	}
}
