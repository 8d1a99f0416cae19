package e2e

import (
	"strings"
	"testing"

	"golang.org/x/sync/errgroup"

	"github.com/vmsan/vmsan/api"
	"github.com/vmsan/vmsan/internal/vmm/firecracker/contract"
)

// newFirecrackerHost is a host on which setup found that Firecracker works:
// the contract's, whose guest is an agent without a kernel.
func newFirecrackerHost(t *testing.T) *host {
	t.Helper()
	contract.Install(t)
	h := newHost(t)
	h.must("setup")
	return h
}

// TestFirecrackerForty is L14: forty sandboxes are created, and nothing is left
// of them, as newHost checks.
func TestFirecrackerForty(t *testing.T) {
	h := newFirecrackerHost(t)
	const sandboxes, atOnce = 40, 8
	var all errgroup.Group
	all.SetLimit(atOnce)
	for range sandboxes {
		all.Go(func() error {
			_, err := h.vmsan("create", "--quiet", "--cold", "--driver", "firecracker")
			return err
		})
	}
	if err := all.Wait(); err != nil {
		t.Fatal(err)
	}
	ids := strings.Fields(h.must("list", "--quiet"))
	if len(ids) != sandboxes {
		t.Fatalf("there are %d sandboxes", len(ids))
	}
	for _, id := range ids {
		if vm := h.inspect(id); vm.Driver != "firecracker" || vm.Status != api.StatusRunning {
			t.Errorf("%s is %s, on %s", id, vm.Status, vm.Driver)
		}
	}
	h.must(append([]string{"remove", "--force"}, ids...)...)
	if err := h.listIs(0); err != nil {
		t.Error(err)
	}
}

// TestFirecrackerAuto is the driver that is picked once setup has booted it,
// and what becomes of a sandbox on it.
func TestFirecrackerAuto(t *testing.T) {
	h := newFirecrackerHost(t)
	id := h.must("create", "--quiet")
	if vm := h.inspect(id); vm.Driver != "firecracker" || vm.Accelerator != "kvm" {
		t.Errorf("it is %s with %s", vm.Driver, vm.Accelerator)
	}
	h.must("pause", id)
	h.must("resume", id)
	h.must("snapshot", "create", "--name", "first", id)
	copied := h.must("create", "--quiet", "--snapshot", "first")
	if vm := h.inspect(copied); vm.Driver != "firecracker" {
		t.Errorf("the copy is on %s", vm.Driver)
	}
	h.must("fork", id)
	h.must("pause", "--reclaim", id)
	h.must("resume", id)
	h.must("stop", id)
	h.must("start", id)
	if err := h.listIs(3); err != nil {
		t.Error(err)
	}
	h.must("snapshot", "remove", "first")
}

// TestFirecrackerUnproven is a host on which Firecracker was not found to work:
// it is not picked, and refused with the reason.
func TestFirecrackerUnproven(t *testing.T) {
	h := newHost(t)
	out, err := h.vmsan("create", "--json", "--driver", "firecracker")
	if err == nil || !strings.Contains(out, string(api.ErrSetupMissingBinary)) {
		t.Errorf("got %s, %v", out, err)
	}
}
