package e2e

import (
	"context"
	"crypto/sha256"
	"encoding/json"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"golang.org/x/sync/errgroup"
	"golang.org/x/sys/unix"

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

// pickedByItself is the driver that is picked once setup has booted it, and
// what becomes of a sandbox on it.
func pickedByItself(h *host, t *testing.T) {
	id := h.must("create", "--quiet")
	if vm := h.inspect(id); vm.Driver != "firecracker" || vm.Accelerator != "kvm" {
		t.Errorf("it is %s with %s", vm.Driver, vm.Accelerator)
	}
	h.must("pause", id)
	h.must("resume", id)
	if out := h.must("inspect", "--metrics", id); !strings.Contains(out, `"utc_timestamp_ms"`) {
		t.Errorf("there are no metrics in %.300s", out)
	}
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

// endsWithItsMonitor is a VMM whose jailer has shed the parent-death signal.
func endsWithItsMonitor(h *host, t *testing.T) {
	id := h.must("create", "--quiet")
	pids := h.inspect(id).PIDs
	vmm, err := unix.PidfdOpen(pids.VMM, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer unix.Close(vmm)
	if err := unix.Kill(pids.Monitor, unix.SIGKILL); err != nil {
		t.Fatal(err)
	}
	const most = 10 * time.Second
	ready, err := unix.Poll([]unix.PollFd{{Fd: int32(vmm), Events: unix.POLLIN}}, int(most.Milliseconds()))
	if err != nil || ready != 1 {
		t.Errorf("Firecracker outlives its monitor: %d, %v", ready, err)
	}
	h.must("remove", "--force", id)
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

// TestFirecrackerFindings is what becomes of sandboxes, and faults of the system
// that vmsan replaces, by their numbers. Those of the jail are tested in internal/vmm/firecracker, and
// what packets a policy lets pass, whatever the VMM, in internal/network.
func TestFirecrackerFindings(t *testing.T) {
	h := newFirecrackerHost(t)
	for _, f := range []struct {
		name string
		test func(*host, *testing.T)
	}{
		{"picked by itself", pickedByItself},
		{"ends with its monitor", endsWithItsMonitor},
		{"memory is taken and given back", memory},
		{"walls that are taken away are away", walls},
		{"7 a policy can be changed and changed back", findingPolicy},
		{"11 a slot is nobody else's", findingSlot},
		{"12 a snapshot can be restored without its source", findingSnapshot},
		{"20 the state is what is real", findingState},
	} {
		t.Run(f.name, func(t *testing.T) { f.test(h, t) })
		h.removeAll()
	}
}

// memory is asked for by its balloon, which a fork has too, and a boot does not.
func memory(h *host, t *testing.T) {
	id := h.must("create", "--quiet", "--memory", "256m")
	h.must("resize", id, "--memory", "128m")
	fork := h.must("fork", "--quiet", id)
	for _, c := range []struct {
		vm   string
		args []string
		left int
	}{
		{id, nil, 128}, {fork, nil, 128}, {id, []string{"resize", id, "--memory", "256m"}, 256}, {fork, []string{"restart", fork}, 0},
	} {
		if c.args != nil {
			h.must(c.args...)
		}
		if got := h.inspect(c.vm).MemoryLeftMiB; got != c.left {
			t.Errorf("after %v there are %d MiB left, want %d", c.args, got, c.left)
		}
	}
	if out, err := h.vmsan("resize", id, "--memory", "512m", "--json"); err == nil || !strings.Contains(out, string(api.ErrValidationMemory)) {
		t.Errorf("more than it was made with: %s, %v", out, err)
	}
}

// walls are what is around a VMM, without each in turn, and with the user's own
// filter, which a fork has too.
func walls(h *host, t *testing.T) {
	filter := filepath.Join(t.TempDir(), "filter")
	if err := os.WriteFile(filter, []byte(contract.Filter), 0o600); err != nil {
		t.Fatal(err)
	}
	all := api.Isolation{Boundary: "hardware", Seccomp: true, Cgroup: true, Namespaces: true, PIDNamespace: true}
	for flag, change := range map[string]func(*api.Isolation){
		"--cold":       func(*api.Isolation) {},
		"--no-seccomp": func(i *api.Isolation) { i.Seccomp = false },
		"--no-cgroup":  func(i *api.Isolation) { i.Cgroup = false },
		"--no-pid-ns":  func(i *api.Isolation) { i.PIDNamespace = false },
		"--seccomp-filter=" + filter: func(i *api.Isolation) {
			i.SeccompFilter = fmt.Sprintf("sha256:%x", sha256.Sum256([]byte(contract.Filter)))
		},
	} {
		id := h.must("create", "--quiet", flag)
		for _, vm := range []string{id, h.must("fork", "--quiet", id)} {
			got, want := *h.inspect(vm).Isolation, all
			want.UID = got.UID
			change(&want)
			if got != want || got.UID == 0 {
				t.Errorf("%s: it is %+v, want %+v", flag, got, want)
			}
		}
		h.must("restart", id)
	}
	nonsense := filter + ".nonsense"
	if err := os.WriteFile(nonsense, []byte("nonsense"), 0o600); err != nil {
		t.Fatal(err)
	}
	var failed struct{ Error api.Error }
	out, err := h.vmsan("create", "--json", "--cold", "--seccomp-filter", nonsense)
	if err == nil || json.Unmarshal([]byte(out), &failed) != nil || failed.Error.Code != api.ErrVMBoot ||
		!strings.Contains(strings.Join(failed.Error.Log, "\n"), "Filter deserialization failed") {
		t.Errorf("a filter that is none: %s, %v", out, err)
	}
	if out, err := h.vmsan("create", "--json", "--driver", "qemu", "--seccomp-filter", filter); err == nil || !strings.Contains(out, string(api.ErrUnsupported)) {
		t.Errorf("QEMU with a filter: %s, %v", out, err)
	}
	if out, err := h.vmsan("create", "--json", "--seccomp-filter", filter, "--no-seccomp"); err == nil || !strings.Contains(out, string(api.ErrValidationFlags)) {
		t.Errorf("with a filter and without: %s, %v", out, err)
	}
}

func findingPolicy(h *host, t *testing.T) {
	id := h.must("create", "--quiet")
	for _, policy := range []string{"deny-all", "allow-all", "deny-all", "allow-all"} {
		h.must("network", id, "--network-policy", policy)
		if got := h.inspect(id).NetworkPolicy; got == nil || got.Policy != policy {
			t.Errorf("the policy is %+v, want %s", got, policy)
		}
	}
}

func findingSlot(h *host, t *testing.T) {
	first := h.must("create", "--quiet")
	h.must("stop", first)
	second := h.must("create", "--quiet")
	h.must("start", first)
	third := h.must("create", "--quiet")
	if err := unix.Kill(h.inspect(first).PIDs.VMM, unix.SIGKILL); err != nil {
		t.Fatal(err)
	}
	h.must("remove", "--force", first)
	uids := map[uint32]bool{}
	for _, id := range []string{second, third} {
		vm := h.inspect(id)
		if vm.Status != api.StatusRunning {
			t.Errorf("%s is %s: %s", id, vm.Status, vm.Reason)
		}
		if _, err := net.InterfaceByName("vmsan" + strings.TrimPrefix(id, "vm")); err != nil {
			t.Errorf("the link of %s: %v", id, err)
		}
		uids[vm.Isolation.UID] = true
	}
	if len(uids) != 2 {
		t.Errorf("two sandboxes are the users %v", uids)
	}
}

const markFile = "/files?username=root&path=/dev/shm/mark"

// ask makes a request of the guest of a sandbox.
func (h *host) ask(id, method, path, body string) (answer string, err error) {
	client := http.Client{Transport: &http.Transport{
		DisableKeepAlives: true,
		DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
			var d net.Dialer
			return d.DialContext(ctx, "unix", h.layout.GuestSocket(id))
		},
	}}
	request, err := http.NewRequestWithContext(h.t.Context(), method, "http://guest"+path, strings.NewReader(body))
	if err != nil {
		return "", err
	}
	request.Header.Set("Content-Type", "application/octet-stream")
	response, err := client.Do(request)
	if err != nil {
		return "", err
	}
	defer response.Body.Close()
	text, err := io.ReadAll(io.LimitReader(response.Body, 1<<10))
	if err == nil && response.StatusCode/100 != 2 {
		err = fmt.Errorf("%s: %s", response.Status, text)
	}
	return string(text), err
}

func findingSnapshot(h *host, t *testing.T) {
	source := h.must("create", "--quiet")
	if _, err := h.ask(source, http.MethodPost, markFile, "kept"); err != nil {
		t.Fatal(err)
	}
	h.must("snapshot", "create", "--name", "kept", source)
	// It goes on, and so does the conversation with it.
	if _, err := h.ask(source, http.MethodPost, markFile, "later"); err != nil {
		t.Fatal(err)
	}
	h.must("remove", "--force", source)
	for range 2 {
		copied := h.must("create", "--quiet", "--snapshot", "kept")
		if got, err := h.ask(copied, http.MethodGet, markFile, ""); err != nil || got != "kept" {
			t.Errorf("the copy has %q, %v", got, err)
		}
	}
	h.must("snapshot", "remove", "kept")
}

func findingState(h *host, t *testing.T) {
	id := h.must("create", "--quiet")
	pids := h.inspect(id).PIDs
	if err := unix.Kill(pids.VMM, unix.SIGKILL); err != nil {
		t.Fatal(err)
	}
	h.must("wait", id)
	if vm := h.inspect(id); vm.Status != api.StatusStopped || !strings.Contains(vm.Reason, "Firecracker ended: signal: killed") {
		t.Errorf("it is %s: %s", vm.Status, vm.Reason)
	}
	h.must("start", id)
	if err := unix.Kill(h.inspect(id).PIDs.Monitor, unix.SIGKILL); err != nil {
		t.Fatal(err)
	}
	for h.inspect(id).Status == api.StatusRunning { // the kernel has not ended it yet
		time.Sleep(10 * time.Millisecond)
	}
	if vm := h.inspect(id); vm.Status != api.StatusStopped || vm.Reason != "its monitor died" {
		t.Errorf("it is %s: %s", vm.Status, vm.Reason)
	}
	h.must("start", id)
}
