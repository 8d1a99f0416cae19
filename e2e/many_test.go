package e2e

import (
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"golang.org/x/sync/errgroup"

	"github.com/vmsan/vmsan/api"
)

// loadVar asks for the tests that need gigabytes of memory and minutes.
const loadVar = "VMSAN_TEST_LOAD"

// TestCommandsAtOnce has many commands change and read the same sandboxes: N12,
// L3, E2.
func TestCommandsAtOnce(t *testing.T) {
	t.Parallel()
	h := newHost(t)
	const sandboxes, commands = 3, 30
	h.createAll(sandboxes)
	ids := strings.Fields(h.must("list", "--quiet"))

	var all errgroup.Group
	for i := range commands {
		all.Go(func() error { return h.listIs(sandboxes) })
		all.Go(func() error {
			_, err := h.vmsan("rename", ids[i%sandboxes], fmt.Sprintf("name%d", i))
			return err
		})
		all.Go(func() error {
			_, err := h.vmsan("exec", ids[i%sandboxes], "true")
			return err
		})
	}
	if err := all.Wait(); err != nil {
		t.Error(err)
	}
	for range commands {
		all.Go(func() error { return h.listIs(sandboxes) })
		all.Go(func() error {
			_, err := h.vmsan(append([]string{"stop", "--timeout", "1m"}, ids...)...)
			return err
		})
	}
	if err := all.Wait(); err != nil {
		t.Error(err)
	}
	h.removeAtOnce(ids, commands)
}

// removeAtOnce removes the same sandboxes many times. Who comes late finds
// none; nothing else may go wrong.
func (h *host) removeAtOnce(ids []string, times int) {
	h.t.Helper()
	var all errgroup.Group
	for i := range times {
		all.Go(func() error {
			out, err := h.vmsan("remove", "--json", ids[i%len(ids)])
			if err != nil && !strings.Contains(out, string(api.ErrVMNotFound)) {
				return err
			}
			return nil
		})
		all.Go(func() error {
			_, err := h.vmsan("list", "--json")
			return err
		})
	}
	if err := all.Wait(); err != nil {
		h.t.Error(err)
	}
	if err := h.listIs(0); err != nil {
		h.t.Error(err)
	}
}

// createAll creates n small sandboxes at a time.
func (h *host) createAll(n int) {
	h.t.Helper()
	var all errgroup.Group
	for range n {
		all.Go(func() error {
			_, err := h.vmsan("create", "--memory", "128", "--disk", "1g", "--boot-timeout", "10m")
			return err
		})
	}
	if err := all.Wait(); err != nil {
		h.t.Fatal(err)
	}
}

// listIs checks that list prints n sandboxes, each with an id of its own.
func (h *host) listIs(n int) error {
	out, err := h.vmsan("list", "--json")
	if err != nil {
		return err
	}
	var vms []api.VM
	if err := json.Unmarshal([]byte(out), &vms); err != nil {
		return err
	}
	ids := map[string]bool{}
	for _, vm := range vms {
		ids[vm.ID] = true
	}
	if len(ids) != n || len(vms) != n {
		return fmt.Errorf("list has %d sandboxes with %d ids, not %d: %s", len(vms), len(ids), n, out)
	}
	return nil
}

// TestTwentyAtOnce creates twenty sandboxes of 128 MiB at a time: all come up,
// answer, have users of their own, and leave nothing. N12.
func TestTwentyAtOnce(t *testing.T) {
	if os.Getenv(loadVar) == "" {
		t.Skipf("takes gigabytes and minutes: not asked for with %s=1", loadVar)
	}
	h := newHost(t)
	const sandboxes = 20
	h.createAll(sandboxes)
	if err := h.listIs(sandboxes); err != nil {
		t.Error(err)
	}
	users := map[uint32]bool{}
	var all errgroup.Group
	for _, id := range strings.Fields(h.must("list", "--quiet")) {
		all.Go(func() error {
			_, err := h.vmsan("exec", id, "true")
			return err
		})
		var vm api.VM
		if err := json.Unmarshal([]byte(h.must("inspect", id)), &vm); err != nil {
			t.Fatal(err)
		}
		users[vm.Isolation.UID] = true
	}
	if err := all.Wait(); err != nil {
		t.Error(err)
	}
	if len(users) != sandboxes {
		t.Errorf("%d sandboxes have %d users", sandboxes, len(users))
	}
	h.must(append([]string{"remove", "--force"}, strings.Fields(h.must("list", "--quiet"))...)...)
}

// TestCorruptRecord shows that a record nobody can read does not keep the other
// sandboxes from being listed and used, and can be removed.
func TestCorruptRecord(t *testing.T) {
	t.Parallel()
	h := newHost(t)
	good := h.must("create", "--memory", "128", "--name", "good")
	bad := "vm0badbadbad"
	if err := os.Mkdir(h.layout.Sandbox(bad), 0o700); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(h.layout.Sandbox(bad), "record.json"), []byte("{"), 0o600); err != nil {
		t.Fatal(err)
	}
	if got := h.must("list", "--quiet"); got != good {
		t.Errorf("list prints %q, not %q", got, good)
	}
	h.must("exec", "good", "true")
	out, err := h.vmsan("inspect", "--json", bad)
	if err == nil || !strings.Contains(out, string(api.ErrVMRecord)) {
		t.Errorf("inspect of a corrupt record: %v: %s", err, out)
	}
	if _, err := h.vmsan("remove", bad); err == nil {
		t.Error("a corrupt record was removed without --force")
	}
	h.must("remove", "--force", bad)
	h.must("remove", "--force", good)
}

// TestTwoHundred has 200 sandboxes up at once, most of them paused, all from one
// template. It prints what that costs.
func TestTwoHundred(t *testing.T) {
	if os.Getenv(loadVar) == "" {
		t.Skipf("takes minutes: not asked for with %s=1", loadVar)
	}
	h := newHost(t)
	h.env = []string{"VMSAN_TEMPLATES="}
	const count, awake, sample = 200, 10, 9
	args := []string{"create", "--memory", "96", "--name"}
	templates := len(h.templateIDs())
	h.must(append(args, "first")...) // has the template made
	h.must("rm", "-f", "first")
	h.awaitTemplates(templates + 1)
	var took []time.Duration
	for i := range count {
		began := time.Now()
		id := h.must(append(args, fmt.Sprintf("n%d", i))...)
		took = append(took, time.Since(began))
		if i >= awake {
			h.must("pause", id)
		}
	}
	began := time.Now()
	if err := h.listIs(count); err != nil {
		t.Error(err)
	}
	listed := time.Since(began)
	for _, i := range []int{0, awake - 1} {
		h.must("exec", "--no-stdin", fmt.Sprintf("n%d", i), "true")
	}
	h.must("resume", fmt.Sprintf("n%d", count-1))
	h.must("exec", "--no-stdin", fmt.Sprintf("n%d", count-1), "true")
	first, last := median(took[:sample]), median(took[count-sample:])
	t.Logf("create: the first %d took %s, the last %d %s, which is %.2f x; list %s", sample, first, sample, last,
		last.Seconds()/first.Seconds(), listed)
	began = time.Now()
	h.removeAll()
	t.Logf("all removed in %s", time.Since(began))
}

func median(times []time.Duration) time.Duration {
	sorted := slices.Sorted(slices.Values(times))
	return sorted[len(sorted)/2]
}
